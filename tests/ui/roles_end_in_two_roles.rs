//! An end of a channel belongs to one role.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let (mut to, mut from) = channel::<Tile<f32, 8>, 2>();
    roles([
        role(1, || to.send(x.load(0))),
        role(1, || to.send(x.load(8))),
        role(1, || {
            let slot = from.receive();
            out.store(*slot);
            slot.release();
        }),
    ]);
}

fn main() {}
