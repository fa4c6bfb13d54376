use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let t: Tile<f32, 2, 2, 2, 2, 2> = zeros();
}

fn main() {}
