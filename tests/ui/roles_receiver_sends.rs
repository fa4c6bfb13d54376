//! Only the sender's end of a channel sends.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let (to, mut from) = channel::<Tile<f32, 8>, 2>();
    roles([
        role(1, || from.send(x.load(0))),
        role(1, || {
            let slot = to.receive();
            out.store(*slot);
            slot.release();
        }),
    ]);
}

fn main() {}
