//! One host function per operation of the model: allocates the result, picks the kernel's tile sizes, launches.
//!
//! Tile extents are compile-time; where the config decides one, the function picks among the instances below and names
//! the config field if none fits. Nothing here waits for the device. Linear layers, the delta rule, latent attention and
//! experts have files of their own.

use crate::engine::EngineError;
use crate::kernels::{embedding, norm, position, sampling};
use crate::sampling::Sampling;
use kiln::{DType, Device, DotElement, Element, Float, Tensor};
use std::marker::PhantomData;
use std::sync::Once;

/// Below so many rows a linear layer on a CPU reads its weights once per row instead of tiling rows.
const FEW_ROWS: usize = 5;
/// Columns that a warp takes at a time: 16 bytes of bf16 for each of 32 lanes.
const WARP: usize = 256;
/// Multiprocessors of an H100, for which tiles are chosen where there is none.
const USUAL_MULTIPROCESSORS: usize = 132;

/// Activations: f32 or bf16.
pub trait Activation: Float + DotElement<Acc = f32> {}
impl<T: Float + DotElement<Acc = f32>> Activation for T {}

/// Operations on one device with activations of `T` and matrices of `W`.
#[derive(Clone, Copy)]
pub struct Ops<T, W> {
    pub device: Device,
    /// Choose the tile sizes that suit a GPU.
    gpu: bool,
    /// Programs to make at least, where the work can be cut in any number of pieces.
    multiprocessors: usize,
    _types: PhantomData<(T, W)>,
}

type Result<T> = std::result::Result<T, EngineError>;

fn unsupported<T>(field: &str, found: usize, supported: &str) -> Result<T> {
    let text = format!("config field `{field}` is {found}: the kernels are built for {supported}");
    Err(EngineError::Device(text.into()))
}

/// Calls `$call` with the const `$name` = the listed value that equals `$value`.
macro_rules! with_const {
    ($name:ident = $value:expr, of [$($n:literal),*], $field:literal, $call:expr) => {
        match $value {
            $($n => { const $name: usize = $n; $call })*
            other => return unsupported($field, other, concat!($(" ", $n),*)),
        }
    };
}

/// Chunks of [`WARP`] columns that hold a row of `width`, of the numbers that there are instances for.
fn chunks_of_width(width: usize) -> usize {
    let needed = width.div_ceil(WARP).max(1);
    [1, 2, 3, 4, 6, 9, 12, 16, 20, 28, 32].into_iter().find(|&c| c >= needed).unwrap_or(needed)
}

// After the macro that they use.
mod attention;
mod batch;
mod delta;
mod experts;
mod kda;
mod linear;

pub use attention::MlaShape;
pub use batch::{Batch, Keep};
pub use delta::{Gate, state_shape, states_by_rows};

impl<T: Activation, W: Float> Ops<T, W> {
    pub fn new(device: Device) -> Self {
        static SHIPPED: Once = Once::new();
        // What `lab tune` found.
        SHIPPED.call_once(|| kiln::tune::ship(include_str!("../../../tuned.txt")));
        // A device that is not there says so when it is given work.
        let multiprocessors = device.multiprocessors().unwrap_or(1);
        Ops { device, gpu: matches!(device, Device::Cuda(_)), multiprocessors, _types: PhantomData }
    }

    /// The same with the tile sizes of a GPU whatever the device is, so that its kernel instances can be examined, or
    /// interpreted, without one.
    pub fn with_gpu_tiles(self) -> Self {
        Ops { gpu: true, multiprocessors: USUAL_MULTIPROCESSORS, ..self }
    }

    /// The same with other activations or matrices.
    pub(super) fn cast<U, V>(self) -> Ops<U, V> {
        let Ops { device, gpu, multiprocessors, .. } = self;
        Ops { device, gpu, multiprocessors, _types: PhantomData }
    }

    fn empty<E: Element>(self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::uninit(shape, E::DTYPE, self.device)?)
    }

    /// Integers for the device: ids, positions, bounds.
    pub fn integers(self, values: &[i32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, &[values.len()], self.device)?)
    }

    /// ids [n] → [n, width] f32.
    pub fn embedding(self, ids: &Tensor, table: &Tensor) -> Result<Tensor> {
        let mut out = self.empty::<f32>(&[ids.shape()[0], table.shape()[1]])?;
        embedding::embedding::<W, 256>(ids, table, &mut out).run()?;
        Ok(out)
    }

    /// x [n, width] → [n, width].
    pub fn rms_norm<X: Float, Y: Float, V: Float>(self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mut out = self.empty::<Y>(x.shape())?;
        let (n, eps) = (x.shape()[0], eps as f32);
        with_const!(
            C = chunks_of_width(x.shape()[1]),
            of [1, 2, 3, 4, 6, 9, 12, 16, 20, 28, 32],
            "hidden_size",
            norm::rms_norm::<X, V, Y, C, WARP>(x, weight, eps, &mut out).grid([n]).run()?
        );
        Ok(out)
    }

    /// x [n, width] f32 += the parts of delta [parts, n, width] → x normalised [n, width].
    pub fn add_rms_norm<D: Float, Y: Float, V: Float>(
        self,
        x: &mut Tensor,
        delta: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> Result<Tensor> {
        let mut out = self.empty::<Y>(x.shape())?;
        let mut none = self.empty::<f32>(&[0, x.shape()[1]])?;
        self.add_rms_norm_into::<D, Y, V, false>(x, delta, weight, eps, &mut out, &mut none)?;
        Ok(out)
    }

    /// [`Ops::add_rms_norm`], and the same in f32.
    pub fn add_rms_norm_exact<D: Float, Y: Float, V: Float>(
        self,
        x: &mut Tensor,
        delta: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> Result<(Tensor, Tensor)> {
        if Y::DTYPE == DType::F32 {
            let out = self.add_rms_norm::<D, Y, V>(x, delta, weight, eps)?;
            return Ok((out.clone(), out));
        }
        let (mut out, mut exact) = (self.empty::<Y>(x.shape())?, self.empty::<f32>(x.shape())?);
        self.add_rms_norm_into::<D, Y, V, true>(x, delta, weight, eps, &mut out, &mut exact)?;
        Ok((out, exact))
    }

    fn add_rms_norm_into<D: Float, Y: Float, V: Float, const EXACT: bool>(
        self,
        x: &mut Tensor,
        delta: &Tensor,
        weight: &Tensor,
        eps: f64,
        out: &mut Tensor,
        exact: &mut Tensor,
    ) -> Result<()> {
        let (n, eps) = (x.shape()[0], eps as f32);
        with_const!(
            C = chunks_of_width(x.shape()[1]),
            of [1, 2, 3, 4, 6, 9, 12, 16, 20, 28, 32],
            "hidden_size",
            norm::add_rms_norm::<D, V, Y, C, WARP, EXACT>(x, delta, weight, eps, out, exact).grid([n]).run()?
        );
        Ok(())
    }

    /// x, gate [n, heads, width] → normalised and gated.
    pub fn gated_rms_norm(self, x: &Tensor, gate: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mut out = self.empty::<T>(x.shape())?;
        self.gated_rms_norm_into(x, gate, weight, eps, &mut out)?;
        Ok(out)
    }

    fn gated_rms_norm_into(self, x: &Tensor, gate: &Tensor, weight: &Tensor, eps: f64, out: &mut Tensor) -> Result<()> {
        let eps = eps as f32;
        with_const!(
            D = x.shape()[2],
            of [64, 128],
            "linear_attn_config.head_dim",
            norm::gated_rms_norm::<T, f32, D>(x, gate, weight, eps, out).run()?
        );
        Ok(())
    }

    /// Draws one token per row of logits [n, vocabulary] f32; `position` [n] tokens come before it → [n] i32.
    pub fn sample(self, logits: &Tensor, sampling: &Sampling, position: &Tensor) -> Result<Tensor> {
        let mut out = self.empty::<i32>(&[logits.shape()[0]])?;
        self.sample_into(logits, sampling, position, &mut out)?;
        Ok(out)
    }

    /// [`Ops::sample`] into a tensor that is there.
    pub fn sample_into(self, logits: &Tensor, s: &Sampling, position: &Tensor, out: &mut Tensor) -> Result<()> {
        if s.temperature == 0.0 {
            sampling::argmax::<1024>(logits, out).run()?;
        } else {
            let (low, high) = (s.seed as u32, (s.seed >> 32) as u32);
            let k = s.top_k.min(i32::MAX as u32) as i32;
            sampling::sample::<1024>(logits, position, s.temperature, k, s.top_p, s.min_p, low, high, out).run()?;
        }
        Ok(())
    }

    /// Counts `tokens` more: position [n] i32 += tokens.
    pub fn advance(self, position: &mut Tensor, tokens: usize) -> Result<()> {
        Ok(position::advance(tokens as i32, position).run()?)
    }
}

/// The element type of activations on a device.
pub fn activation_type(device: Device) -> DType {
    if matches!(device, Device::Cuda(_)) { DType::BF16 } else { DType::F32 }
}
