use kiln::prelude::*;

#[kernel(warps = 4, deny(spill, bank_conflicts))]
fn k(x: &View<f32, 1>) {}

fn main() {}
