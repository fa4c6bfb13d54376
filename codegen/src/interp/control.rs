//! Regions, loops, branches, and roles that wait for each other.
//!
//! A course of execution is a stack of the regions that it is in, so that it can be left where it has to wait and taken up
//! again. The roles of a program run in turns, each until it waits or ends, in the order in which they are written: what a
//! kernel does is the same in every run. A turn in which no role goes on is a deadlock; what lies in a channel at the end
//! has never been received. Both are errors.

use super::error::{ErrorKind, Fault};
use super::exec::{Machine, Value, Values, invalid};
use super::tile::Data;
use crate::channel::Ring;
use crate::ir::{Op, OpId, OpKind, RegionId};
use smallvec::SmallVec;
use std::rc::Rc;

/// A region that is being run, and what follows when it ends.
pub(super) struct Frame {
    pub(super) region: RegionId,
    /// The index of the next operation.
    pub(super) at: usize,
    /// The operation that holds the region; none around the body and a role.
    owner: Option<OpId>,
    then: Then,
}

/// What becomes of the values that a region yields.
pub(super) enum Then {
    /// They are the results of the operation.
    Results,
    /// They are carried to the iteration with this index, or are the results at the end. In i64, so that the last step
    /// cannot wrap.
    Next { index: i64, high: i64, step: i64 },
    /// Whether the body of the `while` runs, with the values that the condition had.
    Decide,
    /// They are carried to the condition of the `while`.
    Condition,
}

/// A course of execution: innermost region last.
pub(super) type Course = Vec<Frame>;

impl<'k> Machine<'k, '_, '_, '_> {
    /// Runs the kernel's body.
    pub(super) fn body(&mut self) -> Result<(), Fault> {
        let mut course = vec![];
        self.enter(&mut course, self.kernel.body, None, Then::Results, &Values::new());
        if self.advance(&mut course)? { Ok(()) } else { Err(invalid("nothing waits outside of roles")) }
    }

    /// Begins a region with these arguments.
    pub(super) fn enter(
        &mut self,
        course: &mut Course,
        region: RegionId,
        owner: Option<OpId>,
        then: Then,
        args: &[Value],
    ) {
        self.set(&self.kernel.region(region).args, args.iter().cloned());
        course.push(Frame { region, at: 0, owner, then });
    }

    /// Goes on until the end, which is true, or until an operation has to wait for another role or program.
    pub(super) fn advance(&mut self, course: &mut Course) -> Result<bool, Fault> {
        while let Some(frame) = course.last_mut() {
            let Some(&id) = self.kernel.region(frame.region).ops.get(frame.at) else {
                return Err(invalid("a region ends without yield"));
            };
            let op = self.kernel.op(id);
            if self.waits(op) {
                return Ok(false);
            }
            frame.at += 1;
            let outcome = match op.kind {
                OpKind::Yield => self.leave(course, op),
                _ => self.step().and_then(|()| self.begin(course, id, op)),
            };
            outcome.map_err(|fault| fault.located(op.loc))?;
        }
        Ok(true)
    }

    /// Runs an operation, or enters its region.
    fn begin(&mut self, course: &mut Course, id: OpId, op: &'k Op) -> Result<(), Fault> {
        match op.kind {
            OpKind::For { .. } => {
                let [low, high, step] =
                    [self.i32(op.operands[0])?, self.i32(op.operands[1])?, self.i32(op.operands[2])?];
                if step <= 0 {
                    return Err(ErrorKind::BadStep(step).into());
                }
                let carried = self.get(&op.operands[3..]);
                self.iterate(course, id, [low as i64, high as i64, step as i64], carried)
            }
            OpKind::While => {
                let carried = self.get(&op.operands);
                self.ask(course, id, carried)
            }
            OpKind::If => {
                let taken = if self.tile(op.operands[0])?.bool_at(0) { 0 } else { 1 };
                self.enter(course, op.regions[taken], Some(id), Then::Results, &Values::new());
                Ok(())
            }
            OpKind::Roles(_) => self.roles(op),
            OpKind::Channel { slots, .. } => {
                self.channels.insert(op.results[0], Ring::new(slots));
                Ok(())
            }
            OpKind::Send | OpKind::Receive | OpKind::Release => {
                self.exchange(op)?;
                self.trace(id);
                Ok(())
            }
            _ => {
                self.op(op)?;
                self.trace(id);
                Ok(())
            }
        }
    }

    /// Ends the innermost region with what its `yield` yields.
    fn leave(&mut self, course: &mut Course, end: &Op) -> Result<(), Fault> {
        let values = self.get(&end.operands);
        let Some(Frame { region, owner, then, .. }) = course.pop() else { return Err(invalid("no region to leave")) };
        let Some(id) = owner else { return Ok(()) };
        match then {
            Then::Results => self.results(id, values),
            Then::Next { index, high, step } => self.iterate(course, id, [index, high, step], values)?,
            Then::Condition => self.ask(course, id, values)?,
            Then::Decide => match values.first() {
                Some(Value::Tile(holds)) if holds.bool_at(0) => {
                    let carried = self.get(&self.kernel.region(region).args);
                    let body = self.kernel.op(id).regions[1];
                    self.enter(course, body, Some(id), Then::Condition, &carried);
                }
                Some(Value::Tile(_)) => self.results(id, self.get(&self.kernel.region(region).args)),
                _ => return Err(invalid("the condition of a while yields one bool")),
            },
        }
        Ok(())
    }

    fn results(&mut self, id: OpId, values: Values) {
        self.set(&self.kernel.op(id).results, values);
        self.trace(id);
    }

    /// The iteration of a `for` with this index, if there is one.
    fn iterate(
        &mut self,
        course: &mut Course,
        id: OpId,
        [index, high, step]: [i64; 3],
        carried: Values,
    ) -> Result<(), Fault> {
        if index >= high {
            self.results(id, carried);
            return Ok(());
        }
        self.step()?;
        let mut args: Values = SmallVec::from_iter([Value::Tile(Rc::new(Data::W4(vec![index as u32])))]);
        args.extend(carried);
        let next = Then::Next { index: index + step, high, step };
        self.enter(course, self.kernel.op(id).regions[0], Some(id), next, &args);
        Ok(())
    }

    /// The condition of a `while`.
    fn ask(&mut self, course: &mut Course, id: OpId, carried: Values) -> Result<(), Fault> {
        self.step()?;
        self.enter(course, self.kernel.op(id).regions[0], Some(id), Then::Decide, &carried);
        Ok(())
    }

    // -- roles ---------------------------------------------------------------------------------------------------------

    /// Runs all roles to their ends.
    fn roles(&mut self, op: &'k Op) -> Result<(), Fault> {
        let mut courses: Vec<Course> = op.regions.iter().map(|_| vec![]).collect();
        for (course, &role) in courses.iter_mut().zip(&op.regions) {
            self.enter(course, role, None, Then::Results, &Values::new());
        }
        while courses.iter().any(|c| !c.is_empty()) {
            let before = self.steps;
            for (role, course) in courses.iter_mut().enumerate() {
                self.role = Some(role as u32);
                self.advance(course)?;
            }
            if self.steps == before && courses.iter().any(|c| !c.is_empty()) {
                return Err(self.deadlock(&courses));
            }
        }
        for &id in &self.kernel.region(self.kernel.body).ops {
            let channel = self.kernel.op(id);
            let Some(ring) = channel.results.first().and_then(|c| self.channels.get(c)) else { continue };
            if ring.waiting() > 0 {
                return Err(Fault::from(ErrorKind::NotReceived(ring.waiting())).located(channel.loc));
            }
        }
        Ok(())
    }

    /// Whether the operation cannot happen before another role has done something, or before the other programs have
    /// come.
    fn waits(&self, op: &Op) -> bool {
        let channel = || op.operands.first().and_then(|c| self.channels.get(c));
        match op.kind {
            OpKind::Send => channel().is_some_and(|c| !c.has_room()),
            OpKind::Receive => channel().is_some_and(|c| c.waiting() == 0),
            OpKind::ClusterReduce(_) | OpKind::GridSync => self.meets,
            _ => false,
        }
    }

    fn exchange(&mut self, op: &Op) -> Result<(), Fault> {
        let missing = || invalid("a message goes through a channel that has been made");
        match op.kind {
            OpKind::Send => {
                let message = self.get(&op.operands[1..]);
                self.channels.get_mut(&op.operands[0]).ok_or_else(missing)?.send(message);
            }
            OpKind::Receive => {
                let channel = self.channels.get_mut(&op.operands[0]).ok_or_else(missing)?;
                let (number, message) = channel.receive().ok_or_else(missing)?;
                self.set(&op.results, std::iter::once(Value::Slot(number)).chain(message));
            }
            _ => {
                let slot = op.operands[0];
                let receive = self.kernel.defining_op(slot).ok_or_else(missing)?;
                let channel = self.kernel.op(receive).operands[0];
                let Some(Value::Slot(number)) = self.get(&[slot]).pop() else { return Err(missing()) };
                if !self.channels.get_mut(&channel).ok_or_else(missing)?.release(number) {
                    return Err(invalid("a slot is released once"));
                }
            }
        }
        Ok(())
    }

    fn deadlock(&self, courses: &[Course]) -> Fault {
        let mut waiting = vec![];
        let mut first = None;
        for (i, course) in courses.iter().enumerate() {
            let Some(frame) = course.last() else { continue };
            let op = self.kernel.op(self.kernel.region(frame.region).ops[frame.at]);
            first = first.or(Some(op.loc));
            waiting.push(format!("role {i} waits in `{}` at {}", op.kind.mnemonic(), op.loc));
        }
        Fault::from(ErrorKind::Deadlock(waiting.join(", "))).located(first.unwrap_or_default())
    }
}
