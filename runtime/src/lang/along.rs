//! Reductions and scans along an axis, `dot` and `dot_batch`.

use super::{Axis, D0, D2, D3, DotElement, Element, Number, Shape, Tile};
use crate::stage;
use kiln_codegen::ir::{Combine, OpKind, Precision, Type, ValueId};

impl<T: Element, S: Shape> Tile<T, S> {
    #[track_caller]
    fn reduced<const A: usize>(self, combine: Combine) -> Tile<T, S::Without>
    where
        S: Axis<A>,
    {
        Tile::from_id(stage::emit(|b| b.reduce(self.id(), A, combine)))
    }

    /// Combined along axis `A` by an associative function of two scalars; grouped in any way, order kept.
    #[track_caller]
    pub fn reduce<const A: usize>(self, f: impl FnOnce(Tile<T, D0>, Tile<T, D0>) -> Tile<T, D0>) -> Tile<T, S::Without>
    where
        S: Axis<A>,
    {
        let result = Type::Tile(T::DTYPE, S::Without::shape());
        let kind = OpKind::Reduce { axis: A as u8, combine: Combine::Region };
        Tile::from_id(
            combine_by(kind, &[self.id()], &[result], |l, r| vec![f(Tile::from_id(l[0]), Tile::from_id(r[0])).id()])[0],
        )
    }

    /// Inclusive scan along axis `A` by an associative function of two scalars.
    #[track_caller]
    pub fn scan<const A: usize>(self, f: impl FnOnce(Tile<T, D0>, Tile<T, D0>) -> Tile<T, D0>) -> Tile<T, S>
    where
        S: Axis<A>,
    {
        let kind = OpKind::Scan { axis: A as u8, combine: Combine::Region, reverse: false };
        Tile::from_id(
            combine_by(kind, &[self.id()], &[Type::Tile(T::DTYPE, S::shape())], |l, r| {
                vec![f(Tile::from_id(l[0]), Tile::from_id(r[0])).id()]
            })[0],
        )
    }
}

#[track_caller]
fn combine_by(
    kind: OpKind,
    operands: &[ValueId],
    results: &[Type],
    f: impl FnOnce(&[ValueId], &[ValueId]) -> Vec<ValueId>,
) -> Vec<ValueId> {
    let scalars: Vec<Type> =
        stage::emit(|b| operands.iter().chain(operands).map(|&v| Type::scalar(b.ty(v).dtype())).collect());
    let (region, args) = stage::emit(|b| b.open(&scalars));
    let (left, right) = args.split_at(operands.len());
    let combined = f(left, right);
    stage::emit(|b| {
        b.close(&combined);
        let op = b.emit_with_regions(kind, operands, results, &[region]);
        b.results(op)
    })
}

impl<T: Number, S: Shape> Tile<T, S> {
    /// Sum along axis `A`, in the element type (cast narrow floats to f32 first).
    #[track_caller]
    pub fn sum<const A: usize>(self) -> Tile<T, S::Without>
    where
        S: Axis<A>,
    {
        self.reduced::<A>(Combine::Sum)
    }

    /// Largest along axis `A`; NaN only if all are.
    #[track_caller]
    pub fn amax<const A: usize>(self) -> Tile<T, S::Without>
    where
        S: Axis<A>,
    {
        self.reduced::<A>(Combine::Max)
    }

    /// Smallest along axis `A`; NaN only if all are.
    #[track_caller]
    pub fn amin<const A: usize>(self) -> Tile<T, S::Without>
    where
        S: Axis<A>,
    {
        self.reduced::<A>(Combine::Min)
    }

    /// Inclusive running sum along axis `A`.
    #[track_caller]
    pub fn cumsum<const A: usize>(self) -> Tile<T, S>
    where
        S: Axis<A>,
    {
        Tile::from_id(stage::emit(|b| b.scan(self.id(), A, Combine::Sum, false)))
    }

    /// Running sum along axis `A` from the far end.
    #[track_caller]
    pub fn reverse_cumsum<const A: usize>(self) -> Tile<T, S>
    where
        S: Axis<A>,
    {
        Tile::from_id(stage::emit(|b| b.scan(self.id(), A, Combine::Sum, true)))
    }

    /// Largest element along axis `A` and its index; of equals, the first.
    #[track_caller]
    pub fn argmax<const A: usize>(self) -> (Tile<T, S::Without>, Tile<i32, S::Without>)
    where
        S: Axis<A>,
    {
        let index: Tile<i32, S> = Tile::from_id(stage::emit(|b| b.iota(S::shape(), A)));
        let without = S::Without::shape();
        let results = [Type::Tile(T::DTYPE, without), Type::Tile(i32::DTYPE, without)];
        let kind = OpKind::Reduce { axis: A as u8, combine: Combine::Region };
        let out = combine_by(kind, &[self.id(), index.id()], &results, |l, r| {
            let (lv, li): (Tile<T, D0>, Tile<i32, D0>) = (Tile::from_id(l[0]), Tile::from_id(l[1]));
            let (rv, ri): (Tile<T, D0>, Tile<i32, D0>) = (Tile::from_id(r[0]), Tile::from_id(r[1]));
            let left = stage::gt(lv, rv) | (stage::eq(lv, rv) & stage::lt(li, ri));
            vec![super::select(left, lv, rv).id(), super::select(left, li, ri).id()]
        });
        (Tile::from_id(out[0]), Tile::from_id(out[1]))
    }
}

impl<S: Shape> Tile<bool, S> {
    /// Whether any element along axis `A` is true.
    #[track_caller]
    pub fn any<const A: usize>(self) -> Tile<bool, S::Without>
    where
        S: Axis<A>,
    {
        self.reduced::<A>(Combine::Or)
    }

    /// Whether all elements along axis `A` are true.
    #[track_caller]
    pub fn all<const A: usize>(self) -> Tile<bool, S::Without>
    where
        S: Axis<A>,
    {
        self.reduced::<A>(Combine::And)
    }
}

/// `acc + a·b` for a M×K, b K×N, acc M×N, on tensor cores where the device has them. 16-bit products are exact and
/// summed in f32; f32 operands compute in f32 (see [`dot_with`]).
#[track_caller]
pub fn dot<T: DotElement, const M: usize, const K: usize, const N: usize>(
    a: Tile<T, D2<M, K>>,
    b: Tile<T, D2<K, N>>,
    acc: Tile<T::Acc, D2<M, N>>,
) -> Tile<T::Acc, D2<M, N>> {
    dot_with(a, b, acc, Precision::F32)
}

/// [`dot`] with f32 operands in the given precision.
#[track_caller]
pub fn dot_with<T: DotElement, const M: usize, const K: usize, const N: usize>(
    a: Tile<T, D2<M, K>>,
    b: Tile<T, D2<K, N>>,
    acc: Tile<T::Acc, D2<M, N>>,
    precision: Precision,
) -> Tile<T::Acc, D2<M, N>> {
    Tile::from_id(stage::emit(|builder| builder.dot(a.id(), b.id(), acc.id(), precision)))
}

/// [`dot`] of every matrix of `a` with the matrix of `b` at the same place: `acc[i] + a[i]·b[i]` for a B×M×K, b B×K×N,
/// acc B×M×N. Many small products in one keep a program busy that one of them would not.
#[track_caller]
pub fn dot_batch<T: DotElement, const B: usize, const M: usize, const K: usize, const N: usize>(
    a: Tile<T, D3<B, M, K>>,
    b: Tile<T, D3<B, K, N>>,
    acc: Tile<T::Acc, D3<B, M, N>>,
) -> Tile<T::Acc, D3<B, M, N>> {
    dot_batch_with(a, b, acc, Precision::F32)
}

/// [`dot_batch`] with f32 operands in the given precision.
#[track_caller]
pub fn dot_batch_with<T: DotElement, const B: usize, const M: usize, const K: usize, const N: usize>(
    a: Tile<T, D3<B, M, K>>,
    b: Tile<T, D3<B, K, N>>,
    acc: Tile<T::Acc, D3<B, M, N>>,
    precision: Precision,
) -> Tile<T::Acc, D3<B, M, N>> {
    Tile::from_id(stage::emit(|builder| builder.dot(a.id(), b.id(), acc.id(), precision)))
}
