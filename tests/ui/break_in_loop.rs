//! `break` cannot leave a region.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    for i in 0..x.dim(0) {
        if x.get(i) > 0.0 {
            break;
        }
    }
}

fn main() {}
