//! Registers that move from the copying warps to the computing ones (`setmaxnreg`).
//!
//! All threads of a program begin with the same number of registers. Only whole warpgroups can give some away or take
//! more, so that the producer gets a warpgroup of its own then. They move where the products need it, or where the author
//! of roles has said how many each takes: as many as there are, which is an error otherwise, as a warpgroup that waits for
//! registers that nobody gives away waits for ever.

use super::Error;
use super::lower::{Lower, Result};
use crate::gpu::mma::DotPlan;
use crate::ir::{Finding, Lint};
use crate::passes::roles::{Budget, Division};

/// Where nobody says how many; with two computing warpgroups, at most what a multiprocessor has.
const BUDGET: Budget = Budget { copying: 24, computing: 240 };
/// Of a multiprocessor.
const REGISTERS: usize = 64 << 10;
/// What a thread can have.
const MOST: usize = 256;

impl Lower<'_> {
    /// Takes over what the kernel's roles say of registers.
    ///
    /// # Errors
    /// If there are not so many.
    pub(super) fn budget_registers(&mut self, roles: Option<&Division>) -> Result<()> {
        let Some((roles, budget)) = roles.and_then(|r| Some((r, r.parts[0].registers?))) else { return Ok(()) };
        let threads = self.threads() + 128;
        let programs = self.k.options.min_programs_per_sm.max(1) as usize;
        let each = REGISTERS / (programs * threads) / 8 * 8;
        let ignored = match () {
            () if self.plan.ahead.bulk.is_empty() => Some("no warp copies"),
            () if !self.warps().is_multiple_of(4) => Some("the computing role is no whole warpgroups"),
            () if each >= MOST => Some("each thread has as many as it can have"),
            () => None,
        };
        if let Some(why) = ignored {
            self.findings.push(Finding::new(Lint::SetmaxnregIgnored, roles.loc, format!("no registers move: {why}")));
            return Ok(());
        }
        let Budget { copying, computing } = budget;
        let taken = 128 * copying + self.threads() * computing;
        if (copying..=computing).contains(&each) && taken <= each * threads {
            self.budget = Some(budget);
            return Ok(());
        }
        let left = (each * threads - 128 * copying.min(each)) / self.threads();
        Err(Error::Unsupported {
            kernel: self.k.name.clone(),
            loc: roles.loc,
            message: format!(
                "{copying} registers for a copying thread and {computing} for a computing one: each of {threads} begins with \
                 {each}, so that a copying one keeps at most {each} and a computing one has {each} to {}",
                left.min(MOST) / 8 * 8
            ),
        })
    }

    /// How many registers threads have after they have moved.
    pub(super) fn registers(&self) -> Budget {
        self.budget.unwrap_or(BUDGET)
    }

    /// Whether the producer's warpgroup gives registers away.
    pub(super) fn shifts_registers(&self) -> bool {
        // Results, and first operands that do not lie in shared memory.
        let registers = self.plan.dots.iter().filter_map(|(&id, d)| match d {
            DotPlan::Wgmma(m) if self.plan.shared_operands.contains_key(&(id, 0)) => Some(m.acc.registers()),
            DotPlan::Wgmma(m) => Some(m.acc.registers() + m.a.registers() * m.dtype.size() / 4),
            _ => None,
        });
        let needed = self.warps() == 8 && registers.sum::<usize>() >= 128;
        !self.rings.is_empty() && !self.one_of_several && (self.budget.is_some() || needed)
    }
}
