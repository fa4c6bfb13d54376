use kiln::prelude::*;

#[kernel]
fn k<'a>(x: &'a View<f32, 1>) {}

fn main() {}
