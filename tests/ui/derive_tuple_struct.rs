use kiln::prelude::*;

#[derive(KernelArg)]
struct Gate(View<f32, 1>);

fn main() {}
