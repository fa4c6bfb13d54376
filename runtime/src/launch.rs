//! One launch of a kernel: collects the arguments, checks them, finds the compiled code and runs it.
//!
//! The checks are what makes a launch safe to call: dtype and rank are the parameters', all tensors are on one device,
//! no output shares memory with another argument, and the grid does not let two programs own one block. A launch that
//! was checked and compiled before allocates nothing: arguments and slots live inline.

use crate::compile::{self, Compiled, Facts, Staged};
use crate::device::{Held, HostMemory, Storage, start_threads};
use crate::prepared::{Code, Prepared};
use crate::{Device, Error, Result, Tensor, record};
use kiln_codegen::cpu::CpuKernel;
use kiln_codegen::interp;
use kiln_codegen::ir::{Bits, DType, Fact, Kernel, SlotKind};
use smallvec::SmallVec;
use std::any::TypeId;
use std::sync::Arc;

/// Where a kernel comes from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The author's name of it.
    pub name: &'static str,
    /// Identifies the function and its generic arguments: equal keys stage equal kernels.
    pub key: TypeId,
    /// Stages it.
    pub stage: fn() -> Result<Kernel>,
}

impl Source {
    /// A kernel by its staging function; `item` is that function once more, as its own type, which is the key.
    pub fn new<F: 'static>(name: &'static str, _item: F, stage: fn() -> Result<Kernel>) -> Source {
        Source { name, key: TypeId::of::<F>(), stage }
    }
}

/// The number of programs along each axis of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid([usize; 3]);

impl Grid {
    /// The grid if the device can launch it in clusters of this size; otherwise why not.
    pub(crate) fn on(self, device: Device, cluster: u8) -> Result<[u32; 3], String> {
        let limits = match device {
            Device::Cuda(_) => [i32::MAX as usize, 65535, 65535],
            _ => [i32::MAX as usize; 3],
        };
        let Grid(grid) = self;
        if !grid[0].is_multiple_of(usize::from(cluster.max(1))) {
            return Err(format!("a grid of {grid:?}: axis 0 is not a multiple of the kernel's clusters of {cluster}"));
        }
        match (0..3).find(|&k| grid[k] > limits[k]) {
            Some(axis) => {
                Err(format!("a grid of {grid:?}: axis {axis} has at most {} programs on {device}", limits[axis]))
            }
            None => Ok(grid.map(|n| n as u32)),
        }
    }
}

impl From<usize> for Grid {
    fn from(x: usize) -> Grid {
        Grid([x, 1, 1])
    }
}
impl From<[usize; 1]> for Grid {
    fn from([x]: [usize; 1]) -> Grid {
        Grid([x, 1, 1])
    }
}
impl From<[usize; 2]> for Grid {
    fn from([x, y]: [usize; 2]) -> Grid {
        Grid([x, y, 1])
    }
}
impl From<[usize; 3]> for Grid {
    fn from(g: [usize; 3]) -> Grid {
        Grid(g)
    }
}

/// An argument as the host gave it. A view says what the kernel's code takes it for.
enum Arg<'a> {
    View { tensor: &'a Tensor, dtype: DType, rank: usize, written: bool },
    Scalar { dtype: DType, bits: Bits },
}

/// A launch under construction. Made by the host function of a `#[kernel]`; ends with [`Launch::run`], or with
/// [`Launch::prepare`] if it is to be made many times.
#[must_use = "nothing happens until `run` is called"]
pub struct Launch<'a> {
    pub(crate) source: Source,
    args: SmallVec<[Arg<'a>; 12]>,
    pub(crate) grid: Option<Grid>,
    device: Option<Device>,
}

impl<'a> Launch<'a> {
    /// A launch without arguments.
    pub fn new(source: Source) -> Launch<'a> {
        Launch { source, args: SmallVec::new(), grid: None, device: None }
    }

    /// The next argument: a tensor that is read as a view of this dtype and rank. Messages name parameters as the
    /// staged kernel does, so `_name` is for the reader of the call.
    pub fn push_view(&mut self, _name: &str, tensor: &'a Tensor, dtype: DType, rank: usize) {
        self.args.push(Arg::View { tensor, dtype, rank, written: false });
    }

    /// The next argument: a tensor that is written.
    pub fn push_view_mut(&mut self, _name: &str, tensor: &'a mut Tensor, dtype: DType, rank: usize) {
        self.args.push(Arg::View { tensor, dtype, rank, written: true });
    }

    /// The next argument: a number.
    pub fn push_scalar(&mut self, _name: &str, dtype: DType, bits: Bits) {
        self.args.push(Arg::Scalar { dtype, bits });
    }

    /// The number of programs along each axis. Without it, as many as the outputs have blocks.
    pub fn grid(mut self, grid: impl Into<Grid>) -> Launch<'a> {
        self.grid = Some(grid.into());
        self
    }

    /// The device of a kernel that has no tensor among its arguments.
    pub fn on(mut self, device: Device) -> Launch<'a> {
        self.device = Some(device);
        self
    }

    /// Runs the kernel. On CUDA, queues it: a later copy to the host or [`Device::synchronize`] waits for it.
    ///
    /// # Errors
    /// If the kernel cannot be staged or compiled; if an argument has not its parameter's dtype or rank, is on another
    /// device than the rest, or is an output that shares memory with another argument; if there is no grid; if the
    /// kernel fails (on CUDA that may surface at a later call).
    pub fn run(self) -> Result<()> {
        self.launch()
    }

    /// [`Launch::run`], any number of times.
    pub(crate) fn launch(&self) -> Result<()> {
        let device = self.find_device()?;
        let staged = self.checked()?;
        let grid = self.find_grid(&staged.kernel, device)?;
        if grid.contains(&0) {
            return Ok(());
        }
        let slots = self.slots(&staged)?;
        if record::is_recorded(|| staged.with_facts(&staged.facts_of(&slots))) {
            return Ok(());
        }
        if device == Device::Interpret {
            return interpret(&staged, grid, &self.interpreted()?);
        }
        let compiled = compile::compiled(&staged, device, staged.facts_of(&slots))?;
        let storages = self.tensors().map(|(_, t, written)| (t.storage(), written));
        // SAFETY: the slots were made for this kernel from the tensors' own layouts, so every view lies in its memory,
        // aligned, on this device; the facts are those of these very slots; blocks have one owner each, and racing
        // otherwise takes the author's `unsafe`.
        unsafe { execute(compiled, &slots, grid, storages) }
    }

    /// Does all that comes before the running: for a launch that is to be made many times, on whatever the tensors hold
    /// then.
    ///
    /// # Errors
    /// Those of [`Launch::run`], before the kernel runs.
    pub fn prepare(self) -> Result<Prepared> {
        self.prepared()
    }

    /// [`Launch::prepare`], any number of times.
    pub(crate) fn prepared(&self) -> Result<Prepared> {
        let device = self.find_device()?;
        let staged = self.checked()?;
        let grid = self.find_grid(&staged.kernel, device)?;
        let slots = self.slots(&staged)?;
        let code = match device {
            Device::Interpret => Code::Interpreted(self.interpreted()?),
            _ => match compile::compiled(&staged, device, staged.facts_of(&slots))? {
                Compiled::Cpu(kernel) => Code::Cpu(kernel.clone()),
                #[cfg(feature = "cuda")]
                Compiled::Cuda(function) => Code::Cuda(function.clone(), function.arguments(&slots)?),
            },
        };
        let storages = self.tensors().map(|(_, t, written)| (t.storage().clone(), written)).collect();
        Ok(Prepared { staged, slots, grid, storages, code })
    }

    /// The staged kernel and the facts that the arguments justify, which is what is compiled for this launch.
    pub(crate) fn staged(&self) -> Result<(Arc<Staged>, Facts)> {
        let staged = self.checked()?;
        let facts = staged.facts_of(&self.slots(&staged)?);
        Ok((staged, facts))
    }

    /// The shapes of the tensors among the arguments; of each, whether all its rows are aligned: address and strides,
    /// other than 1, justify [`Fact::Multiple16`].
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&'a [usize], bool)> {
        self.tensors().map(|(_, tensor, _)| {
            let aligned = |kind, value| Fact::of(kind, value) != Fact::Unknown;
            let strides = || tensor.strides().iter().map(|&stride| aligned(SlotKind::Stride(0), stride as u64));
            (tensor.shape(), aligned(SlotKind::Address, address(tensor)) && strides().all(|a| a))
        })
    }

    // -- checks --------------------------------------------------------------------------------------------------------

    /// The staged kernel, which takes these arguments.
    fn checked(&self) -> Result<Arc<Staged>> {
        let staged = compile::staged(&self.source)?;
        self.check_arguments(&staged.kernel)?;
        self.check_overlaps(&staged.kernel)?;
        Ok(staged)
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error::Launch { kernel: self.source.name.into(), message: message.into() }
    }

    fn argument_error(&self, kernel: &Kernel, index: usize, message: impl Into<String>) -> Error {
        let argument = kernel.params.get(index).map_or_else(|| format!("#{index}"), |p| p.name.clone());
        Error::Argument { kernel: self.source.name.into(), argument, message: message.into() }
    }

    /// The tensors among the arguments: number, tensor, whether it is written.
    fn tensors(&self) -> impl Iterator<Item = (usize, &'a Tensor, bool)> {
        self.args.iter().enumerate().filter_map(|(i, a)| match a {
            Arg::View { tensor, written, .. } => Some((i, *tensor, *written)),
            Arg::Scalar { .. } => None,
        })
    }

    pub(crate) fn find_device(&self) -> Result<Device> {
        let mut tensors = self.tensors();
        let Some((_, first, _)) = tensors.next() else { return self.device.map_or_else(Device::auto, Ok) };
        let device = first.device();
        if let Some(other) = tensors.map(|(_, t, _)| t.device()).chain(self.device).find(|&d| d != device) {
            return Err(self
                .error(format!("tensors on {device} and on {other}: move them to one device with Tensor::to_device")));
        }
        Ok(device)
    }

    fn check_arguments(&self, kernel: &Kernel) -> Result<()> {
        let (given, taken) = (self.args.len(), kernel.params.len());
        if given != taken {
            return Err(self.error(format!("{given} arguments for {taken} parameters")));
        }
        for (i, arg) in self.args.iter().enumerate() {
            let ty = kernel.ty(kernel.params[i].value);
            let fits = match *arg {
                Arg::View { dtype, rank, .. } => ty == kiln_codegen::ir::Type::View(dtype, rank as u8),
                Arg::Scalar { dtype, .. } => ty == kiln_codegen::ir::Type::scalar(dtype),
            };
            if !fits {
                return Err(self.argument_error(kernel, i, format!("pushed as another type than the staged {ty}")));
            }
            let Arg::View { tensor, dtype, rank, .. } = *arg else { continue };
            if tensor.dtype() != dtype {
                let message = format!("expected a tensor of {dtype}, found {:?}", tensor);
                return Err(self.argument_error(kernel, i, message));
            }
            if tensor.rank() != rank {
                let message = format!("expected a tensor of rank {rank}, found {:?}", tensor);
                return Err(self.argument_error(kernel, i, message));
            }
            if let Some(n) = tensor.shape().iter().find(|&&n| n > i32::MAX as usize) {
                return Err(self.argument_error(kernel, i, format!("extent {n} is above {}", i32::MAX)));
            }
        }
        Ok(())
    }

    fn check_overlaps(&self, kernel: &Kernel) -> Result<()> {
        for (i, written, _) in self.tensors().filter(|t| t.2) {
            for (j, other, _) in self.tensors().filter(|&(j, ..)| j != i) {
                if written.overlaps(other) {
                    let name = &kernel.params[j].name;
                    return Err(self.argument_error(
                        kernel,
                        i,
                        format!("this output shares memory with argument `{name}`: give it memory of its own"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The grid given, or the one that covers the block outputs; either must give each block one owner.
    fn find_grid(&self, kernel: &Kernel, device: Device) -> Result<[u32; 3]> {
        let mut grid = self.grid.map(|g| g.0);
        let explicit = grid.is_some();
        let mut chosen_by = 0;
        for (i, tensor, _) in self.tensors() {
            let Some(block) = kernel.params[i].block else { continue };
            if block.rank() != tensor.rank() {
                let message = format!("blocks of rank {} of a tensor of rank {}", block.rank(), tensor.rank());
                return Err(self.argument_error(kernel, i, message));
            }
            let mut blocks = [1; 4];
            for (n, (&extent, &b)) in blocks.iter_mut().zip(tensor.shape().iter().zip(block.dims())) {
                *n = extent.div_ceil(b as usize);
            }
            if blocks[3] > 1 {
                let message = "dimension 3 is longer than its block, and a grid has axes 0 to 2 only";
                return Err(self.argument_error(kernel, i, message));
            }
            let needed = if tensor.numel() == 0 { [0; 3] } else { [blocks[0], blocks[1], blocks[2]] };
            match grid {
                None => (grid, chosen_by) = (Some(needed), i),
                Some(g) if explicit => {
                    // Along an axis that the output lacks, a second program would own the same block.
                    if let Some(axis) = (block.rank()..3).find(|&k| g[k] > 1) {
                        let message = format!(
                            "a grid of {g:?} has {} programs along axis {axis}, which this output of rank {} lacks: \
                             each of its blocks would have several owners",
                            g[axis],
                            block.rank()
                        );
                        return Err(self.argument_error(kernel, i, message));
                    }
                }
                Some(g) if g != needed => {
                    let first = &kernel.params[chosen_by].name;
                    let message = format!("has {needed:?} blocks, and output `{first}` {g:?}: they must be alike");
                    return Err(self.argument_error(kernel, i, message));
                }
                Some(_) => {}
            }
        }
        let grid = grid.ok_or_else(|| {
            self.error("no grid: call .grid([x, y, z]), since no `&mut Block` output says how many programs there are")
        })?;
        Grid(grid).on(device, kernel.options.cluster).map_err(|message| self.error(message))
    }

    // -- running -------------------------------------------------------------------------------------------------------

    /// The arguments as the interpreter takes them.
    fn interpreted(&self) -> Result<Vec<interp::Arg>> {
        let signed = |dims: &[usize]| dims.iter().map(|&n| n as i64).collect();
        let arg = |arg: &Arg<'_>| match *arg {
            Arg::Scalar { bits, .. } => Ok(interp::Arg::Scalar(bits)),
            Arg::View { tensor, .. } => match &**tensor.storage() {
                Storage::Interpret(memory) => Ok(interp::Arg::View {
                    buffer: memory.buffer().clone(),
                    offset_elements: tensor.layout().offset,
                    shape: signed(tensor.shape()),
                    strides: signed(tensor.strides()),
                }),
                _ => Err(self.error("a tensor is not the interpreter's")),
            },
        };
        self.args.iter().map(arg).collect()
    }

    /// The values of the launch slots (see `ir/abi.rs`).
    fn slots(&self, staged: &Staged) -> Result<Slots> {
        let mut values = Slots::new();
        for slot in &staged.slots {
            values.push(match (&self.args[slot.param as usize], slot.kind) {
                (Arg::Scalar { bits, .. }, SlotKind::Scalar) => bits.0,
                (Arg::View { tensor, .. }, SlotKind::Address) => address(tensor),
                (Arg::View { tensor, .. }, SlotKind::Extent(d)) => tensor.shape()[d as usize] as u64,
                (Arg::View { tensor, .. }, SlotKind::Stride(d)) => tensor.strides()[d as usize] as u64,
                // `check_arguments` compared every argument with its parameter's type.
                _ => return Err(self.error("slots do not match the parameters")),
            });
        }
        Ok(values)
    }
}

/// Where a tensor begins, in its device's addresses.
fn address(tensor: &Tensor) -> u64 {
    tensor.storage().address() + (tensor.layout().offset * tensor.dtype().size()) as u64
}

/// Runs a kernel as it was staged: the interpreter defines operations, so it sees the author's.
pub(crate) fn interpret(staged: &Staged, grid: [u32; 3], args: &[interp::Arg]) -> Result<()> {
    interp::run(&staged.kernel, grid, args)
        .map_err(|e| Error::Run { device: Device::Interpret, message: e.to_string() })
}

/// Runs compiled code. On the CPU, holds the storages (of each: whether it is written) meanwhile; on CUDA, queues it.
///
/// # Safety
/// `slots` are those of the kernel that was compiled, and justify the facts it was compiled with; every view that they
/// describe lies in one of `storages`, all of which are of the device that it was compiled for; programs do not race.
pub(crate) unsafe fn execute<'s>(
    compiled: &Compiled,
    slots: &[u64],
    grid: [u32; 3],
    storages: impl Iterator<Item = (&'s Arc<Storage>, bool)>,
) -> Result<()> {
    match compiled {
        // SAFETY: the caller's promise.
        Compiled::Cpu(kernel) => unsafe { execute_on_cpu(kernel, slots, grid, storages) },
        #[cfg(feature = "cuda")]
        // SAFETY: the caller's promise.
        Compiled::Cuda(function) => unsafe { function.launch(slots, grid, storages) },
    }
}

/// [`execute`], on the CPU.
///
/// # Safety
/// That of [`execute`].
pub(crate) unsafe fn execute_on_cpu<'s>(
    kernel: &CpuKernel,
    slots: &[u64],
    grid: [u32; 3],
    storages: impl Iterator<Item = (&'s Arc<Storage>, bool)>,
) -> Result<()> {
    start_threads();
    let _held = hold_memory(storages)?;
    // SAFETY: the caller's promise; nobody else touches what is written while the memory is held.
    unsafe { kernel.launch(slots, grid) }.map_err(|e| Error::Run { device: Device::Cpu, message: e.to_string() })
}

/// Holds the memory of all arguments against other launches and copies. In order of address: two launches that want the
/// same memories do not wait for each other.
fn hold_memory<'s>(storages: impl Iterator<Item = (&'s Arc<Storage>, bool)>) -> Result<SmallVec<[Held<'s>; 12]>> {
    let mut memories: SmallVec<[(&HostMemory, bool); 12]> = storages
        .filter_map(|(storage, write)| match &**storage {
            Storage::Cpu(memory) => Some((memory, write)),
            _ => None,
        })
        .collect();
    // Of one memory's entries the writing one comes first and stays.
    memories.sort_by_key(|&(m, write)| (m.address(), !write));
    memories.dedup_by_key(|(m, _)| m.address());
    memories.into_iter().map(|(m, write)| m.hold(write)).collect()
}

/// Values of the launch slots, inline for all but the largest kernels.
pub(crate) type Slots = SmallVec<[u64; 64]>;
