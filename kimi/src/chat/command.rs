//! What a line of input means: a slash command or something to say.

use std::path::PathBuf;

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Text for the model.
    Say(String),
    /// `/help`
    Help,
    /// `/clear`: forget the conversation.
    Clear,
    /// `/system [TEXT]`: show or change the system prompt; the conversation starts anew.
    System(Option<String>),
    /// `/set [NAME VALUE]`: show or change settings.
    Set(Option<(String, String)>),
    /// `/stats`: times of the last reply.
    Stats,
    /// `/save FILE`
    Save(PathBuf),
    /// `/load FILE`
    Load(PathBuf),
    /// `/bye`
    Bye,
    /// Nothing at all.
    Nothing,
}

/// What `/help` prints.
pub const HELP: &str = "\
/help             this list
/clear            forget the conversation
/system [TEXT]    show the system prompt, or set it and start anew
/set [NAME VALUE] show or change temperature, top-k, top-p, min-p, seed, max-tokens
/stats            times of the last reply
/save FILE        write the conversation to a file
/load FILE        go on with a saved conversation
/bye              leave (or Ctrl-D)

Several lines: end a line with \\, or put \"\"\" before and after, or press Alt-Enter.
A text that starts with a slash: write // for it.  Ctrl-C stops a reply.";

impl Command {
    /// Reads one input (see [`is_complete`] for inputs of several lines).
    ///
    /// # Errors
    /// An unknown command or a missing argument, in words.
    pub fn parse(input: &str) -> anyhow::Result<Command> {
        if let Some(block) = quoted(input) {
            return Ok(Command::Say(block.to_owned()));
        }
        let text = input.replace("\\\n", "\n");
        if text.trim().is_empty() {
            return Ok(Command::Nothing);
        }
        let Some(command) = text.strip_prefix('/') else { return Ok(Command::Say(text)) };
        if command.starts_with('/') {
            return Ok(Command::Say(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let given = (!rest.is_empty()).then(|| rest.to_owned());
        let file = || given.clone().map(PathBuf::from).ok_or_else(|| anyhow::anyhow!("/{name} needs a file name"));
        Ok(match name {
            "help" | "?" => Command::Help,
            "clear" => Command::Clear,
            "system" => Command::System(given),
            "set" => Command::Set(match rest.split_once(char::is_whitespace) {
                Some((setting, value)) => Some((setting.to_owned(), value.trim().to_owned())),
                None if rest.is_empty() => None,
                None => anyhow::bail!("/set {rest} needs a value"),
            }),
            "stats" => Command::Stats,
            "save" => Command::Save(file()?),
            "load" => Command::Load(file()?),
            "bye" | "exit" | "quit" => Command::Bye,
            _ => anyhow::bail!("there is no command /{name}; /help lists them, // starts a text with a slash"),
        })
    }
}

/// Is an input finished, or does a further line belong to it?  It goes on after a line that ends with a backslash,
/// and between `"""` and `"""`.
pub fn is_complete(input: &str) -> bool {
    let open_block = input.trim_start().starts_with(QUOTES) && quoted(input).is_none();
    !open_block && (!input.ends_with('\\') || quoted(input).is_some())
}

const QUOTES: &str = "\"\"\"";

/// The text between `"""` and `"""`.
fn quoted(input: &str) -> Option<&str> {
    let inner = input.trim().strip_prefix(QUOTES)?.strip_suffix(QUOTES)?;
    let inner = inner.strip_prefix('\n').unwrap_or(inner);
    Some(inner.strip_suffix('\n').unwrap_or(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_texts() {
        let parse = |input: &str| Command::parse(input).unwrap();
        assert_eq!(parse("hi there"), Command::Say("hi there".into()));
        assert_eq!(parse("  "), Command::Nothing);
        assert_eq!(parse("/set top-k 5"), Command::Set(Some(("top-k".into(), "5".into()))));
        assert_eq!(parse("/system  Be brief. "), Command::System(Some("Be brief.".into())));
        assert_eq!(parse("/save a b.json"), Command::Save("a b.json".into()));
        assert_eq!(parse("//bye"), Command::Say("/bye".into()));
        assert_eq!(parse("a\\\nb"), Command::Say("a\nb".into()));
        assert_eq!(parse("\"\"\"\n/bye\n\"quoted\"\n\"\"\""), Command::Say("/bye\n\"quoted\"".into()));
        for bad in ["/save", "/set seed", "/unknown", "/"] {
            assert!(Command::parse(bad).is_err(), "{bad}");
        }
        assert!(HELP.lines().filter(|line| line.starts_with('/')).all(|line| {
            let name = line.split_whitespace().next().unwrap();
            Command::parse(&format!("{name} a b")).is_ok()
        }));
    }

    #[test]
    fn several_lines() {
        for (input, complete) in [
            ("", true),
            ("a", true),
            ("a\\", false),
            ("a\\\nb", true),
            ("\"\"\"", false),
            ("\"\"\"a", false),
            ("\"\"\"a\nb\\", false),
            ("\"\"\"a\nb\"\"\"", true),
            ("\"\"\"\"\"", false),
            ("\"\"\"\"\"\"", true),
        ] {
            assert_eq!(is_complete(input), complete, "{input:?}");
        }
    }
}
