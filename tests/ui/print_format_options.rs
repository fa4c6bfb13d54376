use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    print!("{:?}", x.dim(0));
}

fn main() {}
