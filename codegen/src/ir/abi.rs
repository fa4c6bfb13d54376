//! How arguments reach compiled code: a flat list of 64-bit slots.
//!
//! A scalar takes one slot (its bits, zero-extended). A view of rank r takes 1 + 2r: the address, r extents, r strides
//! in elements. Extents are at most `i32::MAX`: coordinates reach no further. The compiled back ends and the launcher
//! agree on nothing else. At launch the real values yield a [`Fact`] per slot; facts are part of the kernel that is
//! compiled (and of the cache key), so that address arithmetic folds and accesses become vectors.

use super::{Kernel, Type};

/// What is known of a slot's value at compile time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fact {
    #[default]
    Unknown,
    /// Exactly 1 (a contiguous dimension's stride).
    One,
    /// A multiple of 16: of bytes for an address, of elements for an extent or a stride.
    Multiple16,
}

impl Fact {
    /// What `value` in a slot of this kind justifies.
    pub fn of(kind: SlotKind, value: u64) -> Fact {
        match kind {
            SlotKind::Scalar => Fact::Unknown,
            SlotKind::Stride(_) if value == 1 => Fact::One,
            _ if value.is_multiple_of(16) => Fact::Multiple16,
            _ => Fact::Unknown,
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotKind {
    Scalar,
    Address,
    Extent(u8),
    Stride(u8),
}

/// One launch slot: which parameter it belongs to and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    pub param: u32,
    pub kind: SlotKind,
}

impl Kernel {
    /// The launch slots, in order.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots = vec![];
        for (i, p) in self.params.iter().enumerate() {
            let param = i as u32;
            match self.ty(p.value) {
                Type::Tile(..) => slots.push(Slot { param, kind: SlotKind::Scalar }),
                Type::View(_, rank) => {
                    slots.push(Slot { param, kind: SlotKind::Address });
                    slots.extend((0..rank).map(|d| Slot { param, kind: SlotKind::Extent(d) }));
                    slots.extend((0..rank).map(|d| Slot { param, kind: SlotKind::Stride(d) }));
                }
                // The verifier refuses such a parameter.
                Type::Channel | Type::Slot => {}
            }
        }
        slots
    }

    /// What is known of slot `index`.
    pub fn fact(&self, index: usize) -> Fact {
        self.facts.get(index).copied().unwrap_or_default()
    }

    /// The facts that these slot values justify.
    pub fn facts_of(slots: &[Slot], values: &[u64]) -> Vec<Fact> {
        slots.iter().zip(values).map(|(s, &v)| Fact::of(s.kind, v)).collect()
    }
}
