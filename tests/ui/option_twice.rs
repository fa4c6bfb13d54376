use kiln::prelude::*;

#[kernel(warps = 4, warps = 8)]
fn k(x: &View<f32, 1>) {}

fn main() {}
