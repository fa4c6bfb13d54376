//! A tile cannot leave a kernel by the front door.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>) -> Tile<f32> {
    x.get(0)
}

fn main() {}
