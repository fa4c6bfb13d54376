use kiln::prelude::*;

#[derive(KernelArg)]
enum Gate {
    On,
}

fn main() {}
