//! An i32 and an f32 do not compare.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let n = x.dim(0);
    if n < x.get(0) {
        out.store(zeros());
    }
}

fn main() {}
