use kiln::prelude::*;

#[derive(KernelArg)]
struct Gate {
    name: String,
}

fn main() {}
