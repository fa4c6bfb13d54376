use kiln::prelude::*;

#[device]
fn square(x: Tile<f32, 8>) -> Tile<f32, 8> {
    x * x
}

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    out.store(square(x.load(0), 1));
}

fn main() {}
