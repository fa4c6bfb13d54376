use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let tiles = vec![x.get(0); 4];
    out.store(tiles[0].splat());
}

fn main() {}
