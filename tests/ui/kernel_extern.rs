use kiln::prelude::*;

#[kernel]
extern "C" fn k(x: &View<f32, 1>) {}

fn main() {}
