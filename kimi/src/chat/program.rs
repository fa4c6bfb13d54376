//! The chat itself, over any input and output: messages and commands in, replies and notes out.

use std::io::Write;

use super::arguments::Arguments;
use super::command::{Command, HELP};
use super::conversation::Conversation;
use super::settings::Settings;
use super::talker::{Reply, Stats, Stop, Talker};
use crate::template::Role;

/// Goes on or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Wait for the next line.
    Continue,
    /// The user wants to leave.
    Leave,
}

/// A running chat.
pub struct Program<'io> {
    talker: Talker,
    conversation: Conversation,
    settings: Settings,
    raw: bool,
    print_tokens: bool,
    print_stats: bool,
    last: Option<Stats>,
    /// Replies.
    out: &'io mut dyn Write,
    /// Everything else.
    notes: &'io mut dyn Write,
}

impl<'io> Program<'io> {
    /// Starts a chat with a loaded model.
    pub fn new(
        talker: Talker,
        arguments: &Arguments,
        out: &'io mut dyn Write,
        notes: &'io mut dyn Write,
    ) -> anyhow::Result<Program<'io>> {
        let settings = Settings::new(&talker.folder, arguments)?;
        Ok(Program {
            talker,
            conversation: Conversation { system: arguments.system.clone(), messages: Vec::new() },
            settings,
            raw: arguments.is_raw(),
            print_tokens: arguments.print_tokens,
            print_stats: arguments.stats,
            last: None,
            out,
            notes,
        })
    }

    /// What a person sees first.
    pub fn greet(&mut self) -> anyhow::Result<()> {
        let name = self.talker.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = format!("{name} on {}; /help lists the commands, /bye leaves", self.talker.description());
        self.note(&text)
    }

    /// Writes a note for the user.
    pub fn note(&mut self, text: &str) -> anyhow::Result<()> {
        writeln!(self.notes, "{text}")?;
        Ok(self.notes.flush()?)
    }

    /// Deals with one input.
    pub fn line(&mut self, input: &str) -> anyhow::Result<Flow> {
        match Command::parse(input)? {
            Command::Nothing => {}
            Command::Say(text) => self.say(&text)?,
            Command::Help => self.note(HELP)?,
            Command::Clear => {
                self.conversation.messages.clear();
                self.note("(the conversation is forgotten)")?;
            }
            Command::System(None) => {
                let text = self.conversation.system.clone().unwrap_or_else(|| "(the chat template's own)".into());
                self.note(&text)?;
            }
            Command::System(text) => {
                self.conversation = Conversation { system: text, messages: Vec::new() };
                self.note("(a new conversation with this system prompt)")?;
            }
            Command::Set(None) => self.note(&self.settings.to_string())?,
            Command::Set(Some((name, value))) => {
                self.settings.set(&name, &value)?;
                self.note(&self.settings.to_string())?;
            }
            Command::Stats => match self.last {
                Some(stats) => self.note(&stats.to_string())?,
                None => self.note("(there was no reply yet)")?,
            },
            Command::Save(file) => {
                self.conversation.save(&file)?;
                self.note(&format!("({} messages saved)", self.conversation.messages.len()))?;
            }
            Command::Load(file) => {
                self.conversation = Conversation::load(&file)?;
                self.note(&format!("({} messages loaded)", self.conversation.messages.len()))?;
            }
            Command::Bye => return Ok(Flow::Leave),
        }
        Ok(Flow::Continue)
    }

    /// Says something to the model and writes its reply.  After an error the conversation is as before.
    pub fn say(&mut self, text: &str) -> anyhow::Result<()> {
        if self.raw {
            let prompt = self.talker.raw_prompt(text);
            return self.complete(prompt);
        }
        let before = self.conversation.messages.len();
        self.conversation.push(Role::User, text);
        let result = self.talker.chat_prompt(&self.conversation.all()).and_then(|prompt| self.reply(&prompt));
        match result {
            Ok(reply) if !reply.ids.is_empty() => {
                self.conversation.push(Role::Assistant, reply.text);
                Ok(())
            }
            other => {
                self.conversation.messages.truncate(before);
                other.map(drop)
            }
        }
    }

    /// Continues a prompt of tokens, outside of any conversation.
    pub fn complete(&mut self, prompt: Vec<u32>) -> anyhow::Result<()> {
        anyhow::ensure!(!prompt.is_empty(), "there is nothing to continue");
        self.reply(&prompt).map(drop)
    }

    /// Makes a reply, writes it, and says why it ended if not by itself.
    fn reply(&mut self, prompt: &[u32]) -> anyhow::Result<Reply> {
        let (out, quiet) = (&mut *self.out, self.print_tokens);
        let reply = self.talker.reply(prompt, &self.settings, self.raw, &mut |_, text| {
            if !quiet && !text.is_empty() {
                out.write_all(printable(text).as_bytes())?;
                out.flush()?;
            }
            Ok(())
        })?;
        if quiet {
            let ids: Vec<String> = reply.ids.iter().map(u32::to_string).collect();
            out.write_all(ids.join(" ").as_bytes())?;
        }
        out.write_all(b"\n")?;
        out.flush()?;
        match reply.stop {
            Stop::Token | Stop::Length => {}
            Stop::Interrupted => self.note("(stopped)")?,
            Stop::Context => {
                let text = format!("(the context of {} tokens is full; /clear starts anew)", self.talker.context());
                self.note(&text)?;
            }
        }
        self.last = Some(reply.stats);
        if self.print_stats {
            self.note(&reply.stats.to_string())?;
        }
        Ok(reply)
    }
}

/// A model may write any bytes, and terminals obey some of them: of the C0 and C1 controls only line breaks and tabs
/// get through.
fn printable(text: &str) -> String {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.chars().map(|c| if harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
mod tests;
