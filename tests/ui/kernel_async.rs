use kiln::prelude::*;

#[kernel]
async fn k(x: &View<f32, 1>) {}

fn main() {}
