//! One branch for eight answers.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let a: Tile<f32, 8> = x.load(0);
    if a > 0.0 {
        out.store(a);
    }
}

fn main() {}
