use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let a: Tile<f32, 16, 32> = zeros();
    let b: Tile<f32, 16, 16> = zeros();
    let c: Tile<f32, 16, 16> = dot(a, b, zeros());
    out.store(c.sum::<0>().slice([0]));
}

fn main() {}
