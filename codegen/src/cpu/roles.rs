//! Crews: threads that run the kernel's function side by side. They are the roles of a program, each of which takes its
//! own region, or the programs of a cluster that exchange tiles.
//!
//! What stands before `roles` has no effect, so every role computes it for itself, in scratch memory of its own; they go
//! on together, so that none of them reads what another one has already overwritten. Messages are copied out of the
//! sender's scratch memory and into the receiver's. What the programs of a cluster exchange is copied out likewise;
//! each combines the tiles of all.
//!
//! Invariants:
//! - A crew is as many threads as there are roles, or programs of a cluster. It takes one program (or cluster) after
//!   the other, and begins none before all have ended the one before.
//! - A thread that waits is woken by every change and looks again. When all that have not ended wait, nothing will change
//!   any more: the program fails, and so it does if messages are left.

use super::emit::{Emitter, flags};
use super::helpers::{Context, LaunchIds, element, set_element};
use super::plan::{Plan, lane_bytes};
use crate::channel::Ring;
use crate::ir::{Combine, DType, Kernel, OpId, OpKind, ValueId};
use crate::semantics;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, types};
use std::collections::{BTreeMap, HashMap};
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many roles a kernel has; 0: it is not divided.
pub(super) fn count(kernel: &Kernel) -> usize {
    let roles = |&op: &OpId| matches!(kernel.op(op).kind, OpKind::Roles(_)).then(|| kernel.op(op).regions.len());
    kernel.region(kernel.body).ops.iter().find_map(roles).unwrap_or(0)
}

/// What the host must know of an operation by which the threads of a crew meet.
pub(super) enum Site {
    /// The beginning of the roles.
    Roles,
    /// The operation that made the channel, its slots, and offset and size of each tile in the sender's scratch memory.
    Send(u32, u8, Vec<(usize, usize)>),
    /// The same of the receiver's.
    Receive(u32, u8, Vec<(usize, usize)>),
    Release(u32),
    /// All programs wait for each other.
    Meet,
    /// How to combine how many elements of which type, and where in scratch memory they are and go to.
    Combine {
        combine: Combine,
        dtype: DType,
        count: usize,
        from: usize,
        to: usize,
    },
}

/// The sites of a kernel, by operation.
pub(super) fn sites(k: &Kernel, plan: &Plan) -> HashMap<u32, Site> {
    let mut sites = HashMap::new();
    for (i, op) in k.ops.iter().enumerate() {
        let id = OpId(i as u32);
        let place = |(n, &v): (usize, &ValueId)| {
            let ty = k.ty(v);
            // None: the operation is in a part of the arena that no region holds.
            let layout = plan.message(id, n, v, ty)?;
            Some((plan.array_offset(layout.array), lane_bytes(ty.dtype()) * ty.shape().numel()))
        };
        let channel = |c: ValueId| (k.defining_op(c).map_or(0, |op| op.0), k.channel(c).0);
        let site = match op.kind {
            OpKind::Roles(_) => Some(Site::Roles),
            OpKind::Send => {
                let tiles: Option<_> = op.operands.iter().enumerate().skip(1).map(place).collect();
                let (channel, slots) = channel(op.operands[0]);
                tiles.map(|tiles| Site::Send(channel, slots, tiles))
            }
            OpKind::Receive => {
                let tiles: Option<_> = op.results.iter().enumerate().skip(1).map(place).collect();
                let (channel, slots) = channel(op.operands[0]);
                tiles.map(|tiles| Site::Receive(channel, slots, tiles))
            }
            OpKind::ClusterReduce(combine) => {
                let (x, result) = (op.operands[0], op.results[0]);
                let ty = k.ty(x);
                let (dtype, count) = (ty.dtype(), ty.shape().numel());
                let places = place((0, &x)).zip(place((1, &result)));
                places.map(|((from, _), (to, _))| Site::Combine { combine, dtype, count, from, to })
            }
            OpKind::GridSync => Some(Site::Meet),
            OpKind::Release => {
                k.defining_op(op.operands[0]).map(|receive| Site::Release(channel(k.op(receive).operands[0]).0))
            }
            _ => None,
        };
        sites.extend(site.map(|site| (i as u32, site)));
    }
    sites
}

// -- the host's side ---------------------------------------------------------------------------------------------------

/// Why a program ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The operation's own: 1 + its number.
    Operation(u32),
    /// The operation that each role, or program that is to meet others, waits in.
    Deadlock(BTreeMap<u32, u32>),
    /// So many messages of the channel were never received.
    NotReceived(u32, usize),
}

/// The threads that run one program, or programs that meet, together.
pub(super) struct Crew {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    channels: BTreeMap<u32, Ring<Box<[u8]>>>,
    /// What the programs that meet have brought, by their ranks, and to which operation; how many have taken all of it.
    brought: BTreeMap<u32, (u32, Box<[u8]>)>,
    taken: usize,
    /// How often all have met, and how many have come to meet again.
    meetings: u64,
    arrived: usize,
    /// Those that have found that they must wait since something has changed: the operation of each.
    waiting: BTreeMap<u32, u32>,
    /// How many have ended.
    ended: usize,
    /// Whether another crew has failed when this one's last program ended.
    stopped: bool,
    failure: Option<Failure>,
}

impl Crew {
    pub(super) fn new(size: usize) -> Crew {
        Crew { size, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, but if so, the state is whole all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all. False if one has failed.
    fn meet(&self) -> bool {
        let mut state = self.lock();
        let meeting = state.meetings;
        state.arrived += 1;
        if state.arrived == self.size {
            (state.arrived, state.meetings) = (0, meeting + 1);
            self.changed.notify_all();
        }
        while state.meetings == meeting && state.failure.is_none() {
            state = self.sleep(state);
        }
        state.failure.is_none()
    }

    /// Does what has a result as soon as it has one; `None` if the program has failed.
    fn when<R>(&self, role: u32, op: u32, mut attempt: impl FnMut(&mut State) -> Option<R>) -> Option<R> {
        let mut state = self.lock();
        while state.failure.is_none() {
            if let Some(result) = attempt(&mut state) {
                state.waiting.clear();
                self.changed.notify_all();
                return Some(result);
            }
            state.waiting.insert(role, op);
            if !self.is_stuck(&mut state) {
                state = self.sleep(state);
            }
        }
        None
    }

    /// Brings bytes to a meeting and waits for those of all, which come in the order of ranks.
    fn all_that_meet(&self, rank: u32, op: u32, bytes: Box<[u8]>) -> Option<Vec<Box<[u8]>>> {
        let mut bytes = Some(bytes);
        // Not before all have taken what was brought to the meeting before.
        self.when(rank, op, |state| {
            if state.brought.contains_key(&rank) {
                return None;
            }
            state.brought.insert(rank, (op, bytes.take()?));
            Some(())
        })?;
        self.when(rank, op, |state| {
            if state.brought.len() < self.size || state.brought.values().any(|(other, _)| *other != op) {
                return None;
            }
            let all = state.brought.values().map(|(_, bytes)| bytes.clone()).collect();
            state.taken += 1;
            if state.taken == self.size {
                state.taken = 0;
                state.brought.clear();
            }
            Some(all)
        })
    }

    /// Whether all that have not ended wait; then the program fails.
    fn is_stuck(&self, state: &mut State) -> bool {
        let stuck = !state.waiting.is_empty() && state.waiting.len() + state.ended == self.size;
        if stuck && state.failure.is_none() {
            state.failure = Some(Failure::Deadlock(state.waiting.clone()));
            self.changed.notify_all();
        }
        stuck
    }

    /// Ends a role with the code that the kernel's function returned, and waits for the others. False: another crew has
    /// set `stop`.
    pub(super) fn end(&self, code: u32, stop: &AtomicBool) -> Result<bool, Failure> {
        let mut state = self.lock();
        if code != 0 && state.failure.is_none() {
            state.failure = Some(Failure::Operation(code));
            self.changed.notify_all();
        }
        state.ended += 1;
        self.is_stuck(&mut state);
        if state.ended == self.size {
            let left = state.channels.iter().find(|(_, c)| c.waiting() > 0).map(|(&c, ring)| (c, ring.waiting()));
            if let (Some((channel, n)), None) = (left, &state.failure) {
                state.failure = Some(Failure::NotReceived(channel, n));
            }
            state.channels.clear();
            state.brought.clear();
            (state.ended, state.taken) = (0, 0);
            state.stopped = stop.load(Ordering::Relaxed);
        }
        drop(state);
        self.meet();
        let state = self.lock();
        match &state.failure {
            Some(failure) => {
                stop.store(true, Ordering::Relaxed);
                Err(failure.clone())
            }
            None => Ok(!state.stopped),
        }
    }
}

/// Does what an operation by which the threads of a crew meet does. Returns the number of a received message, otherwise
/// 0; -1 if the program has failed. `message` is that to release.
///
/// # Safety
/// `context` and `ids` must be those of the launch, `ids.crew` that of the thread, and `scratch` its memory, laid out as
/// the sites say, with what a send sends written.
pub(super) unsafe extern "C" fn exchange(
    context: *const Context,
    op: u32,
    ids: *const LaunchIds,
    scratch: *mut u8,
    message: i64,
) -> i64 {
    // SAFETY: the caller passes the pointers that the launch gave it.
    let (context, role, crew) = unsafe { (&*context, (*ids).role, (*ids).crew.as_ref()) };
    let crew_of_roles = || crew.expect("the roles of a program have a crew");
    let done = match context.sites.get(&op) {
        None => None,
        Some(Site::Roles) => crew_of_roles().meet().then_some(0),
        Some(Site::Send(channel, slots, tiles)) => {
            let mut bytes = Vec::with_capacity(tiles.iter().map(|t| t.1).sum());
            for &(offset, size) in tiles {
                // SAFETY: the compiled code has written so many bytes there.
                bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(scratch.add(offset), size) });
            }
            let mut bytes = Some(bytes.into_boxed_slice());
            crew_of_roles().when(role, op, |state| {
                let channel = state.channels.entry(*channel).or_insert_with(|| Ring::new(*slots));
                if channel.has_room() {
                    channel.send(bytes.take()?);
                    return Some(0);
                }
                None
            })
        }
        Some(Site::Receive(channel, slots, tiles)) => {
            let received = crew_of_roles()
                .when(role, op, |state| state.channels.entry(*channel).or_insert_with(|| Ring::new(*slots)).receive());
            received.map(|(number, bytes)| {
                let mut at = 0;
                for &(offset, size) in tiles {
                    // SAFETY: the array of the tile is there; the sender has sent a message of the same tiles.
                    unsafe { bytes[at..at + size].as_ptr().copy_to_nonoverlapping(scratch.add(offset), size) };
                    at += size;
                }
                number as i64
            })
        }
        // A program that is alone has nobody to wait for.
        Some(Site::Meet) => crew.map_or(Some(0), |c| c.all_that_meet(role, op, [].into()).map(|_| 0)),
        Some(&Site::Combine { combine, dtype, count, from, to }) => {
            // SAFETY: the compiled code has written so many elements there, and their scratch memory is aligned.
            let own = unsafe { std::slice::from_raw_parts(scratch.add(from), lane_bytes(dtype) * count) };
            let all = crew.map_or_else(|| Some(vec![own.into()]), |c| c.all_that_meet(role, op, own.into()));
            all.map(|all| {
                for i in 0..count {
                    // SAFETY: all have brought the same tile.
                    let elements = all.iter().map(|tile| unsafe { element(dtype, tile.as_ptr(), i) });
                    let combined = elements.reduce(|x, y| semantics::combine(combine, dtype, x, y));
                    // SAFETY: the array of the result is there.
                    unsafe { set_element(dtype, scratch.add(to), i, combined.expect("a cluster has programs")) };
                }
                0
            })
        }
        Some(Site::Release(channel)) => crew_of_roles().when(role, op, |state| {
            let released = state.channels.get_mut(channel).is_some_and(|c| c.release(message as u64));
            assert!(released, "the verifier has seen that a slot is released once");
            Some(0)
        }),
    };
    done.unwrap_or(-1)
}

// -- the kernel's side -------------------------------------------------------------------------------------------------

impl Emitter<'_, '_> {
    /// Each role takes its own region.
    pub(super) fn emit_roles(&mut self, id: OpId) {
        let k = self.k;
        self.emit_exchange(id);
        let role = self.b.ins().load(types::I32, flags(), self.ids, offset_of!(LaunchIds, role) as i32);
        let exit = self.b.create_block();
        for (i, &region) in k.op(id).regions.iter().enumerate() {
            let [own, other] = [(); 2].map(|()| self.b.create_block());
            let is_own = self.b.ins().icmp_imm(IntCC::Equal, role, i as i64);
            self.b.ins().brif(is_own, own, &[], other, &[]);
            self.goto(own);
            self.emit_ops(region);
            self.jump(exit, &[]);
            self.goto(other);
        }
        self.jump(exit, &[]);
        self.goto(exit);
    }

    /// Copies what is sent to where the host finds it, calls the host, and takes what is received.
    pub(super) fn emit_exchange(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        let sent = match op.kind {
            OpKind::Send => 1..op.operands.len(),
            OpKind::ClusterReduce(_) => 0..1,
            _ => 0..0,
        };
        for n in sent {
            let v = op.operands[n];
            let layout = self.plan.message(id, n, v, k.ty(v)).expect("every sent tile has a place");
            self.copy_to(v, layout);
        }
        let message = match op.kind {
            OpKind::Release => self.scalar(op.operands[0]),
            _ => self.iconst(0),
        };
        let number = self.b.ins().iconst(types::I32, id.index() as i64);
        let (context, ids, scratch) = (self.context, self.ids, self.scratch);
        let call = self.b.ins().call(self.helpers.exchange, &[context, number, ids, scratch, message]);
        let result = self.b.inst_results(call)[0];
        let done = self.b.ins().icmp_imm(IntCC::SignedGreaterThanOrEqual, result, 0);
        self.demand(done, id);
        // The first message of a `receive` is its second result; of an exchange, the only one.
        let received = match op.kind {
            OpKind::Receive => {
                self.scalars[op.results[0].index()] = Some(result);
                &op.results[1..]
            }
            OpKind::ClusterReduce(_) => &op.results[..],
            _ => &[],
        };
        for (n, &v) in (1..).zip(received).filter(|(_, v)| k.ty(**v).is_scalar()) {
            let layout = self.plan.message(id, n, v, k.ty(v)).expect("every received tile has a place");
            self.scalars[v.index()] = Some(self.read_tile(layout, k.ty(v).dtype(), super::emit::Point::ORIGIN));
        }
    }
}
