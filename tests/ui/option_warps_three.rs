use kiln::prelude::*;

#[kernel(warps = 3)]
fn k(x: &View<f32, 1>) {}

fn main() {}
