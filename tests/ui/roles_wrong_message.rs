//! What is sent is what the channel is for.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, y: &View<f16, 1>) {
    let (mut to, _from) = channel::<(Tile<f32, 8>, Tile<f16, 8>), 2>();
    let (_to, _from) = channel::<f32, 2>();
    roles([role(1, || {
        to.send((x.load(0), x.load(0)));
        let t: Tile<f16, 16> = y.load(0);
        to.send((x.load(0), t));
    })]);
}

fn main() {}
