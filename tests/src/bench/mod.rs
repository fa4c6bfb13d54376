//! Timed cases, with the names and the work of the peers' benchmark (`GROUP/dtype-and-shape`), so that the two can be
//! set side by side.
//!
//! Order of things: random inputs are made on the device, the work runs once, a sample of its result is compared with
//! the f64 reference, and only then it is timed: median, cold L2, replayed as a graph. What cannot be checked or is
//! wrong has no time.

mod attention;
mod delta;
pub mod dense;
pub mod kernels;
mod memory;
mod moe;
pub mod sweep;
pub mod tiles;
pub mod tune;

use kiln::{Bench, Device, Element, Float, Graph, Tensor, bf16, f8e4m3};
use kimi::model::ops::Batch;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The least that a case must do, whoever does it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Least {
    pub flops: f64,
    pub bytes: f64,
}

/// A timed case.
#[derive(Clone, Debug)]
pub struct Row {
    pub case: String,
    pub microseconds: f64,
    pub least: Least,
    /// The relative error that was found before timing.
    pub error: f64,
}

/// Inputs, work and check of one case.
struct Work {
    least: Least,
    /// May be called any number of times.
    run: Box<dyn FnMut() -> anyhow::Result<()>>,
    /// The relative error of what the first run left, and its bound.
    check: Box<dyn FnOnce() -> anyhow::Result<(f64, f64)>>,
    /// Launches as the host makes them instead of a graph's replay.
    eager: bool,
}

/// A case by name.
pub struct Case {
    pub name: String,
    prepare: Box<dyn Fn(Device, &mut Activations) -> anyhow::Result<Work>>,
}

/// What the kernels of a step of decoding have in common: the batch, and inputs that are in the cache, since another
/// kernel has just written them.
#[derive(Default)]
struct Activations {
    tensors: HashMap<u32, Tensor>,
    batch: Option<Rc<Batch>>,
}

impl Activations {
    /// The tensor of this number, made where it is first asked for.
    fn get(&mut self, number: u32, make: impl FnOnce() -> anyhow::Result<Tensor>) -> anyhow::Result<Tensor> {
        if let Some(tensor) = self.tensors.get(&number) {
            return Ok(tensor.clone());
        }
        let tensor = make()?;
        self.tensors.insert(number, tensor.clone());
        Ok(tensor)
    }
}

impl Case {
    fn new(name: String, prepare: impl Fn(Device) -> anyhow::Result<Work> + 'static) -> Case {
        Case { name, prepare: Box::new(move |device, _| prepare(device)) }
    }

    /// A case that may be a kernel of a step.
    fn of_a_step(name: String, prepare: impl Fn(Device, &mut Activations) -> anyhow::Result<Work> + 'static) -> Case {
        Case { name, prepare: Box::new(prepare) }
    }

    /// Checks and times the case with at most so many samples, fewer where one takes long.
    ///
    /// # Errors
    /// If something cannot be run, or its result is wrong.
    pub fn run(&self, device: Device, samples: usize) -> anyhow::Result<Row> {
        let Work { least, mut run, check, eager } = (self.prepare)(device, &mut Activations::default())?;
        run()?;
        let (error, bound) = check()?;
        anyhow::ensure!(error <= bound, "the result is off by {error:.1e}, more than {bound:.0e}");
        let start = Instant::now();
        run()?;
        device.synchronize()?;
        let samples = if start.elapsed() > Duration::from_millis(100) { samples.min(5) } else { samples };
        let mut bench = Bench::new(device).samples(samples);
        if eager {
            bench = bench.without_graph();
        }
        let timing = bench
            .run(|| run().map_err(|e| kiln::Error::Launch { kernel: self.name.clone(), message: format!("{e:#}") }))?;
        Ok(Row { case: self.name.clone(), microseconds: timing.median().as_secs_f64() * 1e6, least, error })
    }

    /// Checks the case and times it as what it is in a step of decoding, a node of a graph: many of them one after the
    /// other, each with weights, states and caches of its own, which together are several times what the second-level
    /// cache holds. What it costs to start a graph is not in this time, nor is what somebody else has left in the cache.
    ///
    /// # Errors
    /// If something cannot be run or recorded, or its result is wrong.
    pub fn run_as_node(&self, device: Device) -> anyhow::Result<Row> {
        const BYTES: f64 = 4e8;
        const REPLAYS: u32 = 20;
        let mut activations = Activations::default();
        let Work { least, mut run, check, .. } = (self.prepare)(device, &mut activations)?;
        run()?;
        let (error, bound) = check()?;
        anyhow::ensure!(error <= bound, "the result is off by {error:.1e}, more than {bound:.0e}");
        let count = ((BYTES / least.bytes).ceil() as u32).clamp(4, 128);
        let mut nodes = vec![run];
        for _ in 1..count {
            let mut run = (self.prepare)(device, &mut activations)?.run;
            run()?;
            nodes.push(run);
        }
        let graph = Graph::capture(device, || nodes.iter_mut().try_for_each(|run| run()))?;
        graph.replay()?;
        device.synchronize()?;
        let mut times = vec![];
        for _ in 0..5 {
            let start = Instant::now();
            (0..REPLAYS).try_for_each(|_| graph.replay())?;
            device.synchronize()?;
            times.push(start.elapsed());
        }
        times.sort();
        let microseconds = times[2].as_secs_f64() / f64::from(REPLAYS * count) * 1e6;
        Ok(Row { case: self.node_name(), microseconds, least, error })
    }

    /// The name of the row of [`Case::run_as_node`].
    pub fn node_name(&self) -> String {
        format!("node/{}", self.name)
    }
}

/// All cases, in the order of the peers' groups; then what the memory allows of them.
pub fn cases() -> Vec<Case> {
    let mut all = dense::cases();
    all.extend(delta::cases());
    all.extend(attention::cases());
    all.extend(moe::cases());
    all.extend(memory::cases());
    all
}

/// Those of a step of decoding, which are nodes of a graph there.
pub fn decoding() -> Vec<Case> {
    let few = ["gemm/bf16_m1_", "gemm/bf16_m8_", "gemm/bf16_m64_", "mla_decode/", "kda_decode/", "read/", "in_place/"];
    cases().into_iter().filter(|case| few.iter().any(|name| case.name.starts_with(name))).collect()
}

/// A tensor of random numbers of about this deviation; another one for each seed.
fn random<T: Float>(device: Device, shape: &[usize], scale: f64, seed: u32) -> anyhow::Result<Tensor> {
    let mut tensor = Tensor::uninit(&[shape.iter().product()], T::DTYPE, device)?;
    kernels::random::<T, 1024>(seed.wrapping_mul(0x9E37_79B9), scale as f32, &mut tensor).run()?;
    Ok(tensor.reshape(shape)?)
}

/// [`random`] in e4m3.
fn random_narrow(device: Device, shape: [usize; 2], seed: u32) -> anyhow::Result<Tensor> {
    let wide = random::<bf16>(device, &[shape[0] * shape[1]], 1.0, seed)?;
    let mut out = Tensor::uninit(wide.shape(), f8e4m3::DTYPE, device)?;
    kernels::cast::<bf16, f8e4m3, 1024>(&wide, &mut out).run()?;
    Ok(out.reshape(&shape)?)
}

/// A tensor to be written, in which an element left out shows.
fn poisoned<T: Element>(device: Device, shape: &[usize]) -> anyhow::Result<Tensor> {
    Ok(Tensor::full(shape, T::DTYPE, f64::NAN, device)?)
}

/// Host cost of one launch of a trivial kernel, in microseconds: `launch/eager_1_arg`.
///
/// # Errors
/// If the kernel cannot be launched or does not count.
pub fn launch_cost(device: Device) -> anyhow::Result<Row> {
    let mut x = Tensor::zeros(&[1024], f32::DTYPE, device)?;
    host_cost("launch/eager_1_arg", &x.clone(), || kernels::increment::<1024>(&mut x).run())
}

/// As [`launch_cost`], of a launch that was prepared: `launch/prepared_1_arg`.
///
/// # Errors
/// As [`launch_cost`].
pub fn prepared_cost(device: Device) -> anyhow::Result<Row> {
    let mut x = Tensor::zeros(&[1024], f32::DTYPE, device)?;
    let prepared = kernels::increment::<1024>(&mut x).prepare()?;
    host_cost("launch/prepared_1_arg", &x, || prepared.run())
}

/// As [`launch_cost`], of the driver's call alone, for the same function, arguments and attributes: `launch/bare_1_arg`,
/// the least that a launch can cost.
///
/// # Errors
/// As [`launch_cost`]; if the device is not a GPU.
pub fn bare_cost(device: Device) -> anyhow::Result<Row> {
    let mut x = Tensor::zeros(&[1024], f32::DTYPE, device)?;
    let prepared = kernels::increment::<1024>(&mut x).prepare()?;
    host_cost("launch/bare_1_arg", &x, prepared.bare()?)
}

/// The host's time for `launch`, which adds 1 to all of `x`: the median over batches so small that the host never waits
/// for a place in the driver's queue.
fn host_cost(case: &str, x: &Tensor, mut launch: impl FnMut() -> kiln::Result<()>) -> anyhow::Result<Row> {
    const BATCH: u32 = 200;
    const BATCHES: u32 = 100;
    let mut batch = || {
        let start = Instant::now();
        (0..BATCH).try_for_each(|_| launch())?;
        let spent = start.elapsed();
        x.device().synchronize()?;
        Ok::<_, kiln::Error>(spent)
    };
    batch()?;
    let mut batches = (0..BATCHES).map(|_| batch()).collect::<Result<Vec<_>, _>>()?;
    batches.sort();
    let microseconds = batches[batches.len() / 2].as_secs_f64() / f64::from(BATCH) * 1e6;
    let count = x.to_vec::<f32>()?;
    anyhow::ensure!(count.iter().all(|x| *x == ((1 + BATCHES) * BATCH) as f32), "launches were lost");
    Ok(Row { case: case.into(), microseconds, least: Least::default(), error: 0.0 })
}

/// Time of one node of a graph of trivial kernels, each of which waits for the one before, in microseconds:
/// `launch/graph_node_1_arg`. From the host's call to the end of the last one.
///
/// # Errors
/// If the kernel cannot be launched or does not count.
pub fn node_cost(device: Device) -> anyhow::Result<Row> {
    const NODES: u32 = 1_000;
    const REPLAYS: u32 = 20;
    let mut x = Tensor::zeros(&[1024], f32::DTYPE, device)?;
    kernels::increment::<1024>(&mut x).run()?;
    let work = || (0..NODES).try_for_each(|_| kernels::increment::<1024>(&mut x).run());
    let graph = Graph::capture(device, work)?;
    graph.replay()?;
    device.synchronize()?;
    let start = Instant::now();
    for _ in 0..REPLAYS {
        graph.replay()?;
    }
    device.synchronize()?;
    let microseconds = start.elapsed().as_secs_f64() / f64::from(REPLAYS * NODES) * 1e6;
    let count = x.to_vec::<f32>()?;
    anyhow::ensure!(count.iter().all(|x| *x == (1 + NODES * (1 + REPLAYS)) as f32), "launches were lost");
    Ok(Row { case: "launch/graph_node_1_arg".into(), microseconds, least: Least::default(), error: 0.0 })
}
