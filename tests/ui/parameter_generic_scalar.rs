//! Not every element type can be a number that the host passes: say so in the bound.

use kiln::prelude::*;

#[kernel]
fn k<T: Float>(x: T) {}

fn main() {}
