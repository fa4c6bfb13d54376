use kiln::prelude::*;

#[kernel(tune(N in [true]))]
fn k<const N: usize>(_out: &mut Block<f32, N>) {}

fn main() {
    let mut out = kiln::Tensor::zeros(&[8], kiln::DType::F32, kiln::Device::Cpu).unwrap();
    // The constant that is chosen is no argument.
    k_tuned::<8>(&mut out).run().unwrap();
}
