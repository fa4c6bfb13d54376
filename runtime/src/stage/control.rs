//! Staged control flow.
//!
//! Each function runs the closures once to build regions. Variables that the region assigns come in and go out as the
//! carried value; everything else is captured, which is how the IR sees it too.

use super::{Carried, emit, i32_scalar};
use crate::lang::{D0, Operand, Tile};
use kiln_codegen::ir::{OpKind, Type, ValueId};

/// `lo .. hi` of a staged `for`.
#[derive(Clone, Copy)]
pub struct LoopRange {
    lo: Tile<i32>,
    hi: Tile<i32>,
    step: Tile<i32>,
    stages: u8,
}

/// `lo .. hi`.
#[track_caller]
pub fn range(lo: impl Operand<i32, D0>, hi: impl Operand<i32, D0>) -> LoopRange {
    LoopRange { lo: i32_scalar(lo), hi: i32_scalar(hi), step: i32_scalar(1), stages: 0 }
}

impl LoopRange {
    /// Every `step`-th index; `step` must be positive.
    #[track_caller]
    pub fn step_by(self, step: impl Operand<i32, D0>) -> LoopRange {
        LoopRange { step: i32_scalar(step), ..self }
    }

    /// How many iterations' loads are in flight at once on a GPU (a hint; 0: the compiler decides).
    pub fn stages(self, stages: u8) -> LoopRange {
        LoopRange { stages, ..self }
    }
}

fn flat<C: Carried>(value: &C) -> Vec<ValueId> {
    let mut out = vec![];
    value.flatten(&mut out);
    out
}

fn rebuild<C: Carried>(values: &[ValueId]) -> C {
    C::rebuild(&mut values.iter().copied())
}

#[track_caller]
fn types(values: &[ValueId]) -> Vec<Type> {
    emit(|b| values.iter().map(|&v| b.ty(v)).collect())
}

/// `for i in range { body }`.
#[track_caller]
pub fn for_<V: Carried>(range: LoopRange, carried: V, body: impl FnOnce(Tile<i32>, V) -> V) -> V {
    let inits = flat(&carried);
    let types = types(&inits);
    let mut args = vec![Type::scalar(kiln_codegen::ir::DType::I32)];
    args.extend(&types);
    let (region, args) = emit(|b| b.open(&args));
    let yielded = flat(&body(Tile::from_id(args[0]), rebuild(&args[1..])));
    let results = emit(|b| {
        b.close(&yielded);
        let operands: Vec<_> = [range.lo.id(), range.hi.id(), range.step.id()].into_iter().chain(inits).collect();
        let op = b.emit_with_regions(OpKind::For { stages: range.stages }, &operands, &types, &[region]);
        b.results(op)
    });
    rebuild(&results)
}

/// What `while` takes: a scalar `Tile<bool>` (one loop on the device) or a compile-time `bool` (a loop while staging).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no condition of a loop",
    label = "expected a scalar `Tile<bool>` or a compile-time bool",
    note = "of a tile of conditions take `.any::<0>()` or `.all::<0>()`"
)]
pub trait LoopCondition<V>: Sized {
    #[doc(hidden)]
    #[track_caller]
    fn repeat(carried: V, stage: impl FnMut(bool, V) -> (Option<Self>, V)) -> V;
}

/// What the closure of a `while` returns when it is asked for the condition.
const ASKED: &str = "the condition was asked for";

impl<V> LoopCondition<V> for bool {
    fn repeat(mut carried: V, mut stage: impl FnMut(bool, V) -> (Option<bool>, V)) -> V {
        loop {
            let (holds, same) = stage(false, carried);
            if !holds.expect(ASKED) {
                return same;
            }
            carried = stage(true, same).1;
        }
    }
}

impl<V: Carried> LoopCondition<V> for Tile<bool> {
    #[track_caller]
    fn repeat(carried: V, mut stage: impl FnMut(bool, V) -> (Option<Tile<bool>>, V)) -> V {
        let inits = flat(&carried);
        let types = types(&inits);
        let (condition_region, args) = emit(|b| b.open(&types));
        let holds = stage(false, rebuild(&args)).0.expect(ASKED);
        let (body_region, args) = emit(|b| {
            b.close(&[holds.id()]);
            b.open(&types)
        });
        let yielded = flat(&stage(true, rebuild(&args)).1);
        let results = emit(|b| {
            b.close(&yielded);
            let op = b.emit_with_regions(OpKind::While, &inits, &types, &[condition_region, body_region]);
            b.results(op)
        });
        rebuild(&results)
    }
}

/// `while condition { body }`: `stage(false, v)` stages the condition, `stage(true, v)` the body. One closure, because
/// both may use the same `&mut` parameter.
#[track_caller]
pub fn while_<C: LoopCondition<V>, V>(carried: V, stage: impl FnMut(bool, V) -> (Option<C>, V)) -> V {
    C::repeat(carried, stage)
}

/// What `if` takes: a compile-time `bool` (one branch is staged) or a scalar `Tile<bool>` (both are).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no condition",
    label = "expected a compile-time bool or a scalar `Tile<bool>`",
    note = "of a tile of conditions take `.any::<0>()` or `.all::<0>()`; for a choice per element use `select(c, x, y)`"
)]
pub trait Condition<V, R> {
    #[doc(hidden)]
    #[track_caller]
    fn branch(self, carried: V, stage: impl FnMut(bool, V) -> (V, R)) -> (V, R);
}

// Compile-time branches carry and give anything, not only tiles.
impl<V, R> Condition<V, R> for bool {
    fn branch(self, carried: V, mut stage: impl FnMut(bool, V) -> (V, R)) -> (V, R) {
        stage(self, carried)
    }
}

impl<V: Carried, R: Carried> Condition<V, R> for Tile<bool> {
    #[track_caller]
    fn branch(self, carried: V, mut stage: impl FnMut(bool, V) -> (V, R)) -> (V, R) {
        let inits = flat(&carried);
        let (then_region, _) = emit(|b| b.open(&[]));
        let yielded = flat(&stage(true, rebuild(&inits)));
        let (else_region, _) = emit(|b| {
            b.close(&yielded);
            b.open(&[])
        });
        let otherwise = flat(&stage(false, rebuild(&inits)));
        let types = types(&yielded);
        let results = emit(|b| {
            b.close(&otherwise);
            let op = b.emit_with_regions(OpKind::If, &[self.id()], &types, &[then_region, else_region]);
            b.results(op)
        });
        rebuild(&results)
    }
}

/// `if condition { .. } else { .. }`: `stage(true, v)` stages the first branch, `stage(false, v)` the second. One
/// closure, because both may use the same `&mut` parameter.
#[track_caller]
pub fn if_<C: Condition<V, R>, V, R>(condition: C, carried: V, stage: impl FnMut(bool, V) -> (V, R)) -> (V, R) {
    condition.branch(carried, stage)
}
