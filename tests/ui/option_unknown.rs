use kiln::prelude::*;

#[kernel(num_warps = 4)]
fn k(x: &View<f32, 1>) {}

fn main() {}
