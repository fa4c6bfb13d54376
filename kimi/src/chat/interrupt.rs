//! Ctrl-C: it stops a reply that is being made, and ends the program only where there is none.

use std::sync::atomic::{AtomicBool, Ordering};

/// A reply is being made.
static REPLYING: AtomicBool = AtomicBool::new(false);
/// Ctrl-C was pressed since the reply began.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// What a shell expects of a program that Ctrl-C ended.
const STATUS: i32 = 130;

/// Starts listening.  To be called once.
pub fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        // Pressed twice in one reply, the program does not react: then it shall at least go.
        if !REPLYING.load(Ordering::Relaxed) || REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(STATUS);
        }
    })
}

/// While this lives, Ctrl-C asks for an end of the reply instead of ending the program.
pub struct Reply(());

impl Reply {
    /// Begins a reply; an earlier request is forgotten.
    pub fn begin() -> Reply {
        REQUESTED.store(false, Ordering::Relaxed);
        REPLYING.store(true, Ordering::Relaxed);
        Reply(())
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        REPLYING.store(false, Ordering::Relaxed);
    }
}

/// Was Ctrl-C pressed since the last reply began?
pub fn was_requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
