use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    for i in unroll(0, 4) {
        out.store(x.load(i));
    }
}

fn main() {}
