//! A program of several computing roles: each is lowered as a kernel of its own, on threads of its own.
//!
//! The roles stand one after the other, each from a whole warpgroup on, its producer behind it; threads in between leave at
//! once. All see the same parameters. Shared memory has the channels first, then every role's rings and places, then what
//! each takes while it computes. A role's barriers are named and count its own threads only; all threads meet once, when the
//! mbarriers have been made.

use super::channel::channels;
use super::lower::{Lower, Result};
use super::registers::budget;
use super::text::{V, Writer, int};
use super::{Chip, Error, Lowered, Target, lowered};
use crate::gpu::assign::{Assignment, assign};
use crate::ir::{Finding, Kernel, Lint};
use crate::passes::roles::{Division, Part, Refusal};

/// Named barriers of a role: one for all its threads, two for the turns of its warpgroups.
const BARRIERS: usize = 3;
/// Of those that there are, the first is for all threads.
const MOST_ROLES: usize = (16 - 1) / BARRIERS;
const MOST_THREADS: usize = 1024;

/// Lowers the parts for a chip.
///
/// # Errors
/// If there are more roles or threads than a program can have.
pub(super) fn lower(kernel: &Kernel, division: &Division, target: Target, chip: Chip) -> Result<Lowered> {
    let parts = &division.parts;
    let unsupported = |message: String| Error::Unsupported { kernel: kernel.name.clone(), loc: division.loc, message };
    if parts.len() > MOST_ROLES {
        return Err(unsupported(format!("{} computing roles: a program can have {MOST_ROLES}", parts.len())));
    }
    // A cluster is a hint, and its programs would have to wait for the copies of each other's roles.
    let alone = |p: &Part| {
        let mut k = p.kernel.clone();
        k.options.cluster = 0;
        k
    };
    let kernels: Vec<Kernel> = parts.iter().map(alone).collect();
    let chip = Chip { ring_bytes: chip.ring_bytes / parts.len(), ..chip };
    let plans: Vec<Assignment> = kernels.iter().map(|k| assign(k, chip)).collect();
    let sizes: Vec<(&Kernel, usize)> = kernels.iter().zip(&plans).map(|(k, p)| (k, p.warps)).collect();
    let (channels, mut top) = channels(&sizes);

    let mut roles: Vec<Lower> = kernels.iter().zip(&plans).map(|(k, plan)| Lower::new(k, plan, target.sm)).collect();
    roles.iter_mut().for_each(|r| r.one_of_several = true);
    budget(&mut roles, division)?;

    let mut writer = Writer::default();
    writer.block = "body".into();
    let mut maps = vec![];
    let mut threads = 0;
    for (i, role) in roles.iter_mut().enumerate() {
        std::mem::swap(&mut role.w, &mut writer);
        (role.first_thread, role.named_barrier) = (threads, 1 + BARRIERS * i);
        role.channels = channels.clone();
        role.shared_top = top;
        role.parameters();
        role.take_places();
        role.take_rings();
        top = role.shared_top;
        threads = (role.first_thread + role.launched_threads()).next_multiple_of(128);
        std::mem::swap(&mut role.w, &mut writer);
    }
    // The last one needs no warps to fill its warpgroup.
    threads = roles.last().map_or(0, |r| r.first_thread + r.launched_threads());
    if threads > MOST_THREADS {
        return Err(unsupported(format!("{threads} threads in all roles: a program can have {MOST_THREADS}")));
    }

    begin(&mut roles, &mut writer);
    let mut findings = division.findings.clone();
    for Refusal { loc, rule } in &division.refusals {
        let why = format!("no bulk copies for what is sent here: {rule}");
        findings.push(Finding::new(Lint::Fallback, *loc, why));
    }
    for role in &mut roles {
        std::mem::swap(&mut role.w, &mut writer);
        std::mem::swap(&mut role.maps, &mut maps);
        role.shared_top = top;
        role.shared_max = top;
        let [own, next] = ["role", "next"].map(|s| role.w.label(s));
        let tid = role.tid();
        let is_own = role.w.icmp("ult", "i32", &tid, &int(role.launched_threads()));
        role.w.branch(&is_own, &own, &next);
        role.w.start(&own);
        role.send_producer_off();
        role.start_ways();
        role.region(role.k.body)?;
        role.w.line("ret void");
        role.w.start(&next);
        top = role.shared_max;
        findings.extend(role.plan.findings.iter().cloned());
        findings.append(&mut role.findings);
        std::mem::swap(&mut role.maps, &mut maps);
        std::mem::swap(&mut role.w, &mut writer);
    }
    let shifts = roles.iter().any(Lower::shifts_registers);
    let least = kernel.options.min_programs_per_sm.max(u8::from(shifts));
    Ok(lowered(kernel, writer, [threads, top], least, 1, maps, findings))
}

/// Waits for the grid before, makes all mbarriers, and lets all threads see them.
fn begin(roles: &mut [Lower], writer: &mut Writer) {
    let [init, ready] = ["init", "ready"].map(|s| writer.label(s));
    let first: &mut Lower = &mut roles[0];
    std::mem::swap(&mut first.w, writer);
    first.wait_for_earlier_grids();
    let tid: V = first.tid();
    let makes = first.w.icmp("eq", "i32", &tid, &int(0));
    first.w.branch(&makes, &init, &ready);
    first.w.start(&init);
    first.make_channels();
    std::mem::swap(&mut first.w, writer);
    for role in roles.iter_mut() {
        std::mem::swap(&mut role.w, writer);
        role.make_ring_barriers();
        std::mem::swap(&mut role.w, writer);
    }
    let first: &mut Lower = &mut roles[0];
    std::mem::swap(&mut first.w, writer);
    first.publish_barriers();
    first.w.jump(&ready);
    first.w.start(&ready);
    first.w.call("void", "llvm.nvvm.barrier0", &[]);
    std::mem::swap(&mut first.w, writer);
}
