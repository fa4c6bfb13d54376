//! The interactive program: everything behind `cargo run -p kimi --example chat`.
//!
//! | module | its subject |
//! | --- | --- |
//! | [`arguments`] | the command line |
//! | [`settings`] | sampling settings, from the checkpoint, the command line and `/set` |
//! | [`conversation`] | who said what; saving and loading it |
//! | [`command`] | what a line of input means |
//! | [`talker`] | model, tokenizer and one session: prompt tokens to a streamed reply |
//! | [`program`] | the loop that ties them together, over any input and output |
//! | [`input`] | lines from a terminal (editing, history, several lines) or a pipe |
//! | [`interrupt`] | Ctrl-C |
//!
//! Standard output carries replies and nothing else; prompts, notes, statistics and errors go to standard error.

pub mod arguments;
pub mod command;
pub mod conversation;
pub mod input;
pub mod interrupt;
pub mod program;
pub mod settings;
pub mod talker;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use arguments::Arguments;
use input::{Input, Line};
use program::{Flow, Program};
use talker::Talker;

/// The whole program: reads the command line, talks, and gives the exit status.
pub fn main() -> ExitCode {
    main_with(Arguments::parse())
}

/// [`main`] with a command line that was read elsewhere.
pub fn main_with(arguments: Arguments) -> ExitCode {
    kiln::tolerate_findings();
    match run(arguments) {
        Ok(status) => status,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    interrupt::install().context("cannot listen for Ctrl-C")?;
    let talker = load(&arguments)?;
    let (mut out, mut notes) = (std::io::stdout(), std::io::stderr());
    let mut program = Program::new(talker, &arguments, &mut out, &mut notes)?;

    if let Some(ids) = arguments.prompt_tokens()? {
        program.complete(ids)?;
        return Ok(finished());
    }
    if let Some(prompt) = &arguments.prompt {
        let mut text = prompt.clone();
        if prompt == "-" {
            text.clear();
            std::io::stdin().lock().read_to_string(&mut text).context("reading the prompt from standard input")?;
        }
        program.say(&text)?;
        return Ok(finished());
    }

    let mut input = Input::open()?;
    if input.is_terminal() {
        program.greet()?;
    }
    let mut failed = false;
    loop {
        match input.line()? {
            Line::Text(text) => match program.line(&text) {
                Ok(Flow::Continue) => {}
                Ok(Flow::Leave) => break,
                Err(error) if is_broken_pipe(&error) => return Err(error),
                Err(error) => {
                    program.note(&format!("error: {error:#}"))?;
                    failed = true;
                }
            },
            Line::Interrupted => program.note("(to leave, type /bye or press Ctrl-D)")?,
            Line::End => break,
        }
    }
    // A person has read the error; whoever runs a pipe needs the status.
    Ok(if failed && !input.is_terminal() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The status of a run with one reply: that of a process killed by Ctrl-C if it was.
fn finished() -> ExitCode {
    if interrupt::was_requested() { ExitCode::from(130) } else { ExitCode::SUCCESS }
}

/// Loads the model behind a progress bar (which shows on a terminal only).
fn load(arguments: &Arguments) -> anyhow::Result<Talker> {
    let folder = arguments.model.clone().unwrap_or_else(crate::shipped_model);
    let bar = ProgressBar::new(0);
    let hidden = !std::io::stderr().is_terminal();
    bar.set_draw_target(if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
    let style = ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes}").context("progress bar")?;
    bar.set_style(style);
    let talker = Talker::open(&folder, arguments.device, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    talker.with_context(|| format!("loading {}", folder.display()))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(broken)
}
