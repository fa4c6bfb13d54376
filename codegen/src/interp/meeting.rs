//! Programs that meet: those of a cluster where they exchange tiles, those of a launch at a `grid_sync`.
//!
//! They run in turns, each until it comes to such an operation or ends, in the order of their ranks. When all have come
//! to the same one, each gets the combination of what they brought, if anything, and goes on; what they did to memory
//! before is then no race with what they do afterwards. If one has ended while others wait, or if they wait in different
//! operations, they will never meet: an error.

use super::control::{Course, Then};
use super::error::{ErrorKind, Fault};
use super::exec::{Machine, Value, Values, invalid};
use super::memory::program_index;
use super::tile::Data;
use crate::ir::{Combine, Op, OpId, OpKind};
use crate::semantics;
use std::ops::Range;
use std::rc::Rc;

/// A program while others run.
struct Member {
    linear: u32,
    program: [u32; 3],
    steps: u64,
    values: Vec<Value>,
    course: Course,
}

impl<'k> Machine<'k, '_, '_, '_> {
    /// Runs the programs with these linear numbers, which meet; of a fault, whose it is.
    pub(super) fn together(&mut self, programs: Range<u32>) -> Result<(), (u32, Fault)> {
        let member = |linear| Member {
            linear,
            program: program_index(linear, self.grid),
            steps: 0,
            values: self.values.clone(),
            course: vec![],
        };
        let mut members: Vec<Member> = programs.map(member).collect();
        for m in &mut members {
            self.enter(&mut m.course, self.kernel.body, None, Then::Results, &Values::new());
        }
        loop {
            for m in &mut members {
                self.take_turns(m);
                let outcome = self.advance(&mut m.course);
                self.take_turns(m);
                outcome.map_err(|fault| (m.linear, fault))?;
            }
            if members.iter().all(|m| m.course.is_empty()) {
                return Ok(());
            }
            self.meet(&mut members)?;
        }
    }

    /// Lets the machine go on as this program, or puts away what has become of it.
    fn take_turns(&mut self, m: &mut Member) {
        std::mem::swap(&mut self.values, &mut m.values);
        std::mem::swap(&mut self.linear, &mut m.linear);
        std::mem::swap(&mut self.program, &mut m.program);
        std::mem::swap(&mut self.steps, &mut m.steps);
    }

    /// The operation in which a program waits; none if it has ended.
    fn waits_in(&self, m: &Member) -> Option<OpId> {
        m.course.last().map(|frame| self.kernel.region(frame.region).ops[frame.at])
    }

    /// Does the exchange that all have come to.
    fn meet(&mut self, members: &mut [Member]) -> Result<(), (u32, Fault)> {
        let places: Vec<Option<OpId>> = members.iter().map(|m| self.waits_in(m)).collect();
        let Some((first, id)) = members.iter().zip(&places).find_map(|(m, p)| p.map(|id| (m.linear, id))) else {
            return Ok(());
        };
        let op = self.kernel.op(id);
        let fault = |fault: Fault| (first, fault.located(op.loc));
        if places.iter().any(|&p| p != Some(id)) {
            let places = members.iter().zip(places).map(|(m, place)| {
                let ([x, y, z], place) = (m.program, place.map(|id| self.kernel.op(id)));
                let place = place.map(|o| format!("waits in `{}` at {}", o.kind.mnemonic(), o.loc));
                format!("program ({x}, {y}, {z}) {}", place.unwrap_or_else(|| "has ended".into()))
            });
            return Err(fault(ErrorKind::NotMet(places.collect::<Vec<_>>().join(", ")).into()));
        }
        let combined = match op.kind {
            OpKind::ClusterReduce(combine) => Some(self.combined(op, combine, members).map_err(fault)?),
            _ => None,
        };
        for memory in &mut self.held.memories {
            memory.meet(first);
        }
        for m in members {
            self.take_turns(m);
            self.set(&op.results, combined.clone());
            self.trace(id);
            let outcome = self.step();
            self.take_turns(m);
            outcome.map_err(|fault| (m.linear, fault.located(op.loc)))?;
            m.course.last_mut().expect("it waits").at += 1;
        }
        Ok(())
    }

    /// What the programs brought, combined in their order.
    fn combined(&self, op: &'k Op, combine: Combine, members: &[Member]) -> Result<Value, Fault> {
        let (dtype, shape) = self.tile_type(op.operands[0])?;
        let tile = |m: &Member| match &m.values[op.operands[0].index()] {
            Value::Tile(data) => Ok(data.clone()),
            _ => Err(invalid("a cluster_reduce of what is no tile")),
        };
        let tiles = members.iter().map(tile).collect::<Result<Vec<_>, _>>()?;
        let element = |i: usize| {
            let all = tiles.iter().map(|t| t.get(i));
            all.reduce(|x, y| semantics::combine(combine, dtype, x, y)).expect("a cluster has programs")
        };
        Ok(Value::Tile(Rc::new(Data::generate(dtype, shape.numel(), element))))
    }
}
