//! Every rung is right on the interpreter and on the CPU, at sizes that divide nothing.
//!
//! The files of the examples are modules here: what is tested is what `cargo run --example` runs, but for its `main`.

// Rung 11 takes its first kernel from rung 10, rung 12 its measurement from rung 5.
#![allow(clippy::duplicate_mod)]

use kiln::{DType, Device, Tensor, lang::bf16};
use kiln_examples::{Rung, Setup};

macro_rules! rungs {
    ($($name:ident $file:literal [$($size:literal)*];)*) => {$(
        #[path = $file]
        #[allow(dead_code)]
        mod $name;
    )*
        mod is_right {
            $(#[test]
            fn $name() {
                $(super::on_both($size, super::$name::run);)*
            })*
        }
    };
}
rungs! {
    vector_add "../examples/01_vector_add.rs" [1 1023 5000];
    row_softmax "../examples/02_row_softmax.rs" [1 7 20];
    matmul_naive "../examples/03_matmul_naive.rs" [1 13];
    matmul_tiled "../examples/04_matmul_tiled.rs" [1 31 37];
    matmul_tensor_core "../examples/05_matmul_tensor_core.rs" [1 31 37];
    delta_rule_recurrent "../examples/06_delta_rule_recurrent.rs" [1 5 20];
    delta_rule_chunked "../examples/07_delta_rule_chunked.rs" [1 16 37];
    kda_recurrent "../examples/08_kda_recurrent.rs" [1 5 20];
    kda_chunked "../examples/09_kda_chunked.rs" [1 16 37];
    kda_two_kernels "../examples/10_kda_two_kernels.rs" [1 16 37];
    kda_segments "../examples/11_kda_segments.rs" [1 16 150];
    matmul_roles "../examples/12_matmul_roles.rs" [1 31 37];
    matmul_split "../examples/13_matmul_split.rs" [1 31 500];
}

fn on_both(size: usize, run: fn(Setup) -> anyhow::Result<Rung>) {
    for device in [Device::Interpret, Device::Cpu] {
        let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        // The error names the seed, as do the examples' own.
        run(Setup::new(device, size, seed)).unwrap_or_else(|e| panic!("size {size} on {device}: {e:#}"));
    }
}

/// What a GPU runs, where there is none.
#[test]
fn matmul_tensor_core_in_bf16() {
    on_both(37, matmul_tensor_core::run_in::<bf16>);
}

/// To the bit: roles are another way to say the same.
#[test]
fn matmul_in_roles_is_matmul() {
    for device in [Device::Interpret, Device::Cpu] {
        let numbers = |n: usize, seed: usize| (0..n).map(|i| (i * seed % 61) as f32 / 30.0 - 1.0).collect::<Vec<f32>>();
        let a = Tensor::from_f32(&numbers(70 * 90, 7), DType::BF16, &[70, 90], device).unwrap();
        let b = Tensor::from_f32(&numbers(90 * 33, 11), DType::BF16, &[90, 33], device).unwrap();
        let product = |launch: fn(&Tensor, &Tensor, &mut Tensor) -> kiln::Result<()>| {
            let mut c = Tensor::uninit(&[70, 33], DType::F32, device).unwrap();
            launch(&a, &b, &mut c).unwrap_or_else(|e| panic!("{e}"));
            c.to_vec_f32().unwrap()
        };
        assert_eq!(product(matmul_roles::launch::<bf16>), product(matmul_tensor_core::launch::<bf16>), "{device}");
    }
}

#[test]
fn kda_in_bf16() {
    on_both(37, kda_two_kernels::run_in::<bf16>);
    on_both(37, kda_segments::run_in::<bf16>);
}
