//! The `kimi` command.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use kimi::engine::{self, Device};
use kimi::golden::Golden;
use kimi::verify::{self, Options};

#[derive(Parser)]
#[command(version, about = "Runs Kimi Linear models on kernels written in Kiln")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare a run with stored reference results; fails where a tolerance is exceeded
    Verify {
        /// Folder with config.json and safetensors
        checkpoint: PathBuf,
        /// Folder with golden.json and golden.safetensors
        golden: PathBuf,
        /// auto, cpu, cuda, cuda:N or interpret
        #[arg(long, default_value = "auto")]
        device: Device,
        /// `short` takes prompts of at most 17 tokens and leaves the held-out conversations out
        #[arg(long, value_enum, default_value_t = Prompts::All)]
        prompts: Prompts,
        /// Greedy tokens per prompt
        #[arg(long, default_value_t = 64)]
        tokens: usize,
    },
    /// Compile the kernels that a model needs on an H100 into a file, without a GPU. Programs built with the feature
    /// `cuda-packed` find it as `kernels.pack` beside themselves, or through KILN_PACK
    #[cfg(feature = "cuda")]
    Pack {
        /// Folder with config.json and safetensors
        checkpoint: PathBuf,
        /// The file, to which kernels are added
        pack: PathBuf,
    },
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Prompts {
    Short,
    All,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { command } = Arguments::parse();
    match command {
        Command::Verify { checkpoint, golden, device, prompts, tokens } => {
            kiln::tolerate_findings();
            let mut engine = engine::open(&checkpoint, device, &mut |_, _| {})
                .with_context(|| format!("loading {}", checkpoint.display()))?;
            let golden = Golden::open(&golden, engine.config())
                .with_context(|| format!("reading golden results in {}", golden.display()))?;
            let all = prompts == Prompts::All;
            let longest_prompt = if all { usize::MAX } else { 17 };
            let options = Options { longest_prompt, greedy_tokens: tokens, held_out: all };
            let report = verify::verify(&mut *engine, &golden, options, &mut std::io::stdout().lock())?;
            anyhow::ensure!(report.checks > 0, "nothing was compared");
            Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        #[cfg(feature = "cuda")]
        Command::Pack { checkpoint, pack } => {
            let config = kimi::config::Config::read(&checkpoint.join("config.json"))?;
            let kernels = kimi::model::kernels(config, &kimi::weights::Weights::open(&checkpoint)?)
                .with_context(|| format!("loading {}", checkpoint.display()))?;
            kiln::add_to_pack(&pack, &kernels, 90)?;
            println!("{} kernels in {}", kernels.len(), pack.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}
