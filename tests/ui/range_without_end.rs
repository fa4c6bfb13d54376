use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    for i in 0.. {
        out.store(x.load(i));
    }
}

fn main() {}
