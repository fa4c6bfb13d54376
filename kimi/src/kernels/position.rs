//! How many tokens a sequence has, counted on the device: launches that were recorded once stay right as it grows.

use kiln::prelude::*;

/// position `[n]` += tokens. Program: element.
#[kernel(warps = 1)]
pub fn advance(tokens: i32, position: &mut Block<i32, 1>) {
    position.store(position.load() + tokens);
}
