use kiln::prelude::*;

#[kernel]
fn k(x: Block<f32, 8>) {}

fn main() {}
