//! Roles that copy for one that computes: the copying warp that the GPU back end makes of loads, said by the author.
//!
//! A role that only loads and sends, and one that receives and computes, are together what a loop with loads is that run
//! ahead. So the sender is put where its messages are received: a `receive` becomes what was sent, and a loop's `stages` are
//! the slots of the channels that it receives from. What copies, waits and counts on a GPU then is what serves all kernels;
//! the warps and registers of the roles say how many of each. On the CPU it saves the threads and the messages.
//!
//! Rules, each an error on a GPU where it is broken (the CPU keeps the roles):
//! - One role computes: it receives and sends nothing. All others load and send, and do nothing else that has an effect
//!   (but wait for signals).
//! - Sender and receiver go through the same loops and branches: bounds and conditions are the same expressions, and between
//!   them messages are sent in the order in which they are received.
//!
//! Why it is right: what a sender does depends on nothing that the receiver does, as nothing goes back; roles do not touch
//! what others write; a message is the same wherever it is computed.

use super::edit::{Replacements, any, walk};
use super::optimize;
use crate::ir::{Def, Expressions, Finding, Kernel, Lint, Loc, OpId, OpKind, RegionId, Role, Type, ValueId, exchanges};
use std::collections::{HashSet, VecDeque};

/// A kernel whose roles have become one, and what they asked for.
#[derive(Clone, Debug)]
pub struct United {
    pub kernel: Kernel,
    /// Where the roles stood.
    pub loc: Loc,
    pub registers: Option<Budget>,
    pub findings: Vec<Finding>,
}

/// Registers of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of the warpgroup that copies.
    pub copying: usize,
    /// Of those that compute.
    pub computing: usize,
}

/// A rule that the roles break, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub loc: Loc,
    pub rule: String,
}

type Result<T = ()> = std::result::Result<T, Refusal>;

fn refuse<T>(loc: Loc, rule: impl Into<String>) -> Result<T> {
    Err(Refusal { loc, rule: rule.into() })
}

/// The kernel without roles; `None` if it has none.
///
/// # Errors
/// If the roles are not such that a copying warp and computing warps can be made of them.
pub fn unite(k: &Kernel) -> Result<Option<United>> {
    let found = |&&op: &&OpId| matches!(k.op(op).kind, OpKind::Roles(_));
    let Some(&id) = k.region(k.body).ops.iter().find(found) else { return Ok(None) };
    let op = k.op(id);
    let OpKind::Roles(roles) = &op.kind else { unreachable!("just found") };
    let more = |kind: &OpKind| kind.has_effect() && !matches!(kind, OpKind::Send | OpKind::Wait | OpKind::Yield);
    let computes = |i: &usize| op.regions.len() == 1 || any(k, &op.regions[*i..=*i], more);
    let (computing, copying): (Vec<usize>, Vec<usize>) = (0..op.regions.len()).partition(computes);
    let &[main] = &computing[..] else {
        let rule = "on a GPU one role computes; the others only load and send";
        return refuse(op.loc, format!("{rule}: here {} roles do more", computing.len()));
    };
    let mut sends = None;
    walk(k, op.regions[main], &mut |_, o| sends = sends.or((o.kind == OpKind::Send).then_some(o.loc)));
    if let Some(loc) = sends {
        return refuse(loc, "on a GPU the role that computes sends nothing: the others only load and send");
    }
    let mut m = Merge {
        k: k.clone(),
        replaced: Replacements::default(),
        channels: HashSet::new(),
        slots: HashSet::new(),
        stages: None,
        findings: vec![],
    };
    for &i in &copying {
        m.channels.clear();
        walk(k, op.regions[i], &mut |_, o| m.channels.extend((o.kind == OpKind::Send).then(|| o.operands[0])));
        m.region(op.regions[i], op.regions[main])?;
    }
    let Merge { k: mut kernel, mut findings, .. } = m;
    let mut own = std::mem::take(&mut kernel.regions[op.regions[main].index()].ops);
    own.pop();
    let body = std::mem::take(&mut kernel.regions[k.body.index()].ops);
    let kept = body.into_iter().filter(|&o| !matches!(k.op(o).kind, OpKind::Channel { .. }));
    kernel.regions[k.body.index()].ops =
        kept.flat_map(|o| if o == id { std::mem::take(&mut own) } else { vec![o] }).collect();
    if roles[main].warps > 0 {
        kernel.options.warps = roles[main].warps;
    }
    optimize(&mut kernel);
    let copying: Vec<Role> = copying.into_iter().map(|i| roles[i]).collect();
    let registers = budget(&copying, roles[main], op.loc, &mut findings);
    Ok(Some(United { kernel, loc: op.loc, registers, findings }))
}

/// What the roles say of registers and warps, as far as it can be had.
fn budget(copying: &[Role], computing: Role, loc: Loc, findings: &mut Vec<Finding>) -> Option<Budget> {
    let mut say = |lint, why: String| findings.push(Finding::new(lint, loc, why));
    let fewest = copying.iter().map(|r| r.registers).max().unwrap_or(0);
    let warps: usize = copying.iter().map(|r| r.warps as usize).sum();
    let budget = match (fewest as usize, computing.registers as usize) {
        (0, 0) => None,
        (0, _) | (_, 0) => {
            let why = "no registers move: the copying roles and the computing one must both say how many they take";
            say(Lint::SetmaxnregIgnored, why.into());
            None
        }
        (copying, computing) => Some(Budget { copying, computing }),
    };
    match budget {
        Some(_) if !matches!(warps, 0 | 4) => {
            let why = "registers move between whole warpgroups: 4 warps are launched for the copying roles";
            say(Lint::Fallback, format!("{why}, not {warps}"));
        }
        None if warps > 1 => say(Lint::Fallback, format!("one warp is launched for the copying roles, not {warps}")),
        _ => {}
    }
    budget
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
                    if !self.k.ty(v).is_scalar() && !is_load(&self.k, v) {
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
                let stages = std::mem::replace(&mut self.stages, around).unwrap_or(stages);
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
                    return refuse(s.loc, "on a GPU a branch that sends changes no variables");
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
const SAME: &str = "on a GPU the role that sends goes through the same loops and branches as the one that receives";

/// Whether a tile is loaded, or such a one transposed.
fn is_load(k: &Kernel, v: ValueId) -> bool {
    let Type::Tile(..) = k.ty(v) else { return false };
    k.defining_op(v).is_some_and(|op| match k.op(op).kind {
        OpKind::Load { .. } => true,
        OpKind::Transpose { .. } => is_load(k, k.op(op).operands[0]),
        _ => false,
    })
}
