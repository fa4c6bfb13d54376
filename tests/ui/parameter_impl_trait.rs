use kiln::prelude::*;

#[kernel]
fn k(x: impl Float) {}

fn main() {}
