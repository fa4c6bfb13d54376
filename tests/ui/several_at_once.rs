//! All mistakes of one kernel are reported at once.

use kiln::prelude::*;

#[kernel]
fn k(x: &[f32], out: &mut Block<f32, 8>) -> f32 {
    loop {
        break;
    }
    let t: Tile<f32, 7> = zeros();
    for i in 0..=3 {
        continue;
    }
    out.store(vec![t]);
}

fn main() {}
