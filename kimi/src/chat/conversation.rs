//! A conversation: an optional system prompt and the turns, as plain text.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::template::{Message, Role};

/// Larger files are not conversations.
const MAX_FILE: u64 = 64 << 20;

/// Who said what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// Instructions to the model; `None` leaves them to the template.
    #[serde(default)]
    pub system: Option<String>,
    /// The turns.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// System prompt and turns, as the chat template wants them.
    pub fn all(&self) -> Vec<Message> {
        let system = self.system.iter().map(|content| Message { role: Role::System, content: content.clone() });
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Adds a turn.
    pub fn push(&mut self, role: Role, content: impl Into<String>) {
        self.messages.push(Message { role, content: content.into() });
    }

    /// Writes the conversation as JSON; an existing file is replaced in one step or stays as it was.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let name = path.file_name().with_context(|| format!("{} is not a file name", path.display()))?;
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&temporary)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        };
        write()
            .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
            .with_context(|| format!("saving {}", path.display()))
    }

    /// Reads what [`Conversation::save`] wrote.
    pub fn load(path: &Path) -> anyhow::Result<Conversation> {
        let read = || -> anyhow::Result<Conversation> {
            let size = std::fs::metadata(path)?.len();
            anyhow::ensure!(size <= MAX_FILE, "{size} bytes are too many for a conversation");
            Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
        };
        read().with_context(|| format!("loading {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_is_what_loads() {
        let path = std::env::temp_dir().join(format!("kimi-conversation-{}.json", std::process::id()));
        let mut conversation = Conversation { system: Some("Be \"brief\".".into()), messages: Vec::new() };
        conversation.push(Role::User, "two\nlines <|im_end|>");
        conversation.save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), conversation);
        for bad in ["", "{}", "[1]", r#"{"messages":[{"role":"king","content":"x"}]}"#] {
            std::fs::write(&path, bad).unwrap();
            assert!(Conversation::load(&path).is_err(), "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(conversation.save(&path.join("no/such/folder")).is_err());
    }
}
