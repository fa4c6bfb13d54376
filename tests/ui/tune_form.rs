use kiln::prelude::*;

#[kernel(tune(N = [64, 128]))]
fn assigned<const N: usize>(out: &mut Block<f32, N>) {}

#[kernel(tune = 4)]
fn value<const N: usize>(out: &mut Block<f32, N>) {}

#[kernel(tune())]
fn nothing<const N: usize>(out: &mut Block<f32, N>) {}

#[kernel(tune(N in 64, 128))]
fn bare<const N: usize>(out: &mut Block<f32, N>) {}

#[kernel(tune(N in [64, 128], if N < 100, 3))]
fn more<const N: usize>(out: &mut Block<f32, N>) {}

fn main() {}
