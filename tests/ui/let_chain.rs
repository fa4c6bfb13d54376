//! A compile-time `let` and a staged condition in one `if`.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let first = Some(x.get(0));
    if let Some(t) = first && x.dim(0) > 0 {
        out.store(t.splat());
    }
}

fn main() {}
