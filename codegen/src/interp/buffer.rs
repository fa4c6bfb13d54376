//! Memory that knows its own history.
//!
//! A [`Buffer`] is a block of host memory. For its whole life it knows which bytes have been written; during a launch
//! that may write to it, also which program wrote, read or atomically changed each byte, so that a read of nothing and
//! a race between programs are errors instead of accidents.
//!
//! Cost is paid where it is needed: the map of initialised bytes goes away once all are, and who touched what is kept
//! in pages that a launch creates as it touches them, and only for buffers that it may write.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A block of host memory that kernels are interpreted on. Shareable between threads: a launch holds the buffers of all
/// its arguments for its duration, so launches (and reads by the host) take turns.
#[derive(Debug)]
pub struct Buffer {
    memory: Mutex<Memory>,
    len: usize,
}

/// A host access that a [`Buffer`] refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    #[error("bytes {offset}..{} lie outside of a buffer of {len} bytes", offset.saturating_add(*count))]
    OutOfRange { offset: usize, count: usize, len: usize },
    #[error("byte {offset} of the buffer has never been written")]
    Uninitialised { offset: usize },
}

impl Buffer {
    /// `len` bytes that must be written before they are read.
    pub fn uninit(len: usize) -> Buffer {
        Buffer::new(vec![0; len], if len > 0 { Some(vec![false; len]) } else { None })
    }

    pub fn zeroed(len: usize) -> Buffer {
        Buffer::new(vec![0; len], None)
    }

    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Buffer {
        Buffer::new(bytes.into(), None)
    }

    fn new(bytes: Vec<u8>, written: Option<Vec<bool>>) -> Buffer {
        let len = bytes.len();
        let missing = written.as_ref().map_or(0, Vec::len);
        Buffer { memory: Mutex::new(Memory { bytes, written, missing, history: None }), len }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out, from `offset`.
    ///
    /// # Errors
    /// If the range is not in the buffer, or a byte of it was never written.
    pub fn read_bytes(&self, offset: usize, out: &mut [u8]) -> Result<(), BufferError> {
        self.check(offset, out.len())?;
        let memory = self.lock();
        if let Some(i) = memory.first_unwritten(offset, out.len()) {
            return Err(BufferError::Uninitialised { offset: i });
        }
        out.copy_from_slice(&memory.bytes[offset..offset + out.len()]);
        Ok(())
    }

    /// All bytes.
    ///
    /// # Errors
    /// If one was never written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BufferError> {
        let mut out = vec![0; self.len];
        self.read_bytes(0, &mut out)?;
        Ok(out)
    }

    /// Copies bytes in, to `offset`.
    ///
    /// # Errors
    /// If the range is not in the buffer.
    pub fn write_bytes(&self, offset: usize, bytes: &[u8]) -> Result<(), BufferError> {
        self.check(offset, bytes.len())?;
        let mut memory = self.lock();
        memory.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        memory.mark_written(offset, bytes.len());
        Ok(())
    }

    /// Copies `count` bytes of `from` here. Bytes never written there are never-written here afterwards.
    ///
    /// # Errors
    /// If a range is not in its buffer.
    pub fn copy_from(&self, offset: usize, from: &Buffer, from_offset: usize, count: usize) -> Result<(), BufferError> {
        self.check(offset, count)?;
        from.check(from_offset, count)?;
        // One lock at a time: the two may be one buffer.
        let (bytes, written) = {
            let memory = from.lock();
            let range = from_offset..from_offset + count;
            (memory.bytes[range.clone()].to_vec(), memory.written.as_ref().map(|w| w[range].to_vec()))
        };
        let mut memory = self.lock();
        memory.bytes[offset..offset + count].copy_from_slice(&bytes);
        match written {
            None => memory.mark_written(offset, count),
            Some(w) => memory.set_written(offset, &w),
        }
        Ok(())
    }

    /// Whether all of these bytes have been written.
    pub fn is_initialised(&self, offset: usize, count: usize) -> bool {
        self.check(offset, count).is_ok() && self.lock().first_unwritten(offset, count).is_none()
    }

    /// Forgets the contents: every byte must be written again before it is read.
    pub fn invalidate(&self) {
        let mut memory = self.lock();
        memory.written = Some(vec![false; self.len]);
        memory.missing = self.len;
    }

    fn check(&self, offset: usize, count: usize) -> Result<(), BufferError> {
        if offset.checked_add(count).is_some_and(|end| end <= self.len) {
            Ok(())
        } else {
            Err(BufferError::OutOfRange { offset, count, len: self.len })
        }
    }

    /// Memory stays consistent between any two operations on it, so a panic elsewhere does not spoil it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody, in a [`Touch`].
const NOBODY: u32 = u32::MAX;
/// More than one program, in a [`Touch`].
const SEVERAL: u32 = u32::MAX - 1;
/// Several programs of the cluster whose number is in the lower bits, since they met last.
const TOGETHER: u32 = 1 << 30;
/// Programs of that cluster, before they met last.
const BEFORE: u32 = 2 << 30;
/// The most programs that a launch can tell apart.
pub(super) const MAX_PROGRAMS: u64 = TOGETHER as u64;

/// Who touched one byte in this launch: a program by its linear number, or one of the above.
#[derive(Clone, Copy)]
struct Touch {
    read: u32,
    write: u32,
    atomic: u32,
}

const PAGE: usize = 4096;
type Page = Box<[Touch]>;

/// The ways to touch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
}

/// Why an access is refused; `byte` counts from the start of the accessed range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Unwritten { byte: usize },
    Race { byte: usize, other: u32, how: &'static str },
}

/// The inside of a [`Buffer`].
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) bytes: Vec<u8>,
    /// Which bytes have been written; `None` when all have.
    written: Option<Vec<bool>>,
    /// How many have not.
    missing: usize,
    history: Option<History>,
}

/// Who touched what in this launch.
struct History {
    pages: Vec<Option<Page>>,
    /// Programs of a cluster.
    group: u32,
    /// What the cluster that runs has touched since its programs met last: offsets and counts. Nothing of programs
    /// alone.
    recent: Vec<(usize, usize)>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "History({} pages touched)", self.pages.iter().flatten().count())
    }
}

impl Memory {
    fn first_unwritten(&self, offset: usize, count: usize) -> Option<usize> {
        let written = self.written.as_ref()?;
        written[offset..offset + count].iter().position(|w| !w).map(|i| offset + i)
    }

    fn mark_written(&mut self, offset: usize, count: usize) {
        let Some(written) = &mut self.written else { return };
        for w in &mut written[offset..offset + count] {
            self.missing -= !*w as usize;
            *w = true;
        }
        if self.missing == 0 {
            self.written = None;
        }
    }

    pub(super) fn mark_unwritten(&mut self, offset: usize, count: usize) {
        let len = self.bytes.len();
        let written = self.written.get_or_insert_with(|| vec![true; len]);
        for w in &mut written[offset..offset + count] {
            self.missing += *w as usize;
            *w = false;
        }
    }

    fn set_written(&mut self, offset: usize, from: &[bool]) {
        let len = self.bytes.len();
        let written = self.written.get_or_insert_with(|| vec![true; len]);
        written[offset..offset + from.len()].copy_from_slice(from);
        self.missing = written.iter().filter(|w| !**w).count();
        if self.missing == 0 {
            self.written = None;
        }
    }

    /// Begins to record who touches what. Programs are in clusters of `group`, which run one after the other.
    pub(super) fn begin_history(&mut self, group: u32) {
        let pages = std::iter::repeat_with(|| None).take(self.bytes.len().div_ceil(PAGE)).collect();
        self.history = Some(History { pages, group, recent: vec![] });
    }

    /// The programs of this one's cluster have met: what they did lies before what they will do.
    pub(super) fn meet(&mut self, program: u32) {
        if let Some(history) = &mut self.history {
            history.meet(program);
        }
    }

    pub(super) fn end_history(&mut self) {
        self.history = None;
    }

    /// Checks and records that `program` touches `count` bytes from `offset`. Must precede the access itself.
    #[inline]
    pub(super) fn touch(&mut self, access: Access, program: u32, offset: usize, count: usize) -> Result<(), Refusal> {
        if access != Access::Write
            && let Some(i) = self.first_unwritten(offset, count)
        {
            return Err(Refusal::Unwritten { byte: i - offset });
        }
        if let Some(history) = &mut self.history {
            history.touch(access, program, offset, count)?;
        }
        if access == Access::Write {
            self.mark_written(offset, count);
        }
        Ok(())
    }
}

impl History {
    fn touch(&mut self, access: Access, program: u32, offset: usize, count: usize) -> Result<(), Refusal> {
        let mut done = 0;
        if self.group > 1 {
            self.recent.push((offset, count));
        }
        while done < count {
            let (page, start) = ((offset + done) / PAGE, (offset + done) % PAGE);
            let n = (count - done).min(PAGE - start);
            let nothing = Touch { read: NOBODY, write: NOBODY, atomic: NOBODY };
            let page = self.pages[page].get_or_insert_with(|| vec![nothing; PAGE].into());
            for (i, t) in page[start..start + n].iter_mut().enumerate() {
                if let Some((other, how)) = t.add(access, program, self.group) {
                    return Err(Refusal::Race { byte: done + i, other, how });
                }
            }
            done += n;
        }
        Ok(())
    }

    fn meet(&mut self, program: u32) {
        for (offset, count) in std::mem::take(&mut self.recent) {
            for byte in offset..offset + count {
                if let Some(page) = &mut self.pages[byte / PAGE] {
                    page[byte % PAGE].meet(program / self.group, self.group);
                }
            }
        }
    }
}

/// Whether `who` stands for programs of this cluster, since they met last.
fn is_of(who: u32, cluster: u32, group: u32) -> bool {
    who == TOGETHER | cluster || who < TOGETHER && who / group == cluster
}

impl Touch {
    /// Records an access; the other program and what it did, if the two race.
    #[inline]
    fn add(&mut self, access: Access, program: u32, group: u32) -> Option<(u32, &'static str)> {
        let cluster = program / group;
        let other = |who: u32| ![NOBODY, program, BEFORE | cluster].contains(&who);
        if other(self.write) {
            return Some((self.write, "writes"));
        }
        if access != Access::Read && other(self.read) {
            return Some((self.read, "reads"));
        }
        if access != Access::Atomic && other(self.atomic) {
            return Some((self.atomic, "atomically changes"));
        }
        let slot = match access {
            Access::Read => &mut self.read,
            Access::Write => &mut self.write,
            Access::Atomic => &mut self.atomic,
        };
        *slot = match *slot {
            who if !other(who) => program,
            who if is_of(who, cluster, group) => TOGETHER | cluster,
            _ => SEVERAL,
        };
        None
    }

    fn meet(&mut self, cluster: u32, group: u32) {
        for who in [&mut self.read, &mut self.write, &mut self.atomic] {
            if is_of(*who, cluster, group) {
                *who = BEFORE | cluster;
            }
        }
    }
}

/// Whether a racing "program" stands for more than one.
pub(super) fn is_several(program: u32) -> bool {
    program >= TOGETHER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_initialised_one_by_one() {
        let b = Buffer::uninit(4);
        assert_eq!(b.to_bytes(), Err(BufferError::Uninitialised { offset: 0 }));
        b.write_bytes(0, &[1, 2]).unwrap();
        let mut two = [0; 2];
        b.read_bytes(0, &mut two).unwrap();
        assert_eq!(two, [1, 2]);
        assert_eq!(b.read_bytes(1, &mut two), Err(BufferError::Uninitialised { offset: 2 }));
        b.write_bytes(1, &[7, 8, 9]).unwrap();
        assert_eq!(b.to_bytes().unwrap(), [1, 7, 8, 9]);
        assert!(b.lock().written.is_none());
        b.invalidate();
        assert!(!b.is_initialised(3, 1));
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        let b = Buffer::zeroed(4);
        assert!(b.write_bytes(3, &[0; 2]).is_err());
        assert!(b.read_bytes(usize::MAX, &mut [0; 2]).is_err());
        assert!(!b.is_initialised(usize::MAX, 1));
        assert!(b.read_bytes(4, &mut []).is_ok());
    }

    #[test]
    fn copies_carry_what_is_initialised() {
        let (a, b) = (Buffer::uninit(4), Buffer::zeroed(4));
        a.write_bytes(1, &[5, 6]).unwrap();
        b.copy_from(1, &a, 0, 3).unwrap();
        assert!(b.is_initialised(0, 1) && !b.is_initialised(1, 1) && b.is_initialised(2, 2));
        // Onto itself, overlapping.
        a.copy_from(0, &a, 1, 2).unwrap();
        assert!(a.is_initialised(0, 3) && !a.is_initialised(3, 1));
    }

    #[test]
    fn histories_tell_races_from_sharing() {
        use Access::*;
        let race = |accesses: &[(Access, u32)]| {
            let b = Buffer::zeroed(8192);
            let mut m = b.lock();
            m.begin_history(1);
            accesses.iter().find_map(|&(a, p)| m.touch(a, p, 4090, 10).err())
        };
        assert_eq!(race(&[(Read, 0), (Read, 1), (Read, 0)]), None);
        assert_eq!(race(&[(Write, 0), (Read, 0), (Write, 0), (Atomic, 0)]), None);
        assert_eq!(race(&[(Atomic, 0), (Atomic, 1), (Atomic, 2)]), None);
        for (first, second) in [
            (Write, Write),
            (Write, Read),
            (Read, Write),
            (Write, Atomic),
            (Atomic, Read),
            (Read, Atomic),
            (Atomic, Write),
        ] {
            assert!(race(&[(first, 3), (second, 4)]).is_some(), "{first:?} then {second:?}");
        }
        // Two readers, then one of them writes: the other still races.
        assert!(matches!(race(&[(Read, 0), (Read, 1), (Write, 1)]), Some(Refusal::Race { other: SEVERAL, .. })));
    }

    #[test]
    fn what_lies_before_a_meeting_is_no_race_within_the_cluster() {
        use Access::*;
        // Programs 2 and 3 are a cluster, which meets where there is no access.
        let race = |accesses: &[Option<(Access, u32)>]| {
            let b = Buffer::zeroed(8192);
            let mut m = b.lock();
            m.begin_history(2);
            accesses.iter().find_map(|step| match step {
                Some((access, program)) => m.touch(*access, *program, 4090, 10).err(),
                None => {
                    m.meet(2);
                    None
                }
            })
        };
        let kinds = [Read, Write, Atomic];
        for (first, second) in kinds.iter().flat_map(|&a| kinds.map(|b| (a, b))) {
            assert_eq!(race(&[Some((first, 2)), None, Some((second, 3))]), None, "{first:?}, {second:?}");
            let conflict = first != second || first == Write;
            assert_eq!(race(&[Some((first, 2)), None, Some((second, 4))]).is_some(), conflict, "another cluster");
            assert_eq!(race(&[Some((first, 0)), None, Some((second, 3))]).is_some(), conflict, "another cluster");
            assert_eq!(race(&[None, Some((first, 2)), Some((second, 3))]).is_some(), conflict, "no meeting between");
        }
        // All read, then one writes; but not if others read as well.
        assert_eq!(race(&[Some((Read, 2)), Some((Read, 3)), None, Some((Write, 3))]), None);
        assert!(race(&[Some((Read, 0)), Some((Read, 3)), None, Some((Write, 3))]).is_some());
        assert!(race(&[Some((Read, 2)), Some((Read, 3)), Some((Write, 3)), None]).is_some());
        assert!(race(&[Some((Read, 2)), None, Some((Read, 2)), Some((Write, 3))]).is_some(), "again since then");
    }
}
