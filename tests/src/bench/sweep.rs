//! The memory-bound kernels, and those of the delta rule, in each tile size, number of warps and number of splits: what
//! the choices in `kimi::model::ops` rest on.
//!
//! A [`Sweep`] is one piece of work and all ways to do it. Each way's result is compared with the f64 reference before
//! it is timed.

use super::{attention, kernels, poisoned, random};
use crate::cases::{Numbers, bound, values};
use kiln::{Bench, DType, Device, Element, Tensor, bf16, f16};
use kimi::kernels::{attention as mla, experts, kda, linear, norm, short_conv};
use kimi::reference::{self, KdaShape, relative_error};
use std::cell::RefCell;
use std::rc::Rc;

/// One piece of work in several ways.
pub struct Sweep {
    pub name: String,
    /// Bytes that must move.
    pub bytes: f64,
    pub ways: Ways,
    /// Computes the reference and gives the comparison.
    check: Box<dyn FnOnce() -> anyhow::Result<Compare>>,
}

/// Launches that all write the same result from the same inputs.
pub struct Ways {
    inputs: Rc<[Tensor]>,
    result: Rc<RefCell<Tensor>>,
    pub list: Vec<(String, Box<dyn Fn() -> kiln::Result<()>>)>,
}

impl Ways {
    fn new<T: Element>(device: Device, inputs: &[&Tensor], result: &[usize]) -> anyhow::Result<Ways> {
        let result = Rc::new(RefCell::new(poisoned::<T>(device, result)?));
        Ok(Ways { inputs: inputs.iter().map(|&t| t.clone()).collect(), result, list: vec![] })
    }

    fn add(&mut self, name: impl Into<String>, launch: impl Fn(&[Tensor], &mut Tensor) -> kiln::Result<()> + 'static) {
        let (inputs, result) = (self.inputs.clone(), self.result.clone());
        self.list.push((name.into(), Box::new(move || launch(&inputs, &mut result.borrow_mut()))));
    }
}

/// The relative error of a result.
type Compare = Box<dyn Fn(&Tensor) -> anyhow::Result<f64>>;

/// Works by name, not yet prepared, and the bytes of their tensors.
pub struct Work {
    pub name: String,
    pub bytes: usize,
    pub prepare: Box<dyn Fn(Device) -> anyhow::Result<Sweep>>,
}

/// Every piece of work.
pub fn all() -> Vec<Work> {
    let mut all = vec![];
    let mut add = |name: String, bytes: usize, prepare: Box<dyn Fn(Device) -> anyhow::Result<Sweep>>| {
        all.push(Work { name, bytes, prepare });
    };
    for (rows, columns) in [(4096, 1024), (4096, 8192), (512, 163840)] {
        add(
            format!("softmax/r{rows}_c{columns}"),
            4 * rows * columns,
            Box::new(move |device| softmax(device, rows, columns)),
        );
    }
    for tokens in [8, 8192, 32768] {
        add(format!("rms_norm/t{tokens}"), 4 * tokens * HIDDEN, Box::new(move |device| rms_norm(device, tokens)));
    }
    for tokens in [1024, 8192] {
        add(
            format!("short_conv/t{tokens}"),
            4 * tokens * CHANNELS,
            Box::new(move |device| convolution(device, tokens)),
        );
    }
    for tokens in [1024, 8192] {
        add(
            format!("kda_prefill/t{tokens}"),
            10 * tokens * CHANNELS / 3,
            Box::new(move |device| delta(device, tokens)),
        );
    }
    for (sequences, context) in [(1, 4096), (1, 131072), (16, 4096), (16, 32768), (128, 4096)] {
        add(
            format!("mla_decode/b{sequences}_ctx{context}"),
            2 * sequences * context * (LATENT + ROPE),
            Box::new(move |device| decode(device, sequences, context)),
        );
    }
    for m in [1, 8, 64] {
        for (n, k) in [(12288, 2304), (2304, 4096), (18432, 2304), (163840, 2304)] {
            add(format!("gemm/m{m}_n{n}_k{k}"), 2 * n * k, Box::new(move |device| gemm(device, m, n, k)));
        }
    }
    for tokens in [1, 16, 64] {
        for (n, k, what) in [(WIDTH, HIDDEN, "gate_up"), (HIDDEN, WIDTH, "down")] {
            let matrices = if what == "down" { 2 } else { 4 };
            add(
                format!("experts/t{tokens}_{what}"),
                matrices * EXPERTS * n * k,
                Box::new(move |device| if what == "down" { down(device, tokens) } else { gate_up(device, tokens) }),
            );
        }
    }
    all
}

const HIDDEN: usize = 2304;
const CHANNELS: usize = 12288;
const LATENT: usize = 512;
const ROPE: usize = 64;
const HEADS: usize = 32;
const EXPERTS: usize = 256;
/// Rows of a tile of sorted assignments.
const HEIGHT: usize = 64;
const CHOSEN: usize = 8;
const WIDTH: usize = 1024;

/// Runs the works whose name contains the filter, and prints a line for each way; whether all were right.
///
/// # Errors
/// If inputs cannot be made or the device fails.
pub fn run(device: Device, filter: Option<&str>, samples: usize) -> anyhow::Result<bool> {
    let mut good = true;
    for work in all().into_iter().filter(|w| filter.is_none_or(|f| w.name.contains(f))) {
        let Sweep { name, bytes, ways, check } = (work.prepare)(device)?;
        let compare = check()?;
        for (way, run) in ways.list {
            ways.result.borrow_mut().fill(f64::NAN)?;
            if let Err(error) = run().and_then(|()| device.synchronize()) {
                println!("{name:26} {way:30} FAILED: {error}");
                good = false;
                continue;
            }
            let error = compare(&ways.result.borrow())?;
            if error.is_nan() || error > bound(DType::BF16) {
                println!("{name:26} {way:30} WRONG: off by {error:.1e}");
                good = false;
                continue;
            }
            let us = Bench::new(device).samples(samples).run(&run)?.median().as_secs_f64() * 1e6;
            println!("{name:26} {way:30} {us:9.1} us {:7.0} GB/s", bytes / us / 1e3);
        }
    }
    Ok(good)
}

/// The first, the last and some rows between.
fn some(n: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..5).map(|i| (n - 1) * i / 4).collect();
    all.dedup();
    all
}

/// Compares rows of a result with rows of the reference: (row, values).
fn by_rows(want: Vec<(usize, Vec<f64>)>) -> Compare {
    Box::new(move |result| {
        let mut worst = 0f64;
        for (row, want) in &want {
            worst = worst.max(relative_error(&values(&result.select(0, *row)?)?, want));
        }
        Ok(worst)
    })
}

fn softmax(device: Device, rows: usize, columns: usize) -> anyhow::Result<Sweep> {
    let x = random::<bf16>(device, &[rows, columns], 1.0, 1)?;
    let mut ways = Ways::new::<bf16>(device, &[&x], &[rows, columns])?;
    macro_rules! whole {
        ($($r:literal x $n:literal by $p:literal)*) => {{$(
            ways.add(concat!($r, " rows, ", $p, " warps"), |i, out| {
                kernels::softmax::<bf16, $r, $n, $p>(&i[0], out).run()
            });
        )*}};
    }
    macro_rules! long {
        ($($c:literal of $kept:literal x $b:literal by $p:literal)*) => {{$({
            ways.add(concat!("clusters of ", $c, ", ", $kept, " x ", $b, ", ", $p, " warps"), move |i, out| {
                kernels::softmax_long::<bf16, $kept, $b, { $b / 8 }, $p, $c>(&i[0], out).grid([$c * rows]).run()
            });
        })*}};
    }
    match columns {
        ..=1024 => {
            whole!(1 x 1024 by 1 2 x 1024 by 1 4 x 1024 by 1 2 x 1024 by 2 4 x 1024 by 4 8 x 1024 by 4 8 x 1024 by 8)
        }
        1025..=8192 => {
            whole!(1 x 8192 by 4 1 x 8192 by 8 1 x 8192 by 16);
            long!(1 of 16 x 512 by 2 1 of 8 x 1024 by 4 1 of 4 x 2048 by 8 2 of 4 x 1024 by 4)
        }
        _ => long!(
            4 of 10 x 4096 by 16 8 of 5 x 4096 by 16 4 of 20 x 2048 by 8 8 of 10 x 2048 by 8 8 of 20 x 1024 by 4
        ),
    }
    let check = Box::new(move || {
        let mut want = vec![];
        for i in some(rows) {
            let row = values(&x.select(0, i)?)?;
            want.push((i, reference::log_softmax(&row).iter().map(|x| x.exp()).collect()));
        }
        Ok(by_rows(want))
    });
    Ok(Sweep { name: format!("softmax/r{rows}_c{columns}"), bytes: 4.0 * (rows * columns) as f64, ways, check })
}

fn rms_norm(device: Device, tokens: usize) -> anyhow::Result<Sweep> {
    let x = random::<bf16>(device, &[tokens, HIDDEN], 1.0, 1)?;
    let w = random::<bf16>(device, &[HIDDEN], 1.0, 2)?;
    let mut ways = Ways::new::<bf16>(device, &[&x, &w], &[tokens, HIDDEN])?;
    ways.add("9 x 256", move |i, out| {
        norm::rms_norm::<bf16, bf16, bf16, 9, 256>(&i[0], &i[1], 1e-5, out).grid([tokens]).run()
    });
    ways.add("5 x 512", move |i, out| {
        norm::rms_norm::<bf16, bf16, bf16, 5, 512>(&i[0], &i[1], 1e-5, out).grid([tokens]).run()
    });
    let check = Box::new(move || {
        let w = values(&w)?;
        let row = |i| -> anyhow::Result<_> { Ok((i, reference::rms_norm(&values(&x.select(0, i)?)?, &w, 1e-5))) };
        Ok(by_rows(some(tokens).into_iter().map(row).collect::<anyhow::Result<_>>()?))
    });
    Ok(Sweep { name: format!("rms_norm/t{tokens}"), bytes: 4.0 * (tokens * HIDDEN) as f64, ways, check })
}

fn convolution(device: Device, tokens: usize) -> anyhow::Result<Sweep> {
    let x = random::<bf16>(device, &[tokens, CHANNELS], 1.0, 1)?;
    let weight = random::<f32>(device, &[4, CHANNELS], 1.0, 2)?;
    let state = Tensor::zeros(&[1, 3, CHANNELS], bf16::DTYPE, device)?;
    let zeros = Tensor::zeros(&[tokens], i32::DTYPE, device)?;
    let rows = Tensor::from_slice(&[0, tokens as i32, 0, -1], &[1, 4], device)?;
    let mut ways = Ways::new::<bf16>(device, &[&x, &weight, &state, &zeros, &rows], &[tokens, CHANNELS])?;
    macro_rules! tiles {
        ($($n:literal in $m:literal x $b:literal by $p:literal)*) => {{$(
            ways.add(concat!($n, " in ", $m, " x ", $b, ", ", $p, " warps"), move |i, out| {
                let state = &mut i[2].clone();
                short_conv::short_conv::<bf16, f32, 4, $n, $m, $b, $p>(&i[0], &i[1], state, &i[3], &i[4], out)
                    .grid((tokens.div_ceil($n) + 1) * (CHANNELS / $b))
                    .run()
            });
        )*}};
    }
    tiles!(
        16 in 4 x 256 by 1 32 in 4 x 256 by 1 64 in 4 x 256 by 1 128 in 4 x 256 by 1 16 in 8 x 256 by 1
        32 in 8 x 256 by 1 64 in 8 x 256 by 1 128 in 8 x 256 by 1 32 in 8 x 512 by 2 32 in 8 x 1024 by 4
    );
    let check = Box::new(move || {
        let weight = values(&weight.transpose(0, 1)?.contiguous()?)?;
        let mut want = vec![];
        for i in some(tokens) {
            let first = i.saturating_sub(3);
            let rows = values(&x.narrow(0, first, i + 1 - first)?)?;
            let y = reference::short_convolution(&rows, &weight, CHANNELS, &mut vec![0.0; CHANNELS * 3]);
            want.push((i, y[(i - first) * CHANNELS..].to_vec()));
        }
        Ok(by_rows(want))
    });
    Ok(Sweep { name: format!("short_conv/t{tokens}"), bytes: 4.0 * (tokens * CHANNELS) as f64, ways, check })
}

fn decode(device: Device, sequences: usize, context: usize) -> anyhow::Result<Sweep> {
    let absorbed = random::<bf16>(device, &[sequences, HEADS, LATENT], 1.0, 1)?;
    let q = random::<bf16>(device, &[sequences, HEADS, 192], 1.0, 2)?;
    let latent = random::<bf16>(device, &[sequences, context, LATENT], 1.0, 3)?;
    let shared = random::<bf16>(device, &[sequences, context, ROPE], 1.0, 4)?;
    let at = Tensor::from_slice(&vec![context as i32 - 1; sequences], &[sequences], device)?;
    let inputs = [&absorbed, &q, &latent, &shared, &at];
    let mut ways = Ways::new::<f32>(device, &inputs, &[sequences, HEADS, LATENT])?;
    let scale = 192f32.powf(-0.5);
    macro_rules! tiles {
        ($splits:expr, $s:literal: $($h:literal heads $b:literal keys once $once:literal)*) => {{$({
            let splits: usize = $splits;
            let partial = shared_tensor::<f32>(device, &[sequences, splits, HEADS, LATENT])?;
            let highest = shared_tensor::<f32>(device, &[sequences, splits, HEADS])?;
            let total = shared_tensor::<f32>(device, &[sequences, splits, HEADS])?;
            let name = format!("{splits} splits {} heads {} keys, once: {}", $h, $b, $once);
            ways.add(name, move |i, out| {
                let (partial, highest) = (&mut *partial.borrow_mut(), &mut *highest.borrow_mut());
                let total = &mut *total.borrow_mut();
                const PART: [usize; 2] = mla::part_of_tile($h, LATENT, $s);
                mla::mla_decode::<bf16, LATENT, 64, $h, $b, $s, { PART[0] }, { PART[1] }, $once>(
                    &i[0], &i[1], &i[2], &i[3], &i[4], scale, partial, highest, total, out,
                )
                .grid([HEADS / $h, splits, sequences])
                .run()
            });
        })*}};
    }
    match (sequences, context) {
        (1, 4096) => {
            tiles!(32, 32: 32 heads 64 keys once false);
            tiles!(64, 64: 32 heads 64 keys once false 16 heads 64 keys once false 16 heads 64 keys once true);
        }
        (1, _) => {
            tiles!(64, 64: 16 heads 64 keys once false 16 heads 64 keys once true);
            tiles!(66, 128: 32 heads 64 keys once false);
            tiles!(128, 128: 32 heads 64 keys once false);
        }
        (16, _) => {
            tiles!(4, 4: 16 heads 64 keys once false 16 heads 64 keys once true);
            tiles!(8, 8: 32 heads 64 keys once false 32 heads 64 keys once true);
        }
        _ => tiles!(1, 1: 32 heads 64 keys once false 16 heads 64 keys once false),
    }
    let check = Box::new(move || {
        let mut want = vec![];
        for (s, head) in [(0, 0), (sequences - 1, HEADS - 1)] {
            let y = attention::attend_latents(
                &values(&absorbed.select(0, s)?.select(0, head)?)?,
                &values(&q.select(0, s)?.select(0, head)?.narrow(0, 128, ROPE)?)?,
                &values(&latent.select(0, s)?)?,
                &values(&shared.select(0, s)?)?,
            );
            want.push((s, head, y));
        }
        let compare: Compare = Box::new(move |result| {
            let mut worst = 0f64;
            for (s, head, want) in &want {
                let got = values(&result.select(0, *s)?.select(0, *head)?)?;
                worst = worst.max(relative_error(&got, want));
            }
            Ok(worst)
        });
        Ok(compare)
    });
    let bytes = 2.0 * (sequences * context * (LATENT + ROPE)) as f64;
    Ok(Sweep { name: format!("mla_decode/b{sequences}_ctx{context}"), bytes, ways, check })
}

/// The delta rule of one sequence in chunks, from a state of zeros; `tokens` is a multiple of 32.
fn delta(device: Device, tokens: usize) -> anyhow::Result<Sweep> {
    const WIDTH: usize = 128;
    let (channels, chunks) = (HEADS * WIDTH, tokens / 32);
    let qkv = random::<bf16>(device, &[tokens, 3 * channels], 1.0, 1)?;
    let decay = random::<bf16>(device, &[tokens, channels], 1.0, 2)?;
    let beta = random::<bf16>(device, &[tokens, HEADS], 1.0, 3)?;
    let a_log: Vec<f32> = (0..HEADS).map(|h| (1.0 + h as f32 / 2.0).ln()).collect();
    let a_log = Tensor::from_slice(&a_log, &[HEADS], device)?;
    let dt_bias = random::<f32>(device, &[channels], 1.0, 4)?;
    const GROUP: i32 = kda::GROUP as i32;
    let of_chunks: Vec<i32> =
        (0..chunks as i32).flat_map(|chunk| [32 * chunk, tokens as i32, -1, chunk / GROUP * GROUP]).collect();
    let of_chunks = Tensor::from_slice(&of_chunks, &[chunks, 4], device)?;
    let sequence = Tensor::from_slice(&[0, 0, tokens as i32, 0], &[1, 4], device)?;
    let inputs = [&qkv, &decay, &beta, &a_log, &dt_bias, &of_chunks, &sequence];
    let mut ways = Ways::new::<bf16>(device, &inputs, &[tokens, HEADS, WIDTH])?;
    let kq_in = shared_tensor::<bf16>(device, &[HEADS, 2 * tokens, WIDTH])?;
    let k_out = shared_tensor::<bf16>(device, &[HEADS, tokens, WIDTH])?;
    let p = shared_tensor::<bf16>(device, &[HEADS, tokens, 32])?;
    let keep = shared_tensor::<f32>(device, &[HEADS, chunks, WIDTH])?;
    let state = shared_tensor::<f32>(device, &[HEADS, WIDTH / kda::STATE_COLUMNS, WIDTH, kda::STATE_COLUMNS])?;
    let started = Rc::new(RefCell::new(Tensor::zeros(&[1], i32::DTYPE, device)?));
    let ready = Rc::new(RefCell::new(Tensor::zeros(&[HEADS, chunks], i32::DTYPE, device)?));
    macro_rules! instances {
        ($($h:literal parts, $n:literal warps, $w:literal channels, $v:literal columns, $ahead:literal ahead, beside: $beside:literal;)*) => {{$({
            let kept = [&kq_in, &k_out, &p, &keep, &ready, &started, &state].map(Rc::clone);
            let name = concat!($n, " warps, ", $v, " columns, ", $ahead, " ahead, beside: ", $beside);
            ways.add(name, move |i, out| {
                let tensors = kept.each_ref().map(|tensor| tensor.borrow().clone());
                let [kq_in, k_out, p, keep, mut ready, mut started, mut state] = tensors.clone();
                // The state of a sequence's beginning.
                kernels::random::<f32, 1024>(0, 0.0, &mut state.reshape(&[HEADS * WIDTH * WIDTH])?).run()?;
                let prepare = || {
                    let [mut kq_in, mut k_out, mut p, mut keep, mut ready, mut started, _] =
                        tensors;
                    if $beside {
                        kda::kda_gate(&mut started, HEADS as i32).grid([1]).run()?;
                    }
                    kda::kda_chunk::<bf16, f16, WIDTH, 32, 16, $h, $n, $w, 32, false, $beside>(
                        &i[0], &i[1], &i[2], &i[3], &i[4], 0.0, &i[5], &mut kq_in, &mut k_out, &mut p, &mut keep,
                        &mut ready,
                    )
                    .grid([HEADS, 1, chunks])
                    .run()
                };
                let mut walk = || {
                    kda::kda_state::<bf16, WIDTH, 32, 64, $v, { $v / kda::STATE_COLUMNS }, $ahead, $beside, false>(
                        &i[0], &kq_in, &k_out, &p, &keep, &mut ready, &mut started, &i[6], &i[5],
                        &mut state, out,
                    )
                    .grid([WIDTH / $v, HEADS, 1])
                    .run()
                };
                if $beside {
                    return device.beside(prepare, walk);
                }
                prepare()?;
                walk()
            });
        })*}};
    }
    instances! {
        1 parts, 2 warps, 32 channels, 64 columns, 5 ahead, beside: false;
        2 parts, 4 warps, 64 channels, 64 columns, 5 ahead, beside: false;
        1 parts, 2 warps, 32 channels, 128 columns, 6 ahead, beside: true;
        2 parts, 4 warps, 64 channels, 128 columns, 6 ahead, beside: true;
    }
    let check = Box::new(move || {
        // The beginning, which what comes later cannot change.
        const SEEN: usize = 100;
        let rows = values(&qkv.narrow(0, 0, SEEN)?)?;
        let third = |i: usize| -> Vec<f64> {
            rows.chunks_exact(3 * channels).flat_map(|row| &row[i * channels..][..channels]).copied().collect()
        };
        let q = reference::l2_norm(&third(0), WIDTH, 1e-6, (WIDTH as f64).powf(-0.5));
        let k = reference::l2_norm(&third(1), WIDTH, 1e-6, 1.0);
        let g = reference::kda_gate(&values(&decay.narrow(0, 0, SEEN)?)?, &values(&a_log)?, &values(&dt_bias)?);
        let beta: Vec<f64> = values(&beta.narrow(0, 0, SEEN)?)?.into_iter().map(reference::sigmoid).collect();
        let shape = KdaShape { key_heads: HEADS, heads: HEADS, key: WIDTH, value: WIDTH };
        let mut state = vec![0.0; HEADS * WIDTH * WIDTH];
        let want = reference::kda_recurrence(shape, &q, &k, &third(2), &g, &beta, &mut state);
        let compare: Compare = Box::new(move |result| Ok(relative_error(&values(&result.narrow(0, 0, SEEN)?)?, &want)));
        Ok(compare)
    });
    // As of the benchmark: q, k, v, the gate's input and the output.
    Ok(Sweep { name: format!("kda_prefill/t{tokens}"), bytes: (10 * tokens * channels) as f64, ways, check })
}

fn shared_tensor<T: Element>(device: Device, shape: &[usize]) -> anyhow::Result<Rc<RefCell<Tensor>>> {
    Ok(Rc::new(RefCell::new(poisoned::<T>(device, shape)?)))
}

fn gemm(device: Device, m: usize, n: usize, k: usize) -> anyhow::Result<Sweep> {
    let x = random::<bf16>(device, &[m, k], 1.0, 1)?;
    let w = random::<bf16>(device, &[n, k], 1.0, 2)?;
    let mut ways = Ways::new::<bf16>(device, &[&x, &w], &[m, n])?;
    macro_rules! rows {
        ($($n:literal x $c:literal)*) => {{$(
            ways.add(concat!($n, " rows, ", $c, " x 256"), |i, out| {
                linear::linear_row::<bf16, bf16, bf16, $n, $c, 256, 1, false, true>(&i[0], &i[1], out).run()
            });
        )*}};
    }
    macro_rules! tiles {
        ($($m:literal x $n:literal x $k:literal)*) => {{$(
            ways.add(concat!($m, "x", $n, "x", $k), |i, out| {
                linear::linear::<bf16, bf16, bf16, bf16, $m, $n, $k, true>(&i[0], &i[1], out).run()
            });
        )*}};
    }
    macro_rules! parts {
        ($parts:literal: $($m:literal x $n:literal x $k:literal)*) => {{$(
            let partial = shared_tensor::<f32>(device, &[$parts, m, n])?;
            ways.add(concat!($m, "x", $n, "x", $k, ", ", $parts, " parts"), move |i, out| {
                let partial = &mut *partial.borrow_mut();
                linear::linear_part::<bf16, bf16, $m, $n, $k>(&i[0], &i[1], partial).run()?;
                linear::sum_parts::<bf16, $parts, 128>(partial, out).run()
            });
        )*}};
    }
    match m {
        1 => {
            rows!(1 x 3 2 x 3 1 x 9 2 x 9 1 x 4 2 x 4 1 x 8 1 x 16);
        }
        8 => {
            tiles!(16 x 32 x 64 16 x 32 x 128 16 x 64 x 64 16 x 64 x 128);
            parts!(2: 16 x 32 x 64 16 x 64 x 64);
            parts!(4: 16 x 32 x 128 16 x 64 x 64);
            parts!(8: 16 x 32 x 64 16 x 64 x 64);
        }
        _ => {
            tiles!(64 x 32 x 128 64 x 64 x 64 64 x 64 x 128 64 x 128 x 64);
            parts!(2: 64 x 64 x 64 64 x 128 x 64);
            parts!(4: 64 x 64 x 64 64 x 128 x 64);
            parts!(8: 64 x 64 x 64);
        }
    }
    let check = Box::new(move || {
        let columns = n.min(256);
        let weights = values(&w.narrow(0, n - columns, columns)?)?;
        let mut want = vec![];
        for i in some(m) {
            want.push((i, reference::linear(&values(&x.select(0, i)?)?, &weights, k)));
        }
        let compare: Compare = Box::new(move |result| {
            let mut worst = 0f64;
            for (row, want) in &want {
                let got = values(&result.select(0, *row)?.narrow(0, n - want.len(), want.len())?)?;
                worst = worst.max(relative_error(&got, want));
            }
            Ok(worst)
        });
        Ok(compare)
    });
    Ok(Sweep { name: format!("gemm/m{m}_n{n}_k{k}"), bytes: 2.0 * (n * k + m * k + m * n) as f64, ways, check })
}

/// Choices of `tokens`, their assignments in order of expert, and how many experts are hit.
struct Grouped {
    /// By place: the assignment.
    order: Vec<usize>,
    /// By assignment: the expert.
    experts: Vec<i32>,
    tiles: Tensor,
    hit: usize,
}

fn grouped(device: Device, tokens: usize) -> anyhow::Result<Grouped> {
    let mut numbers = Numbers::new(1);
    let experts: Vec<i32> =
        (0..tokens).flat_map(|_| numbers.distinct(CHOSEN, EXPERTS)).map(|expert| expert as i32).collect();
    let mut order: Vec<usize> = (0..experts.len()).collect();
    order.sort_by_key(|&a| experts[a]);
    let (mut tiles, mut hit, mut row) = (vec![], 0, 0);
    for e in 0..EXPERTS as i32 {
        let end = row + experts.iter().filter(|&&x| x == e).count();
        hit += usize::from(row < end);
        tiles.extend((row..end).step_by(HEIGHT).flat_map(|first| [e, first as i32, end as i32]));
        row = end;
    }
    let tiles = Tensor::from_slice(&tiles, &[tiles.len() / 3, 3], device)?;
    Ok(Grouped { order, experts, tiles, hit })
}

fn gate_up(device: Device, tokens: usize) -> anyhow::Result<Sweep> {
    let g = grouped(device, tokens)?;
    let rows = tokens * CHOSEN;
    let few = tokens == 1;
    let x = random::<bf16>(device, &[if few { tokens } else { rows }, HIDDEN], 1.0, 1)?;
    let gate = random::<bf16>(device, &[EXPERTS, WIDTH, HIDDEN], 0.02, 2)?;
    let up = random::<bf16>(device, &[EXPERTS, WIDTH, HIDDEN], 0.02, 3)?;
    let chosen = Tensor::from_slice(&g.experts, &[rows], device)?;
    let mut ways = Ways::new::<bf16>(device, &[&x, &gate, &up, &chosen, &g.tiles], &[rows, WIDTH])?;
    macro_rules! tiles {
        ($($n:literal x $k:literal)*) => {{$(
            ways.add(concat!("64x", $n, "x", $k), |i, out| {
                let tiles = i[4].shape()[0];
                experts::experts_gate_up::<bf16, bf16, HEIGHT, $n, $k>(&i[0], &i[1], &i[2], &i[4], out)
                    .grid((WIDTH / $n * tiles).min(2 * 132))
                    .run()
            });
        )*}};
    }
    macro_rules! rows {
        ($($n:literal x $c:literal)*) => {{$(
            ways.add(concat!($n, " rows, ", $c, " x 256"), |i, out| {
                experts::experts_gate_up_row::<bf16, bf16, $n, $c, 256>(&i[0], &i[1], &i[2], &i[3], 8, out).run()
            });
        )*}};
    }
    if few {
        rows!(1 x 3 1 x 4 1 x 5 1 x 9 2 x 3);
    } else {
        tiles!(32 x 64 32 x 128 64 x 64 64 x 128 128 x 64);
    }
    let check = Box::new(move || {
        let mut want = vec![];
        for place in some(rows) {
            let assignment = if few { place } else { g.order[place] };
            let expert = g.experts[assignment] as usize;
            let x = values(&x.select(0, if few { 0 } else { place })?)?;
            let gated = reference::linear(&x, &values(&gate.select(0, expert)?)?, HIDDEN);
            let upped = reference::linear(&x, &values(&up.select(0, expert)?)?, HIDDEN);
            want.push((place, gated.iter().zip(&upped).map(|(g, u)| g * reference::sigmoid(*g) * u).collect()));
        }
        Ok(by_rows(want))
    });
    let bytes = 4.0 * (g.hit * WIDTH * HIDDEN) as f64;
    Ok(Sweep { name: format!("experts/t{tokens}_gate_up"), bytes, ways, check })
}

fn down(device: Device, tokens: usize) -> anyhow::Result<Sweep> {
    let g = grouped(device, tokens)?;
    let rows = tokens * CHOSEN;
    let few = tokens == 1;
    let h = random::<bf16>(device, &[rows, WIDTH], 1.0, 1)?;
    let matrix = random::<bf16>(device, &[EXPERTS, HIDDEN, WIDTH], 0.02, 2)?;
    let chosen = Tensor::from_slice(&g.experts, &[rows], device)?;
    let mut ways = Ways::new::<bf16>(device, &[&h, &matrix, &chosen, &g.tiles], &[rows, HIDDEN])?;
    macro_rules! tiles {
        ($($n:literal x $k:literal)*) => {{$(
            ways.add(concat!("64x", $n, "x", $k), |i, out| {
                let tiles = i[3].shape()[0];
                experts::experts_down::<bf16, bf16, HEIGHT, $n, $k>(&i[0], &i[1], &i[3], out)
                    .grid((HIDDEN / $n * tiles).min(2 * 132))
                    .run()
            });
        )*}};
    }
    macro_rules! rows {
        ($($n:literal x $c:literal)*) => {{$(
            ways.add(concat!($n, " rows, ", $c, " x 256"), |i, out| {
                experts::experts_down_row::<bf16, bf16, $n, $c, 256>(&i[0], &i[1], &i[2], out).run()
            });
        )*}};
    }
    if few {
        rows!(1 x 4 2 x 4 4 x 4 2 x 2);
    } else {
        tiles!(32 x 64 32 x 128 64 x 64 64 x 128 128 x 64);
    }
    let check = Box::new(move || {
        let mut want = vec![];
        for place in some(rows) {
            let assignment = if few { place } else { g.order[place] };
            let matrix = values(&matrix.select(0, g.experts[assignment] as usize)?)?;
            want.push((place, reference::linear(&values(&h.select(0, place)?)?, &matrix, WIDTH)));
        }
        Ok(by_rows(want))
    });
    let bytes = 2.0 * (g.hit * WIDTH * HIDDEN) as f64;
    Ok(Sweep { name: format!("experts/t{tokens}_down"), bytes, ways, check })
}
