use kiln::prelude::*;

struct S;
#[device]
impl S {
    fn f(x: Tile<f32>) {}
}

fn main() {}
