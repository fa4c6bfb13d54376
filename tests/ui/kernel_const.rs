use kiln::prelude::*;

#[kernel]
const fn k(x: &View<f32, 1>) {}

fn main() {}
