//! What a piece of code launches, without running it: for tests that examine the kernels which a program ships.
//!
//! Recording is per thread. A recorded launch passes every check that a launch passes and then does nothing, so tensors
//! may be of any size and on a device that only allocates.

use crate::Result;
use kiln_codegen::ir::Kernel;
use std::cell::RefCell;

thread_local! {
    static RECORDED: RefCell<Option<Vec<Kernel>>> = const { RefCell::new(None) };
}

/// Runs `work` with launches of this thread recorded instead of run; gives the kernels, each with the facts that its
/// arguments justify, in order, with repetitions.
///
/// # Errors
/// Those of `work`.
pub fn record<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Vec<Kernel>, E> {
    /// Ends the recording, also when `work` panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            RECORDED.take();
        }
    }
    let _end = End;
    RECORDED.set(Some(vec![]));
    work()?;
    Ok(RECORDED.take().unwrap_or_default())
}

/// Whether this thread records.
pub(crate) fn is_recording() -> bool {
    RECORDED.with_borrow(Option::is_some)
}

/// Records a launch of `kernel` if this thread records.
pub(crate) fn is_recorded(kernel: impl FnOnce() -> Kernel) -> bool {
    RECORDED.with_borrow_mut(|recorded| match recorded {
        Some(kernels) => {
            kernels.push(kernel());
            true
        }
        None => false,
    })
}
