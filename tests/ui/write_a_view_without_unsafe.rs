//! Programs could race, so the author must promise that they do not.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, y: &mut View<f32, 1>) {
    let a: Tile<f32, 8> = x.load(0);
    y.store(0, a);
}

fn main() {}
