//! What the macros' output calls: the builder of the kernel being staged, and everything Rust cannot overload.
//!
//! Authors do not name this module. One kernel is staged at a time per thread; mistakes that types cannot express
//! (a reshape of generic extents, say) are collected with their source location and reported together.

mod arguments;
mod carried;
mod compare;
mod control;

pub use arguments::{KernelArg, Mut, Params};
pub use carried::Carried;
pub use compare::{Compare, and, eq, ge, gt, le, lt, ne, or};
pub use control::{Condition, LoopCondition, LoopRange, for_, if_, range, while_};

use crate::lang::{D0, Element, Operand, Shape, Tile};
use kiln_codegen::ir::{Access, Bits, Builder, Kernel, Lint, Lints, Loc, Op, Options as IrOptions, Param, Reuse};
use std::cell::RefCell;

/// A kernel's options, from `#[kernel(...)]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    pub warps: u8,
    pub min_programs_per_sm: u8,
    pub cluster: u8,
    pub deny: &'static [Lint],
    /// What is said of parameters, each if its condition holds (of several about reuse the first counts); of a struct, of
    /// all its views.
    pub hints: &'a [(&'static str, Hint, bool)],
    /// Whether instances are chosen among by measuring them.
    pub tuned: bool,
}

/// What an option says of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// [`Reuse::EvictFirst`].
    EvictFirst,
    /// [`Reuse::Discard`].
    Discard,
    /// [`Param::settled`].
    Settled,
}

struct Staging {
    builder: Builder,
    errors: Vec<(Loc, String)>,
}

thread_local! {
    static STAGING: RefCell<Option<Staging>> = const { RefCell::new(None) };
}

/// Runs `f` on the builder, with the caller's place in the source as the location of what it appends.
///
/// # Panics
/// Outside of a kernel being staged.
#[track_caller]
pub(crate) fn emit<R>(f: impl FnOnce(&mut Builder) -> R) -> R {
    let loc = Loc::caller();
    STAGING.with_borrow_mut(|s| {
        let s = s.as_mut().expect("tiles exist inside #[kernel] functions only: no kernel is being staged");
        s.builder.loc = loc;
        f(&mut s.builder)
    })
}

/// Records a mistake at the caller's place and gives a tile to go on with.
#[track_caller]
pub(crate) fn error<T: Element, S: Shape>(message: impl Into<String>) -> Tile<T, S> {
    record(message.into());
    Tile::from_id(emit(|b| b.constant(T::DTYPE, S::shape(), Bits(0))))
}

#[track_caller]
fn record(message: String) {
    let loc = Loc::caller();
    STAGING.with_borrow_mut(|s| {
        s.as_mut().expect("no kernel is being staged").errors.push((loc, message));
    });
}

/// Stages one kernel: `body` declares the parameters and runs the function's rewritten body.
#[track_caller]
pub fn build(name: &'static str, options: Options<'_>, body: impl FnOnce(&mut Params)) -> Result<Kernel, crate::Error> {
    let loc = Loc::caller();
    let staging = Staging { builder: Builder::new(name, loc), errors: vec![] };
    // A kernel may be staged while another is (a launch inside a device function makes no sense, but must not corrupt).
    let outer = STAGING.replace(Some(staging));
    struct Restore(Option<Staging>);
    impl Drop for Restore {
        fn drop(&mut self) {
            STAGING.set(self.0.take());
        }
    }
    let restore = Restore(outer);
    let Options { warps, min_programs_per_sm, cluster, deny, hints, tuned } = options;
    emit(|b| b.kernel_mut().options = IrOptions { warps, min_programs_per_sm, cluster, deny: Lints::of(deny) });
    body(&mut Params::default());
    let Staging { builder, mut errors } = STAGING.take().expect("set above");
    drop(restore);
    let mut kernel = builder.finish();
    for i in 0..kernel.params.len() {
        let (is_view, p) = (!kernel.ty(kernel.params[i].value).is_scalar(), &mut kernel.params[i]);
        let of_this = |&&(name, _, so): &&(&str, Hint, bool)| is_view && so && p.name.split('.').next() == Some(name);
        let of_this: Vec<Hint> = hints.iter().filter(of_this).map(|h| h.1).collect();
        p.settled = of_this.contains(&Hint::Settled);
        let reuse = |hint: &Hint| match hint {
            Hint::EvictFirst => Some(Reuse::EvictFirst),
            Hint::Discard => Some(Reuse::Discard),
            Hint::Settled => None,
        };
        p.reuse = of_this.iter().find_map(reuse).unwrap_or_default();
    }
    if tuned {
        errors.extend(reads_of_outputs(&kernel));
    }
    if errors.is_empty() { Ok(kernel) } else { Err(crate::Error::staging(name, errors)) }
}

/// A type's name without its path.
pub fn type_text<T>() -> String {
    let name = std::any::type_name::<T>();
    // Of a generic type the paths stay: all that matters is that the text tells it from others.
    if name.contains('<') { name.into() } else { name.rsplit("::").next().unwrap_or(name).into() }
}

/// A kernel and its generic arguments: `linear<bf16, 16>`.
pub fn instance_text(kernel: &str, arguments: &[String]) -> String {
    if arguments.is_empty() { kernel.into() } else { format!("{kernel}<{}>", arguments.join(", ")) }
}

/// Mistakes of a kernel that is run several times to be measured: what it would find changed the second time.
fn reads_of_outputs(kernel: &Kernel) -> Vec<(Loc, String)> {
    let read = |op: &Op| {
        let param = kernel.view_param(*op.operands.first().filter(|_| op.kind.reads_memory())?)?;
        let Param { name, access: Access::Write, .. } = &kernel.params[param as usize] else { return None };
        let message = format!(
            "`{name}` is written and read, and measuring the candidates of `tune` runs each several times on the same \
             memory: read from a parameter of its own, or leave `tune` out"
        );
        Some((op.loc, message))
    };
    kernel.ops.iter().filter_map(read).collect()
}

#[track_caller]
pub(crate) fn declare(
    name: &str,
    ty: kiln_codegen::ir::Type,
    access: Access,
    block: Option<kiln_codegen::ir::Shape>,
) -> kiln_codegen::ir::ValueId {
    emit(|b| b.kernel_mut().add_param(name, ty, access, block))
}

/// `static_assert!`: a condition on compile-time values, checked while staging.
#[track_caller]
pub fn static_assert(condition: bool, message: &str) {
    if !condition {
        record(format!("static assertion failed: {message}"));
    }
}

/// `assert!` on tiles: all elements must be true at run time.
#[track_caller]
pub fn assert_<S: Shape>(condition: Tile<bool, S>, message: &str) {
    emit(|b| b.assert(condition.id(), message));
}

/// A value in `print!`.
pub struct Print(kiln_codegen::ir::ValueId);

/// Makes a tile or number printable.
#[track_caller]
pub fn print_value<T: Element, S: Shape>(value: Tile<T, S>) -> Print {
    Print(value.id())
}

/// `print!`: the message, then the values.
#[track_caller]
pub fn print_(message: &str, values: &[Print]) {
    let values: Vec<_> = values.iter().map(|v| v.0).collect();
    emit(|b| b.print(message, &values));
}

/// Turns a number or scalar into an i32 scalar.
#[track_caller]
fn i32_scalar(x: impl Operand<i32, D0>) -> Tile<i32> {
    x.operand()
}
