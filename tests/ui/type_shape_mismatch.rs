//! Tiles of different shapes do not add.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let a: Tile<f32, 8> = x.load(0);
    let b: Tile<f32, 16> = x.load(0);
    out.store(a + b);
}

fn main() {}
