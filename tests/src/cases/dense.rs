//! Embedding, norms, linear layers, SwiGLU.

use super::{LENGTHS, Trial, bound};
use crate::bench::kernels;
use kiln::{Element, Float, bf16, f8e4m3};
use kimi::kernels::linear::{linear_scaled_tuned, linear_tiles_tuned};
use kimi::model::ops::Activation;
use kimi::reference;

/// Widths: one block, less than one, odd, several.
const WIDTHS: [usize; 4] = [64, 24, 101, 300];

pub(super) fn embedding<T: Activation, W: Float>(trial: &mut Trial) -> anyhow::Result<()> {
    let vocabulary = 37;
    for width in WIDTHS {
        let table = trial.normal::<W>(&[vocabulary, width], 1.0)?;
        for n in LENGTHS {
            let mut ids: Vec<u32> = (0..n).map(|_| trial.numbers.below(vocabulary) as u32).collect();
            if n > 1 {
                (ids[0], ids[1]) = (0, vocabulary as u32 - 1);
            }
            let ops = trial.ops::<T, W>();
            let on_device = ops.integers(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>())?;
            let got = ops.embedding(&on_device, &table.tensor)?;
            let want = reference::embedding(&ids, &table.values, width);
            // Nothing is computed, and f32 holds every value of a narrower type.
            trial.compare(&format!("{n} tokens of width {width}"), &got, &want, width, 0.0)?;
        }
    }
    Ok(())
}

/// Rows of every size that a residual stream may have, zeros among them.
fn uneven_rows(trial: &mut Trial, n: usize, width: usize) -> Vec<f64> {
    let scales = [1.0, 1e-4, 1e4, 0.0];
    (0..n).flat_map(|row| trial.numbers.normals(width, scales[row % scales.len()])).collect()
}

/// Products of 8-bit floats with a scale per row of both operands.
pub(super) fn linear_scaled(trial: &mut Trial) -> anyhow::Result<()> {
    for (outputs, inputs) in [(130, 264), (16, 32), (300, 101)] {
        let weight = trial.normal::<f8e4m3>(&[outputs, inputs], 1.0)?;
        let weight_scale = trial.normal::<f32>(&[outputs], 1.0)?;
        for n in [0, 1, 17, 65] {
            let x = trial.normal::<f8e4m3>(&[n, inputs], 1.0)?;
            let x_scale = trial.normal::<f32>(&[n], 1.0)?;
            let got = trial.ops::<bf16, bf16>().linear_scaled::<bf16>(
                &x.tensor,
                &x_scale.tensor,
                &weight.tensor,
                &weight_scale.tensor,
            )?;
            let mut want = reference::linear(&x.values, &weight.values, inputs);
            for (row, scale) in want.chunks_mut(outputs).zip(&x_scale.values) {
                row.iter_mut().zip(&weight_scale.values).for_each(|(y, s)| *y *= s * scale);
            }
            trial.compare(&format!("{n} rows, {inputs} to {outputs}"), &got, &want, outputs, bound(bf16::DTYPE))?;
            // Every tile size among which it chooses.
            let mut y = trial.poisoned::<bf16>(&[n, outputs])?;
            let (x, w, x_scale, w_scale) = (&x.tensor, &weight.tensor, &x_scale.tensor, &weight_scale.tensor);
            let tiles = linear_scaled_tuned::<bf16, 16>(x, w, x_scale, w_scale, &mut y).candidates();
            for tile in tiles {
                y.fill(f64::NAN)?;
                let tuned = linear_scaled_tuned::<bf16, 16>(x, w, x_scale, w_scale, &mut y);
                tuned.only(tile).grid(|[.., p]| 3 * p).run()?;
                let what = format!("{n} rows, {inputs} to {outputs}, tiles {tile:?}");
                trial.compare(&what, &y, &want, outputs, bound(bf16::DTYPE))?;
            }
        }
    }
    Ok(())
}

pub(super) fn rms_norm<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for width in WIDTHS {
        let weight = trial.normal::<f32>(&[width], 1.0)?;
        for n in LENGTHS {
            let x = uneven_rows(trial, n, width);
            let x = trial.input::<f32>(&[n, width], x)?;
            let got = trial.ops::<T, f32>().rms_norm::<f32, T, f32>(&x.tensor, &weight.tensor, 1e-5)?;
            let want = reference::rms_norm(&x.values, &weight.values, 1e-5);
            trial.compare(&format!("{n} rows of {width}"), &got, &want, width, bound(T::DTYPE))?;
        }
    }
    Ok(())
}

pub(super) fn gated_rms_norm<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let heads = 3;
    for width in [64, 128] {
        let weight = trial.normal::<f32>(&[width], 1.0)?;
        for n in LENGTHS {
            let x = uneven_rows(trial, n * heads, width);
            let x = trial.input::<T>(&[n, heads, width], x)?;
            // Gates far into saturation on both sides.
            let gate = trial.normal::<T>(&[n, heads, width], if n % 2 == 0 { 1.0 } else { 40.0 })?;
            let got = trial.ops::<T, f32>().gated_rms_norm(&x.tensor, &gate.tensor, &weight.tensor, 1e-5)?;
            let want = reference::gated_rms_norm(&x.values, &gate.values, &weight.values, 1e-5);
            trial.compare(&format!("{n} tokens, heads of {width}"), &got, &want, width, bound(T::DTYPE))?;
        }
    }
    Ok(())
}

/// (inputs, outputs): multiples of blocks, and of nothing.
const MATRICES: [(usize, usize); 3] = [(64, 96), (70, 33), (264, 130)];

pub(super) fn linear<T: Activation, W: Float>(trial: &mut Trial) -> anyhow::Result<()> {
    for (inputs, outputs) in MATRICES {
        let weight = trial.normal::<W>(&[outputs, inputs], 1.0)?;
        for n in LENGTHS.into_iter().chain([2, 4, 5]) {
            let x = trial.normal::<T>(&[n, inputs], 1.0)?;
            let want = reference::linear(&x.values, &weight.values, inputs);
            let what = format!("{n} rows, {inputs} to {outputs}");
            let got = trial.ops::<T, W>().linear::<T>(&x.tensor, &weight.tensor)?;
            trial.compare(&what, &got, &want, outputs, bound(T::DTYPE))?;
            // Into f32, as logits are, nothing is rounded on the way.
            let got = trial.ops::<T, W>().linear::<f32>(&x.tensor, &weight.tensor)?;
            trial.compare(&format!("{what}, in f32"), &got, &want, outputs, bound(f32::DTYPE))?;
        }
        // Columns out of a wider matrix, whose rows do not follow each other.
        let wide = trial.normal::<T>(&[17, inputs + 11], 1.0)?;
        let x: Vec<f64> = wide.values.chunks(inputs + 11).flat_map(|row| &row[3..3 + inputs]).copied().collect();
        let got = trial.ops::<T, W>().linear::<T>(&wide.tensor.narrow(1, 3, inputs)?, &weight.tensor)?;
        let want = reference::linear(&x, &weight.values, inputs);
        trial.compare("columns of a wider matrix", &got, &want, outputs, bound(T::DTYPE))?;
    }
    Ok(())
}

/// Every tile size among which large linear layers choose, with more tiles than programs.
pub(super) fn linear_tiles(trial: &mut Trial) -> anyhow::Result<()> {
    for (rows, inputs, outputs) in [(150, 70, 300), (65, 264, 33)] {
        let weight = trial.normal::<bf16>(&[outputs, inputs], 1.0)?;
        let x = trial.normal::<bf16>(&[rows, inputs], 1.0)?;
        let want = reference::linear(&x.values, &weight.values, inputs);
        let mut y = trial.poisoned::<bf16>(&[rows, outputs])?;
        let (x, w) = (&x.tensor, &weight.tensor);
        let tiles = linear_tiles_tuned::<bf16, bf16, bf16, bf16, 64, 16, false>(x, w, &mut y).candidates();
        for tile in tiles {
            y.fill(f64::NAN)?;
            let tuned = linear_tiles_tuned::<bf16, bf16, bf16, bf16, 64, 16, false>(x, w, &mut y);
            tuned.only(tile).grid(|[.., p]| 3 * p).run()?;
            let what = format!("{rows} rows, {inputs} to {outputs}, tiles {tile:?}");
            trial.compare(&what, &y, &want, outputs, bound(bf16::DTYPE))?;
        }
    }
    Ok(())
}

/// A product in parts, added to the residual stream, which is normalised.
pub(super) fn add_rms_norm<T: Activation, W: Float>(trial: &mut Trial) -> anyhow::Result<()> {
    // The last is long enough to be cut into parts.
    for (inputs, outputs) in MATRICES.into_iter().chain([(1030, 70)]) {
        let weight = trial.normal::<W>(&[outputs, inputs], 1.0)?;
        let norm = trial.normal::<f32>(&[outputs], 1.0)?;
        for n in LENGTHS.into_iter().chain([2]) {
            let x = trial.normal::<T>(&[n, inputs], 1.0)?;
            let mut stream = trial.normal::<f32>(&[n, outputs], 1.0)?;
            let ops = trial.ops::<T, W>();
            let parts = ops.linear_parts(&x.tensor, &weight.tensor)?;
            let (mut again, norm_weight) = (stream.tensor.deep_clone()?, &norm.tensor);
            let got = ops.add_rms_norm::<f32, T, f32>(&mut stream.tensor, &parts, norm_weight, 1e-5)?;
            let both = ops.add_rms_norm_exact::<f32, T, f32>(&mut again, &parts, norm_weight, 1e-5)?;

            let sum = reference::add(&reference::linear(&x.values, &weight.values, inputs), &stream.values);
            let what = format!("{n} rows, {inputs} to {outputs}");
            // Products of narrow numbers are summed in f32 and stay there.
            trial.compare(&what, &stream.tensor, &sum, outputs, bound(f32::DTYPE))?;
            let want = reference::rms_norm(&sum, &norm.values, 1e-5);
            trial.compare(&format!("{what}, normalised"), &got, &want, outputs, bound(T::DTYPE))?;
            for (got, dtype) in [(both.0, T::DTYPE), (both.1, f32::DTYPE)] {
                trial.compare(&format!("{what}, normalised, and in f32"), &got, &want, outputs, bound(dtype))?;
            }
        }
    }
    Ok(())
}

/// The benchmark's softmax: rows that a program holds, and longer ones.
pub(super) fn softmax<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for columns in [1, 15, 64, 65, 300, 321, 600] {
        // Spread so wide that the largest score takes nearly all, and narrow.
        for (n, scale) in [(1, 1.0), (3, 30.0)] {
            let x = trial.normal::<T>(&[n, columns], scale)?;
            let want: Vec<f64> =
                x.values.chunks_exact(columns).flat_map(reference::log_softmax).map(f64::exp).collect();
            let mut out = trial.poisoned::<T>(&[n, columns])?;
            if columns <= 512 {
                kernels::softmax::<T, 2, 512, 1>(&x.tensor, &mut out).run()?;
                trial.compare(&format!("{n} rows of {columns}"), &out, &want, columns, bound(T::DTYPE))?;
            }
            out.fill(f64::NAN)?;
            kernels::softmax_long::<T, 5, 64, 8, 2, 2>(&x.tensor, &mut out).grid([2 * n]).run()?;
            trial.compare(&format!("{n} rows of {columns} by clusters of 2"), &out, &want, columns, bound(T::DTYPE))?;
            out.fill(f64::NAN)?;
            kernels::softmax_long::<T, 3, 64, 8, 2, 4>(&x.tensor, &mut out).grid([4 * n]).run()?;
            trial.compare(&format!("{n} rows of {columns} by clusters of 4"), &out, &want, columns, bound(T::DTYPE))?;
        }
    }
    Ok(())
}

pub(super) fn router_logits(trial: &mut Trial) -> anyhow::Result<()> {
    let (hidden, experts) = (264, 21);
    let weight = trial.normal::<f32>(&[experts, hidden], 0.1)?;
    for n in LENGTHS {
        let x = trial.normal::<f32>(&[n, hidden], 1.0)?;
        let got = trial.ops::<bf16, bf16>().router_logits(&x.tensor, &weight.tensor)?;
        let want = reference::linear(&x.values, &weight.values, hidden);
        trial.compare(&format!("{n} tokens"), &got, &want, experts, bound(f32::DTYPE))?;
    }
    Ok(())
}

/// Relative error of many numbers that are rounded to bf16 once: 1.6e-3, and some more. Numbers rounded before they are
/// multiplied are off by √3 of it.
const ROUNDED_ONCE: f64 = 2.1e-3;

/// One row, few, those of large tiles; an inner dimension long enough to be cut into parts.
pub(super) fn linear_swiglu<T: Activation, W: Float>(trial: &mut Trial) -> anyhow::Result<()> {
    for (inputs, width) in MATRICES.into_iter().chain([(1030, 70)]) {
        for n in LENGTHS.into_iter().chain([2]) {
            // silu of large negative numbers is nearly 0, of large positive ones the number. Then few results decide.
            let large = n % 2 == 1 && n < 63;
            let scale = if large { 30.0 } else { 1.0 } * (inputs as f64).powf(-0.5);
            let weight = trial.normal::<W>(&[2 * width, inputs], scale)?;
            let x = trial.normal::<T>(&[n, inputs], 1.0)?;
            let got = trial.ops::<T, W>().linear_swiglu(&x.tensor, &weight.tensor)?;
            let (gate, up) = weight.values.split_at(width * inputs);
            let of = |weight: &[f64]| reference::linear(&x.values, weight, inputs);
            let want = reference::swiglu(&of(gate), &of(up));
            let what = format!("{n} rows, {inputs} to {width}");
            trial.compare(&what, &got, &want, width, bound(T::DTYPE))?;
            if T::DTYPE.size() == 2 && !large && n >= 16 {
                trial.compare(&format!("{what}, all rows"), &got, &want, n * width, ROUNDED_ONCE)?;
            }
        }
    }
    Ok(())
}
