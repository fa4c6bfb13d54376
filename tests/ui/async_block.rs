//! Asynchronous copies are not written with `async`.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let copy = async { x.load(0) };
    out.store(copy.await);
}

fn main() {}
