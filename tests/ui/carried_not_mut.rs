//! What changes is `mut`, as everywhere in Rust.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let sum: Tile<f32, 8> = zeros();
    for i in 0..x.dim(0) {
        let t: Tile<f32, 8> = x.load(i);
        sum += t;
    }
    out.store(sum);
}

fn main() {}
