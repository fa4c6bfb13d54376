use kiln::prelude::*;

#[kernel]
fn k(x: usize) {}

fn main() {}
