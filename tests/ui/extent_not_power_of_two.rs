use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let t: Tile<f32, 48> = x.load(0);
    let u = zeros::<f32, D2<3, 8>>();
    out.store(t.reshape());
}

fn main() {}
