//! Kernels written in the language, run by the interpreter.

use kiln::prelude::*;
use kiln::{Device, Tensor};

#[kernel]
fn add<const B: usize>(x: &View<f32, 1>, y: &View<f32, 1>, scale: f32, out: &mut Block<f32, B>) {
    let at = out.origin(0);
    let x: Tile<f32, B> = x.load(at);
    let y: Tile<f32, B> = y.load(at);
    out.store(x + y * scale);
}

#[kernel]
fn softmax<const N: usize>(x: &View<f32, 2>, out: &mut Block<f32, 1, N>) {
    let row = x.select(0, program_id(0));
    let x: Tile<f32, N> = row.load_or(0, f32::NEG_INFINITY);
    let e = (x - x.amax::<0>()).exp();
    out.store((e / e.sum::<0>()).reshape());
}

#[device]
fn square<T: Number, S: Shape>(x: Tile<T, S>) -> Tile<T, S> {
    x * x
}

#[kernel]
fn count_squares(x: &View<i32, 1>, limit: i32, out: &mut Block<i32, 1>) {
    let mut sum: Tile<i32> = zeros();
    let mut i: Tile<i32> = zeros();
    for k in 0..x.dim(0) {
        let v = square(x.get(k));
        if v < limit && k != 1 {
            sum += v;
        } else {
            sum -= 1;
        }
    }
    while sum > 100 {
        sum /= 2;
        i += 1;
    }
    out.store((sum * 1000 + i).splat());
}

#[test]
fn vector_add() {
    let n = 37;
    let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let x = Tensor::from_slice(&x, &[n], Device::Interpret).unwrap();
    let mut out = Tensor::uninit(&[n], kiln::DType::F32, Device::Interpret).unwrap();
    add::<16>(&x, &x, 2.0, &mut out).run().unwrap();
    let got = out.to_vec::<f32>().unwrap();
    assert!(got.iter().enumerate().all(|(i, &v)| v == 3.0 * i as f32), "{got:?}");
}

#[test]
fn row_softmax() {
    let x = Tensor::from_slice(&[0.0f32, 1.0, 2.0, -1.0, 0.5, 3.0], &[2, 3], Device::Interpret).unwrap();
    let mut out = Tensor::uninit(&[2, 3], kiln::DType::F32, Device::Interpret).unwrap();
    softmax::<4>(&x, &mut out).run().unwrap();
    let got = out.to_vec::<f32>().unwrap();
    for row in got.chunks(3) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{got:?}");
    }
}

#[test]
fn control_flow_on_tiles() {
    let x = Tensor::from_slice(&[3i32, 4, 20, 9, 12], &[5], Device::Interpret).unwrap();
    let mut out = Tensor::uninit(&[1], kiln::DType::I32, Device::Interpret).unwrap();
    count_squares(&x, 200, &mut out).run().unwrap();
    // 9 - 1 (index 1) - 1 (400) + 81 + 144 = 232 → 116 → 58 in two halvings.
    assert_eq!(out.to_vec::<i32>().unwrap(), [58002]);
}

#[kernel]
fn outer_products<const N: usize>(x: &View<f32, 1>, out: &mut Block<f32, N, N>) {
    let x: Tile<f32, N> = x.load(0);
    let i = iota::<N>();
    let lower = x.row() * (x.col() - x.row());
    out.store(select(i.col() > i.row(), lower, x.col() * x.row()));
}

/// A column and a row make a matrix, in either order.
#[test]
fn columns_beside_rows() {
    let x = [2.0f32, 3.0, 5.0, 7.0];
    let input = Tensor::from_slice(&x, &[4], Device::Interpret).unwrap();
    let mut out = Tensor::uninit(&[4, 4], kiln::DType::F32, Device::Interpret).unwrap();
    outer_products::<4>(&input, &mut out).run().unwrap();
    let element = |i: usize, j: usize| if i > j { x[j] * (x[i] - x[j]) } else { x[i] * x[j] };
    let expected: Vec<f32> = (0..16).map(|n| element(n / 4, n % 4)).collect();
    assert_eq!(out.to_vec::<f32>().unwrap(), expected);
}

/// What a rounded product loses: x·x, by an exact product, less x·x rounded.
#[kernel]
fn lost<const N: usize>(x: &View<f32, 1>, out: &mut Block<f32, N>) {
    let x: Tile<f32, N> = x.load(out.origin(0));
    out.store(x.mul_add(x, -(x * x)));
}

#[test]
fn mul_add_rounds_once() {
    // (1 + 2^-13)² = 1 + 2^-12 + 2^-26, of which f32 has no room for the last.
    let small = 1.0 / 8192.0;
    for device in [Device::Interpret, Device::Cpu] {
        let x = Tensor::from_slice(&[1.0 + small, 3.0, 1.0 - small, 0.5], &[4], device).unwrap();
        let mut out = Tensor::uninit(&[4], kiln::DType::F32, device).unwrap();
        lost::<4>(&x, &mut out).run().unwrap();
        assert_eq!(out.to_vec::<f32>().unwrap(), [small * small, 0.0, small * small, 0.0]);
    }
}

#[kernel(deny(spill, wgmma_serialized, setmaxnreg_ignored, bank_conflict, uncoalesced, fallback, assembler))]
fn strict(out: &mut Block<f32, 1>) {
    out.store(zeros());
}

/// The macro knows every lint; what is denied stands in the kernel. On a device without findings it runs.
#[test]
fn denied_lints_are_options_of_the_kernel() {
    let mut out = Tensor::uninit(&[1], kiln::DType::F32, Device::Interpret).unwrap();
    let kernels = kiln::record(|| strict(&mut out).run()).unwrap();
    assert_eq!(kernels[0].options.deny.iter().collect::<Vec<_>>(), kiln::ir::Lint::ALL);
    strict(&mut out).run().unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), [0.0]);
}
