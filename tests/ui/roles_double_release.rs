//! A slot is given back once, and nothing is read from it then.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let (mut to, mut from) = channel::<Tile<f32, 8>, 2>();
    roles([
        role(1, || to.send(x.load(0))),
        role(1, || {
            let slot = from.receive();
            slot.release();
            out.store(*slot);
            slot.release();
        }),
    ]);
}

fn main() {}
