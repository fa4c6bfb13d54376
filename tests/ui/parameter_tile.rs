use kiln::prelude::*;

#[kernel]
fn k(x: Tile<f32, 8>) {}

fn main() {}
