use kiln::prelude::*;

#[derive(KernelArg)]
struct Gate<'a> {
    x: View<f32, 1>,
}

fn main() {}
