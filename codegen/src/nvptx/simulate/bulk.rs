//! Bulk copies through tensor maps.
//!
//! A copy happens as late as possible, when nobody can go on without it, or at once; tests run both.

use super::asm::word;
use super::memory::swizzled;
use super::{Simulator, Thread, WINDOW};
use crate::ir::{AtomicOp, Bits};
use crate::nvptx::{TensorMap, Transfer};
use crate::semantics;

/// Where the tensor maps are, one address each.
pub const MAPS_START: u64 = 0x7a70_0000_0000;

/// A copy under way.
pub struct Copy {
    /// To shared memory.
    pub to: u64,
    pub map: u64,
    /// The innermost dimension first.
    pub at: Vec<i64>,
    pub barrier: u64,
    /// The programs of the cluster that get it, each at the same place of its own.
    pub members: Vec<usize>,
}

impl Copy {
    /// Where in shared memory it goes to, and whom it tells, program by program.
    fn targets(&self) -> Vec<[u64; 2]> {
        let at = |address: u64, m: &usize| *m as u64 * WINDOW + address % WINDOW;
        self.members.iter().map(|m| [at(self.to, m), at(self.barrier, m)]).collect()
    }
}

/// A copy to global memory.
pub struct Outgoing {
    from: u64,
    map: u64,
    /// The innermost dimension first.
    at: Vec<i64>,
    /// What it has read, row by row.
    rows: Option<Vec<Vec<u8>>>,
}

impl Outgoing {
    pub fn new(from: u64, map: u64, at: Vec<i64>) -> Outgoing {
        Outgoing { from, map, at, rows: None }
    }

    pub fn is_read(&self) -> bool {
        self.rows.is_some()
    }
}

/// A tensor map as the host encodes it.
#[derive(Clone, Debug)]
pub struct EncodedMap {
    address: u64,
    size: usize,
    swizzle: u64,
    /// The innermost dimension first, like the rest.
    extents: Vec<i64>,
    /// Bytes.
    strides: Vec<u64>,
    window: Vec<i64>,
    transfer: Transfer,
}

/// f32 as a copy rounds it to tf32: to nearest, ties to even.
fn tf32(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_finite() { f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff) } else { x }
}

impl EncodedMap {
    /// Encodes a map for these launch slots, with the driver's checks.
    pub fn new(map: &TensorMap, slots: &[u64]) -> EncodedMap {
        let rank = map.extents.len();
        let backwards = |s: &[u64]| s.iter().rev().copied().collect::<Vec<u64>>();
        let extents = backwards(&slots[map.slot + 1..][..rank]);
        let strides = backwards(&slots[map.slot + 1 + rank..][..rank]);
        let strides: Vec<u64> = strides.iter().map(|s| s * map.size as u64).collect();
        let window: Vec<i64> = map.extents.iter().rev().map(|&e| i64::from(e)).collect();
        let address = slots[map.slot];
        assert!((1..=5).contains(&rank) && [1, 2, 4].contains(&map.size), "{map:?}");
        assert_eq!(address % 16, 0, "{map:?}");
        assert_eq!(strides[0], map.size as u64, "the innermost dimension is contiguous: {map:?}");
        assert!(strides[1..].iter().all(|s| s % 16 == 0 && *s < 1 << 40), "{map:?}: strides {strides:?}");
        assert!(window.iter().all(|e| (1..=256).contains(e)), "{map:?}");
        let row = window[0] as u64 * map.size as u64;
        let fits = map.swizzle == 16 || [32, 64, 128].contains(&map.swizzle) && row <= map.swizzle as u64;
        assert!(fits && row.is_multiple_of(16), "{map:?}");
        let extents = extents.into_iter().map(|e| i64::try_from(e).expect("an extent")).collect();
        match map.transfer {
            Transfer::Bits => {}
            Transfer::Tf32 => assert_eq!(map.size, 4, "{map:?}"),
            Transfer::Add(dtype) => assert_eq!(map.size, dtype.size(), "{map:?}"),
        }
        let (size, swizzle, transfer) = (map.size, map.swizzle as u64, map.transfer);
        EncodedMap { address, size, swizzle, extents, strides, window, transfer }
    }
}

impl EncodedMap {
    fn rows(&self) -> i64 {
        self.window[1..].iter().product()
    }

    /// Where a row of a window begins in memory, but for the innermost coordinate; `None` outside.
    fn row(&self, at: &[i64], number: i64) -> Option<i64> {
        let mut rest = number;
        let mut from = self.address as i64;
        for d in 1..self.window.len() {
            let place = at[d] + rest % self.window[d];
            rest /= self.window[d];
            if !(0..self.extents[d]).contains(&place) {
                return None;
            }
            from += place * self.strides[d] as i64;
        }
        Some(from)
    }
}

impl Simulator {
    pub fn start(&mut self, copy: Copy, thread: usize) {
        assert_eq!(copy.to % 128, 0, "bulk copies go to multiples of 128 bytes");
        assert_eq!(self.map(copy.map).window.len(), copy.at.len(), "a coordinate per dimension");
        for [_, barrier] in copy.targets() {
            self.shared.barrier(barrier, thread);
        }
        self.under_way.push_back(copy);
        if self.early {
            self.land();
        }
    }

    fn map(&self, address: u64) -> &EncodedMap {
        let map = address.checked_sub(MAPS_START).and_then(|m| self.maps.get(m as usize));
        map.expect("the address of a tensor map")
    }

    /// Lets one copy happen; whether there was any.
    pub fn land(&mut self) -> bool {
        let copy = if self.backwards { self.under_way.pop_back() } else { self.under_way.pop_front() };
        let Some(copy) = copy else { return false };
        let map = self.map(copy.map).clone();
        let row = map.window[0] as usize * map.size;
        for number in 0..map.rows() {
            let mut bytes = vec![0u8; row];
            let from = map.row(&copy.at, number);
            for (i, from) in (0..map.window[0]).flat_map(|i| from.map(|f| (i, f))) {
                if (0..map.extents[0]).contains(&(copy.at[0] + i)) {
                    let element = from + (copy.at[0] + i) * map.size as i64;
                    let start = i as usize * map.size;
                    bytes[start..start + map.size].copy_from_slice(self.memory(element as u64, map.size));
                }
            }
            if map.transfer == Transfer::Tf32 {
                for x in bytes.as_chunks_mut::<4>().0 {
                    *x = tf32(f32::from_le_bytes(*x)).to_le_bytes();
                }
            }
            for [to, _] in copy.targets() {
                self.present(to);
                for (i, chunk) in bytes.chunks(16).enumerate() {
                    let to = to + (number as usize * row + 16 * i) as u64;
                    self.shared.store_proxy(swizzled(to, map.swizzle), chunk.try_into().expect("16 bytes"));
                }
            }
        }
        for [_, barrier] in copy.targets() {
            // Bytes from outside count, too.
            self.shared.complete(barrier, map.rows() * row as i64);
        }
        true
    }
    /// A thread starts a copy to global memory, which happens when it is waited for, or at once.
    pub fn send(&mut self, copy: Outgoing, t: &mut Thread) {
        assert_eq!(copy.from % 128, 0, "bulk copies come from multiples of 128 bytes");
        assert_eq!(self.map(copy.map).window.len(), copy.at.len(), "a coordinate per dimension");
        assert!(t.waited, "a copy writes before the launch before has ended");
        t.outgoing.last_mut().expect("a group is open").push(copy);
        if self.early {
            let last = t.outgoing.last_mut().and_then(Vec::pop).expect("just pushed");
            let mut read = self.read(last);
            self.write(&read);
            // It is not made again.
            read.rows = Some(vec![]);
            t.outgoing.last_mut().expect("a group is open").push(read);
        }
    }

    /// Waits until all but the last `keep` groups of a thread's copies have read, or have been written, too.
    pub fn wait_for_sent(&mut self, keep: usize, reads: bool, t: &mut Thread) {
        let done = (t.outgoing.len() - 1).saturating_sub(keep);
        for group in &mut t.outgoing[..done] {
            for copy in std::mem::take(group) {
                let copy = self.read(copy);
                if reads {
                    group.push(copy);
                } else {
                    self.write(&copy);
                }
            }
        }
    }

    fn read(&self, mut copy: Outgoing) -> Outgoing {
        let map = self.map(copy.map);
        let row = map.window[0] as usize * map.size;
        let chunk = |at: usize| self.shared.load_proxy(swizzled(copy.from + at as u64, map.swizzle));
        let bytes = |n: i64| (0..row).step_by(16).flat_map(|i| chunk(n as usize * row + i).to_vec()).collect();
        if copy.rows.is_none() {
            copy.rows = Some((0..map.rows()).map(bytes).collect());
        }
        copy
    }

    fn write(&mut self, copy: &Outgoing) {
        let map = self.map(copy.map).clone();
        for (number, bytes) in copy.rows.iter().flatten().enumerate() {
            let Some(to) = map.row(&copy.at, number as i64) else { continue };
            for (i, element) in bytes.chunks(map.size).enumerate() {
                let column = copy.at[0] + i as i64;
                if (0..map.extents[0]).contains(&column) {
                    let place = self.memory((to + column * map.size as i64) as u64, map.size);
                    match map.transfer {
                        Transfer::Add(dtype) => {
                            let [old, x] = [&*place, element].map(|bytes| Bits(word(bytes)));
                            let sum = semantics::atomic(AtomicOp::Add, dtype, old, x);
                            place.copy_from_slice(&sum.0.to_le_bytes()[..map.size]);
                        }
                        _ => place.copy_from_slice(element),
                    }
                }
            }
        }
    }
}
