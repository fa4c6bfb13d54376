//! A launch that is not run does nothing.

#![deny(unused_must_use)]

use kiln::prelude::*;

#[kernel]
fn k(out: &mut Block<f32, 8>) {
    out.store(zeros());
}

fn host(out: &mut kiln::Tensor) {
    k(out);
}

fn main() {}
