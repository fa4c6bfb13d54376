//! Every kernel instance that the model runs on a GPU assembles for Hopper and keeps its values in registers.
//!
//! The instances are those that `model::ops` launches for the shapes of the 48 B model and of the shipped one, recorded
//! without running anything. Needs `ptxas` (`KILN_PTXAS`, or on `PATH`) and no GPU.
#![cfg(feature = "cuda")]

use kiln::ir::Kernel;
use kiln::{DType, Device, Element, Tensor, bf16};
use kiln_codegen::nvptx::{self, Target, ptxas};
use kimi::engine::EngineError;
use kimi::model::ops::{Batch, MlaShape, Ops};
use kimi::sampling::Sampling;
use std::collections::BTreeMap;

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

/// Everything that one layer of each kind does with `n` tokens.
fn pass(m: &Model, n: usize) -> Result<()> {
    let ops = Ops::<bf16, bf16>::new(Device::Cpu).with_gpu_tiles();
    let (hidden, channels) = (m.hidden, m.heads * m.head);
    let position = ops.integers(&[0])?;
    let at = Batch::single(ops, n)?;

    let mut x = ops.embedding(&ops.integers(&vec![0; n])?, &tensor::<bf16>(&[1024, hidden])?)?;
    let h = ops.rms_norm::<f32, bf16, f32>(&x, &tensor::<f32>(&[hidden])?, 1e-5)?;
    let qkv = ops.linear::<bf16>(&h, &tensor::<bf16>(&[3 * channels, hidden])?)?;
    let mut conv = tensor::<bf16>(&[1, 3, 3 * channels])?;
    let qkv = ops.short_conv::<f32>(&qkv, &tensor::<f32>(&[4, 3 * channels])?, &mut conv, &at)?;
    let low_rank = ops.linear::<bf16>(&h, &tensor::<bf16>(&[2 * m.head + m.heads, hidden])?)?;
    let decay = ops.linear::<bf16>(&low_rank.narrow(1, 0, m.head)?, &tensor::<bf16>(&[channels, m.head])?)?;
    let beta = low_rank.narrow(1, 2 * m.head, m.heads)?;
    let mut state = tensor::<f32>(&[1, m.heads, m.head, m.head])?;
    let (a_log, dt_bias) = (tensor::<f32>(&[m.heads])?, tensor::<f32>(&[channels])?);
    let o = ops.delta_rule(&qkv, &decay, &beta, &a_log, &dt_bias, &mut state, &at)?;
    let gate = tensor::<bf16>(&[n, m.heads, m.head])?;
    let o = ops.gated_rms_norm(&o, &gate, &tensor::<f32>(&[m.head])?, 1e-5)?;
    let mixed = ops.linear_parts(&o.reshape(&[n, channels])?, &tensor::<bf16>(&[hidden, channels])?)?;
    ops.add_rms_norm::<f32, bf16, f32>(&mut x, &mixed, &tensor::<f32>(&[hidden])?, 1e-5)?;

    let MlaShape { heads, nope, rope, value } = m.mla;
    let (mut latent, mut shared) = (tensor::<bf16>(&[512, m.latent])?, tensor::<bf16>(&[512, rope])?);
    let projected = tensor::<bf16>(&[n, m.latent + rope])?;
    ops.mla_cache(&projected, &tensor::<f32>(&[m.latent])?, 1e-6, &position, &mut latent, &mut shared)?;
    let q = tensor::<bf16>(&[n, heads * (nope + rope)])?;
    let kv_b = tensor::<bf16>(&[heads * (nope + value), m.latent])?;
    ops.mla_decode(&q, &latent, &shared, &kv_b, &position, m.mla)?;
    let kv = tensor::<bf16>(&[512, heads * (nope + value)])?;
    ops.mla_prefill(&q, &kv, &shared, &position, m.mla)?;

    ops.swiglu(&ops.linear::<bf16>(&h, &tensor::<bf16>(&[2 * m.expert_width, hidden])?)?)?;
    let logits = ops.router_logits(&h, &tensor::<f32>(&[m.experts, hidden])?)?;
    let (chosen, weights) = ops.route(&logits, &tensor::<f32>(&[m.experts])?, m.chosen, true, 1.0)?;
    let up = tensor::<bf16>(&[m.experts, m.expert_width, hidden])?;
    let down = tensor::<bf16>(&[m.experts, hidden, m.expert_width])?;
    ops.experts_add(&h, &up, &up, &down, &chosen, &weights, &mut x)?;

    let logits = ops.linear::<f32>(&h.narrow(0, n - 1, 1)?, &tensor::<bf16>(&[1024, hidden])?)?;
    ops.sample(&logits, &Sampling::greedy(), &position)?;
    ops.sample(&logits, &Sampling::default(), &position)?;
    Ok(())
}

/// Distinct kernels of prompts and single tokens.
fn instances() -> BTreeMap<String, Kernel> {
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
        for n in [1, 8, 64, 100] {
            let recorded = kiln::record(|| pass(model, n)).expect("every operation has an instance");
            kernels.extend(recorded.into_iter().map(|kernel| (kernel.to_string(), kernel)));
        }
    }
    kernels
}

#[test]
fn every_shipped_kernel_assembles_without_spills() {
    assert_eq!(bf16::DTYPE, DType::BF16);
    let Some(assembler) = ptxas::find() else {
        // A check that does not run must not look as if it had passed: where the tools are promised, this fails.
        assert!(std::env::var_os("CI").is_none(), "no ptxas: set KILN_PTXAS");
        eprintln!("SKIPPED: no ptxas (set KILN_PTXAS)");
        return;
    };
    let target = Target { sm: 90 };
    let kernels: Vec<Kernel> = instances().into_values().collect();
    assert!(kernels.len() > 30, "only {} kernels were recorded", kernels.len());
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failures = std::sync::Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(kernel) = kernels.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let verdict = assemble(kernel.clone(), target, &assembler);
                    let text = verdict.as_ref().unwrap_or_else(|failure| failure);
                    println!("{:28} {text}", kernel.name);
                    if let Err(failure) = verdict {
                        failures.lock().expect("no panic holds it").push(format!("{}: {failure}", kernel.name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic held it");
    assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), kernels.len(), failures.join("\n"));
}

/// The instances that `lab sweep` tries; those that spill are listed, since a sweep may look at where spilling begins.
/// `SWEEP` chooses by a part of the work's name; in the folder `SWEEP_DIR` each leaves its PTX and its cubin.
#[test]
#[ignore = "takes minutes; for whoever chooses tile sizes"]
fn instances_of_the_sweep() {
    let assembler = ptxas::find().expect("no ptxas: set KILN_PTXAS");
    let mut seen = std::collections::BTreeSet::new();
    let filter = std::env::var("SWEEP").unwrap_or_default();
    for work in kiln_tests::bench::sweep::all() {
        if work.bytes > 400 << 20 || !work.name.contains(&filter) {
            continue;
        }
        let mut sweep = None;
        kiln::record(|| (work.prepare)(Device::Cpu).map(|made| sweep = Some(made))).expect("inputs");
        for (way, run) in sweep.expect("prepared").ways.list {
            for kernel in kiln::record(&run).expect("a launch") {
                if seen.insert(kernel.to_string()) {
                    let verdict = assemble(kernel.clone(), Target { sm: 90 }, &assembler);
                    println!("{:26} {way:30} {:20} {}", work.name, kernel.name, verdict.unwrap_or_else(|text| text));
                    if let Some(dir) = std::env::var_os("SWEEP_DIR") {
                        let mut kernel = kernel;
                        kiln_codegen::passes::optimize(&mut kernel);
                        let ptx = nvptx::compile(&kernel, Target { sm: 90 }).expect("compiled before").text;
                        let name = format!("{} {way} {}", work.name, kernel.name).replace(['/', ' ', ','], "_");
                        let path = std::path::Path::new(&dir).join(name + ".ptx");
                        std::fs::write(&path, &ptx).expect("a folder to write to");
                        ptxas::assemble(&assembler, &ptx, "sm_90a", Some(&path.with_extension("cubin")))
                            .expect("assembled before");
                    }
                }
            }
        }
    }
}

/// Compiles as a launch does; what the assembler says, as an error if it is bad.
fn assemble(mut kernel: Kernel, target: Target, assembler: &std::path::Path) -> std::result::Result<String, String> {
    kiln_codegen::passes::optimize(&mut kernel);
    let ptx = nvptx::compile(&kernel, target).map_err(|error| error.to_string())?;
    let report = ptxas::assemble(assembler, &ptx.text, target.name(), None)?;
    let text = format!(
        "{:3} threads, {:3} registers, {:6} bytes shared, spills {} + {} {}",
        ptx.threads,
        report.registers,
        ptx.shared_bytes,
        report.spill_stores,
        report.spill_loads,
        report.warnings.join("; "),
    );
    if report.spill_stores + report.spill_loads == 0 { Ok(text) } else { Err(text) }
}
