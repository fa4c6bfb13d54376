use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    for (i, j) in 0..8 {
        out.store(x.load(i + j));
    }
}

fn main() {}
