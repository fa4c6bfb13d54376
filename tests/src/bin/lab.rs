//! The lab: everything that is checked or measured on a GPU, in one program that travels alone.
//!
//! ```text
//! lab check [FILTER]              every operation against the f64 reference
//! lab random                      random kernels against the interpreter
//! lab bench [FILTER] --json FILE  times by case, in the form that the peers' times have
//! lab tiles M N K                 the linear kernel in each tile size
//! lab sweep [FILTER]              the memory-bound kernels in each tile size, number of warps and splits
//! lab tune [FILTER] --table FILE  every candidate of tuned launches; what is best goes into the table
//! lab model DIR                   tokens per second of a checkpoint; steps that are replayed against others
//! lab verify DIR GOLDEN           stored results of another implementation against a run
//! lab drift DIR GOLDEN            how far a device strays from f32, in one piece and in pieces
//! lab kda-inputs FILE             the shipped model's inputs of the delta rule and our results, for the peers
//! lab chat …                      the chat
//! ```
//!
//! A case is named `operation/types…`; FILTER is a part of the name.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use kiln::Device;
use kiln_tests::bench::{self, Row};
use kiln_tests::cases::{self, Tiles};
use kiln_tests::decode;
use kiln_tests::drift;
use kiln_tests::random::{self, Limits, OnDevice, Runner};
use kimi::engine::{self, Want};
use kimi::golden::Golden;
use kimi::model::FIRST_CAPACITY;
use kimi::sampling::Sampling;
use kimi::verify;

#[derive(Parser)]
#[command(name = "lab", version, about = "Checks and measures Kiln's kernels on a device")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare every operation with the f64 reference
    Check {
        filter: Option<String>,
        #[arg(long, default_value = "cuda:0")]
        device: String,
        /// Runs, each with other inputs
        #[arg(long, default_value_t = 1)]
        seeds: u64,
    },
    /// Run random kernels and compare with the interpreter
    Random {
        #[arg(long, default_value = "cuda:0")]
        device: String,
        /// Kernels
        #[arg(long, default_value_t = 4000)]
        cases: u64,
        /// The first kernel's seed; the others' follow
        #[arg(long, default_value_t = 1 << 22)]
        seed: u64,
        /// Threads that generate, compile and compare; default one per core
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Time the benchmark's cases, each after a check of its result
    Bench {
        filter: Option<String>,
        #[arg(long, default_value = "cuda:0")]
        device: String,
        /// Where to put the times
        #[arg(long)]
        json: Option<PathBuf>,
        /// Timed runs of a case
        #[arg(long, default_value_t = 20)]
        samples: usize,
    },
    /// Time the linear kernel (bf16) in each tile size
    Tiles {
        #[arg(long, default_value = "cuda:0")]
        device: String,
        m: usize,
        n: usize,
        k: usize,
    },
    /// Time the memory-bound kernels in every way that they can be cut, each after a check of its result
    Sweep {
        filter: Option<String>,
        #[arg(long, default_value = "cuda:0")]
        device: String,
        /// Timed runs of each
        #[arg(long, default_value_t = 10)]
        samples: usize,
    },
    /// Time every candidate of linear layers' tile sizes and put the best into a table (kimi/tuned.txt is shipped)
    Tune {
        filter: Option<String>,
        #[arg(long, default_value = "cuda:0")]
        device: String,
        /// The table to update
        #[arg(long)]
        table: PathBuf,
        /// Timed runs of each
        #[arg(long, default_value_t = 10)]
        samples: usize,
    },
    /// Measure a checkpoint: prefill and decode rates, host waits; compare replayed steps with others
    Model {
        /// Folder with config.json and safetensors
        checkpoint: PathBuf,
        #[arg(long, default_value = "auto")]
        device: engine::Device,
        /// Tokens of the prompt
        #[arg(long, default_value_t = 512)]
        prompt: usize,
        /// Tokens to generate
        #[arg(long, default_value_t = 128)]
        tokens: usize,
    },
    /// Compare a run with stored reference results
    Verify {
        /// Folder with config.json and safetensors
        checkpoint: PathBuf,
        /// Folder with golden.json and golden.safetensors
        golden: PathBuf,
        #[arg(long, default_value = "auto")]
        device: engine::Device,
        /// Longest prompt to compare, in tokens
        #[arg(long, default_value_t = usize::MAX)]
        longest: usize,
        /// Greedy tokens per prompt
        #[arg(long, default_value_t = 64)]
        tokens: usize,
        /// Leave the held-out conversations out
        #[arg(long)]
        no_held_out: bool,
    },
    /// Tell how far a device strays from f32 on the CPU: medians over prompts cut from the held-out conversations
    Drift {
        /// Folder with config.json and safetensors
        checkpoint: PathBuf,
        /// Folder with golden.json and golden.safetensors
        golden: PathBuf,
        #[arg(long, default_value = "auto")]
        device: engine::Device,
    },
    /// Write what the KDA layers of the shipped model give the delta rule, and our results, for tests/peers/kda_error.py
    KdaInputs {
        /// The safetensors file to write
        file: PathBuf,
        #[arg(long, default_value = "cuda:0")]
        device: String,
    },
    /// Talk with a model
    Chat(Box<kimi::chat::arguments::Arguments>),
}

fn main() -> anyhow::Result<ExitCode> {
    let command = Arguments::parse().command;
    if matches!(command, Command::Check { .. } | Command::Tiles { .. } | Command::Sweep { .. }) {
        kiln::tolerate_findings();
    }
    match command {
        Command::Check { filter, device, seeds } => check(filter.as_deref(), &device, seeds),
        Command::Random { device, cases, seed, threads } => random(&device, seed..seed.saturating_add(cases), threads),
        Command::Bench { filter, device, json, samples } => bench(filter.as_deref(), &device, json.as_deref(), samples),
        Command::Tiles { device, m, n, k } => {
            bench::tiles::sweep(Device::parse(&device)?, [m, n, k])?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Sweep { filter, device, samples } => {
            let good = bench::sweep::run(Device::parse(&device)?, filter.as_deref(), samples)?;
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Tune { filter, device, table, samples } => {
            let device = Device::parse(&device)?;
            println!("{}", device.describe()?);
            status(bench::tune::run(device, filter.as_deref(), samples, &table)?, 0)
        }
        Command::Model { checkpoint, device, prompt, tokens } => model(&checkpoint, device, prompt, tokens),
        Command::Verify { checkpoint, golden, device, longest, tokens, no_held_out } => {
            let options = verify::Options { longest_prompt: longest, greedy_tokens: tokens, held_out: !no_held_out };
            verify(&checkpoint, &golden, device, options)
        }
        Command::Drift { checkpoint, golden, device } => {
            let mut of_device = engine::open(&checkpoint, device, &mut |_, _| {})?;
            let mut exact = engine::open(&checkpoint, engine::Device::Cpu, &mut |_, _| {})?;
            let golden = Golden::open(&golden, exact.config())?;
            let text: Vec<u32> = golden.held_out.iter().flat_map(|conversation| conversation.ids.clone()).collect();
            println!("{}", drift::drift(&mut *of_device, &mut *exact, &text)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::KdaInputs { file, device } => {
            println!("{} layers", cases::export_kda_inputs(Device::parse(&device)?, &file)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Chat(arguments) => Ok(kimi::chat::main_with(*arguments)),
    }
}

fn selected(name: &str, filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| name.contains(filter))
}

/// The status of a run of which nothing may fail and something must have run.
fn status(done: usize, failed: usize) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(done > 0, "nothing was run");
    println!("{done} cases, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(filter: Option<&str>, device: &str, seeds: u64) -> anyhow::Result<ExitCode> {
    cases::poison_new_tensors();
    let device = Device::parse(device)?;
    println!("{}", device.describe()?);
    let (mut done, mut failed) = (0, 0);
    for case in cases::cases().iter().filter(|case| selected(case.name, filter)) {
        for seed in 1..=seeds {
            done += 1;
            let (passed, text) = match case.run(device, Tiles::OfDevice, seed) {
                Ok(report) => (report.passed(), report.to_string()),
                Err(error) => (false, format!("{error:#}")),
            };
            failed += usize::from(!passed);
            println!("{} {:28} {text}", if passed { "ok    " } else { "FAILED" }, case.name);
            std::io::stdout().flush()?;
        }
    }
    status(done, failed)
}

fn random(device: &str, seeds: Range<u64>, threads: Option<usize>) -> anyhow::Result<ExitCode> {
    /// Failures after which nobody reads on.
    const ENOUGH: u64 = 5;
    // Kernels that nobody will launch again.
    // SAFETY: nothing else runs yet.
    unsafe { std::env::set_var("KILN_CACHE", "off") };
    let device = Device::parse(device)?;
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    println!("{}; seeds {seeds:?} on {threads} threads", device.describe()?);
    let runner = OnDevice::new(device);
    let (done, failed, start) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    end_if_stuck(runner.clone());
    let runners = || vec![Box::new(runner.clone()) as Box<dyn Runner>];
    random::check_many(seeds, Limits::default(), threads, runners, |seed, result| {
        let lost_to = runner.lost_to();
        if lost_to.is_some_and(|other| other != seed) {
            // This case never ran.
            return false;
        }
        let n = done.fetch_add(1, Ordering::Relaxed) + 1;
        if n.is_multiple_of(500) {
            println!("{n} kernels in {:.1} s", start.elapsed().as_secs_f64());
        }
        let Err(failure) = result else { return true };
        println!("FAILED {failure}");
        failed.fetch_add(1, Ordering::Relaxed) + 1 < ENOUGH && lost_to.is_none()
    });
    println!("{:.1} s", start.elapsed().as_secs_f64());
    status(done.into_inner() as usize, failed.into_inner() as usize)
}

/// Ends the program when a kernel runs for a minute: nothing else stops one that never ends.
fn end_if_stuck(runner: OnDevice) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Some((seed, since)) = runner.running()
                && since.elapsed() > Duration::from_secs(60)
            {
                println!("FAILED seed {seed} does not end:\n{}", random::generate(seed, Limits::default()).kernel);
                std::process::exit(1);
            }
        }
    });
}

fn bench(filter: Option<&str>, device: &str, json: Option<&Path>, samples: usize) -> anyhow::Result<ExitCode> {
    let device = Device::parse(device)?;
    println!("{}", device.describe()?);
    let (mut rows, mut failed) = (vec![], 0);
    let mut record = |name: &str, result: anyhow::Result<Row>| -> anyhow::Result<()> {
        match result {
            Ok(row) => {
                let us = row.microseconds;
                let (tflops, gbs) = (row.least.flops / us / 1e6, row.least.bytes / us / 1e3);
                println!("{name:46} {us:11.1} us {tflops:8.1} TFLOP/s {gbs:8.1} GB/s  error {:.1e}", row.error);
                rows.push(serde_json::json!({
                    "case": row.case, "us": us, "flops": row.least.flops, "bytes": row.least.bytes, "error": row.error,
                }));
            }
            Err(error) => {
                failed += 1;
                println!("{name:46} FAILED: {error:#}");
                rows.push(serde_json::json!({ "case": name, "failure": format!("{error:#}") }));
            }
        }
        std::io::stdout().flush()?;
        // Kept up to date, so that a run that is cut off leaves what it has.
        if let Some(path) = json {
            let all = serde_json::json!({ "device": device.model()?, "rows": rows });
            std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    };
    let mut done = 0;
    for case in bench::cases().iter().filter(|case| selected(&case.name, filter)) {
        done += 1;
        record(&case.name, case.run(device, samples))?;
    }
    if matches!(device, Device::Cuda(_)) {
        for case in bench::decoding().iter().filter(|case| selected(&case.node_name(), filter)) {
            done += 1;
            record(&case.node_name(), case.run_as_node(device))?;
        }
    }
    let mut launches: Vec<(&str, fn(Device) -> anyhow::Result<Row>)> =
        vec![("launch/eager_1_arg", bench::launch_cost), ("launch/prepared_1_arg", bench::prepared_cost)];
    if matches!(device, Device::Cuda(_)) {
        // Only GPUs have a driver to be called and graphs.
        launches.push(("launch/bare_1_arg", bench::bare_cost));
        launches.push(("launch/graph_node_1_arg", bench::node_cost));
    }
    for (launch, cost) in launches.into_iter().filter(|(name, _)| selected(name, filter)) {
        done += 1;
        record(launch, cost(device))?;
    }
    status(done, failed)
}

fn model(checkpoint: &Path, device: engine::Device, prompt: usize, tokens: usize) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut engine = engine::open(checkpoint, device, &mut |_, _| {})
        .with_context(|| format!("loading {}", checkpoint.display()))?;
    println!("{}; loaded in {:.2} s", engine.description(), start.elapsed().as_secs_f64());
    let vocabulary = engine.config().vocab_size;
    let ids: Vec<u32> = (0..prompt).map(|i| (i * 7919 % vocabulary) as u32).collect();
    for round in ["first", "second", "third"] {
        let session = engine.open_session()?;
        let (start, compiled) = (Instant::now(), kiln::compile_time());
        engine.append(session, &ids, Want::Last)?;
        let prefill = start.elapsed().as_secs_f64();
        let (start, waits) = (Instant::now(), kiln::waits());
        for _ in 0..tokens {
            engine.step(session, &Sampling::greedy())?;
        }
        let decode = start.elapsed().as_secs_f64();
        let waits = (kiln::waits() - waits) as f64 / tokens.max(1) as f64;
        println!(
            "{round:6} prefill {prompt} tokens {:9.1} tok/s, decode {tokens} tokens {:8.1} tok/s ({:.3} ms each, {waits:.2} \
             host waits each), {:.2} s of it all for compiling kernels",
            prompt as f64 / prefill,
            tokens as f64 / decode,
            decode / tokens.max(1) as f64 * 1e3,
            (kiln::compile_time() - compiled).as_secs_f64(),
        );
        engine.close_session(session);
    }
    let captured = decode::steps_are_appends(&mut *engine, FIRST_CAPACITY - 20, 48)?;
    // One for the caches as they were first, one after they have grown.
    let expected = if on_gpu(device)? { 2 } else { 0 };
    println!("steps give what launches one by one give, bit for bit; graphs captured: {captured} of {expected}");
    Ok(if captured == expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn on_gpu(device: engine::Device) -> anyhow::Result<bool> {
    Ok(match device {
        engine::Device::Auto => matches!(Device::auto()?, Device::Cuda(_)),
        device => matches!(device, engine::Device::Cuda(_)),
    })
}

fn verify(
    checkpoint: &Path,
    golden: &Path,
    device: engine::Device,
    options: verify::Options,
) -> anyhow::Result<ExitCode> {
    let mut engine = engine::open(checkpoint, device, &mut |_, _| {})
        .with_context(|| format!("loading {}", checkpoint.display()))?;
    let golden = Golden::open(golden, engine.config())
        .with_context(|| format!("reading golden results in {}", golden.display()))?;
    let report = verify::verify(&mut *engine, &golden, options, &mut std::io::stdout().lock())?;
    anyhow::ensure!(report.checks > 0, "nothing was compared");
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
