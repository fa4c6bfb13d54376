//! `let else` leaves the function.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let Some(t) = Some(x.get(0)) else {
        return;
    };
    out.store(t.splat());
}

fn main() {}
