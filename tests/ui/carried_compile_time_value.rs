//! A number of the compiler does not count what happens on the device.

use kiln::prelude::*;

#[kernel]
fn k(x: &View<f32, 1>, out: &mut Block<f32, 8>) {
    let mut count = 0usize;
    for i in 0..x.dim(0) {
        count += 1;
    }
    out.store(x.load(count));
}

fn main() {}
