//! Every rung is right on the interpreter and on the CPU, at sizes that divide nothing.
//!
//! The files of the examples are modules here: what is tested is what `cargo run --example` runs, but for its `main`.

// Rung 11 takes its first kernel from rung 10.
#![allow(clippy::duplicate_mod)]

use kiln::{Device, lang::bf16};
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

#[test]
fn kda_in_bf16() {
    on_both(37, kda_two_kernels::run_in::<bf16>);
    on_both(37, kda_segments::run_in::<bf16>);
}
