#![deny(unused_must_use)]
use kiln::prelude::*;

#[kernel(tune(N in [8, 16]))]
fn k<const N: usize>(_out: &mut Block<f32, N>) {}

fn main() {
    let mut out = kiln::Tensor::zeros(&[8], kiln::DType::F32, kiln::Device::Cpu).unwrap();
    k_tuned(&mut out);
}
