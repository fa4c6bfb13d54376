use kiln::prelude::*;

#[kernel]
unsafe fn k(x: &mut View<f32, 1>) {}

fn main() {}
