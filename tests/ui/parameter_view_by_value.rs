use kiln::prelude::*;

#[kernel]
fn k(x: View<f32, 1>) {}

fn main() {}
