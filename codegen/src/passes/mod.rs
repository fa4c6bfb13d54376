//! Passes on tile IR: the same kernel, with less to do.
//!
//! Invariants:
//! - No pass changes what the interpreter computes, to the bit; only which NaN a NaN is, is not defined. Nothing is
//!   reassociated, contracted or approximated on floats.
//! - A pass may remove an error (a division by zero whose result nobody uses), never add one: what may fail is not
//!   moved to where it would not have run.
//! - Memory operations keep their order among themselves, and a loop that waits for another program keeps reading.
//!   Programs of a cluster meet where and as often as it is written, and memory is another one afterwards.
//! - The kernel was verified before; in debug builds it is verified after every pass.

mod algebra;
mod canonicalize;
mod cse;
mod dce;
pub(crate) mod edit;
mod fold;
mod licm;
pub mod roles;
mod shapes;

pub use canonicalize::canonicalize;
pub use cse::cse;
pub use dce::dce;
pub use licm::licm;

use crate::ir::{Kernel, verify_form};

/// A pass by its name in file tests and reports.
pub type Pass = (&'static str, fn(&mut Kernel));

/// Every pass on tile IR.
pub const PASSES: &[Pass] = &[("canonicalize", canonicalize), ("cse", cse), ("licm", licm), ("dce", dce)];

/// What `optimize` runs, in order. Canonical forms let CSE see equal values; LICM brings values of several loops into
/// one region; what that made equal or constant goes in the second round.
const PIPELINE: &[Pass] = &[
    ("canonicalize", canonicalize),
    ("cse", cse),
    ("licm", licm),
    ("canonicalize", canonicalize),
    ("cse", cse),
    ("dce", dce),
];

/// Runs the pipeline on a verified kernel.
///
/// # Panics
/// In debug builds, if a pass breaks a rule of the verifier: a mistake of the pass.
pub fn optimize(kernel: &mut Kernel) {
    for (name, pass) in PIPELINE {
        pass(kernel);
        if cfg!(debug_assertions)
            && let Err(e) = verify_form(kernel)
        {
            panic!("pass `{name}` broke the kernel: {e}\n{kernel}");
        }
    }
}
