//! Memory: global buffers; shared memory as ordinary instructions and as asynchronous ones see it; mbarriers.
//!
//! Ordinary stores to shared memory are seen by `wgmma` and bulk copies only after the storing thread's
//! `fence.proxy.async` and a barrier behind it; so there are two images of shared memory. What an unfinished `wgmma`
//! reads must not be written to.

use super::{SHARED_START, Simulator};
use std::collections::BTreeMap;

/// An mbarrier: the phase that it is in, and what that still waits for.
#[derive(Clone, Debug)]
pub struct Mbarrier {
    count: i64,
    pub pending: i64,
    pub bytes: i64,
    pub phase: u64,
    /// Who made it, and whether the others know.
    owner: usize,
    fenced: bool,
    known: bool,
}

impl Mbarrier {
    fn turn(&mut self) {
        assert!(self.pending >= 0, "more arrivals than the mbarrier counts: {self:?}");
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
        }
    }
}

/// Who last wrote a byte of shared memory, and who has read it since the last barrier; when: barriers and barriers of
/// the warp so far.
#[derive(Clone, Copy, Default)]
struct Trace {
    write: Option<Event>,
    read: Option<Event>,
    /// Whether threads of several warps, or several threads, have read it.
    warps: bool,
    threads: bool,
}

/// What a thread did between two barriers.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub thread: usize,
    pub barriers: usize,
    pub warp_barriers: usize,
}

impl Event {
    /// Whether a barrier that both came to lies between this and a later event.
    fn before(&self, later: &Event, several_warps: bool) -> bool {
        let same_warp = self.thread / 32 == later.thread / 32 && !several_warps;
        self.barriers < later.barriers || same_warp && self.warp_barriers < later.warp_barriers
    }
}

#[derive(Default)]
pub struct Shared {
    /// Per byte, if races are looked for.
    traces: Vec<Trace>,
    bytes: Vec<u8>,
    /// As asynchronous instructions see it.
    proxy: Vec<u8>,
    /// Per 16 bytes, how many unfinished products read them.
    readers: Vec<u16>,
    pub barriers: BTreeMap<u64, Mbarrier>,
}

/// The hardware's swizzle: bits 4.. of an address are exclusive-ored with bits 7.., as many as `bytes` has 16-byte
/// chunks.
pub fn swizzled(address: u64, bytes: u64) -> u64 {
    address ^ (address >> 7 & (bytes / 16 - 1)) << 4
}

impl Shared {
    pub fn new(size: usize, traced: bool) -> Shared {
        let bytes = vec![0xee; size.next_multiple_of(16)];
        Shared {
            traces: vec![Trace::default(); if traced { size } else { 0 }],
            proxy: bytes.clone(),
            readers: vec![0; bytes.len() / 16],
            bytes: bytes[..size].to_vec(),
            ..Shared::default()
        }
    }

    fn range(&self, address: u64, size: usize) -> std::ops::Range<usize> {
        assert_eq!(address as usize % size, 0, "misaligned shared access of {size} bytes at {address:#x}");
        let at = address.checked_sub(SHARED_START).filter(|at| *at as usize + size <= self.bytes.len());
        let at = at.unwrap_or_else(|| panic!("outside of shared memory: {address:#x}")) as usize;
        at..at + size
    }

    pub fn load(&self, address: u64, size: usize) -> &[u8] {
        &self.bytes[self.range(address, size)]
    }

    /// An ordinary load by a thread: what another one wrote must be separated from it by a barrier.
    pub fn read(&mut self, address: u64, size: usize, event: Event) {
        let range = self.range(address, size);
        if self.traces.is_empty() {
            return;
        }
        for trace in &mut self.traces[range] {
            if let Some(w) = trace.write
                && w.thread != event.thread
            {
                let why = "is read without a barrier after it was written";
                assert!(w.before(&event, false), "{address:#x} {why}: {w:?}, {event:?}");
            }
            match trace.read.filter(|r| !r.before(&event, trace.warps)) {
                Some(r) => {
                    trace.warps |= r.thread / 32 != event.thread / 32;
                    trace.threads |= r.thread != event.thread;
                }
                None => (trace.warps, trace.threads) = (false, false),
            }
            trace.read = Some(event);
        }
    }

    /// An ordinary store by a thread: what others read, or wrote if it is something else, must be separated from it by a
    /// barrier.
    pub fn written(&mut self, address: u64, bytes: &[u8], event: Event) {
        let range = self.range(address, bytes.len());
        if self.traces.is_empty() {
            return;
        }
        for ((trace, old), new) in self.traces[range.clone()].iter_mut().zip(&self.bytes[range]).zip(bytes) {
            if let Some(r) = trace.read
                && (r.thread != event.thread || trace.threads)
            {
                let why = "is written without a barrier after it was read";
                assert!(r.before(&event, trace.warps), "{address:#x} {why}: {r:?}, {event:?}");
            }
            if let Some(w) = trace.write
                && w.thread != event.thread
                && old != new
            {
                let why = "is written twice without a barrier between";
                assert!(w.before(&event, false), "{address:#x} {why}: {w:?}, {event:?}");
            }
            trace.write = Some(event);
        }
    }

    /// An ordinary store.
    pub fn store(&mut self, address: u64, bytes: &[u8]) {
        let range = self.writable(address, bytes.len());
        self.bytes[range].copy_from_slice(bytes);
    }

    fn writable(&self, address: u64, size: usize) -> std::ops::Range<usize> {
        let range = self.range(address, size);
        for chunk in range.start / 16..range.end.div_ceil(16) {
            assert_eq!(self.readers[chunk], 0, "{address:#x} is written while an unfinished product reads it");
        }
        let near = self.barriers.range(..address + size as u64).next_back();
        assert!(near.is_none_or(|(b, _)| b + 8 <= address), "an mbarrier at {near:?} is overwritten");
        range
    }

    /// What a barrier, after a fence, makes seen by asynchronous instructions.
    pub fn publish(&mut self, stores: &mut Vec<(u64, [u8; 16], usize)>) {
        for (address, bytes, size) in stores.drain(..) {
            let range = self.range(address, size);
            self.proxy[range].copy_from_slice(&bytes[..size]);
        }
    }

    /// 16 bytes as asynchronous instructions see them.
    pub fn load_proxy(&self, address: u64) -> &[u8] {
        let range = self.range(address, 16);
        let seen = &self.proxy[range.clone()];
        assert_eq!(
            seen, &self.bytes[range],
            "no fence, or no barrier after it, for the ordinary stores at {address:#x}"
        );
        seen
    }

    /// 16 bytes written by a bulk copy.
    pub fn store_proxy(&mut self, address: u64, bytes: &[u8; 16]) {
        let range = self.writable(address, 16);
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.proxy[range].copy_from_slice(bytes);
    }

    /// A product reads, or has read, these 16 bytes.
    pub fn read_by(&mut self, address: u64, more: bool) {
        let chunk = self.range(address, 16).start / 16;
        if more {
            self.readers[chunk] += 1;
        } else {
            self.readers[chunk] -= 1;
        }
    }

    // -- mbarriers ---------------------------------------------------------------------------------------------------

    pub fn init_barrier(&mut self, address: u64, count: i64, owner: usize) {
        self.writable(address, 8);
        let barrier = Mbarrier { count, pending: count, bytes: 0, phase: 0, owner, fenced: false, known: false };
        assert!(self.barriers.insert(address, barrier).is_none(), "an mbarrier is made twice");
    }

    pub fn fence_barriers(&mut self, owner: usize) {
        self.barriers.values_mut().filter(|b| b.owner == owner).for_each(|b| b.fenced = true);
    }

    /// After a barrier of all threads.
    pub fn share_barriers(&mut self) {
        self.barriers.values_mut().for_each(|b| b.known = b.fenced);
    }

    pub fn barrier(&mut self, address: u64, thread: usize) -> &mut Mbarrier {
        let b = self.barriers.get_mut(&address).unwrap_or_else(|| panic!("no mbarrier at {address:#x}"));
        assert!(b.known || b.owner == thread, "thread {thread} does not know that the mbarrier is made");
        b
    }

    /// An arrival, after adding to the bytes that the phase waits for.
    pub fn arrive(&mut self, address: u64, bytes: i64, thread: usize) {
        let barrier = self.barrier(address, thread);
        barrier.bytes += bytes;
        barrier.pending -= 1;
        barrier.turn();
    }

    /// Bytes of a bulk copy have arrived.
    pub fn complete(&mut self, address: u64, bytes: i64) {
        let barrier = self.barriers.get_mut(&address).expect("looked at when the copy started");
        barrier.bytes -= bytes;
        barrier.turn();
    }

    /// Whether the phase of this parity has completed.
    pub fn completed(&mut self, address: u64, parity: u64, thread: usize) -> bool {
        self.barrier(address, thread).phase & 1 != parity
    }
}

impl Simulator {
    /// Global memory.
    pub fn memory(&mut self, address: u64, size: usize) -> &mut [u8] {
        let (buffer, offset) = ((address >> 32) as usize, (address & 0xffff_ffff) as usize);
        assert_eq!(offset % size, 0, "misaligned access of {size} bytes at {address:#x}");
        assert!(buffer >= 1 && buffer <= self.global.len(), "wild address {address:#x}");
        let buffer = &mut self.global[buffer - 1];
        assert!(offset + size <= buffer.len(), "{offset} + {size} is outside of a buffer of {}", buffer.len());
        &mut buffer[offset..offset + size]
    }
}
