use kiln::prelude::*;

#[derive(KernelArg)]
struct Gate {
    x: &'static View<f32, 1>,
}

fn main() {}
