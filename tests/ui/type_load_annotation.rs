//! A load does not convert.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let a: Tile<bf16, 8> = x.load(0);
    out.store(a.cast());
}

fn main() {}
