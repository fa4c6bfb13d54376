use kiln::prelude::*;

#[kernel(tune(M, N in [(64, 128), (64, 128, 32), 64], P in []))]
fn k<const M: usize, const N: usize, const P: usize>(out: &mut Block<f32, M, N>) {}

fn main() {}
