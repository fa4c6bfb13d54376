//! Input, one message at a time: from a terminal with editing and history, or from a pipe line by line.

use std::io::{BufRead, IsTerminal, StdinLock};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, Completer, Config, Editor, Helper, Highlighter, Hinter, KeyCode, KeyEvent, Modifiers};

use super::command::is_complete;

/// Where messages come from.
pub enum Input {
    /// Somebody types.
    Terminal(Box<TerminalInput>),
    /// A pipe or a file.
    Pipe(StdinLock<'static>),
}

/// The line editor and where its history is kept.
pub struct TerminalInput {
    editor: Editor<Multiline, DefaultHistory>,
    history: Option<PathBuf>,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// One message, possibly of several lines, without the line break that ends it.
    Text(String),
    /// Ctrl-C on an unfinished message, which is thrown away.
    Interrupted,
    /// Nothing more will come.
    End,
}

impl Input {
    /// Standard input.
    pub fn open() -> anyhow::Result<Input> {
        if !std::io::stdin().is_terminal() {
            return Ok(Input::Pipe(std::io::stdin().lock()));
        }
        let config = Config::builder().max_history_size(1000)?.build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Multiline {}));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let history = history_file();
        if let Some(file) = &history {
            // The first time, there is none.
            let _ = editor.load_history(file);
        }
        Ok(Input::Terminal(Box::new(TerminalInput { editor, history })))
    }

    /// Is there a person at the other end?
    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// Waits for the next message.
    pub fn line(&mut self) -> anyhow::Result<Line> {
        match self {
            Input::Pipe(pipe) => read_message(pipe),
            Input::Terminal(terminal) => terminal.line(),
        }
    }
}

impl TerminalInput {
    fn line(&mut self) -> anyhow::Result<Line> {
        match self.editor.readline(">>> ") {
            Ok(text) => {
                if !text.trim().is_empty() {
                    self.editor.add_history_entry(&text)?;
                    if let Some(file) = &self.history {
                        // History is a convenience: a read-only home shall not end the chat.
                        let _ = self.editor.save_history(file);
                    }
                }
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads lines until they make a complete message.
fn read_message(pipe: &mut impl BufRead) -> anyhow::Result<Line> {
    let mut text = String::new();
    loop {
        let read = pipe.read_line(&mut text)?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if read == 0 {
            return Ok(if text.is_empty() { Line::End } else { Line::Text(text) });
        }
        if is_complete(&text) {
            return Ok(Line::Text(text));
        }
        text.push('\n');
    }
}

/// `$XDG_STATE_HOME/kimi/chat-history`, by default in `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?.join("kimi");
    std::fs::create_dir_all(&state).ok()?;
    Some(state.join("chat-history"))
}

/// Lets Enter continue a message that is not complete.
#[derive(Completer, Helper, Highlighter, Hinter)]
struct Multiline {}

impl Validator for Multiline {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if is_complete(context.input()) { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_from_a_pipe() {
        let mut pipe = &b"one\r\n\ntwo\\\nthree\n\"\"\"\nfour\n\nfive\n\"\"\"\nlast"[..];
        let mut texts = Vec::new();
        while let Line::Text(text) = read_message(&mut pipe).unwrap() {
            texts.push(text);
        }
        assert_eq!(texts, ["one", "", "two\\\nthree", "\"\"\"\nfour\n\nfive\n\"\"\"", "last"]);
        assert!(read_message(&mut &b"\xff\n"[..]).is_err());
        assert_eq!(read_message(&mut &b"\"\"\"open"[..]).unwrap(), Line::Text("\"\"\"open".into()));
    }
}
