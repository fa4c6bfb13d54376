//! Every kernel instance that the model runs on a GPU assembles for Hopper and keeps its values in registers; random
//! kernels assemble.
//!
//! The instances are those that `model::ops` launches for the shapes of the 48 B model and of the shipped one, recorded
//! without running anything. Needs `ptxas` (`KILN_PTXAS`, or on `PATH`) and no GPU.
#![cfg(feature = "cuda")]

use kiln::ir::{Finding, Kernel, Lint, Meeting, OpKind};
use kiln::{DType, Device, Element, Float, Tensor, bf16, f8e4m3, f16};
use kiln_codegen::nvptx::{self, Ptx, Target, ptxas};
use kiln_tests::bench::dense::level1;
use kiln_tests::random::{self, Limits};
use kimi::engine::EngineError;
use kimi::kernels::linear::{linear_scaled_tuned, linear_tiles_tuned};
use kimi::model::ops::{Batch, Gate, Keep, MlaShape, Ops, state_shape};
use kimi::sampling::Sampling;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The widths that decide which instances run.
struct Model {
    hidden: usize,
    heads: usize,
    head: usize,
    mla: MlaShape,
    latent: usize,
    experts: usize,
    chosen: usize,
    expert_width: usize,
}

const LARGE: Model = Model {
    hidden: 2304,
    heads: 32,
    head: 128,
    mla: MlaShape { heads: 32, nope: 128, rope: 64, value: 128 },
    latent: 512,
    // Of the 256 that the model has, so that the tensors stay small; the instances are those of any number.
    experts: 16,
    chosen: 8,
    expert_width: 1024,
};

type Result<T> = std::result::Result<T, EngineError>;

fn tensor<T: Element>(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::zeros(shape, T::DTYPE, Device::Cpu)?)
}

/// Everything that one layer of each kind, with weights of `W`, does with `n` tokens.
fn pass<W: Float>(m: &Model, n: usize) -> Result<()> {
    let ops = Ops::<bf16, W>::new(Device::Cpu).with_gpu_tiles();
    let (hidden, channels) = (m.hidden, m.heads * m.head);
    let position = ops.integers(&[0])?;
    let at = Batch::single(ops, n)?;

    let mut x = ops.embedding(&ops.integers(&vec![0; n])?, &tensor::<W>(&[1024, hidden])?)?;
    let h = ops.rms_norm::<f32, bf16, f32>(&x, &tensor::<f32>(&[hidden])?, 1e-5)?;
    let qkv = ops.linear::<bf16>(&h, &tensor::<W>(&[3 * channels, hidden])?)?;
    let mut conv = tensor::<bf16>(&[2, 3, 3 * channels])?;
    let (projected, conv_weight) = (qkv, tensor::<f32>(&[4, 3 * channels])?);
    let qkv = ops.short_conv::<f32>(&projected, &conv_weight, &mut conv, &at)?;
    let low_rank = ops.linear::<bf16>(&h, &tensor::<W>(&[2 * m.head + m.heads, hidden])?)?;
    let decay = ops.linear::<bf16>(&low_rank.narrow(1, 0, m.head)?, &tensor::<W>(&[channels, m.head])?)?;
    let beta = low_rank.narrow(1, 2 * m.head, m.heads)?;
    let mut state = tensor::<f32>(&state_shape(2, m.heads, m.head))?;
    let (a_log, dt_bias) = (tensor::<f32>(&[m.heads])?, tensor::<f32>(&[channels])?);
    ops.delta_rule(&qkv, &decay, &beta, &a_log, &dt_bias, Gate::Bounded(-5.0), &mut state, &at)?;
    let o = ops.delta_rule(&qkv, &decay, &beta, &a_log, &dt_bias, Gate::Softplus, &mut state, &at)?;
    let gate = tensor::<bf16>(&[n, m.heads, m.head])?;
    let norm = tensor::<f32>(&[m.head])?;
    // Few tokens are one kernel; states on the way are left if asked for.
    let keep = Keep { sequence: 0, tokens: n, slot: 1 };
    for at in [at, Batch::keeping(ops, &[n], &[0], &[keep])?] {
        let (x, w) = (&projected, &conv_weight);
        for kind in [Gate::Softplus, Gate::Bounded(-5.0)] {
            ops.delta_rule(&qkv, &decay, &beta, &a_log, &dt_bias, kind, &mut state, &at)?;
            ops.kda(x, w, &decay, &beta, &a_log, &dt_bias, kind, &gate, &norm, 1e-5, &mut conv, &mut state, &at)?;
        }
    }
    if n == 4 {
        // Sequences of one token, so many that a head is one program's.
        let (at, first) = (Batch::new(ops, &[1; 2], &[0, 1])?, |tensor: &Tensor| tensor.narrow(0, 0, 2));
        let (x, w, decay, beta, gate) =
            (first(&projected)?, &conv_weight, first(&decay)?, first(&beta)?, first(&gate)?);
        for kind in [Gate::Softplus, Gate::Bounded(-5.0)] {
            ops.kda(&x, w, &decay, &beta, &a_log, &dt_bias, kind, &gate, &norm, 1e-5, &mut conv, &mut state, &at)?;
        }
    }
    // Half as many key heads as value heads.
    let grouped = tensor::<bf16>(&[n, 2 * channels])?;
    let (conv_weight, mut conv) = (tensor::<f32>(&[4, 2 * channels])?, tensor::<bf16>(&[2, 3, 2 * channels])?);
    let (at, kind) = (Batch::single(ops, n)?, Gate::Softplus);
    ops.delta_rule(&grouped, &decay, &beta, &a_log, &dt_bias, kind, &mut state, &at)?;
    for at in [at, Batch::keeping(ops, &[n], &[0], &[keep])?] {
        let (x, w) = (&grouped, &conv_weight);
        ops.kda(x, w, &decay, &beta, &a_log, &dt_bias, kind, &gate, &norm, 1e-5, &mut conv, &mut state, &at)?;
    }
    let o = ops.gated_rms_norm(&o, &gate, &norm, 1e-5)?;
    let mixed = ops.linear_parts(&o.reshape(&[n, channels])?, &tensor::<W>(&[hidden, channels])?)?;
    ops.add_rms_norm::<f32, bf16, f32>(&mut x, &mixed, &tensor::<f32>(&[hidden])?, 1e-5)?;

    let MlaShape { heads, nope, rope, value } = m.mla;
    let (mut latent, mut shared) = (tensor::<bf16>(&[512, m.latent])?, tensor::<bf16>(&[512, rope])?);
    let projected = tensor::<bf16>(&[n, m.latent + rope])?;
    ops.mla_cache(&projected, &tensor::<f32>(&[m.latent])?, 1e-6, &position, &mut latent, &mut shared)?;
    let q = tensor::<bf16>(&[n, heads * (nope + rope)])?;
    let kv_b = tensor::<W>(&[heads * (nope + value), m.latent])?;
    // A context in few parts, and in many.
    for capacity in [512, 1024, 4096, 8192] {
        let (latent, shared) = (tensor::<bf16>(&[capacity, m.latent])?, tensor::<bf16>(&[capacity, rope])?);
        ops.mla_decode(&q, &latent, &shared, &kv_b, &position, m.mla)?;
    }
    let kv = tensor::<bf16>(&[512, heads * (nope + value)])?;
    ops.mla_prefill(&q, &kv, &shared, &position, m.mla)?;

    ops.linear_swiglu(&h, &tensor::<W>(&[2 * m.expert_width, hidden])?)?;
    let (h, exact) = ops.add_rms_norm_exact::<f32, bf16, f32>(&mut x, &mixed, &tensor::<f32>(&[hidden])?, 1e-5)?;
    let logits = ops.router_logits(&exact, &tensor::<f32>(&[m.experts, hidden])?)?;
    let (chosen, weights) = ops.route(&logits, &tensor::<f32>(&[m.experts])?, m.chosen, true, 1.0)?;
    let up = tensor::<W>(&[m.experts, m.expert_width, hidden])?;
    let down = tensor::<W>(&[m.experts, hidden, m.expert_width])?;
    ops.experts_add(&h, &up, &up, &down, &chosen, &weights, &mut x)?;

    let logits = ops.linear::<f32>(&h.narrow(0, n - 1, 1)?, &tensor::<W>(&[1024, hidden])?)?;
    ops.sample(&logits, &Sampling::greedy(), &position)?;
    ops.sample(&logits, &Sampling::default(), &position)?;
    ops.advance(&mut ops.integers(&[0])?, n)?;
    Ok(())
}

/// Linear layers of so many rows and columns that each kind of tile is the best for one of them, and one of 8-bit floats.
fn many_rows<W: Float>() -> Result<()> {
    let ops = Ops::<bf16, W>::new(Device::Cpu).with_gpu_tiles();
    for (rows, columns) in [(2048, 4096), (4096, 2304), (512, 12288), (512, 8448), (512, 2304)] {
        ops.linear::<bf16>(&tensor::<bf16>(&[rows, 256])?, &tensor::<W>(&[columns, 256])?)?;
    }
    // Also of rows that bulk copies do not take.
    for inner in [256, 250] {
        ops.linear_swiglu(&tensor::<bf16>(&[2048, inner])?, &tensor::<W>(&[4096, inner])?)?;
    }
    let (x, weight) = (tensor::<f8e4m3>(&[256, 256])?, tensor::<f8e4m3>(&[256, 256])?);
    ops.linear_scaled::<bf16>(&x, &tensor::<f32>(&[256])?, &weight, &tensor::<f32>(&[256])?)?;
    Ok(())
}

/// The delta rule of a prompt that is not brief: with a walk beside its chunks, and with a state kept on the way.
fn long_prompt(m: &Model) -> Result<()> {
    const TOKENS: usize = 2048;
    let ops = Ops::<bf16, bf16>::new(Device::Cpu).with_gpu_tiles();
    let channels = m.heads * m.head;
    let qkv = tensor::<bf16>(&[TOKENS, 3 * channels])?;
    let (decay, beta) = (tensor::<bf16>(&[TOKENS, channels])?, tensor::<bf16>(&[TOKENS, m.heads])?);
    let (a_log, dt_bias) = (tensor::<f32>(&[m.heads])?, tensor::<f32>(&[channels])?);
    let mut state = tensor::<f32>(&state_shape(2, m.heads, m.head))?;
    let keep = Keep { sequence: 0, tokens: TOKENS, slot: 1 };
    for at in [Batch::single(ops, TOKENS)?, Batch::keeping(ops, &[TOKENS], &[0], &[keep])?] {
        for kind in [Gate::Softplus, Gate::Bounded(-5.0)] {
            ops.delta_rule(&qkv, &decay, &beta, &a_log, &dt_bias, kind, &mut state, &at)?;
        }
    }
    Ok(())
}

/// Distinct kernels of prompts and single tokens, with weights of `W`.
fn instances<W: Float>() -> BTreeMap<String, Kernel> {
    let tiny = kimi::config::Config::read(&kimi::shipped_model().join("config.json")).expect("the shipped config");
    let tiny = Model {
        hidden: tiny.hidden_size,
        heads: tiny.kda_heads,
        head: tiny.kda_head_dim,
        mla: MlaShape {
            heads: tiny.mla_heads,
            nope: tiny.qk_nope_head_dim,
            rope: tiny.qk_rope_head_dim,
            value: tiny.v_head_dim,
        },
        latent: tiny.kv_lora_rank,
        experts: 16,
        chosen: tiny.experts_per_token,
        expert_width: 64,
    };
    let mut kernels = BTreeMap::new();
    for model in [&tiny, &LARGE] {
        for n in [1, 4, 8, 15, 64, 100] {
            let recorded = kiln::record(|| pass::<W>(model, n)).expect("every operation has an instance");
            kernels.extend(recorded.into_iter().map(|kernel| (kernel.to_string(), kernel)));
        }
        let recorded = kiln::record(|| long_prompt(model)).expect("every operation has an instance");
        kernels.extend(recorded.into_iter().map(|kernel| (kernel.to_string(), kernel)));
    }
    let recorded = kiln::record(many_rows::<W>).expect("every operation has an instance");
    kernels.extend(recorded.into_iter().map(|kernel| (kernel.to_string(), kernel)));
    kernels
}

/// The assembler. A check that does not run must not look as if it had passed: where the tools are promised, this fails.
fn assembler() -> Option<PathBuf> {
    let found = ptxas::find();
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no ptxas: set KILN_PTXAS");
        eprintln!("SKIPPED: no ptxas (set KILN_PTXAS)");
    }
    found
}

/// Calls `work` on every item, on all cores; what it says of those that it fails.
fn failures<'a, T: Sync>(
    items: &'a [T],
    work: impl Fn(&'a T) -> std::result::Result<(), String> + Sync,
) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(failure) = work(item) {
                        failures.lock().expect("no panic holds it").push(failure);
                    }
                }
            });
        }
    });
    failures.into_inner().expect("no panic held it")
}

/// Instructions that show how a kernel computes: tensor cores, fed by what, copies to and from shared memory, spills.
const TELLING: [&str; 11] =
    ["HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA", "LDSM", "UTMALDG", "UTMASTG", "LDGSTS", "LDL", "STL"];

/// Kernels with products of which none is by warpgroups: how the finding that says so begins, and why that is right.
const WITHOUT_WGMMA: [(&str, &str, &str); 4] = [
    ("kda_chunk", "dot 2 of 16x16x16", "a chunk's products have 16 or 32 rows, several at a time"),
    ("linear", "dot 16x64x64", "few tokens: 64 rows would be padding, and the weight's bytes take the time"),
    ("linear_part", "dot 16x64x64", "as of `linear`"),
    ("linear", "dot 64x128x32 in f32", "a router's logits are products in f32"),
];

/// Passes and LLVM for the slowest kernel, on a server's core that others may use as well.
const COMPILE_TIME: Duration = Duration::from_secs(2);

/// The number of the exemption that a kernel needs, if it needs one. `counts`: of its instructions.
///
/// # Errors
/// If there is none.
fn exemption(
    kernel: &Kernel,
    counts: &BTreeMap<String, u32>,
    findings: &[Finding],
) -> std::result::Result<Option<usize>, &'static str> {
    let multiplies = kernel.ops.iter().any(|op| matches!(op.kind, OpKind::Dot(_)));
    if !multiplies || ["HGMMA", "QGMMA"].iter().any(|name| counts.contains_key(*name)) {
        return Ok(None);
    }
    let says = |start: &str| findings.iter().any(|f| f.message.starts_with(start));
    let found = WITHOUT_WGMMA.iter().position(|(name, start, _)| *name == kernel.name && says(start));
    found.map(Some).ok_or("no product by warpgroups")
}

/// No kernel spills, products are by warpgroups or are known not to be, and what became of each kernel is what
/// `snapshots/kernels-sm_90a.txt` says: a change there is read before it is accepted with `KILN_BLESS=1`.
#[test]
fn every_shipped_kernel_assembles_without_spills() {
    assert_eq!(bf16::DTYPE, DType::BF16);
    let Some(assembler) = assembler() else { return };
    let kernels: Vec<Kernel> = instances::<bf16>().into_values().collect();
    assert!(kernels.len() > 30, "only {} kernels were recorded", kernels.len());
    let (lines, times, exempt) = (Mutex::new(vec![]), Mutex::new(vec![]), Mutex::new(BTreeSet::new()));
    let failures = failures(&kernels, |kernel| {
        let cubin = std::env::temp_dir().join(format!("kiln-ptx-{}-{:p}.cubin", std::process::id(), kernel));
        let assembled = assemble(kernel, Target { sm: 90 }, &assembler, Some(&cubin));
        let counts = assembled.as_ref().map_or(Ok(BTreeMap::new()), |_| ptxas::instructions(&assembler, &cubin));
        let _ = std::fs::remove_file(&cubin);
        let (assembled, counts) = (assembled.map_err(|e| format!("{}: {e}", kernel.name))?, counts?);
        let Assembled { ptx, registers, programs, findings, time } = assembled;
        times.lock().expect("no panic holds it").push((time, kernel));
        let telling = TELLING.iter().filter_map(|name| counts.get(*name).map(|n| format!(", {n} {name}")));
        let line = format!(
            "{:20} {:3} threads, {registers:3} registers, {:6} bytes shared, {programs:2} programs, {:5} instructions{}{}",
            kernel.name,
            ptx.threads,
            ptx.shared_bytes,
            counts.values().sum::<u32>(),
            telling.collect::<String>(),
            in_files(&findings),
        );
        lines.lock().expect("no panic holds it").push(line.clone());
        let number = exemption(kernel, &counts, &findings).map_err(|why| format!("{why}: {line}"))?;
        exempt.lock().expect("no panic holds it").extend(number);
        let slow = [Lint::Spill, Lint::WgmmaSerialized];
        if findings.iter().any(|f| slow.contains(&f.lint)) { Err(line) } else { Ok(()) }
    });
    assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), kernels.len(), failures.join("\n"));
    assert_eq!(exempt.into_inner().expect("no panic held it").len(), WITHOUT_WGMMA.len(), "some are exempt in vain");

    // What is compiled side by side takes longer.
    let mut times = times.into_inner().expect("no panic held it");
    times.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    for (_, kernel) in &times[..3] {
        let mut times: Vec<Duration> =
            (0..5).map(|_| compile(kernel, Target { sm: 90 }).expect("as before").2).collect();
        times.sort();
        eprintln!("{}: {:.3} s of passes and LLVM, the median of 5", kernel.name, times[2].as_secs_f64());
        assert!(cfg!(debug_assertions) || times[2] < COMPILE_TIME, "{} takes {:?}", kernel.name, times[2]);
    }

    // Several instances of a kernel may become the same code.
    let mut times = BTreeMap::<String, usize>::new();
    lines.into_inner().expect("no panic held it").into_iter().for_each(|line| *times.entry(line).or_default() += 1);
    let lines: String = times.iter().map(|(line, n)| format!("{n} x {line}\n")).collect();
    let version = ptxas::version(&assembler).expect("it has just run");
    let found = format!("ptxas {version}, sm_90a\n{lines}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots/kernels-sm_90a.txt");
    if std::env::var_os("KILN_BLESS").is_some_and(|v| v == "1") {
        std::fs::write(&path, &found).expect("the snapshot can be written");
    }
    let known = std::fs::read_to_string(&path).expect("the snapshot is there");
    // Another assembler allocates and schedules otherwise; `test.sh` installs the one of the snapshot.
    if known.lines().next() != found.lines().next() {
        eprintln!(
            "NOT COMPARED: {} has no say here, the snapshot is of {}",
            version,
            known.lines().next().unwrap_or("?")
        );
        assert!(std::env::var_os("CI").is_none(), "set KILN_PTXAS to the assembler of the snapshot");
        return;
    }
    let mut difference = String::new();
    for line in known.lines().filter(|line| !found.lines().any(|other| other == *line)) {
        difference += &format!("- {line}\n");
    }
    for line in found.lines().filter(|line| !known.lines().any(|other| other == *line)) {
        difference += &format!("+ {line}\n");
    }
    assert!(found == known, "kernels changed (KILN_BLESS=1 accepts it):\n{difference}");
}

/// Checkpoints of other types load, too: what kernels deny does not happen with their weights either.
#[test]
fn kernels_deny_nothing_of_other_weights() {
    let Some(assembler) = assembler() else { return };
    let mut kernels = instances::<f32>();
    kernels.extend(instances::<f16>());
    kernels.retain(|_, kernel| !kernel.options.deny.is_empty());
    let kernels: Vec<Kernel> = kernels.into_values().collect();
    assert!(kernels.len() > 30, "only {} kernels deny something", kernels.len());
    let failures = failures(&kernels, |kernel| {
        let assembled = assemble(kernel, Target { sm: 90 }, &assembler, None);
        assembled.map(drop).map_err(|e| format!("{}: {e}", kernel.name))
    });
    assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), kernels.len(), failures.join("\n"));
}

/// Of tensors whose rows are aligned, every candidate of a tuned kernel is worth a launch.
#[test]
fn every_candidate_assembles_without_spills() {
    let Some(assembler) = assembler() else { return };
    let kernels = kiln::record(|| {
        let (x, w) = (tensor::<bf16>(&[512, 64])?, tensor::<bf16>(&[256, 64])?);
        let mut y = tensor::<bf16>(&[512, 256])?;
        let tiles = linear_tiles_tuned::<bf16, bf16, bf16, bf16, 64, 16, false>(&x, &w, &mut y).candidates();
        for tile in tiles {
            let tuned = linear_tiles_tuned::<bf16, bf16, bf16, bf16, 64, 16, false>(&x, &w, &mut y);
            tuned.only(tile).grid(|_| 132).run()?;
            let once = linear_tiles_tuned::<bf16, bf16, bf16, bf16, 64, 16, true>(&x, &w, &mut y);
            once.only(tile).grid(|_| 132).run()?;
        }
        let (x, w) = (tensor::<f8e4m3>(&[512, 64])?, tensor::<f8e4m3>(&[256, 64])?);
        let (x_scale, w_scale) = (tensor::<f32>(&[512])?, tensor::<f32>(&[256])?);
        let tiles = linear_scaled_tuned::<bf16, 16>(&x, &w, &x_scale, &w_scale, &mut y).candidates();
        for tile in tiles {
            let tuned = linear_scaled_tuned::<bf16, 16>(&x, &w, &x_scale, &w_scale, &mut y);
            tuned.only(tile).grid(|_| 132).run()?;
        }
        Ok::<(), EngineError>(())
    });
    let mut kernels = kernels.expect("all can be recorded");
    // The benchmark's, too.
    let level1 = kiln::record(|| {
        let (x, w) = (tensor::<bf16>(&[512, 64])?, tensor::<bf16>(&[256, 64])?);
        Ok::<(), EngineError>(level1(&x, &w, &mut tensor::<bf16>(&[512, 256])?)?)
    });
    kernels.extend(level1.expect("it can be recorded"));
    assert!(kernels.len() >= 9, "only {} candidates", kernels.len());
    let failures = failures(&kernels, |kernel| {
        let assembled = assemble(kernel, Target { sm: 90 }, &assembler, None)?;
        let spill = assembled.findings.iter().find(|f| f.lint == Lint::Spill);
        spill.map_or(Ok(()), |finding| Err(format!("{kernel}\n{finding}")))
    });
    assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), kernels.len(), failures.join("\n"));
}

/// What has no Hopper in it runs on what came before: every kernel also assembles for Ampere, but those whose clusters
/// exchange tiles, which are launched where they can. Grids meet there as well.
#[test]
fn every_shipped_kernel_assembles_for_sm_80() {
    let Some(assembler) = assembler() else { return };
    let exchanges = |k: &Kernel| matches!(k.meeting(), Some((Meeting::Cluster(_), _)));
    let kernels: Vec<Kernel> = instances::<bf16>().into_values().filter(|k| !exchanges(k)).collect();
    assert!(kernels.iter().any(|k| matches!(k.meeting(), Some((Meeting::Grid, _)))), "none whose grid meets");
    let failures = failures(&kernels, |kernel| {
        let assembled = assemble(kernel, Target { sm: 80 }, &assembler, None);
        assembled.map(drop).map_err(|e| format!("{}: {e}", kernel.name))
    });
    assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), kernels.len(), failures.join("\n"));
}

/// What `lab random` runs on a GPU can be compiled: the part of that check that needs none.
#[test]
fn random_kernels_assemble() {
    let Some(assembler) = assembler() else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (first, cases) = (number("KILN_SEED").unwrap_or(1 << 22), number("KILN_CASES").unwrap_or(100));
    let seeds: Vec<u64> = (first..first + cases).collect();
    let failures = failures(&seeds, |&seed| {
        let kernel = random::generate(seed, Limits::default()).kernel;
        let target = Target { sm: if seed.is_multiple_of(2) { 80 } else { 90 } };
        let failed = |why| format!("seed {seed} for {}: {why}\n{kernel}", target.name());
        assemble(&kernel, target, &assembler, None).map(drop).map_err(failed)
    });
    assert!(failures.is_empty(), "{} of {cases} kernels:\n{}", failures.len(), failures.join("\n"));
}

struct Assembled {
    ptx: Ptx,
    /// Per thread.
    registers: u32,
    /// That one multiprocessor holds.
    programs: u32,
    /// Of the compiler and the assembler.
    findings: Vec<Finding>,
    /// That passes and LLVM took.
    time: Duration,
}

/// Compiles as a launch does: the kernel after the passes, its PTX, and the time of both.
fn compile(kernel: &Kernel, target: Target) -> std::result::Result<(Kernel, Ptx, Duration), String> {
    let (mut kernel, start) = (kernel.clone(), Instant::now());
    kiln_codegen::passes::optimize(&mut kernel);
    let ptx = nvptx::compile(&kernel, target).map_err(|error| error.to_string())?;
    Ok((kernel, ptx, start.elapsed()))
}

/// Compiles as a launch does, and asks the assembler. What a kernel denies is an error.
fn assemble(
    kernel: &Kernel,
    target: Target,
    assembler: &Path,
    cubin: Option<&Path>,
) -> std::result::Result<Assembled, String> {
    let (kernel, ptx, time) = compile(kernel, target)?;
    let report = ptxas::assemble(assembler, &ptx.text, target, cubin, kernel.loc)?;
    let programs = report.programs_per_sm(target, ptx.threads, ptx.shared_bytes);
    let findings = [&ptx.findings[..], &report.findings].concat();
    target.check(&kernel, &findings).map_err(|denied| denied.to_string())?;
    Ok(Assembled { ptx, registers: report.registers, programs, findings, time })
}

/// A line for each finding, with its file but not its line, which says nothing of the machine code.
fn in_files(findings: &[Finding]) -> String {
    let text = |f: &Finding| {
        let file = f.place.split(".rs:").next().and_then(|path| path.rsplit('/').next()).unwrap_or("?");
        format!("\n      {}, {file}.rs: {}", f.lint.name(), f.message)
    };
    findings.iter().map(text).collect::<BTreeSet<String>>().into_iter().collect()
}
