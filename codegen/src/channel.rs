//! What a channel does, wherever it is kept on the host: in the verifier, the interpreter and on the CPU.
//!
//! Rule: messages are numbered from 0 and lie in a ring of slots, message n in slot n modulo their number. A slot is
//! taken from the send to the release, so message n waits for the release of message n minus the number of slots, whatever
//! else was released before. Messages are received in the order in which they were sent.

use std::collections::VecDeque;

/// A channel whose messages are `T`.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    slots: usize,
    /// The number of the oldest message that takes a slot.
    first: u64,
    /// The slots from that message on.
    taken: VecDeque<Slot<T>>,
}

#[derive(Debug)]
enum Slot<T> {
    /// Sent, not received.
    Full(T),
    /// Received, not released.
    Held,
    /// Released, but not the oldest.
    Released,
}

impl<T> Ring<T> {
    pub(crate) fn new(slots: u8) -> Ring<T> {
        Ring { slots: slots as usize, first: 0, taken: VecDeque::new() }
    }

    /// Whether a message could be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.taken.len() < self.slots
    }

    /// Sends, which there must be room for.
    pub(crate) fn send(&mut self, message: T) {
        assert!(self.has_room(), "a message waits for its slot");
        self.taken.push_back(Slot::Full(message));
    }

    /// The next message and its number, if there is one.
    pub(crate) fn receive(&mut self) -> Option<(u64, T)> {
        let at = self.taken.iter().position(|s| matches!(s, Slot::Full(_)))?;
        match std::mem::replace(&mut self.taken[at], Slot::Held) {
            Slot::Full(message) => Some((self.first + at as u64, message)),
            _ => None,
        }
    }

    /// Frees the slot of message `number`; false if no such message is held.
    pub(crate) fn release(&mut self, number: u64) -> bool {
        let slot = number.checked_sub(self.first).and_then(|at| self.taken.get_mut(at as usize));
        let Some(slot @ Slot::Held) = slot else { return false };
        *slot = Slot::Released;
        while let Some(Slot::Released) = self.taken.front() {
            self.taken.pop_front();
            self.first += 1;
        }
        true
    }

    /// How many messages were sent and not received.
    pub(crate) fn waiting(&self) -> usize {
        self.taken.iter().filter(|s| matches!(s, Slot::Full(_))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_taken_until_its_own_message_is_released() {
        let mut ring = Ring::new(2);
        assert_eq!(ring.receive(), None);
        ring.send('a');
        ring.send('b');
        assert!(!ring.has_room());
        assert_eq!((ring.receive(), ring.receive()), (Some((0, 'a')), Some((1, 'b'))));
        assert!(ring.release(1), "in any order");
        assert!(!ring.has_room(), "the next message goes where `a` was");
        assert!(ring.release(0) && !ring.release(0) && !ring.release(1) && !ring.release(7));
        ring.send('c');
        assert_eq!(ring.waiting(), 1);
        assert_eq!(ring.receive(), Some((2, 'c')));
    }
}
