use kiln::prelude::*;

#[kernel(tune(BLOCK, T in [(64, 1)], N in [64], N in [32]))]
fn k<T: Float, const N: usize>(out: &mut Block<T, N>) {}

#[kernel(tune(N in [64]), tune(N in [32]))]
fn twice<const N: usize>(out: &mut Block<f32, N>) {}

fn main() {}
