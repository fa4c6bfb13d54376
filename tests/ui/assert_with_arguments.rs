use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    assert!(x.dim(0) > 0, "only {}", 3);
}

fn main() {}
