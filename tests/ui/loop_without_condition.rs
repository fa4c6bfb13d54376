//! A loop needs a condition that can be staged.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let mut i: Tile<i32> = zeros();
    loop {
        i += 1;
    }
}

fn main() {}
