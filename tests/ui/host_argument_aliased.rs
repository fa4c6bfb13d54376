//! In place is spelled `out.load()`: one tensor is not input and output.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    out.store(x.load(0));
}

fn host(x: &mut kiln::Tensor) -> kiln::Result<()> {
    k(x, x).run()
}

fn main() {}
