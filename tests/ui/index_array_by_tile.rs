//! An array of tiles is indexed while staging.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let tiles: [Tile<f32, 8>; 2] = [x.load(0), x.load(8)];
    for i in 0..2 {
        out.store(tiles[i]);
    }
}

fn main() {}
