use kiln::prelude::*;

#[device(warps = 4)]
fn f(x: Tile<f32>) {}

fn main() {}
