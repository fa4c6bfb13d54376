//! A kernel's parameters: what the host passes, what the body sees.

use super::declare;
use crate::lang::{Block, Element, Scalar, Shape, Tile, View};
use crate::{Launch, Tensor};
use kiln_codegen::ir::{Access, Bits, Type};

/// The parameter list under construction; a token that `declare` takes so that only the macros' output can call it.
#[derive(Debug, Default)]
pub struct Params(());

/// A type that can be a kernel's parameter.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a kernel's parameter",
    label = "expected &View, &mut Block, &mut View, a number, or a struct with #[derive(KernelArg)]"
)]
pub trait KernelArg {
    /// What the host passes.
    type Host<'a>;
    /// What the body sees.
    type Staged;
    #[doc(hidden)]
    fn declare(params: &mut Params, name: &str) -> Self::Staged;
    #[doc(hidden)]
    fn bind<'a>(host: Self::Host<'a>, name: &str, launch: &mut Launch<'a>);
}

/// Marks a `&mut` parameter.
pub struct Mut<T>(std::marker::PhantomData<T>);

impl<T: Element, const R: usize> KernelArg for View<T, R> {
    type Host<'a> = &'a Tensor;
    type Staged = View<T, R>;
    fn declare(_: &mut Params, name: &str) -> View<T, R> {
        View::from_id(declare(name, Type::View(T::DTYPE, R as u8), Access::Read, None))
    }
    fn bind<'a>(host: &'a Tensor, name: &str, launch: &mut Launch<'a>) {
        launch.push_view(name, host, T::DTYPE, R);
    }
}

impl<T: Element, const R: usize> KernelArg for Mut<View<T, R>> {
    type Host<'a> = &'a mut Tensor;
    type Staged = View<T, R>;
    fn declare(_: &mut Params, name: &str) -> View<T, R> {
        View::from_id(declare(name, Type::View(T::DTYPE, R as u8), Access::Write, None))
    }
    fn bind<'a>(host: &'a mut Tensor, name: &str, launch: &mut Launch<'a>) {
        launch.push_view_mut(name, host, T::DTYPE, R);
    }
}

impl<T: Element, S: Shape> KernelArg for Mut<Block<T, S>> {
    type Host<'a> = &'a mut Tensor;
    type Staged = Block<T, S>;
    fn declare(_: &mut Params, name: &str) -> Block<T, S> {
        let ty = Type::View(T::DTYPE, S::RANK as u8);
        Block::from_id(declare(name, ty, Access::Write, Some(S::shape())))
    }
    fn bind<'a>(host: &'a mut Tensor, name: &str, launch: &mut Launch<'a>) {
        launch.push_view_mut(name, host, T::DTYPE, S::RANK);
    }
}

macro_rules! scalars {
    ($($t:ty => $bits:expr;)*) => {$(
        impl KernelArg for $t {
            type Host<'a> = $t;
            type Staged = Scalar<$t>;
            fn declare(_: &mut Params, name: &str) -> Scalar<$t> {
                Tile::from_id(declare(name, Type::scalar(<$t>::DTYPE), Access::Read, None))
            }
            fn bind<'a>(host: $t, name: &str, launch: &mut Launch<'a>) {
                let bits: fn($t) -> Bits = $bits;
                launch.push_scalar(name, <$t>::DTYPE, bits(host));
            }
        }
        impl KernelArg for Scalar<$t> {
            type Host<'a> = $t;
            type Staged = Scalar<$t>;
            fn declare(params: &mut Params, name: &str) -> Scalar<$t> {
                <$t as KernelArg>::declare(params, name)
            }
            fn bind<'a>(host: $t, name: &str, launch: &mut Launch<'a>) {
                <$t as KernelArg>::bind(host, name, launch)
            }
        }
    )*};
}
scalars! {
    bool => |v| Bits(v as u64);
    i8 => |v| Bits(v as u8 as u64);
    i16 => |v| Bits(v as u16 as u64);
    i32 => |v| Bits(v as u32 as u64);
    i64 => |v| Bits(v as u64);
    u8 => |v| Bits(v as u64);
    u16 => |v| Bits(v as u64);
    u32 => |v| Bits(v as u64);
    u64 => Bits;
    crate::lang::f16 => |v| Bits(v.to_bits() as u64);
    crate::lang::bf16 => |v| Bits(v.to_bits() as u64);
    f32 => |v| Bits(v.to_bits() as u64);
}
