//! `return` cannot leave a region.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    if x.dim(0) == 0 {
        return;
    }
    out.store(x.load(0));
}

fn main() {}
