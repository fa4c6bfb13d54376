//! What can be set about replies: sampling and length.

use std::hash::{BuildHasher, Hasher};
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::arguments::Arguments;
use crate::sampling::Sampling;

/// How replies are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How tokens are picked.
    pub sampling: Sampling,
    /// Longest reply; `None` leaves it to the context.
    pub max_tokens: Option<usize>,
}

/// The part of `generation_config.json` that is used here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

impl Settings {
    /// The checkpoint's own settings (`generation_config.json`, if there is one) with those of the command line over
    /// them.  Without a seed, one is drawn.
    pub fn new(folder: &Path, arguments: &Arguments) -> anyhow::Result<Settings> {
        let path = folder.join("generation_config.json");
        let stored: GenerationConfig = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => GenerationConfig::default(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let usual = Sampling::default();
        let own = if stored.do_sample == Some(false) { Some(0.0) } else { stored.temperature };
        let sampling = Sampling {
            temperature: arguments.temperature.or(own).unwrap_or(usual.temperature),
            top_k: arguments.top_k.or(stored.top_k).unwrap_or(usual.top_k),
            top_p: arguments.top_p.or(stored.top_p).unwrap_or(usual.top_p),
            min_p: arguments.min_p.or(stored.min_p).unwrap_or(usual.min_p),
            seed: arguments.seed.unwrap_or_else(random_seed),
        };
        sampling.check()?;
        Ok(Settings { sampling, max_tokens: arguments.max_tokens })
    }

    /// `/set NAME VALUE`.
    ///
    /// # Errors
    /// No such setting, or a value that it cannot have; nothing has changed then.
    pub fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, value: &str) -> anyhow::Result<T> {
            value.parse().map_err(|e| anyhow::anyhow!("{name} cannot be {value:?}: {e}"))
        }
        let mut new = *self;
        match name.replace('_', "-").as_str() {
            "temperature" => new.sampling.temperature = parse(name, value)?,
            "top-k" => new.sampling.top_k = parse(name, value)?,
            "top-p" => new.sampling.top_p = parse(name, value)?,
            "min-p" => new.sampling.min_p = parse(name, value)?,
            "seed" => new.sampling.seed = parse(name, value)?,
            "max-tokens" => new.max_tokens = if value == "none" { None } else { Some(parse(name, value)?) },
            _ => anyhow::bail!(
                "there is no setting {name:?}; there are temperature, top-k, top-p, min-p, seed and max-tokens"
            ),
        }
        new.sampling.check()?;
        *self = new;
        Ok(())
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sampling { temperature, top_k, top_p, min_p, seed } = self.sampling;
        write!(f, "temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, seed {seed}, max-tokens ")?;
        match self.max_tokens {
            Some(n) => write!(f, "{n}"),
            None => f.write_str("none"),
        }
    }
}

/// A seed that differs from run to run, from the randomness that the standard library's hash maps start with.
fn random_seed() -> u64 {
    // 32 bits are enough to differ, and short enough to type again.
    std::hash::RandomState::new().build_hasher().finish() >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_checkpoint() {
        let folder = crate::shipped_model();
        let own = Settings::new(&folder, &Arguments::default()).unwrap();
        assert_eq!((own.sampling.temperature, own.sampling.top_p), (0.7, 0.9));
        let arguments = Arguments { temperature: Some(0.0), seed: Some(3), ..Arguments::default() };
        let mine = Settings::new(&folder, &arguments).unwrap();
        assert_eq!((mine.sampling.temperature, mine.sampling.top_p, mine.sampling.seed), (0.0, 0.9, 3));
        let bad = Arguments { top_p: Some(2.0), ..Arguments::default() };
        assert!(Settings::new(&folder, &bad).unwrap_err().to_string().contains("top_p"));
    }

    #[test]
    fn set_changes_one_thing_or_nothing() {
        let mut settings = Settings { sampling: Sampling::default(), max_tokens: None };
        settings.set("top_k", "40").unwrap();
        settings.set("max-tokens", "7").unwrap();
        assert_eq!((settings.sampling.top_k, settings.max_tokens), (40, Some(7)));
        let before = settings;
        for (name, value) in [("top-p", "0"), ("temperature", "hot"), ("colour", "red"), ("top-k", "-1")] {
            assert!(settings.set(name, value).is_err(), "{name} {value}");
            assert_eq!(settings, before);
        }
    }
}
