//! A matrix is not loaded from a vector.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let a: Tile<f32, 4, 8> = x.load((0, 0));
    out.store(a.sum::<0>());
}

fn main() {}
