//! `?` would leave the kernel.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let t = Some(x.get(0))?;
    out.store(t.splat());
}

fn main() {}
