//! Roles and channels: what runs beside what in one program, said by the author.
//!
//! ```
//! use kiln::prelude::*;
//!
//! /// c = a·bᵀ: one role loads, the other multiplies.
//! #[kernel]
//! fn product<const M: usize, const N: usize, const K: usize>(
//!     a: &View<f16, 2>,
//!     b: &View<f16, 2>,
//!     c: &mut Block<f32, M, N>,
//! ) {
//!     let (i, j, depth) = (program_id(0) * M, program_id(1) * N, a.dim(1));
//!     let (mut to, mut from) = channel::<(Tile<f16, M, K>, Tile<f16, N, K>), 4>();
//!     roles([
//!         role(1, || {
//!             for k in (0..depth).step_by(K) {
//!                 to.send((a.load((i, k)), b.load((j, k))));
//!             }
//!         })
//!         .registers(40),
//!         role(8, || {
//!             let mut sum: Tile<f32, M, N> = zeros();
//!             for _ in (0..depth).step_by(K) {
//!                 let slot = from.receive();
//!                 sum = dot(slot.0, slot.1.t(), sum);
//!                 slot.release();
//!             }
//!             c.store(sum);
//!         })
//!         .registers(232),
//!     ]);
//! }
//! # fn main() {}
//! ```
//!
//! On a GPU a role that only loads and sends makes bulk copies for the one that receives; any other has warps of its own
//! (Hopper), on the CPU a thread.
//!
//! A channel of `()` carries nothing and only says that somebody has come so far, as a named barrier does.
//!
//! The types say who may do what: a [`Sender`] sends, a [`Receiver`] receives, a [`Slot`] is given back once. That the
//! numbers of messages agree and that nobody waits for ever, the compiler checks where it can, and `Device::Interpret` and
//! `Device::Cpu` whenever they run the kernel.

use super::{Element, Shape, Tile};
use crate::stage::{self, Carried};
use kiln_codegen::ir::{self, RegionId, Type, ValueId};
use std::marker::PhantomData;
use std::ops::Deref;

/// What can be sent: tiles, and tuples and arrays of tiles, at most 8 of them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent through a channel",
    label = "only tiles, and tuples and arrays of tiles, are messages"
)]
pub trait Message: Carried {
    #[doc(hidden)]
    fn types(out: &mut Vec<Type>);
}

impl<T: Element, S: Shape> Message for Tile<T, S> {
    fn types(out: &mut Vec<Type>) {
        out.push(Type::Tile(T::DTYPE, S::shape()));
    }
}

impl<M: Message, const N: usize> Message for [M; N] {
    fn types(out: &mut Vec<Type>) {
        (0..N).for_each(|_| M::types(out));
    }
}

macro_rules! tuples {
    ($($($m:ident)*;)*) => {$(
        impl<$($m: Message),*> Message for ($($m,)*) {
            #[allow(unused_variables)]
            fn types(out: &mut Vec<Type>) {
                $($m::types(out);)*
            }
        }
    )*};
}
tuples! {
    ;
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
}

fn types<M: Message>() -> Vec<Type> {
    let mut types = vec![];
    M::types(&mut types);
    types
}

/// The end of a channel where messages go in. It is used in one role.
#[derive(Debug)]
pub struct Sender<M: Message> {
    channel: ValueId,
    // Handles mean something on the staging thread only.
    _marker: PhantomData<(M, *const ())>,
}

/// The end of a channel where messages come out, in the order in which they were sent. It is used in one role, which is
/// not the sender's.
#[derive(Debug)]
pub struct Receiver<M: Message> {
    channel: ValueId,
    _marker: PhantomData<(M, *const ())>,
}

/// A received message, `*slot`, and the place that it takes in the channel until [`Slot::release`]. Its tiles are values:
/// they may be used after that too, but must then be kept elsewhere.
#[must_use = "a message takes its slot until `release`"]
#[derive(Debug)]
pub struct Slot<M: Message> {
    slot: ValueId,
    message: M,
    _marker: PhantomData<*const ()>,
}

/// A part of a program that [`roles`] runs beside others, with what it borrows.
#[must_use = "a role runs in `roles([..])`"]
#[derive(Debug)]
pub struct Role<'a> {
    role: ir::Role,
    region: RegionId,
    _borrowed: PhantomData<(&'a mut (), *const ())>,
}

/// A channel: a ring of `SLOTS` places (1 to 255) for messages.
#[track_caller]
pub fn channel<M: Message, const SLOTS: usize>() -> (Sender<M>, Receiver<M>) {
    // What does not fit in a byte is as wrong as none, and the verifier says so.
    let slots = u8::try_from(SLOTS).unwrap_or(0);
    let channel = stage::emit(|b| b.channel(slots, &types::<M>()));
    (Sender { channel, _marker: PhantomData }, Receiver { channel, _marker: PhantomData })
}

impl<M: Message> Sender<M> {
    /// Waits until the message `SLOTS` before this one has been released, and sends.
    #[track_caller]
    pub fn send(&mut self, message: M) {
        let mut tiles = vec![];
        message.flatten(&mut tiles);
        stage::emit(|b| b.send(self.channel, &tiles));
    }
}

impl<M: Message> Receiver<M> {
    /// Waits for the next message.
    #[track_caller]
    pub fn receive(&mut self) -> Slot<M> {
        let (slot, tiles) = stage::emit(|b| b.receive(self.channel, &types::<M>()));
        Slot { slot, message: M::rebuild(&mut tiles.into_iter()), _marker: PhantomData }
    }
}

impl<M: Message> Deref for Slot<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

impl<M: Message> Slot<M> {
    /// Gives the place back, in the block that received the message.
    #[track_caller]
    pub fn release(self) {
        stage::emit(|b| b.release(self.slot));
    }
}

/// What `body` does, done by so many warps on a GPU (0: the compiler decides). It sees what was defined before; its values
/// leave it through channels and stores only.
#[track_caller]
pub fn role<'a>(warps: u8, body: impl FnOnce() + 'a) -> Role<'a> {
    let (region, _) = stage::emit(|b| b.open(&[]));
    body();
    stage::emit(|b| b.close(&[]));
    Role { role: ir::Role { warps, registers: 0 }, region, _borrowed: PhantomData }
}

impl Role<'_> {
    /// How many registers each of its threads may have on a GPU: a multiple of 8 from 24 to 256.
    pub fn registers(mut self, registers: u16) -> Self {
        self.role.registers = registers;
        self
    }
}

/// Runs the roles side by side. It ends the kernel; before it stand channels and what has no effect.
#[track_caller]
pub fn roles<const N: usize>(roles: [Role<'_>; N]) {
    let roles = roles.map(|r| (r.role, r.region));
    stage::emit(|b| b.roles(&roles));
}
