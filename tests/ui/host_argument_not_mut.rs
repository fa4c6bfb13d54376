//! The host lends an output mutably.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    out.store(x.load(0));
}

fn host(x: &kiln::Tensor, out: &kiln::Tensor) -> kiln::Result<()> {
    k(x, out).run()
}

fn main() {}
