use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let mut a: Tile<f32, 8> = zeros();
    for i in 0..x.dim(0) {
        a = x.load(i).cast::<bf16>();
    }
    out.store(a);
}

fn main() {}
