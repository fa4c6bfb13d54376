//! `as` is Rust's own; tiles have `.cast()`.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let n = x.dim(0) as f32;
    out.store(n.splat());
}

fn main() {}
