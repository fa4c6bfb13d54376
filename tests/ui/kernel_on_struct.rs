use kiln::prelude::*;

#[kernel]
struct K;

fn main() {}
