//! `while let` has no staged condition.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let tiles = [x.get(0), x.get(1)];
    let mut it = tiles.iter();
    while let Some(t) = it.next() {
        out.store(t.splat());
    }
}

fn main() {}
