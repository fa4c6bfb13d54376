//! What came in by `&` is not written.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let a: Tile<f32, 8> = x.load(0);
    x.store(0, a);
    out.store(a);
}

fn main() {}
