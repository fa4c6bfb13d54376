//! The interpreter of tile IR: the definition of every operation.
//!
//! The compiled back ends are tested against it, so it prefers the plain way everywhere, and it checks what compiled
//! code cannot afford to: every index, every read of memory that nothing has written, every race between programs.
//! Programs run one after the other, each to its end, in the order of the grid or shuffled; a kernel whose result
//! depends on that order has a race, which is an error unless all accesses concerned are atomic. Programs of a cluster
//! that exchange tiles run together.
//!
//! ```text
//! mod.rs          arguments, options, the grid          tile.rs         elements of tiles
//! exec.rs         operations                            elementwise.rs  unary … cast
//! memory.rs       views, load … atomic                  shape.rs        broadcast … join
//! buffer.rs       memory that knows its history         axis.rs         reduce, scan
//! error.rs        what can go wrong                     dot.rs          the matrix product
//! control.rs      regions, loops, roles                 meeting.rs      programs that meet
//! ```
//!
//! Invariants: nothing panics (a kernel that does not verify is refused); nothing outside of the arguments' buffers is touched; a launch
//! holds the locks of its buffers (taken in address order) until it ends.

mod axis;
mod buffer;
mod control;
mod dot;
mod elementwise;
mod error;
mod exec;
mod meeting;
mod memory;
mod shape;
mod tile;

#[cfg(test)]
mod tests;

pub use buffer::{Buffer, BufferError};
pub use error::{Error, ErrorKind};
pub use tile::Tile;

use crate::ir::{Access, Bits, DType, Fact, Kernel, Loc, Meeting, OpId, SlotKind, Type, verify};
use buffer::{MAX_PROGRAMS, Memory};
use error::Fault;
use exec::{Machine, Value, role_count};
use memory::{View, program_index};
use std::sync::{Arc, MutexGuard};

/// An argument of a launch.
#[derive(Clone, Debug)]
pub enum Arg {
    /// The bits of the parameter's dtype.
    Scalar(Bits),
    /// A window on a buffer. `offset_elements` and `strides` count elements of the parameter's dtype; strides may be 0
    /// or negative. The whole extent must lie in the buffer. Two arguments may share a buffer.
    View { buffer: Arc<Buffer>, offset_elements: usize, shape: Vec<i64>, strides: Vec<i64> },
}

impl Arg {
    /// A scalar by value, rounded or wrapped to `dtype`.
    pub fn scalar(dtype: DType, value: f64) -> Arg {
        Arg::Scalar(Bits::from_f64(dtype, value))
    }

    /// A view of a whole buffer, row-major.
    pub fn contiguous(buffer: &Arc<Buffer>, shape: &[i64]) -> Arg {
        let mut strides = vec![1i64; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d].saturating_mul(shape[d].max(1));
        }
        Arg::View { buffer: buffer.clone(), offset_elements: 0, shape: shape.to_vec(), strides }
    }
}

/// In which order the programs of the grid run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Axis 0 fastest.
    #[default]
    Grid,
    /// By a permutation drawn from this seed, to expose dependence on the order; clusters that exchange tiles as a
    /// whole.
    Shuffled(u64),
}

/// What a trace callback is told after each operation.
#[derive(Debug)]
pub struct TraceEvent<'a> {
    pub kernel: &'a Kernel,
    pub program: [u32; 3],
    pub op: OpId,
    pub loc: Loc,
    /// The results that are tiles.
    pub results: &'a [Tile],
}

/// How to interpret. The callbacks run while the launch holds its buffers: reading those there would wait for ever.
pub struct Options<'a> {
    pub order: Order,
    /// The most operations that one program may execute.
    pub step_limit: u64,
    /// Called after every operation outside of combining regions.
    pub trace: Option<&'a mut dyn FnMut(&TraceEvent<'_>)>,
    /// Receives what `print` operations print, without newline; `None` is standard output.
    pub print: Option<&'a mut dyn FnMut(&str)>,
}

impl Default for Options<'_> {
    /// In grid order, a thousand million operations per program, no trace, printing to standard output.
    fn default() -> Self {
        Options { order: Order::default(), step_limit: 1_000_000_000, trace: None, print: None }
    }
}

/// Runs every program of `grid`. `args` are those of `kernel.params`, in order.
///
/// # Errors
/// If the kernel does not verify, the arguments do not fit or a program breaks a rule. Memory then holds what was written until then.
pub fn run(kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<(), Error> {
    run_with(kernel, grid, args, &mut Options::default())
}

/// As [`run`], with options.
///
/// # Errors
/// As [`run`].
pub fn run_with(kernel: &Kernel, grid: [u32; 3], args: &[Arg], options: &mut Options<'_>) -> Result<(), Error> {
    let reject = |fault: Fault| Error::new(&kernel.name, kernel.loc, None, fault);
    verify(kernel).map_err(|e| reject(ErrorKind::InvalidIr(e.to_string()).into()))?;
    let (values, buffers) = bind(kernel, args).map_err(reject)?;
    let programs = grid.iter().map(|&n| n as u128).product::<u128>();
    let accessors = programs * role_count(kernel) as u128;
    if accessors > MAX_PROGRAMS as u128 {
        let what = format!("a grid of {grid:?} has {programs} programs; the interpreter counts to {MAX_PROGRAMS}");
        return Err(reject(ErrorKind::BadArgument(what).into()));
    }
    let programs = programs as u32;
    let meeting = kernel.meeting().map(|(meeting, _)| meeting);
    let group = meeting.map_or(1, |meeting| meeting.programs(programs).max(1));
    if matches!(meeting, Some(Meeting::Cluster(_))) && !grid[0].is_multiple_of(group) {
        let what = format!("a grid of {grid:?}: axis 0 is not a multiple of the clusters of {group}");
        return Err(reject(ErrorKind::BadArgument(what).into()));
    }
    let written = |i: usize| {
        kernel.params.iter().zip(&values).any(|(p, v)| match v {
            Value::View(v) => v.buffer == i && p.access == Access::Write,
            _ => false,
        })
    };
    // One program without roles cannot race, and what nobody writes nobody can race for.
    let held = Held::lock(&buffers, |i| (accessors > 1 && written(i)).then_some(group));
    let order = options.order;
    let mut machine = Machine::new(kernel, grid, group, held, values, options);
    let mut run = |n: u32| {
        let outcome = match group {
            1 => machine.program(n).map_err(|fault| (n, fault)),
            _ => machine.together(n * group..(n + 1) * group),
        };
        outcome.map_err(|(n, fault)| Error::new(&kernel.name, kernel.loc, Some(program_index(n, grid)), fault))
    };
    match order {
        Order::Grid => (0..programs / group).try_for_each(&mut run),
        Order::Shuffled(seed) => shuffled(programs / group, seed).into_iter().try_for_each(&mut run),
    }
}

/// A permutation of 0 … n-1: Fisher-Yates, with splitmix64 (Steele, Lea, Flood 2014) as the generator.
fn shuffled(n: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    let mut state = seed;
    for i in (1..order.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(i, ((z ^ (z >> 31)) % (i as u64 + 1)) as usize);
    }
    order
}

/// The parameters' values and the distinct buffers behind them.
fn bind<'a>(kernel: &Kernel, args: &'a [Arg]) -> Result<(Vec<Value>, Vec<&'a Buffer>), Fault> {
    if args.len() != kernel.params.len() {
        let what = format!("{} arguments for {} parameters", args.len(), kernel.params.len());
        return Err(ErrorKind::BadArgument(what).into());
    }
    let mut buffers: Vec<&Buffer> = vec![];
    let mut values = vec![];
    for (i, (param, arg)) in kernel.params.iter().zip(args).enumerate() {
        let bad = |what: String| Fault::from(ErrorKind::BadArgument(what)).of(&param.name);
        values.push(match (kernel.ty(param.value), arg) {
            (Type::Tile(dtype, _), Arg::Scalar(bits)) => Value::scalar(dtype, *bits),
            (Type::View(dtype, rank), Arg::View { buffer, offset_elements, shape, strides }) => {
                if shape.len() != rank as usize {
                    return Err(bad(format!("a view of rank {rank} is expected, not one of shape {shape:?}")));
                }
                let known = buffers.iter().position(|b| std::ptr::eq(*b, &**buffer));
                let index = known.unwrap_or_else(|| {
                    buffers.push(buffer);
                    buffers.len() - 1
                });
                let view = View::new((index, i), dtype, *offset_elements, shape, strides, buffer.len()).map_err(bad)?;
                Value::View(view)
            }
            (ty, Arg::Scalar(_)) => return Err(bad(format!("a {ty} is expected, not a scalar"))),
            (ty, Arg::View { .. }) => return Err(bad(format!("a scalar {ty} is expected, not a view"))),
        });
    }
    check_facts(kernel, args)?;
    Ok((values, buffers))
}

/// A kernel specialised to facts about its arguments may only be launched with arguments of which they hold. (Addresses
/// are not checked: here they mean nothing.)
fn check_facts(kernel: &Kernel, args: &[Arg]) -> Result<(), Fault> {
    for (i, slot) in kernel.slots().iter().enumerate() {
        let Arg::View { shape, strides, .. } = &args[slot.param as usize] else { continue };
        let (what, value) = match slot.kind {
            SlotKind::Extent(d) => ("extent", shape[d as usize]),
            SlotKind::Stride(d) => ("stride", strides[d as usize]),
            SlotKind::Scalar | SlotKind::Address => continue,
        };
        let holds = match kernel.fact(i) {
            Fact::Unknown => true,
            Fact::One => value == 1,
            Fact::Multiple16 => value % 16 == 0,
        };
        if !holds {
            let what = format!("the kernel is specialised to {:?} for an {what} that is {value}", kernel.fact(i));
            return Err(Fault::from(ErrorKind::BadArgument(what)).of(&kernel.params[slot.param as usize].name));
        }
    }
    Ok(())
}

/// The locked memory of a launch's buffers; releasing it forgets who touched what.
struct Held<'b> {
    memories: Vec<MutexGuard<'b, Memory>>,
}

impl<'b> Held<'b> {
    /// Locks in address order, so that two launches with common buffers cannot wait for each other.
    /// Of which buffers a history is kept, `group` says: the programs of each group may meet.
    fn lock(buffers: &[&'b Buffer], group: impl Fn(usize) -> Option<u32>) -> Held<'b> {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&i| std::ptr::from_ref(buffers[i]).addr());
        let mut memories: Vec<Option<MutexGuard<'b, Memory>>> = buffers.iter().map(|_| None).collect();
        for i in order {
            let mut memory = buffers[i].lock();
            if let Some(group) = group(i) {
                memory.begin_history(group);
            }
            memories[i] = Some(memory);
        }
        Held { memories: memories.into_iter().flatten().collect() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.memories.iter_mut().for_each(|m| m.end_history());
    }
}
