//! No implicit conversions.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, y: &View<bf16, 1>, out: &mut Block<f32, 8>) {
    let a: Tile<bf16, 8> = y.load(0);
    let b: Tile<f32, 8> = x.load(0);
    out.store(b + a);
}

fn main() {}
