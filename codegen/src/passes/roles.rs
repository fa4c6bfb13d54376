//! Roles into parts, one for each that computes.
//!
//! A role that only loads and sends, and one that receives and computes, are together what a loop with loads is that run
//! ahead. So the sender is put where its messages are received: a `receive` becomes what was sent, and a loop's `stages` are
//! the slots of the channels that it receives from. What copies, waits and counts on a GPU then is what serves all kernels;
//! the warps and registers of the roles say how many of each. On the CPU it saves threads and messages.
//!
//! A role *copies* if all it does is to load and to send (and to wait for signals), and it goes through the same loops
//! and branches as those that receive from it: bounds and conditions are the same expressions, and between them messages
//! are sent in the order in which they are received. All others *compute*; what is between two of them stays a channel.
//!
//! Why it is right: what a copying role does depends on nothing that others do, as it receives nothing; roles do not touch
//! what others write; a message is the same wherever it is computed.

use super::edit::{Replacements, any, walk};
use super::optimize;
use crate::ir::{Def, Expressions, Finding, Kernel, Lint, Loc, Op, OpId, OpKind, RegionId, Role, ValueId, exchanges};
use smallvec::smallvec;
use std::collections::{HashSet, VecDeque};

/// A kernel by its roles.
#[derive(Clone, Debug)]
pub struct Division {
    /// One for each role that computes. Channels between them are values without an operation that makes them.
    pub parts: Vec<Part>,
    /// Where the roles stood.
    pub loc: Loc,
    /// Why roles that only load and send do not copy.
    pub refusals: Vec<Refusal>,
    pub findings: Vec<Finding>,
}

/// A role that computes, with what copies for it: a kernel without roles.
#[derive(Clone, Debug)]
pub struct Part {
    pub kernel: Kernel,
    /// What its author asks for those that copy, if any do.
    pub copying: Option<Role>,
    pub computing: Role,
}

/// A rule that a role breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub loc: Loc,
    pub rule: String,
}

type Result<T = ()> = std::result::Result<T, Refusal>;

fn refuse<T>(loc: Loc, rule: impl Into<String>) -> Result<T> {
    Err(Refusal { loc, rule: rule.into() })
}

/// The parts of a kernel; `None` if it has no roles. `moves`: a role that computes what it sends copies, too, and the work
/// moves to where it is received.
pub fn divide(k: &Kernel, moves: bool) -> Option<Division> {
    let is_roles = |op: &&OpId| matches!(k.op(**op).kind, OpKind::Roles(_));
    let id = *k.region(k.body).ops.iter().find(is_roles)?;
    let op = k.op(id);
    let OpKind::Roles(roles) = &op.kind else { unreachable!("just found") };
    let ends = |role: RegionId, kind: OpKind| {
        let mut channels = HashSet::new();
        walk(k, role, &mut |_, o| channels.extend((o.kind == kind).then(|| o.operands[0])));
        channels
    };
    let sends: Vec<HashSet<ValueId>> = op.regions.iter().map(|&r| ends(r, OpKind::Send)).collect();
    let receives: Vec<HashSet<ValueId>> = op.regions.iter().map(|&r| ends(r, OpKind::Receive)).collect();
    let feeds = |from: usize, to: usize| !sends[from].is_disjoint(&receives[to]);
    let more = |kind: &OpKind| kind.has_effect() && !matches!(kind, OpKind::Send | OpKind::Wait | OpKind::Yield);
    let mut computes: Vec<bool> = op.regions.iter().map(|&r| any(k, &[r], more) || op.regions.len() == 1).collect();
    if !moves {
        for (computes, &role) in computes.iter_mut().zip(&op.regions) {
            let works = |o: &Op| o.kind == OpKind::Send && o.operands[1..].iter().any(|&v| !is_load(k, v));
            walk(k, role, &mut |_, o| *computes |= works(o));
        }
    }
    let mut refusals = vec![];
    for role in (0..roles.len()).filter(|&r| !computes[r]).collect::<Vec<_>>() {
        let several = (0..roles.len()).filter(|&to| feeds(role, to)).count() > 1;
        let mut wait = None;
        walk(k, op.regions[role], &mut |_, o| wait = wait.or((o.kind == OpKind::Wait).then_some(o.loc)));
        if let Some(loc) = wait.filter(|_| several) {
            computes[role] = true;
            refusals
                .push(Refusal { loc, rule: "a copying role that waits for signals sends to one other role".into() });
        }
    }
    'again: loop {
        let mut findings = vec![];
        let mut parts = vec![];
        for main in (0..roles.len()).filter(|&r| computes[r]).collect::<Vec<_>>() {
            let mut m = Merge {
                k: k.clone(),
                replaced: Replacements::default(),
                channels: HashSet::new(),
                slots: HashSet::new(),
                stages: None,
                findings: vec![],
            };
            let copying: Vec<usize> = (0..roles.len()).filter(|&r| !computes[r] && feeds(r, main)).collect();
            for &role in &copying {
                m.channels = sends[role].intersection(&receives[main]).copied().collect();
                m.forget_others(op.regions[role]);
                if let Err(refusal) = m.region(op.regions[role], op.regions[main]) {
                    refusals.push(refusal);
                    computes[role] = true;
                    continue 'again;
                }
            }
            findings.append(&mut m.findings);
            let copying = together(copying.into_iter().map(|r| roles[r]));
            parts.push(Part { kernel: m.part(id, main), copying, computing: roles[main] });
        }
        return Some(Division { parts, loc: op.loc, refusals, findings });
    }
}

/// What roles that copy for the same one ask for together; none if there are none.
fn together(roles: impl Iterator<Item = Role>) -> Option<Role> {
    roles.reduce(|a, b| Role { warps: a.warps.saturating_add(b.warps), registers: a.registers.max(b.registers) })
}

/// Moves the operations of a role to where its messages are received.
struct Merge {
    k: Kernel,
    replaced: Replacements,
    /// The channels of the role that is being moved.
    channels: HashSet<ValueId>,
    /// The slots that there are no longer.
    slots: HashSet<ValueId>,
    /// The fewest slots of the channels that the loop around receives from.
    stages: Option<u8>,
    findings: Vec<Finding>,
}

impl Merge {
    /// The kernel with one of the roles, no longer as a role.
    fn part(self, roles: OpId, main: usize) -> Kernel {
        let mut k = self.k;
        let body = k.body.index();
        let OpKind::Roles(all) = &k.op(roles).kind else { unreachable!("the caller found them") };
        let (role, region) = (all[main], k.op(roles).regions[main]);
        (k.ops[roles.index()].kind, k.ops[roles.index()].regions) = (OpKind::Roles(smallvec![role]), smallvec![region]);
        optimize(&mut k);
        let mut own = std::mem::take(&mut k.regions[region.index()].ops);
        own.pop();
        for id in std::mem::take(&mut k.regions[body].ops) {
            match k.op(id).kind {
                ref kind if is_channel(kind) => {}
                OpKind::Roles(_) => k.regions[body].ops.append(&mut own),
                _ => k.regions[body].ops.push(id),
            }
        }
        if role.warps > 0 {
            k.options.warps = role.warps;
        }
        // Who looks through the arena must not find what the other roles do.
        let mut here = vec![false; k.ops.len()];
        walk(&k, k.body, &mut |id, _| here[id.index()] = true);
        for (op, _) in k.ops.iter_mut().zip(here).filter(|(op, here)| !here && !is_channel(&op.kind)) {
            *op = Op {
                kind: OpKind::Yield,
                operands: smallvec![],
                results: smallvec![],
                regions: smallvec![],
                loc: op.loc,
            };
        }
        k
    }

    /// Removes what a role sends through other channels.
    fn forget_others(&mut self, region: RegionId) {
        let mut ops = std::mem::take(&mut self.k.regions[region.index()].ops);
        ops.retain(|&id| {
            let op = self.k.op(id);
            op.kind != OpKind::Send || self.channels.contains(&op.operands[0])
        });
        for &id in &ops {
            self.k.op(id).regions.clone().into_iter().for_each(|r| self.forget_others(r));
        }
        self.k.regions[region.index()].ops = ops;
    }

    /// Whether the operation, or one in its regions, receives from the role.
    fn receives(&self, id: OpId) -> bool {
        let op = self.k.op(id);
        (op.kind == OpKind::Receive && self.channels.contains(&op.operands[0]))
            || op.regions.iter().any(|&r| self.k.region(r).ops.iter().any(|&o| self.receives(o)))
    }

    /// Replaces operands, also in regions.
    fn apply(&mut self, id: OpId) {
        self.replaced.apply(&mut self.k, id);
        for region in self.k.op(id).regions.clone() {
            for op in self.k.region(region).ops.clone() {
                self.apply(op);
            }
        }
    }

    /// Empties the region `from` of a sender into the region `into` of the receiver.
    fn region(&mut self, from: RegionId, into: RegionId) -> Result {
        let mut sender: VecDeque<OpId> = std::mem::take(&mut self.k.regions[from.index()].ops).into();
        let sent_end = sender.pop_back().expect("a region ends with `yield`");
        let mut receiver = std::mem::take(&mut self.k.regions[into.index()].ops);
        let end = receiver.pop().expect("a region ends with `yield`");
        let mut out = vec![];
        for id in receiver {
            if self.k.op(id).kind == OpKind::Release && self.slots.contains(&self.k.op(id).operands[0]) {
                continue;
            }
            if !self.receives(id) {
                self.apply(id);
                out.push(id);
                continue;
            }
            self.replaced.apply(&mut self.k, id);
            let partner = loop {
                let Some(next) = sender.pop_front() else {
                    return refuse(self.k.op(id).loc, format!("{SAME}: nothing is sent for this"));
                };
                if exchanges(&self.k, next) {
                    self.replaced.apply(&mut self.k, next);
                    break next;
                }
                self.apply(next);
                out.push(next);
            };
            self.pair(partner, id, &mut out)?;
        }
        for id in sender {
            if exchanges(&self.k, id) {
                return refuse(self.k.op(id).loc, format!("{SAME}: nothing is received for this"));
            }
            self.apply(id);
            out.push(id);
        }
        for id in [end, sent_end] {
            self.replaced.apply(&mut self.k, id);
        }
        let more = self.k.op(sent_end).operands.clone();
        self.k.ops[end.index()].operands.extend(more);
        out.push(end);
        self.k.regions[into.index()].ops = out;
        Ok(())
    }

    /// Unites an operation that sends with one that receives.
    fn pair(&mut self, send: OpId, receive: OpId, out: &mut Vec<OpId>) -> Result {
        let (s, r) = (self.k.op(send).clone(), self.k.op(receive).clone());
        match (&s.kind, &r.kind) {
            (OpKind::Send, OpKind::Receive) => {
                if s.operands[0] != r.operands[0] {
                    let sent = format!("what is sent at {} goes through another channel", s.loc);
                    return refuse(r.loc, format!("{SAME}: {sent}"));
                }
                let slots = self.k.channel(s.operands[0]).0;
                self.stages = Some(self.stages.map_or(slots, |n| n.min(slots)));
                self.slots.insert(r.results[0]);
                for (&tile, &v) in r.results[1..].iter().zip(&s.operands[1..]) {
                    if !is_load(&self.k, v) {
                        let why = "this is computed by the role that receives it: the copying one only loads";
                        self.findings.push(Finding::new(Lint::Fallback, s.loc, why));
                    }
                    self.replaced.insert(tile, v);
                }
                Ok(())
            }
            (OpKind::For { .. }, &OpKind::For { stages }) => {
                let mut values = Expressions::default();
                let mut same = |i: usize| values.of(&self.k, s.operands[i]) == values.of(&self.k, r.operands[i]);
                if !(0..3).all(&mut same) {
                    return refuse(r.loc, format!("{SAME}: the bounds of the loop at {} are others", s.loc));
                }
                let around = self.stages.take();
                let (from, into) = (s.regions[0], r.regions[0]);
                self.replaced.insert(self.k.region(from).args[0], self.k.region(into).args[0]);
                self.carry(send, receive);
                self.region(from, into)?;
                // The fewest slots of all, and no more than the author asks for.
                let slots = std::mem::replace(&mut self.stages, around);
                let stages = [slots, Some(stages)].into_iter().flatten().filter(|&n| n > 0).min().unwrap_or(0);
                self.k.ops[receive.index()].kind = OpKind::For { stages };
                out.push(receive);
                Ok(())
            }
            (OpKind::If, OpKind::If) => {
                let mut values = Expressions::default();
                if values.of(&self.k, s.operands[0]) != values.of(&self.k, r.operands[0]) {
                    return refuse(r.loc, format!("{SAME}: the condition at {} is another", s.loc));
                }
                if !s.results.is_empty() {
                    return refuse(s.loc, "a branch of a copying role changes no variables");
                }
                for (&from, &into) in s.regions.iter().zip(&r.regions) {
                    self.region(from, into)?;
                }
                out.push(receive);
                Ok(())
            }
            (sends, receives) => {
                let what = format!("`{}` at {} and `{}` do not fit", sends.mnemonic(), s.loc, receives.mnemonic());
                refuse(r.loc, format!("{SAME}: {what}"))
            }
        }
    }

    /// Lets the receiver's loop carry what the sender's carried.
    fn carry(&mut self, send: OpId, receive: OpId) {
        let (s, region) = (self.k.op(send).clone(), self.k.op(receive).regions[0]);
        let args = self.k.region(s.regions[0]).args[1..].to_vec();
        for ((&init, &result), arg) in s.operands[3..].iter().zip(&s.results).zip(args) {
            let at = self.k.op(receive).results.len() as u32;
            self.k.values[result.index()].def = Def::Result(receive, at);
            self.k.values[arg.index()].def = Def::Arg(region, at + 1);
            self.k.ops[receive.index()].operands.push(init);
            self.k.ops[receive.index()].results.push(result);
            self.k.regions[region.index()].args.push(arg);
        }
    }
}

/// The rule that most mistakes break.
const SAME: &str = "a copying role goes through the same loops and branches as the role that receives";

fn is_channel(kind: &OpKind) -> bool {
    matches!(kind, OpKind::Channel { .. })
}

/// Whether a tile is loaded, or such a one transposed; or a number.
fn is_load(k: &Kernel, v: ValueId) -> bool {
    k.ty(v).is_scalar()
        || k.defining_op(v).is_some_and(|op| match k.op(op).kind {
            OpKind::Load { .. } => true,
            OpKind::Transpose { .. } => is_load(k, k.op(op).operands[0]),
            _ => false,
        })
}
