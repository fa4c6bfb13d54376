//! Launches that are made many times: all that can be done once is done once.

use crate::compile::Staged;
use crate::device::Storage;
#[cfg(feature = "cuda")]
use crate::device::cuda;
use crate::launch::{Slots, execute_on_cpu, interpret};
use crate::{Device, Error, Result, record};
use kiln_codegen::cpu::CpuKernel;
use kiln_codegen::interp;
use std::fmt;
use std::sync::Arc;

/// A launch that is checked and compiled, with its arguments as the device takes them: [`Launch::prepare`] makes it.
///
/// It shares the tensors' memory, as a clone of them would: each run finds there what was written before it, by whomever.
/// Scalars and shapes are those of the preparation. Between fork and join, or into a graph, it goes where every other
/// launch of its thread would go.
///
/// ```
/// # use kiln::prelude::*;
/// # use kiln::{DType, Device, Tensor};
/// #[kernel]
/// fn increment<const B: usize>(x: &mut Block<f32, B>) {
///     x.store(x.load() + 1.0);
/// }
///
/// let mut x = Tensor::zeros(&[1000], DType::F32, Device::Cpu)?;
/// let step = increment::<256>(&mut x).prepare()?;
/// for _ in 0..5 {
///     step.run()?;
/// }
/// assert_eq!(x.to_vec::<f32>()?, [5.0; 1000]);
/// # Ok::<(), kiln::Error>(())
/// ```
///
/// [`Launch::prepare`]: crate::Launch::prepare
pub struct Prepared {
    pub(crate) staged: Arc<Staged>,
    pub(crate) slots: Slots,
    pub(crate) grid: [u32; 3],
    /// The memory of each tensor, and whether it is written.
    pub(crate) storages: Vec<(Arc<Storage>, bool)>,
    pub(crate) code: Code,
}

/// What runs, and what it takes besides the slots.
pub(crate) enum Code {
    Interpreted(Vec<interp::Arg>),
    Cpu(Arc<CpuKernel>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Function>, cuda::Arguments),
}

impl Prepared {
    /// Runs the kernel once more, as [`Launch::run`](crate::Launch::run) does. On CUDA that is little more than the
    /// driver's own call: nothing is checked, built, allocated or locked.
    ///
    /// # Errors
    /// If the kernel fails (on CUDA that may surface at a later call).
    pub fn run(&self) -> Result<()> {
        let recorded = || self.staged.with_facts(&self.staged.facts_of(&self.slots));
        if self.grid.contains(&0) || record::is_recorded(recorded) {
            return Ok(());
        }
        let storages = self.storages.iter().map(|(s, written)| (s, *written));
        match &self.code {
            Code::Interpreted(args) => interpret(&self.staged, self.grid, args),
            // SAFETY: as for `Launch::run`, which checks the same; the memory is kept alive, at its place.
            Code::Cpu(kernel) => unsafe { execute_on_cpu(kernel, &self.slots, self.grid, storages) },
            #[cfg(feature = "cuda")]
            // SAFETY: as above; the arguments are this function's, of these slots.
            Code::Cuda(function, arguments) => unsafe { function.run(arguments, self.grid, storages) },
        }
    }

    /// For benchmarks: the driver's call alone, with what is built, to set [`Prepared::run`] against. For the thread that
    /// asks for it, while it neither captures nor forks.
    ///
    /// # Errors
    /// If the device is not a GPU or has failed.
    #[doc(hidden)]
    pub fn bare(&self) -> Result<Box<dyn Fn() -> Result<()> + '_>> {
        let no_driver = |device| Error::Unavailable { device, reason: "only a GPU has a driver to be called".into() };
        match &self.code {
            Code::Interpreted(_) => Err(no_driver(Device::Interpret)),
            Code::Cpu(_) => Err(no_driver(Device::Cpu)),
            #[cfg(feature = "cuda")]
            Code::Cuda(..) if self.grid.contains(&0) => Ok(Box::new(|| Ok(()))),
            #[cfg(feature = "cuda")]
            // SAFETY: as for `run`; what is called borrows the memory.
            Code::Cuda(function, arguments) => Ok(Box::new(unsafe { function.bare(arguments, self.grid)? })),
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prepared({} on a grid of {:?})", self.staged.kernel.name, self.grid)
    }
}
