use kiln::prelude::*;

#[kernel]
fn k((a, b): (f32, f32)) {}

fn main() {}
