//! The memory's bandwidth, linear layers, RMSNorm, softmax.

use super::{Case, Least, Work, kernels, poisoned, random, random_narrow};
use crate::cases::{bound, values};
use kiln::{Device, Element, Tensor, bf16};
use kimi::kernels::linear::linear;
use kimi::kernels::norm;
use kimi::model::ops::Ops;
use kimi::reference::{self, relative_error};
use std::cell::RefCell;
use std::rc::Rc;

/// Projections of Kimi-Linear-48B-A3B: (outputs, inputs).
const LINEAR: [(usize, usize); 4] = [(12288, 2304), (2304, 4096), (18432, 2304), (163840, 2304)];

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![Case::new("copy/2GiB".into(), copy)];
    for n in [4096, 8192] {
        all.push(gemm(n, n, n));
    }
    for m in [1, 8, 64, 512, 4096, 8192] {
        for (n, k) in LINEAR {
            if n < 163840 || m <= 64 {
                all.push(gemm(m, n, k));
            }
        }
    }
    all.push(gemm_level1(8192, 8192, 8192));
    all.extend([(8192, 8192, 8192), (4096, 12288, 2304), (8192, 18432, 2304)].map(gemm_e4m3));
    all.extend([8, 8192, 32768].map(rms_norm));
    all.extend([(4096, 1024), (4096, 8192), (512, 163840)].map(|(rows, columns)| softmax(rows, columns)));
    all
}

fn copy(device: Device) -> anyhow::Result<Work> {
    let n = 1usize << 29;
    let x = Tensor::full(&[n], i32::DTYPE, 0x1234_5678 as f64, device)?;
    let out = Rc::new(RefCell::new(Tensor::zeros(&[n], i32::DTYPE, device)?));
    let result = out.clone();
    Ok(Work {
        least: Least { flops: 0.0, bytes: 8.0 * n as f64 },
        run: Box::new(move || Ok(kernels::copy::<4096>(&x, &mut out.borrow_mut()).run()?)),
        check: Box::new(move || {
            let out = result.borrow();
            let mut wrong = 0;
            for start in [0, n / 2 + 4095, n - 4096] {
                wrong += out.narrow(0, start, 4096)?.to_vec::<i32>()?.iter().filter(|x| **x != 0x1234_5678).count();
            }
            Ok((wrong as f64, 0.0))
        }),
        eager: false,
    })
}

/// A few of `n`, the first and the last among them.
fn some(n: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..7).map(|i| (n - 1) * i / 6).collect();
    all.dedup();
    all
}

fn gemm(m: usize, n: usize, k: usize) -> Case {
    product("gemm", [m, n, k], |x, w| Ok(Ops::<bf16, bf16>::new(x.device()).linear::<bf16>(x, w)?))
}

/// By [`linear`], a loop around a product: no roles, no tiles that follow each other in a program, no clusters.
fn gemm_level1(m: usize, n: usize, k: usize) -> Case {
    product("gemm_level1", [m, n, k], |x, w| {
        let mut y = Tensor::uninit(&[x.shape()[0], w.shape()[0]], bf16::DTYPE, x.device())?;
        level1(x, w, &mut y)?;
        Ok(y)
    })
}

/// What [`gemm_level1`] launches.
///
/// # Errors
/// If it cannot be launched.
pub fn level1(x: &Tensor, w: &Tensor, y: &mut Tensor) -> kiln::Result<()> {
    linear::<bf16, bf16, bf16, bf16, 128, 256, 64, false>(x, w, y).run()
}

/// y `[m, n]` = x `[m, k]` · w `[n, k]`ᵀ in bf16.
fn product(group: &str, [m, n, k]: [usize; 3], launch: fn(&Tensor, &Tensor) -> anyhow::Result<Tensor>) -> Case {
    Case::of_a_step(format!("{group}/bf16_m{m}_n{n}_k{k}"), move |device, activations| {
        let x = activations.get(1, || random::<bf16>(device, &[m, k], 1.0, 1))?;
        let w = random::<bf16>(device, &[n, k], 1.0, 2)?;
        let result = Rc::new(RefCell::new(None));
        let (kept, inputs) = (result.clone(), (x.clone(), w.clone()));
        let (mf, nf, kf) = (m as f64, n as f64, k as f64);
        Ok(Work {
            least: Least { flops: 2.0 * mf * nf * kf, bytes: 2.0 * (mf * kf + nf * kf + mf * nf) },
            run: Box::new(move || {
                let y = launch(&x, &w)?;
                kept.borrow_mut().get_or_insert(y);
                Ok(())
            }),
            check: Box::new(move || {
                let (x, w) = inputs;
                let y = result.borrow_mut().take().ok_or_else(|| anyhow::anyhow!("no result"))?;
                let (mut got, mut want) = (vec![], vec![]);
                let columns = some(n);
                let rows_of_w =
                    columns.iter().map(|j| Ok(values(&w.select(0, *j)?)?)).collect::<anyhow::Result<Vec<_>>>()?;
                for i in some(m) {
                    let (row, result) = (values(&x.select(0, i)?)?, values(&y.select(0, i)?)?);
                    for (j, w) in columns.iter().zip(&rows_of_w) {
                        got.push(result[*j]);
                        want.push(row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>());
                    }
                }
                Ok((relative_error(&got, &want), bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}

/// 8-bit floats with a scale for each row of both operands.
fn gemm_e4m3((m, n, k): (usize, usize, usize)) -> Case {
    Case::new(format!("gemm/e4m3_m{m}_n{n}_k{k}"), move |device| {
        let (x, w) = (random_narrow(device, [m, k], 1)?, random_narrow(device, [n, k], 2)?);
        let (x_scale, w_scale) = (random::<f32>(device, &[m], 1.0, 3)?, random::<f32>(device, &[n], 1.0, 4)?);
        let result = Rc::new(RefCell::new(None));
        let (kept, inputs) = (result.clone(), (x.clone(), w.clone(), x_scale.clone(), w_scale.clone()));
        let (mf, nf, kf) = (m as f64, n as f64, k as f64);
        Ok(Work {
            least: Least { flops: 2.0 * mf * nf * kf, bytes: mf * kf + nf * kf + 2.0 * mf * nf },
            run: Box::new(move || {
                let y = Ops::<bf16, bf16>::new(device).linear_scaled::<bf16>(&x, &x_scale, &w, &w_scale)?;
                kept.borrow_mut().get_or_insert(y);
                Ok(())
            }),
            check: Box::new(move || {
                let (x, w, x_scale, w_scale) = inputs;
                let y = result.borrow_mut().take().ok_or_else(|| anyhow::anyhow!("no result"))?;
                let (x_scale, w_scale) = (values(&x_scale)?, values(&w_scale)?);
                let (mut got, mut want) = (vec![], vec![]);
                let rows_of_w = some(n).iter().map(|j| values(&w.select(0, *j)?)).collect::<Result<Vec<_>, _>>()?;
                for i in some(m) {
                    let (row, result) = (values(&x.select(0, i)?)?, values(&y.select(0, i)?)?);
                    for (j, w) in some(n).into_iter().zip(&rows_of_w) {
                        got.push(result[j]);
                        want.push(row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() * x_scale[i] * w_scale[j]);
                    }
                }
                Ok((relative_error(&got, &want), bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}

fn rms_norm(tokens: usize) -> Case {
    const WIDTH: usize = 2304;
    Case::new(format!("rms_norm/bf16_t{tokens}_d{WIDTH}"), move |device| {
        let x = random::<bf16>(device, &[tokens, WIDTH], 1.0, 1)?;
        let w = random::<bf16>(device, &[WIDTH], 1.0, 2)?;
        let out = Rc::new(RefCell::new(poisoned::<bf16>(device, &[tokens, WIDTH])?));
        let (result, inputs) = (out.clone(), (x.clone(), w.clone()));
        Ok(Work {
            least: Least { flops: 0.0, bytes: 4.0 * (tokens * WIDTH) as f64 },
            run: Box::new(move || {
                let out = &mut out.borrow_mut();
                Ok(norm::rms_norm::<bf16, bf16, bf16, 9, 256>(&x, &w, 1e-5, out).grid([tokens]).run()?)
            }),
            check: Box::new(move || {
                let (x, w) = inputs;
                let w = values(&w)?;
                let mut error = 0f64;
                for i in some(tokens) {
                    let want = reference::rms_norm(&values(&x.select(0, i)?)?, &w, 1e-5);
                    error = error.max(relative_error(&values(&result.borrow().select(0, i)?)?, &want));
                }
                Ok((error, bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}

fn softmax(rows: usize, columns: usize) -> Case {
    Case::new(format!("softmax/bf16_r{rows}_c{columns}"), move |device| {
        let x = random::<bf16>(device, &[rows, columns], 1.0, 1)?;
        let out = Rc::new(RefCell::new(poisoned::<bf16>(device, &[rows, columns])?));
        let (result, input) = (out.clone(), x.clone());
        Ok(Work {
            least: Least { flops: 0.0, bytes: 4.0 * (rows * columns) as f64 },
            run: Box::new(move || {
                let mut out = out.borrow_mut();
                match columns {
                    ..=1024 => kernels::softmax::<bf16, 2, 1024, 1>(&x, &mut out).run()?,
                    1025..=8192 => {
                        kernels::softmax_long::<bf16, 8, 1024, 128, 4, 1>(&x, &mut out).grid([rows]).run()?
                    }
                    _ => kernels::softmax_long::<bf16, 10, 2048, 256, 8, 8>(&x, &mut out).grid([8 * rows]).run()?,
                }
                Ok(())
            }),
            check: Box::new(move || {
                let mut error = 0f64;
                for i in some(rows) {
                    let row = values(&input.select(0, i)?)?;
                    let want: Vec<f64> = reference::log_softmax(&row).iter().map(|x| x.exp()).collect();
                    error = error.max(relative_error(&values(&result.borrow().select(0, i)?)?, &want));
                }
                Ok((error, bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}
