use kiln::prelude::*;

#[kernel]
fn k(x: &mut Gate) {}

fn main() {}
