use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    debug_assert!(x.dim(0) > 8);
}

fn main() {}
