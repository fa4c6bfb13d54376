//! What compiling a kernel found out that its author may want to know, and which of it the author forbids.
//!
//! A pass or an assembler that knows why code will be slow says so as a [`Finding`]. Each is of a kind, a [`Lint`]; a
//! kernel's options hold the lints that it *denies* (`#[kernel(deny(spill))]`). [`Kernel::check`] turns findings of
//! those into an error; of the rest it says nothing, they are in the kernel's report.

use super::{Kernel, Loc};
use std::fmt;

/// A kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lint {
    /// Registers that the assembler moved to memory.
    Spill,
    /// Products by warpgroups that wait for each other, because the assembler could not keep them in flight.
    WgmmaSerialized,
    /// A shift of registers between warps that the assembler dropped.
    SetmaxnregIgnored,
    /// Lanes that wait for one another in shared memory.
    BankConflict,
    /// A warp's access to a box that takes more sectors of memory than its bytes fill.
    Uncoalesced,
    /// What the compiler does in a slower way than the chip has.
    Fallback,
    /// What else the assembler warns of.
    Assembler,
}

impl Lint {
    /// What to try.
    pub const fn remedy(self) -> &'static str {
        match self {
            Lint::Spill => "smaller tiles, more warps, or fewer programs per multiprocessor (`min_programs_per_sm`)",
            Lint::WgmmaSerialized => "look at a product's sums only after its loop; smaller tiles leave more registers",
            Lint::SetmaxnregIgnored => "no demand on registers by other means: leave out `min_programs_per_sm`",
            Lint::BankConflict => {
                "rows of 128 bytes or more, or fewer changes between products, axes and transpositions"
            }
            Lint::Uncoalesced => "a tile that is long along the dimension of stride 1, in a tensor that has one",
            Lint::Fallback => "what the reason asks for",
            Lint::Assembler => "what the assembler asks for",
        }
    }
}

/// A set of lints.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Lints(u8);

impl Lints {
    /// These lints.
    pub fn of(lints: &[Lint]) -> Lints {
        Lints(lints.iter().fold(0, |set, &lint| set | 1 << lint as u8))
    }

    pub fn contains(self, lint: Lint) -> bool {
        self.0 >> lint as u8 & 1 == 1
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Lint> {
        Lint::ALL.iter().copied().filter(move |&lint| self.contains(lint))
    }
}

impl fmt::Display for Lints {
    /// `spill, bank_conflict`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Lint::name).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for Lints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// Something that an author may want to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Finding {
    pub lint: Lint,
    /// `file:line:column` of the operation, or of the kernel where no operation is to blame; text, so that it can be
    /// kept with the compiled kernel.
    pub place: String,
    pub message: String,
}

impl Finding {
    pub fn new(lint: Lint, loc: Loc, message: impl Into<String>) -> Finding {
        Finding { lint, place: loc.to_string(), message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.lint.name(), self.message)
    }
}

/// Findings that their kernel denies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}` denies what compiling it found:{}", list(findings))]
pub struct Denied {
    pub kernel: String,
    /// At least one.
    pub findings: Vec<Finding>,
}

fn list(findings: &[Finding]) -> String {
    let mut text: String = findings.iter().map(|f| format!("\n  {f}")).collect();
    let lints: Vec<Lint> = findings.iter().map(|f| f.lint).collect();
    for lint in Lints::of(&lints).iter() {
        text += &format!("\n  help ({}): {}", lint.name(), lint.remedy());
    }
    text
}

impl Kernel {
    /// Whether what compiling this kernel found is allowed.
    ///
    /// # Errors
    /// The findings of lints that it denies.
    pub fn check(&self, findings: &[Finding]) -> Result<(), Denied> {
        let denied: Vec<Finding> = findings.iter().filter(|f| self.options.deny.contains(f.lint)).cloned().collect();
        if denied.is_empty() { Ok(()) } else { Err(Denied { kernel: self.name.clone(), findings: denied }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_finding_is_an_error_that_names_kernel_place_and_remedy() {
        let mut kernel = Kernel::new("k", Loc::default());
        let at = |line| Loc { file: "a.rs", line, column: 5 };
        let findings = [
            Finding::new(Lint::Spill, at(3), "8 bytes"),
            Finding::new(Lint::Uncoalesced, at(4), "32 sectors"),
            Finding::new(Lint::Spill, at(9), "4 bytes"),
        ];
        assert_eq!(kernel.check(&findings), Ok(()));
        kernel.options.deny = Lints::of(&[Lint::BankConflict]);
        assert_eq!(kernel.check(&findings), Ok(()));
        kernel.options.deny = Lints::of(&[Lint::BankConflict, Lint::Spill]);
        assert_eq!(kernel.check(&[]), Ok(()));
        let error = kernel.check(&findings).expect_err("spills are denied");
        assert_eq!(error.findings.len(), 2);
        let text = error.to_string();
        for part in ["kernel `k`", "a.rs:3:5: spill: 8 bytes", "a.rs:9:5: spill: 4 bytes", Lint::Spill.remedy()] {
            assert_eq!(text.matches(part).count(), 1, "{part} in\n{text}");
        }
        assert!(!text.contains("uncoalesced"), "{text}");
    }

    #[test]
    fn sets_of_lints_hold_what_they_were_given() {
        assert!(Lints::default().is_empty() && Lints::of(&[]).is_empty());
        for &lint in Lint::ALL {
            let set = Lints::of(&[lint]);
            assert_eq!(set.iter().collect::<Vec<_>>(), [lint]);
            assert_eq!(set.to_string(), lint.name());
        }
        assert_eq!(Lints::of(Lint::ALL).iter().count(), Lint::ALL.len());
    }
}
