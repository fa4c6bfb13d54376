//! Registers that move from the copying warps to the computing ones (`setmaxnreg`).
//!
//! All threads of a program begin with the same number of registers. Only whole warpgroups can give some away or take
//! more, so that a producer gets a warpgroup of its own then. They move where the products need it, or where the author of
//! roles has said how many each takes: as many as there are, which is an error otherwise, as a warpgroup that waits for
//! registers that nobody gives away waits for ever.

use super::Error;
use super::lower::{Lower, Result};
use crate::gpu::mma::DotPlan;
use crate::ir::{Finding, Lint, Role};
use crate::passes::roles::Division;

/// Of a multiprocessor.
const REGISTERS: usize = 64 << 10;
/// What a thread can have.
const MOST: usize = 256;

/// Registers of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// With how many each begins.
    each: usize,
    /// How many one of the producer's warpgroup has then.
    pub copying: usize,
    pub computing: usize,
}

/// Where nobody says how many: of two computing warpgroups and the producer's.
const BUDGET: Budget = Budget { each: 168, copying: 24, computing: 240 };

/// Gives the computing roles of a program, each with what copies for it, the warps and registers that their author asks for.
///
/// # Errors
/// If there are not so many registers.
pub(super) fn budget(roles: &mut [Lower], division: &Division) -> Result<()> {
    let parts = &division.parts;
    let all = || parts.iter().flat_map(|p| p.copying.iter().chain([&p.computing]));
    let said = |r: &Role| r.registers > 0;
    let threads = |r: &Lower| r.threads() + if r.copies() { 128 } else { 0 };
    let total: usize = roles.iter().map(|r| threads(r).next_multiple_of(128)).sum();
    let programs = roles[0].k.options.min_programs_per_sm.max(1) as usize;
    let each = REGISTERS / (programs * total) / 8 * 8;
    let ignored = match () {
        () if !all().any(said) => None,
        () if !all().all(said) => Some("every role must say how many its threads take"),
        () if roles.iter().zip(parts).any(|(r, p)| p.copying.is_some() && !r.copies()) => Some("no warp copies"),
        () if roles.iter().any(|r| !r.warps().is_multiple_of(4)) => Some("a computing role is no whole warpgroups"),
        () if each >= MOST => Some("each thread has as many as it can have"),
        () => {
            let asked = |(r, p): (&Lower, &crate::passes::roles::Part)| {
                let copying = if r.copies() { p.copying.map_or(0, |c| 128 * c.registers as usize) } else { 0 };
                copying + r.threads() * p.computing.registers as usize
            };
            let asked: usize = roles.iter().zip(parts).map(asked).sum();
            if asked > each * total {
                let list: Vec<String> = all().map(|r| r.registers.to_string()).collect();
                return Err(Error::Unsupported {
                    kernel: roles[0].k.name.clone(),
                    loc: division.loc,
                    message: format!(
                        "{} registers a thread are {asked} in all: {total} threads that begin with {each} have {}",
                        list.join(" and "),
                        each * total
                    ),
                });
            }
            for (role, part) in roles.iter_mut().zip(parts) {
                let copying = part.copying.map_or(0, |c| c.registers as usize);
                role.budget = Some(Budget { each, copying, computing: part.computing.registers as usize });
            }
            None
        }
    };
    if let Some(why) = ignored {
        let why = format!("no registers move: {why}");
        roles[0].findings.push(Finding::new(Lint::SetmaxnregIgnored, division.loc, why));
    }
    for (role, part) in roles.iter_mut().zip(parts) {
        let asked = part.copying.map_or(0, |c| c.warps as usize);
        let why = match role.producer_warps() {
            _ if asked == 0 => continue,
            n if n == asked => continue,
            0 => "no warp is launched for the copying roles".to_owned(),
            1 => format!("one warp is launched for the copying roles, not {asked}"),
            _ => {
                let why = "registers move between whole warpgroups: 4 warps are launched for the copying roles";
                format!("{why}, not {asked}")
            }
        };
        role.findings.push(Finding::new(Lint::Fallback, division.loc, why));
    }
    Ok(())
}

impl Lower<'_> {
    /// Whether a producer copies for the computing warps.
    pub(super) fn copies(&self) -> bool {
        !self.plan.ahead.bulk.is_empty()
    }

    /// Whether registers move: the producer's warpgroup gives some away, or other roles' do.
    pub(super) fn shifts_registers(&self) -> bool {
        // Results, and first operands that do not lie in shared memory.
        let registers = self.plan.dots.iter().filter_map(|(&id, d)| match d {
            DotPlan::Wgmma(m) if self.plan.shared_operands.contains_key(&(id, 0)) => Some(m.acc.registers()),
            DotPlan::Wgmma(m) => Some(m.acc.registers() + m.a.registers() * m.dtype.size() / 4),
            _ => None,
        });
        let needed = || !self.one_of_several && self.warps() == 8 && registers.sum::<usize>() >= 128;
        self.budget.is_some() || self.copies() && needed()
    }

    /// What this warpgroup has from here on, if registers move.
    pub(super) fn move_registers(&mut self, role: impl Fn(Budget) -> usize) {
        if !self.shifts_registers() {
            return;
        }
        let budget = self.budget.unwrap_or(BUDGET);
        let n = role(budget);
        let direction = match n.cmp(&budget.each) {
            std::cmp::Ordering::Less => "dec",
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Greater => "inc",
        };
        self.w.asm_effect("void", &format!("setmaxnreg.{direction}.sync.aligned.u32 {n};"), "", &[]);
    }
}
