//! What can go wrong while a kernel is interpreted, and where.

use crate::ir::Loc;
use std::fmt;

/// A kernel that broke a rule of tile IR, or arguments that do not fit it.
///
/// The message names the kernel, the source location, the program, the parameter and the element, as far as they apply.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(Box<Report>);

/// Which rule was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The arguments do not fit the kernel's parameters, or a view does not lie in its buffer.
    #[error("{0}")]
    BadArgument(String),
    /// An index outside the view where the operation does not permit it (`view_select`, unmasked `gather`).
    #[error("index {index} is outside of dimension {dim}, whose extent is {extent}")]
    OutOfBounds { dim: usize, index: i64, extent: i64 },
    /// A read of memory that nobody has written.
    #[error("reads memory that nothing has written")]
    Uninitialised,
    /// Two programs of one launch touched the same byte, at least one of them writing, not both atomically.
    /// `other` is one program of those it races with, `None` if several did the same; `how` is what they did.
    #[error("races with {}, which {how} the same memory", racers(other))]
    Race { other: Option<[u32; 3]>, how: &'static str },
    /// The same of two roles of one program, or of a role and what stands before the roles, or of several programs.
    #[error("races with another role or program, which {how} the same memory: nothing orders what roles do there")]
    RoleRace { how: &'static str },
    /// Two elements of one `store` or `scatter` fall on the same place.
    #[error("two elements of one tile are written to the same place")]
    DuplicateIndex,
    /// A `wait` for a signal that no launch before this one has given: on a device that runs one launch after the other
    /// it would never come.
    #[error("waits for a signal that no earlier launch has given")]
    NeverSignalled,
    /// No role can go on; where each waits.
    #[error("a deadlock: {0}")]
    Deadlock(String),
    /// Messages that nobody has received when all roles have ended.
    #[error("{0} messages of the channel were never received")]
    NotReceived(usize),
    /// Programs of a cluster that do not come to the same exchange; where each is.
    #[error("the programs of a cluster do not meet: {0}")]
    NotMet(String),
    /// A failed `assert`, with its message.
    #[error("assertion failed: {0}")]
    Assert(String),
    #[error("integer division by zero")]
    DivisionByZero,
    /// A `for` whose step is not positive.
    #[error("the step of a loop is {0}; it must be positive")]
    BadStep(i32),
    /// More operations than [`Options::step_limit`](super::Options::step_limit) permits: probably an endless loop.
    #[error("gave up after {0} operations in one program: does a loop never end?")]
    StepLimit(u64),
    /// The verifier refuses the kernel.
    #[error("the kernel does not verify: {0}")]
    InvalidIr(String),
}

fn racers(other: &Option<[u32; 3]>) -> String {
    match other {
        Some([x, y, z]) => format!("program ({x}, {y}, {z})"),
        None => "another program".to_owned(),
    }
}

#[derive(Debug)]
struct Report {
    kernel: String,
    loc: Loc,
    program: Option<[u32; 3]>,
    param: Option<String>,
    index: Option<Vec<i64>>,
    kind: ErrorKind,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}` at {}", self.kernel, self.loc)?;
        if let Some([x, y, z]) = self.program {
            write!(f, ", program ({x}, {y}, {z})")?;
        }
        if let Some(param) = &self.param {
            write!(f, ", parameter `{param}`")?;
        }
        if let Some(index) = self.index.as_ref().filter(|i| !i.is_empty()) {
            write!(f, ", element {index:?}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl Error {
    /// `loc` stands in where no operation is at fault.
    pub(super) fn new(kernel: &str, loc: Loc, program: Option<[u32; 3]>, fault: Fault) -> Error {
        let Details { kind, loc: inner, param, index } = *fault.0;
        Error(Box::new(Report { kernel: kernel.to_owned(), loc: inner.unwrap_or(loc), program, param, index, kind }))
    }

    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The source location of the operation (of the kernel, if the arguments are at fault).
    pub fn loc(&self) -> Loc {
        self.0.loc
    }

    /// The program that broke the rule; `None` if the arguments did.
    pub fn program(&self) -> Option<[u32; 3]> {
        self.0.program
    }

    /// The name of the parameter concerned.
    pub fn parameter(&self) -> Option<&str> {
        self.0.param.as_deref()
    }

    /// The element concerned: for memory operations its coordinates in the view as the operation sees it, otherwise its
    /// index in the tile.
    pub fn element(&self) -> Option<&[i64]> {
        self.0.index.as_deref()
    }
}

/// An error on its way up: the innermost operation adds its location, [`Error::new`] the rest.
#[derive(Debug)]
pub(super) struct Fault(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: ErrorKind,
    loc: Option<Loc>,
    param: Option<String>,
    index: Option<Vec<i64>>,
}

impl Fault {
    /// Names the element concerned.
    pub(super) fn at(mut self, index: Vec<i64>) -> Fault {
        self.0.index = Some(index);
        self
    }

    /// Names the parameter concerned.
    pub(super) fn of(mut self, param: &str) -> Fault {
        self.0.param = Some(param.to_owned());
        self
    }

    /// Names the location, unless an operation further in has done so.
    pub(super) fn located(mut self, loc: Loc) -> Fault {
        self.0.loc.get_or_insert(loc);
        self
    }
}

impl From<ErrorKind> for Fault {
    fn from(kind: ErrorKind) -> Fault {
        Fault(Box::new(Details { kind, loc: None, param: None, index: None }))
    }
}
