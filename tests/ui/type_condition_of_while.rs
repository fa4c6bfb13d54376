use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let mut a: Tile<f32, 8> = x.load(0);
    while a > 0.0 {
        a -= 1.0;
    }
    out.store(a);
}

fn main() {}
