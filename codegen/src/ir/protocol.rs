//! What roles say to each other through channels, checked where it is decidable.
//!
//! - Counts: what is sent on a channel is received. The number of either is a sum of products of trip counts; a trip count
//!   that is no constant is an unknown, the same unknown wherever a loop has structurally equal bounds. Refused is a
//!   difference that is positive, or negative, however often the loops run, as long as they run.
//! - Order: the operations of each role are walked up to where their order is no longer known (the end of the first
//!   round of a loop whose trip count is unknown, an `if`, a `while`). Refused are walks that end with every role waiting,
//!   or finished, before that.
//!
//! What is not decidable is not refused: the interpreter reports it when it happens. A channel operation in an `if` or a
//! `while` makes the counts of its channel undecidable.

use super::*;
use crate::channel::Ring;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A mistake: the operation, the part of it, what was expected and what was found.
pub(super) type Mistake = (OpId, &'static str, String, String);

/// The walk through a role gives up after this many operations on channels.
const MAX_EVENTS: usize = 4096;

/// Checks the channels of a kernel that is otherwise as it should be.
pub(super) fn check(k: &Kernel) -> Result<(), Mistake> {
    let Some(&roles) = k.region(k.body).ops.iter().find(|&&op| matches!(k.op(op).kind, OpKind::Roles(_))) else {
        return Ok(());
    };
    counts(k, roles)?;
    order(k, roles)
}

/// `send at file:line:column`, as far as the place is known.
fn described(k: &Kernel, op: OpId) -> String {
    let op = k.op(op);
    format!("`{}` at {}", op.kind.mnemonic(), op.loc)
}

fn is_exchange(kind: &OpKind) -> bool {
    matches!(kind, OpKind::Send | OpKind::Receive | OpKind::Release)
}

/// Whether the operation, or one in its regions, uses a channel.
pub(crate) fn exchanges(k: &Kernel, op: OpId) -> bool {
    let op = k.op(op);
    is_exchange(&op.kind) || op.regions.iter().any(|&r| k.region(r).ops.iter().any(|&o| exchanges(k, o)))
}

// -- counts ------------------------------------------------------------------------------------------------------------

/// A sum of products of unknowns: each product (sorted) with its factor.
type Sum = BTreeMap<Vec<u32>, i128>;

/// What a value is.
#[derive(PartialEq, Eq, Hash)]
enum Expression {
    Value(ValueId),
    /// The index of the loop at this depth in its role, with bounds that are these expressions.
    Index(usize, [u32; 3]),
    Computed(OpKind, Type, Vec<u32>),
}

/// Values by what they are: equal numbers are equal values.
#[derive(Default)]
pub(crate) struct Expressions {
    numbers: HashMap<Expression, u32>,
    known: HashMap<ValueId, u32>,
    /// The loop whose index a value is: its depth and its bounds.
    indices: HashMap<ValueId, (usize, [u32; 3])>,
}

impl Expressions {
    /// The number of a value.
    pub(crate) fn of(&mut self, k: &Kernel, v: ValueId) -> u32 {
        if let Some(&known) = self.known.get(&v) {
            return known;
        }
        let computed = k.defining_op(v).map(|id| k.op(id)).filter(|op| {
            op.regions.is_empty() && op.results.len() == 1 && !op.kind.has_effect() && !op.kind.reads_memory()
        });
        let expression = match (computed, self.indices.get(&v)) {
            (Some(op), _) => {
                let operands = op.operands.iter().map(|&v| self.of(k, v)).collect();
                Expression::Computed(op.kind.clone(), k.ty(v), operands)
            }
            (None, Some(&(depth, bounds))) => Expression::Index(depth, bounds),
            (None, None) => Expression::Value(v),
        };
        let next = self.numbers.len() as u32;
        let number = *self.numbers.entry(expression).or_insert(next);
        self.known.insert(v, number);
        number
    }
}

#[derive(Default)]
struct Counter {
    expressions: Expressions,
    /// The trip counts that are unknown, by the numbers of their bounds.
    unknowns: HashMap<[u32; 3], u32>,
    /// Sent minus received, and an operation on the channel to blame.
    sums: HashMap<ValueId, (Sum, OpId)>,
    undecidable: HashSet<ValueId>,
}

fn counts(k: &Kernel, roles: OpId) -> Result<(), Mistake> {
    let mut c = Counter::default();
    for &role in &k.op(roles).regions {
        c.region(k, role, 1, &[], 0);
    }
    let mut wrong: Vec<(OpId, bool)> = (c.sums.iter())
        .filter(|(channel, _)| !c.undecidable.contains(channel))
        .filter_map(|(_, (sum, op))| {
            let more = sum.values().any(|&n| n > 0);
            let fewer = sum.values().any(|&n| n < 0);
            (more != fewer).then_some((*op, more))
        })
        .collect();
    wrong.sort();
    match wrong.first() {
        None => Ok(()),
        Some(&(op, more)) => {
            let found = if more { "more sends than receives" } else { "more receives than sends" };
            Err((op, "messages of the channel", "as many receives as sends".into(), found.into()))
        }
    }
}

impl Counter {
    fn region(&mut self, k: &Kernel, region: RegionId, factor: i128, unknowns: &[u32], depth: usize) {
        for &id in &k.region(region).ops {
            let op = k.op(id);
            match op.kind {
                OpKind::Send | OpKind::Receive => {
                    let sign = if op.kind == OpKind::Send { 1 } else { -1 };
                    let (sum, _) = self.sums.entry(op.operands[0]).or_insert_with(|| (Sum::new(), id));
                    *sum.entry(unknowns.to_vec()).or_default() += sign * factor;
                }
                OpKind::For { .. } if exchanges(k, id) => {
                    let bounds = [0, 1, 2].map(|i| self.expressions.of(k, op.operands[i]));
                    self.expressions.indices.insert(k.region(op.regions[0]).args[0], (depth, bounds));
                    match k.trip_count(op) {
                        Some(n) => self.region(k, op.regions[0], factor.saturating_mul(n.into()), unknowns, depth + 1),
                        None => {
                            let next = self.unknowns.len() as u32;
                            let mut product = unknowns.to_vec();
                            product.push(*self.unknowns.entry(bounds).or_insert(next));
                            product.sort_unstable();
                            self.region(k, op.regions[0], factor, &product, depth + 1);
                        }
                    }
                }
                OpKind::If | OpKind::While if exchanges(k, id) => {
                    op.regions.iter().for_each(|&r| self.give_up(k, r));
                }
                _ => {}
            }
        }
    }

    fn give_up(&mut self, k: &Kernel, region: RegionId) {
        for &id in &k.region(region).ops {
            let op = k.op(id);
            if matches!(op.kind, OpKind::Send | OpKind::Receive) {
                self.undecidable.insert(op.operands[0]);
            }
            op.regions.iter().for_each(|&r| self.give_up(k, r));
        }
    }
}

// -- order -------------------------------------------------------------------------------------------------------------

/// What a role is known to do.
#[derive(Default)]
struct Walk {
    events: Vec<OpId>,
    /// Whether it may do something else then.
    open: bool,
}

impl Walk {
    fn region(&mut self, k: &Kernel, region: RegionId) {
        for &id in &k.region(region).ops {
            if self.open {
                return;
            }
            let op = k.op(id);
            match op.kind {
                _ if !exchanges(k, id) => {}
                OpKind::For { .. } => match k.trip_count(op) {
                    Some(n) => {
                        for _ in 0..n {
                            let before = self.events.len();
                            self.region(k, op.regions[0]);
                            if self.open || self.events.len() == before {
                                break;
                            }
                        }
                    }
                    None => {
                        self.region(k, op.regions[0]);
                        self.open = true;
                    }
                },
                OpKind::If | OpKind::While => self.open = true,
                _ if self.events.len() == MAX_EVENTS => self.open = true,
                _ => self.events.push(id),
            }
        }
    }
}

fn order(k: &Kernel, roles: OpId) -> Result<(), Mistake> {
    let walks: Vec<Walk> = (k.op(roles).regions.iter())
        .map(|&role| {
            let mut walk = Walk::default();
            walk.region(k, role);
            walk
        })
        .collect();
    let mut rings: HashMap<ValueId, Ring<()>> = HashMap::new();
    // The number of the message that a `receive` got last.
    let mut received: HashMap<ValueId, u64> = HashMap::new();
    let mut at = vec![0; walks.len()];
    loop {
        let mut moved = false;
        for (walk, at) in walks.iter().zip(&mut at) {
            while let Some(&id) = walk.events.get(*at) {
                let op = k.op(id);
                let channel = match op.kind {
                    OpKind::Release => k.op(k.defining_op(op.operands[0]).expect("a slot is received")).operands[0],
                    _ => op.operands[0],
                };
                let ring = rings.entry(channel).or_insert_with(|| Ring::new(k.channel(channel).0));
                let goes_on = match op.kind {
                    OpKind::Send if ring.has_room() => {
                        ring.send(());
                        true
                    }
                    OpKind::Send => false,
                    OpKind::Receive => ring.receive().map(|(n, ())| received.insert(op.results[0], n)).is_some(),
                    _ => ring.release(received[&op.operands[0]]),
                };
                if !goes_on {
                    break;
                }
                *at += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let waits = |i: usize| walks[i].events.get(at[i]).copied();
    if (0..walks.len()).any(|i| waits(i).is_none() && walks[i].open) {
        return Ok(());
    }
    let waiting: Vec<String> =
        (0..walks.len()).filter_map(|i| Some(format!("role {i} waits in {}", described(k, waits(i)?)))).collect();
    match (0..walks.len()).find_map(waits) {
        None => Ok(()),
        Some(first) => {
            let expected = "an order in which one role can always go on";
            Err((first, "order of sends, receives and releases", expected.into(), waiting.join(", ")))
        }
    }
}
