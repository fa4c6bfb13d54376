//! Kernels given as tile IR: for tools and tests that make kernels otherwise than by `#[kernel]`.
//!
//! What rustc and staging guarantee of a `#[kernel]`, a raw kernel must be asked: its IR is verified when it is made, its
//! arguments at every launch. It is compiled as it is given, with the facts that it states; a launch whose arguments do
//! not justify them is refused. That programs do not race is the caller's promise, hence the `unsafe`.

use crate::compile::{self, Facts, Staged};
use crate::device::Storage;
use crate::launch::{Grid, Slots, execute, interpret};
use crate::{Device, Error, Result, Tensor, record};
use kiln_codegen::interp;
use kiln_codegen::ir::{Access, Bits, Fact, Kernel, Type, verify};
use std::sync::Arc;

/// A verified kernel and what it has been compiled to. Cloning shares both.
#[derive(Clone)]
pub struct RawKernel(Arc<Staged>);

/// An argument of a [`RawKernel`].
#[derive(Clone, Copy, Debug)]
pub enum RawArg<'a> {
    /// The bits of the parameter's dtype.
    Scalar(Bits),
    /// A window on the elements of a contiguous tensor of the parameter's dtype. `offset` and `strides` count elements
    /// from the tensor's first; strides may be 0 or negative. Every element of the window must be one of the tensor.
    View { memory: &'a Tensor, offset: usize, shape: &'a [i64], strides: &'a [i64] },
}

impl RawKernel {
    /// A kernel, as built or as read from its text.
    ///
    /// # Errors
    /// If the verifier refuses it.
    pub fn new(kernel: Kernel) -> Result<RawKernel> {
        verify(&kernel)
            .map_err(|e| Error::Launch { kernel: kernel.name.clone(), message: format!("invalid IR: {e}") })?;
        Ok(RawKernel(Arc::new(Staged::new(kernel))))
    }

    /// The kernel as it was given.
    pub fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// Compiles it for a device, so that launches there need not. Nothing is to be done for the interpreter.
    ///
    /// # Errors
    /// If the device is not there or its back end refuses the kernel.
    pub fn compile(&self, device: Device) -> Result<()> {
        match device {
            Device::Interpret => Ok(()),
            _ => compile::compiled(&self.0, device, self.facts()).map(drop),
        }
    }

    /// Runs it on arguments for its parameters, in order; on CUDA, queues it, as a [`Launch`](crate::Launch) does.
    ///
    /// # Safety
    /// No two programs of the grid touch one byte unless both only read it or both change it atomically, and no two
    /// elements of a window that is written lie at one place.
    ///
    /// # Errors
    /// If an argument does not fit its parameter, is on another device, or is written and shares memory with another;
    /// if the arguments do not justify the kernel's facts; if the device cannot launch the grid; if the kernel cannot
    /// be compiled or fails.
    pub unsafe fn launch(&self, device: Device, grid: impl Into<Grid>, args: &[RawArg<'_>]) -> Result<()> {
        self.check_arguments(device, args)?;
        self.check_overlaps(args)?;
        let slots = self.slots(args);
        self.check_facts(&slots)?;
        let grid = grid.into().on(device, self.kernel().options.cluster).map_err(|message| self.error(message))?;
        if grid.contains(&0) || record::is_recorded(|| self.kernel().clone()) {
            return Ok(());
        }
        if device == Device::Interpret {
            return interpret(&self.0, grid, &self.interpreted(args)?);
        }
        let compiled = compile::compiled(&self.0, device, self.facts())?;
        let storages = self.views(args).map(|(_, access, tensor)| (tensor.storage(), access == Access::Write));
        // SAFETY: the slots are those of the parameters, in order, and justify the facts; every window lies in its
        // tensor, on this device, at a multiple of its dtype's size; that programs do not race is the caller's promise.
        unsafe { execute(compiled, &slots, grid, storages) }
    }

    /// What the kernel states of each slot.
    fn facts(&self) -> Facts {
        (0..self.0.slots.len()).map(|i| self.kernel().fact(i)).collect()
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::Launch { kernel: self.kernel().name.clone(), message: message.into() }
    }

    fn argument_error(&self, index: usize, message: impl Into<String>) -> Error {
        let (kernel, argument) = (self.kernel().name.clone(), self.kernel().params[index].name.clone());
        Error::Argument { kernel, argument, message: message.into() }
    }

    /// The views among the arguments: number, access, memory.
    fn views<'a>(&self, args: &[RawArg<'a>]) -> impl Iterator<Item = (usize, Access, &'a Tensor)> {
        args.iter().enumerate().filter_map(|(i, arg)| match *arg {
            RawArg::View { memory, .. } => Some((i, self.kernel().params[i].access, memory)),
            RawArg::Scalar(_) => None,
        })
    }

    fn check_arguments(&self, device: Device, args: &[RawArg<'_>]) -> Result<()> {
        let (given, taken) = (args.len(), self.kernel().params.len());
        if given != taken {
            return Err(self.error(format!("{given} arguments for {taken} parameters")));
        }
        for (i, arg) in args.iter().enumerate() {
            let ty = self.kernel().ty(self.kernel().params[i].value);
            let refused = |message: String| Err(self.argument_error(i, message));
            match (ty, arg) {
                (Type::Tile(dtype, _), RawArg::Scalar(bits)) => {
                    let size = dtype.size();
                    if size < 8 && bits.0 >> (8 * size) != 0 {
                        return refused(format!("{:#x} is more than the {size} bytes of {dtype}", bits.0));
                    }
                }
                (Type::View(dtype, rank), &RawArg::View { memory, offset, shape, strides }) => {
                    if memory.device() != device {
                        return refused(format!("is on {}, the launch on {device}", memory.device()));
                    }
                    if memory.dtype() != dtype || !memory.is_contiguous() {
                        return refused(format!("expected a contiguous tensor of {dtype}, found {memory:?}"));
                    }
                    if (shape.len(), strides.len()) != (rank as usize, rank as usize) {
                        return refused(format!("extents {shape:?} and strides {strides:?} of a view of rank {rank}"));
                    }
                    check_window(memory.numel(), offset, shape, strides).or_else(refused)?;
                }
                (_, RawArg::View { .. }) => return refused(format!("a view for a parameter of {ty}")),
                (_, RawArg::Scalar(_)) => return refused(format!("a scalar for a parameter of {ty}")),
            }
        }
        Ok(())
    }

    fn check_overlaps(&self, args: &[RawArg<'_>]) -> Result<()> {
        for (i, _, written) in self.views(args).filter(|v| v.1 == Access::Write) {
            if let Some((j, ..)) = self.views(args).find(|&(j, _, other)| j != i && written.overlaps(other)) {
                let name = &self.kernel().params[j].name;
                return Err(self.argument_error(i, format!("this output shares memory with argument `{name}`")));
            }
        }
        Ok(())
    }

    fn check_facts(&self, slots: &Slots) -> Result<()> {
        let (stated, justified) = (self.facts(), self.0.facts_of(slots));
        let wrong = |&i: &usize| stated[i] != Fact::Unknown && stated[i] != justified[i];
        match (0..slots.len()).find(wrong) {
            Some(i) => {
                let slot = self.0.slots[i];
                let message =
                    format!("the kernel states {:?} of its {:?}, which is {}", stated[i], slot.kind, slots[i]);
                Err(self.argument_error(slot.param as usize, message))
            }
            None => Ok(()),
        }
    }

    /// The values of the launch slots (see `ir/abi.rs`) of checked arguments.
    fn slots(&self, args: &[RawArg<'_>]) -> Slots {
        let mut values = Slots::new();
        for arg in args {
            match *arg {
                RawArg::Scalar(bits) => values.push(bits.0),
                RawArg::View { memory, offset, shape, strides } => {
                    values.push(memory.storage().address() + (first(memory, offset) * memory.dtype().size()) as u64);
                    values.extend(shape.iter().chain(strides).map(|&n| n as u64));
                }
            }
        }
        values
    }

    fn interpreted(&self, args: &[RawArg<'_>]) -> Result<Vec<interp::Arg>> {
        let arg = |arg: &RawArg<'_>| match *arg {
            RawArg::Scalar(bits) => Ok(interp::Arg::Scalar(bits)),
            RawArg::View { memory, offset, shape, strides } => match &**memory.storage() {
                Storage::Interpret(buffer) => Ok(interp::Arg::View {
                    buffer: buffer.buffer().clone(),
                    offset_elements: first(memory, offset),
                    shape: shape.to_vec(),
                    strides: strides.to_vec(),
                }),
                _ => Err(self.error("a tensor is not the interpreter's")),
            },
        };
        args.iter().map(arg).collect()
    }
}

/// Where a window begins in the memory that its tensor is part of, in elements.
fn first(memory: &Tensor, offset: usize) -> usize {
    memory.layout().offset + offset
}

/// Whether every element of the window is among `elements`; otherwise what is wrong.
fn check_window(elements: usize, offset: usize, shape: &[i64], strides: &[i64]) -> Result<(), String> {
    if let Some(n) = shape.iter().find(|n| !(0..=i64::from(i32::MAX)).contains(*n)) {
        return Err(format!("extent {n} is not from 0 to {}", i32::MAX));
    }
    // Also that of an empty window: it must not point outside.
    let (mut least, mut greatest) = (offset as i128, offset as i128);
    if !shape.contains(&0) {
        for (&n, &stride) in shape.iter().zip(strides) {
            let reach = i128::from(n - 1) * i128::from(stride);
            least += reach.min(0);
            greatest += reach.max(0);
        }
    }
    let end = if shape.contains(&0) { greatest } else { greatest + 1 };
    if least < 0 || end > elements as i128 {
        return Err(format!(
            "extents {shape:?} with strides {strides:?} from element {offset} reach from {least} to {greatest}, outside of \
             the {elements} elements there are"
        ));
    }
    Ok(())
}
