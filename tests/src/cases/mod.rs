//! Differential cases: every operation of the model, on kernels, against its naive f64 reference; and what devices
//! answer to requests that they cannot meet.
//!
//! A [`Case`] makes random and hostile inputs, runs the operation through `kimi::model::ops` (so with the very kernel
//! instances that the model runs) and compares with `kimi::reference`. One list, [`cases`], serves the tests on the
//! interpreter and the CPU and the `lab` binary on a GPU.
//!
//! What makes a comparison mean something:
//! - The reference gets the inputs *after* rounding to the kernel's dtype, so that only the kernel's own error counts.
//! - Results are poisoned: outputs that the case makes are full of NaN, and those that `ops` makes are too while
//!   `KILN_POISON` is on ([`poison_new_tensors`]). An element left unwritten is a NaN, and [`Report`] takes NaN for an
//!   infinite error.
//! - A report without comparisons fails.

mod attention;
mod data;
mod delta;
mod dense;
mod device;
mod exchange;
mod experts;
mod products;
mod replay;
mod roles;
mod sampling;
mod settled;
mod step;

pub use data::{Input, Numbers, values};
pub use replay::export as export_kda_inputs;

use data::round;
use kiln::{DType, Device, Element, Float, Tensor, bf16};
use kimi::model::ops::{Activation, Ops, state_shape, states_by_rows};
use kimi::reference::relative_error;

/// Lengths around every block size in use, none of them convenient together.
const LENGTHS: [usize; 8] = [0, 1, 15, 16, 17, 63, 64, 65];

/// The largest relative error of a result with activations of `dtype`.
///
/// f32: results are sums of up to a few thousand products with errors of 2^-24 each, in any order: about √n·2^-24 of
/// the terms' norm, below 4e-6; functions (exp, rsqrt) add a few units in the last place.
/// bf16: a result is rounded once, and up to two intermediates on the way to it, each by at most 2^-9 = 2e-3; the root
/// mean square of the sum stays below 1e-2.
pub fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 2e-3,
        _ => 1e-2,
    }
}

/// Which instances of the kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiles {
    /// Those that the model takes on this device.
    OfDevice,
    /// Those that the model takes on a GPU, wherever they run.
    OfGpu,
}

/// One operation with one choice of types.
#[derive(Clone, Copy)]
pub struct Case {
    /// `operation/activation_weight`.
    pub name: &'static str,
    run: fn(&mut Trial) -> anyhow::Result<()>,
}

impl Case {
    /// Runs the case; the same seed gives the same inputs.
    ///
    /// # Errors
    /// If a kernel cannot be launched. Wrong results are in the report.
    pub fn run(&self, device: Device, tiles: Tiles, seed: u64) -> anyhow::Result<Report> {
        let mut trial = Trial { device, tiles, numbers: Numbers::new(seed), report: Report::default() };
        (self.run)(&mut trial)?;
        Ok(trial.report)
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        // What a GPU runs; as f32 a million tokens have no room beside others.
        Case { name: "delta_rule_long/bf16", run: delta::delta_rule_long::<bf16> },
        Case { name: "counted_in_a_graph/f32", run: settled::counted_in_a_graph },
        Case { name: "device/absent", run: device::absent },
        Case { name: "device/out_of_memory", run: device::out_of_memory },
        Case { name: "linear_scaled/e4m3", run: dense::linear_scaled },
        Case { name: "linear_tiles/bf16", run: dense::linear_tiles },
        Case { name: "passed_on_in_clusters/f32", run: exchange::passed_on_in_clusters },
        Case { name: "products_added/bf16", run: products::added_to_bf16 },
        Case { name: "products_added/f16", run: products::added_to_f16 },
        Case { name: "products_added/f32", run: products::added_to_f32 },
        Case { name: "products/i8", run: products::of_i8 },
        Case { name: "products/tf32", run: products::of_tf32 },
        Case { name: "products/u8", run: products::of_u8 },
        Case { name: "products_in_roles/bf16", run: roles::products_in_roles },
        Case { name: "products_summed_up/bf16", run: exchange::products_summed_up },
        Case { name: "gone_around_the_grid/i32", run: exchange::gone_around_the_grid },
        Case { name: "route/f32", run: experts::route },
        Case { name: "router_logits/f32", run: dense::router_logits },
        Case { name: "rows_over_clusters/f32", run: exchange::rows_over_clusters },
        Case { name: "argmax/f32", run: sampling::argmax },
        Case { name: "sample/f32", run: sampling::sample },
    ];
    // f32 with f32 or bf16 weights is what runs on a CPU, bf16 what runs on a GPU.
    macro_rules! of_each_type {
        ($($module:ident :: $function:ident),* $(,)?) => {$(
            all.extend([
                Case { name: concat!(stringify!($function), "/f32"), run: $module::$function::<f32, f32> },
                Case { name: concat!(stringify!($function), "/f32_bf16"), run: $module::$function::<f32, bf16> },
                Case { name: concat!(stringify!($function), "/bf16"), run: $module::$function::<bf16, bf16> },
            ]);
        )*};
    }
    of_each_type![
        dense::embedding,
        dense::linear,
        dense::linear_swiglu,
        dense::add_rms_norm,
        attention::mla_decode,
        experts::experts,
    ];
    macro_rules! of_each_activation {
        ($($module:ident :: $function:ident),* $(,)?) => {$(
            all.extend([
                Case { name: concat!(stringify!($function), "/f32"), run: $module::$function::<f32> },
                Case { name: concat!(stringify!($function), "/bf16"), run: $module::$function::<bf16> },
            ]);
        )*};
    }
    of_each_activation![
        dense::rms_norm,
        dense::gated_rms_norm,
        dense::softmax,
        delta::short_conv,
        delta::delta_rule,
        delta::delta_rule_in_pieces,
        delta::delta_rule_keeps,
        delta::delta_rule_repeats,
        step::kda,
        step::kda_keeps,
        replay::delta_rule_replayed,
        attention::mla_cache,
        attention::mla_prefill,
    ];
    all.sort_by_key(|case| case.name);
    all
}

/// Fills the tensors that operations make with NaN, for the rest of the process. To be called before anything of
/// `kiln` is used: settings are read once.
pub fn poison_new_tensors() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: called at the start of a program or test, when no other thread reads the environment.
    ONCE.call_once(|| unsafe { std::env::set_var("KILN_POISON", "1") });
}

/// A case that is running: makes inputs, collects comparisons.
pub struct Trial {
    device: Device,
    tiles: Tiles,
    numbers: Numbers,
    report: Report,
}

impl Trial {
    fn ops<T: Activation, W: Float>(&self) -> Ops<T, W> {
        let ops = Ops::new(self.device);
        if self.tiles == Tiles::OfGpu { ops.with_gpu_tiles() } else { ops }
    }

    /// Values as a tensor of `T`, and as they are after rounding.
    fn input<T: Element>(&self, shape: &[usize], values: Vec<f64>) -> anyhow::Result<Input> {
        let narrow: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        let tensor = Tensor::from_f32(&narrow, T::DTYPE, shape, self.device)?;
        let values = narrow.iter().map(|x| round(T::DTYPE, f64::from(*x))).collect();
        Ok(Input { tensor, values })
    }

    /// Normally distributed values.
    fn normal<T: Element>(&mut self, shape: &[usize], scale: f64) -> anyhow::Result<Input> {
        let values = self.numbers.normals(shape.iter().product(), scale);
        self.input::<T>(shape, values)
    }

    /// Normally distributed states of so many slots, heads and of this width: the tensor as operations take it, the
    /// values [slots, heads, key, value].
    fn states(&mut self, [slots, heads, width]: [usize; 3], scale: f64) -> anyhow::Result<Input> {
        let [_, _, blocks, _, columns] = state_shape(slots, heads, width);
        let rows = self.normal::<f32>(&[slots, heads, width, blocks, columns], scale)?;
        // On the host: on a GPU these would be many small copies.
        let tensor = states_by_rows(&rows.tensor.to_device(Device::Cpu)?)?.contiguous()?.to_device(self.device)?;
        Ok(Input { tensor, values: rows.values })
    }

    /// A tensor to be written, full of NaN.
    fn poisoned<T: Element>(&self, shape: &[usize]) -> anyhow::Result<Tensor> {
        Ok(Tensor::full(shape, T::DTYPE, f64::NAN, self.device)?)
    }

    /// Notes something that must hold.
    fn expect(&mut self, what: &str, holds: bool) {
        self.report.add(what, if holds { 0.0 } else { f64::INFINITY }, 0.0);
    }

    /// As [`Trial::compare`] for a pool of states, by so many heads at once; `want` [slots, heads, key, value].
    fn compare_states(
        &mut self,
        what: &str,
        got: &Tensor,
        want: &[f64],
        heads: usize,
        bound: f64,
    ) -> anyhow::Result<()> {
        let matrix = got.shape()[2..].iter().product::<usize>();
        self.compare(&format!("{what}: state"), &states_by_rows(got)?, want, heads * matrix, bound)
    }

    /// Compares a result with what it should be, by the norm of each row of `width`: a wrong small row must not hide
    /// beside large ones.
    fn compare(&mut self, what: &str, got: &Tensor, want: &[f64], width: usize, bound: f64) -> anyhow::Result<()> {
        let got = values(got)?;
        anyhow::ensure!(got.len() == want.len(), "{what}: {} numbers instead of {}", got.len(), want.len());
        let rows = got.chunks(width.max(1)).zip(want.chunks(width.max(1)));
        let error = rows.map(|(got, want)| relative_error(got, want)).fold(0.0, f64::max);
        self.report.add(what, error, bound);
        Ok(())
    }
}

/// What a case found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Comparisons made.
    pub comparisons: usize,
    /// The error of the comparison that is worst in relation to its bound.
    pub error: f64,
    /// Its bound.
    pub bound: f64,
    /// Which comparison that is.
    pub worst: String,
}

impl Report {
    /// Whether something was compared and every error is within its bound.
    pub fn passed(&self) -> bool {
        self.comparisons > 0 && self.error <= self.bound
    }

    fn add(&mut self, what: &str, error: f64, bound: f64) {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        // Exact comparisons have the bound 0: any error there is worse than all others.
        let severity = |error: f64, bound: f64| {
            if error == 0.0 {
                0.0
            } else if bound == 0.0 {
                f64::INFINITY
            } else {
                error / bound
            }
        };
        if self.comparisons == 0 || severity(error, bound) > severity(self.error, self.bound) {
            (self.error, self.bound, self.worst) = (error, bound, what.to_owned());
        }
        self.comparisons += 1;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { comparisons, error, bound, worst } = self;
        write!(f, "{comparisons:4} comparisons, worst {error:.1e} of {bound:.0e} ({worst})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guard first catches a planted violation.
    #[test]
    fn reports_catch_nan_and_emptiness_and_inexactness() {
        let mut report = Report::default();
        assert!(!report.passed());
        report.add("good", 1e-7, 1e-5);
        assert!(report.passed());
        report.add("exact", 0.0, 0.0);
        assert!(report.passed());
        for error in [f64::NAN, 2e-5] {
            let mut bad = report.clone();
            bad.add("bad", error, 1e-5);
            assert!(!bad.passed() && bad.worst == "bad");
        }
        report.add("inexact", 1e-30, 0.0);
        assert!(!report.passed());
    }

    #[test]
    fn one_nan_in_a_result_is_an_infinite_error() {
        let mut trial =
            Trial { device: Device::Cpu, tiles: Tiles::OfDevice, numbers: Numbers::new(0), report: Report::default() };
        let got = trial.poisoned::<f32>(&[2, 2]).unwrap();
        trial.compare("poison", &got, &[1.0; 4], 2, 1e30).unwrap();
        assert!(!trial.report.passed());
    }

    #[test]
    fn names_are_distinct() {
        let names: Vec<_> = cases().iter().map(|case| case.name).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
