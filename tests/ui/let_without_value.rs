//! A region takes the old value of what it changes, so there must be one.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let t: Tile<f32, 8>;
    if x.dim(0) > 0 {
        t = x.load(0);
    } else {
        t = zeros();
    }
    out.store(t);
}

fn main() {}
