//! Kimi's tokenizer: byte-level BPE over the ranks of `tiktoken.model`, and 256 control tokens above them.
//!
//! Text is cut into pieces by a fixed pattern ([`split`]); inside a piece, the adjacent pair of tokens whose
//! concatenation has the lowest rank is merged until no pair is a token.  Control tokens (`<|im_end|>`, `[BOS]`…) are
//! never produced by [`Tokenizer::encode`]: text that merely spells one stays text.  Only
//! [`Tokenizer::encode_with_special`] reads their spelling, and that is for text of the program's own, not the user's.
//!
//! Invariants: the ranks are exactly 0..n, each a distinct byte string, and all 256 single bytes are among them, so
//! every text has an encoding and `decode(encode(text)) == text`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use fancy_regex::Regex;
use rustc_hash::FxHashMap;
use serde_json::Value;

/// Ids above the ranks that are control tokens; those without a name in `tokenizer_config.json` are
/// `<|reserved_token_ID|>`.
const CONTROL_TOKENS: u32 = 256;

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// `tiktoken.model` has a line that is not a token.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    /// The vocabulary as a whole, or `tokenizer_config.json`, does not make sense.
    #[error("{path}: {reason}", path = path.display())]
    Corrupt { path: PathBuf, reason: String },
}

/// Text to token ids and back.
pub struct Tokenizer {
    /// Bytes of every token that is not a control token, by rank.
    tokens: Vec<Box<[u8]>>,
    ranks: FxHashMap<Box<[u8]>, u32>,
    /// Names of the control tokens; the first has the id `tokens.len()`.
    control: Vec<String>,
    control_ids: FxHashMap<String, u32>,
    pieces: Regex,
    control_names: Regex,
    /// The checkpoint's chat template (jinja), if it has one.
    pub chat_template: Option<String>,
}

impl Tokenizer {
    /// Reads `tiktoken.model` and `tokenizer_config.json` of a checkpoint folder.
    pub fn open(folder: &Path) -> Result<Tokenizer, TokenizerError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| TokenizerError::Read { path: path.into(), source })
        };
        let vocabulary = folder.join("tiktoken.model");
        let (tokens, ranks) = parse_vocabulary(&vocabulary, &read(&vocabulary)?)?;
        let path = folder.join("tokenizer_config.json");
        let corrupt = |reason: String| TokenizerError::Corrupt { path: path.clone(), reason };
        let config: Value = serde_json::from_str(&read(&path)?).map_err(|e| corrupt(e.to_string()))?;
        let control = control_tokens(&config, tokens.len() as u32).map_err(corrupt)?;
        let chat_template = config.get("chat_template").and_then(Value::as_str).map(str::to_owned);

        let base = tokens.len() as u32;
        let control_ids = control.iter().enumerate().map(|(i, name)| (name.clone(), base + i as u32)).collect();
        // Longest first: where one name starts another, the longer one is meant.
        let mut names: Vec<_> = control.iter().map(|name| fancy_regex::escape(name)).collect();
        names.sort_by_key(|name| Reverse(name.len()));
        let control_names = Regex::new(&names.join("|")).map_err(|e| corrupt(e.to_string()))?;
        let pieces = Regex::new(&pattern()).expect("the split pattern is a constant");
        Ok(Tokenizer { tokens, ranks, control, control_ids, pieces, control_names, chat_template })
    }

    /// Number of ids, control tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len() + self.control.len()
    }

    /// The id of a control token, by its exact name.
    pub fn control_id(&self, name: &str) -> Option<u32> {
        self.control_ids.get(name).copied()
    }

    /// Is this the id of a control token?
    pub fn is_control(&self, id: u32) -> bool {
        id as usize >= self.tokens.len()
    }

    /// Names of the control tokens, in order of their ids.
    pub fn control_names(&self) -> &[String] {
        &self.control
    }

    /// The ids of a text.  Never contains a control token, whatever the text spells.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_onto(text, &mut ids);
        ids
    }

    /// The ids of a text in which names of control tokens mean these tokens.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.split_at_control(text, |segment| match segment {
            Segment::Text(text) => self.encode_onto(text, &mut ids),
            Segment::Control(id) => ids.push(id),
        });
        ids
    }

    /// Cuts a text at the names of control tokens.
    pub(crate) fn split_at_control(&self, text: &str, mut each: impl FnMut(Segment<'_>)) {
        let mut at = 0;
        // The expression is a plain alternation without look-around, which cannot fail at run time.
        for found in self.control_names.find_iter(text).map_while(Result::ok) {
            if at < found.start() {
                each(Segment::Text(&text[at..found.start()]));
            }
            each(Segment::Control(self.control_ids[found.as_str()]));
            at = found.end();
        }
        if at < text.len() {
            each(Segment::Text(&text[at..]));
        }
    }

    pub(crate) fn encode_onto(&self, text: &str, ids: &mut Vec<u32>) {
        split(&self.pieces, text, |piece| self.encode_piece(piece.as_bytes(), ids));
    }

    /// Byte-pair merges of one piece, in O(n log n): a heap of candidate pairs over a linked list of tokens.  A
    /// candidate is stale, and skipped, when either of its tokens has been merged since.
    fn encode_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if let Some(&id) = self.ranks.get(piece) {
            ids.push(id);
            return;
        }
        let n = piece.len();
        // Token `i` covers piece[i..end[i]]; it starts at byte i for as long as it lives (end[i] > i).
        let mut end: Vec<usize> = (1..=n).collect();
        let mut before: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
        let mut heap = BinaryHeap::new();
        let push = |heap: &mut BinaryHeap<_>, left: usize, stop: usize| {
            if let Some(&rank) = self.ranks.get(&piece[left..stop]) {
                heap.push(Reverse((rank, left, stop)));
            }
        };
        for i in 0..n - 1 {
            push(&mut heap, i, i + 2);
        }
        while let Some(Reverse((_, left, stop))) = heap.pop() {
            let right = end[left];
            if right <= left || right >= stop || end[right] != stop {
                continue;
            }
            end[left] = stop;
            end[right] = 0;
            if stop < n {
                before[stop] = left;
                push(&mut heap, left, end[stop]);
            }
            if left > 0 {
                push(&mut heap, before[left], stop);
            }
        }
        let mut at = 0;
        while at < n {
            ids.push(self.ranks[&piece[at..end[at]]]);
            at = end[at];
        }
    }

    /// The bytes a token stands for: those of its text, or the name of a control token.  `None` for an id outside
    /// the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        match self.tokens.get(id) {
            Some(bytes) => Some(bytes),
            None => self.control.get(id - self.tokens.len()).map(|name| name.as_bytes()),
        }
    }

    /// The text of some tokens, control tokens by their names, with U+FFFD where the bytes are not UTF-8.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A part of a text that was cut at control tokens.
pub(crate) enum Segment<'a> {
    Text(&'a str),
    Control(u32),
}

/// Turns tokens into text as they come: a character whose bytes are spread over several tokens appears when its last
/// byte does.
#[derive(Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// The text that became certain with this token.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend(bytes);
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let left = self.pending.len() - used;
            // Bytes that end the input and may still become a character wait for the next token.
            if left == chunk.invalid().len() && may_continue(chunk.invalid()) {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                used += chunk.invalid().len();
            }
        }
        self.pending.drain(..used);
        text
    }

    /// What is left when no more tokens come: U+FFFD for a character that was never finished.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Is this the beginning of a UTF-8 character, lacking only its end?
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

/// Kimi's split pattern without its one look-ahead, which [`split`] does by hand.  Runs of Han characters are kept to
/// themselves; words take one leading non-letter and a contraction; digits come in threes.
fn pattern() -> String {
    let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]";
    let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]";
    let (lead, tail) = (r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?");
    [
        r"[\p{Han}]+",
        &format!("{lead}{upper}*{lower}+{tail}"),
        &format!("{lead}{upper}+{lower}*{tail}"),
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+",
    ]
    .join("|")
}

/// Cuts a text into the pieces that are tokenised by themselves.
///
/// The pattern's last two alternatives are `\s+(?!\S)` and `\s+`: a run of blanks before a word leaves its last blank
/// to the word.  Done here, the expression stays free of look-around and so runs in linear time on any input.
fn split<'t>(pieces: &Regex, text: &'t str, mut each: impl FnMut(&'t str)) {
    let mut at = 0;
    while at < text.len() {
        let Ok(Some(found)) = pieces.find_from_pos(text, at) else { break };
        let mut piece = found.as_str();
        let blank = piece.ends_with(|c: char| c.is_whitespace() && c != '\r' && c != '\n')
            && piece.chars().all(char::is_whitespace);
        if blank && found.end() < text.len() {
            let last = piece.chars().next_back().map_or(0, char::len_utf8);
            if last < piece.len() {
                piece = &piece[..piece.len() - last];
            }
        }
        each(piece);
        at = found.start() + piece.len();
    }
}

type Vocabulary = (Vec<Box<[u8]>>, FxHashMap<Box<[u8]>, u32>);

/// Lines of "base64 rank".
fn parse_vocabulary(path: &Path, text: &str) -> Result<Vocabulary, TokenizerError> {
    let mut ranks: FxHashMap<Box<[u8]>, u32> = FxHashMap::default();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |reason: String| TokenizerError::Line { path: path.into(), line: at + 1, reason };
        let (token, rank) = line.split_once(' ').ok_or_else(|| bad("expected a base64 token and its rank".into()))?;
        let token = base64::engine::general_purpose::STANDARD.decode(token).map_err(|e| bad(e.to_string()))?;
        let rank: u32 = rank.trim().parse().map_err(|e| bad(format!("rank {rank:?}: {e}")))?;
        if token.is_empty() || ranks.insert(token.into(), rank).is_some() {
            return Err(bad("the token is empty or was there before".into()));
        }
    }
    let corrupt = |reason: String| TokenizerError::Corrupt { path: path.into(), reason };
    let mut tokens: Vec<Box<[u8]>> = vec![Box::default(); ranks.len()];
    for (token, &rank) in &ranks {
        match tokens.get_mut(rank as usize) {
            Some(slot) if slot.is_empty() => *slot = token.clone(),
            _ => return Err(corrupt(format!("rank {rank} is doubled or beyond the {} tokens", ranks.len()))),
        }
    }
    match (0..=255u8).find(|byte| !ranks.contains_key(&[*byte][..])) {
        Some(byte) => Err(corrupt(format!("no token for the single byte 0x{byte:02x}"))),
        None => Ok((tokens, ranks)),
    }
}

/// Names of the control tokens from `added_tokens_decoder`, in order of id.
fn control_tokens(config: &Value, base: u32) -> Result<Vec<String>, String> {
    let mut names: Vec<_> = (base..base + CONTROL_TOKENS).map(|id| format!("<|reserved_token_{id}|>")).collect();
    let added =
        config.get("added_tokens_decoder").and_then(Value::as_object).ok_or("`added_tokens_decoder` is missing")?;
    for (id, token) in added {
        let content = token.get("content").and_then(Value::as_str);
        let slot = id.parse::<u32>().ok().and_then(|id| names.get_mut(id.checked_sub(base)? as usize));
        match (content, slot) {
            // A name of one character could not be told from text by breaking it up (see the `template` module).
            (Some(content), Some(slot)) if content.chars().count() >= 2 => *slot = content.to_owned(),
            (Some(content), Some(_)) => {
                return Err(format!("`added_tokens_decoder`: the name {content:?} is too short"));
            }
            (None, _) => return Err(format!("`added_tokens_decoder`: {id} has no `content`")),
            (_, None) => {
                return Err(format!(
                    "`added_tokens_decoder`: {id:?} is not one of the {CONTROL_TOKENS} ids from {base}"
                ));
            }
        }
    }
    let mut sorted: Vec<_> = names.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("`added_tokens_decoder`: {:?} is there twice", pair[0])),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Tokenizer {
        Tokenizer::open(&crate::shipped_model()).unwrap()
    }

    #[test]
    fn golden_texts() {
        let tokenizer = shipped();
        let cases: Value =
            serde_json::from_str(include_str!("../../tests/golden/kimi-tiny/tokenizer_cases.json")).unwrap();
        for (kind, special) in [("plain", false), ("with_special", true)] {
            let list = cases[kind].as_array().unwrap();
            assert!(!list.is_empty());
            for case in list {
                let text = case["text"].as_str().unwrap();
                let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
                let got = if special { tokenizer.encode_with_special(text) } else { tokenizer.encode(text) };
                assert_eq!(got, ids, "{kind}: {text:?}");
                assert_eq!(tokenizer.decode(&ids), text);
            }
        }
    }

    #[test]
    fn control_tokens_in_text_stay_text() {
        let tokenizer = shipped();
        for name in tokenizer.control_names() {
            let ids = tokenizer.encode(name);
            assert!(ids.len() > 1 && !ids.iter().any(|id| tokenizer.is_control(*id)), "{name}");
            assert_eq!(tokenizer.encode_with_special(name).len(), 1);
        }
    }

    #[test]
    fn streaming_keeps_half_characters_back() {
        let tokenizer = shipped();
        let text = "naïve 你好 🙂👍🏽 e\u{301} שלום";
        let mut decoder = StreamDecoder::default();
        let mut out = String::new();
        for byte in text.as_bytes() {
            let new = decoder.push(&[*byte]);
            assert!(!new.contains(char::REPLACEMENT_CHARACTER));
            out += &new;
        }
        assert_eq!(out + &decoder.finish(), text);
        let by_token: String = tokenizer
            .encode(text)
            .iter()
            .scan(StreamDecoder::default(), |d, id| Some(d.push(tokenizer.token_bytes(*id).unwrap())))
            .collect();
        assert_eq!(by_token, text);
        let mut broken = StreamDecoder::default();
        assert_eq!(broken.push(b"a\xffb\xf0\x9f"), "a\u{fffd}b");
        assert_eq!(broken.push(b"x"), "\u{fffd}x");
        assert_eq!(broken.push(b"\xe4\xbd"), "");
        assert_eq!(broken.finish(), "\u{fffd}");
    }

    #[test]
    fn long_pieces_are_not_quadratic() {
        let tokenizer = shipped();
        for text in ["a".repeat(200_000), " ".repeat(200_000), "!?".repeat(100_000), "\u{4e2d}".repeat(60_000)] {
            let start = std::time::Instant::now();
            assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text);
            assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
        }
    }

    #[test]
    fn refuses_corrupt_vocabularies() {
        let error = |text: &str| parse_vocabulary(Path::new("tiktoken.model"), text).unwrap_err().to_string();
        assert!(error("IQ== 0\nIg==").contains("line 2"));
        assert!(error("IQ== 0\n!!! 1").contains("line 2"));
        assert!(error("IQ== x").contains("rank"));
        assert!(error("IQ== 0\nIQ== 1").contains("before"));
        assert!(error("IQ== 5").contains("rank 5"));
        assert!(error("IQ== 0").contains("single byte 0x00"));
        let names = |json: &str| control_tokens(&serde_json::from_str(json).unwrap(), 10).unwrap_err();
        assert!(names("{}").contains("added_tokens_decoder"));
        assert!(names(r#"{"added_tokens_decoder":{"9":{"content":"[BOS]"}}}"#).contains("ids from 10"));
        assert!(names(r#"{"added_tokens_decoder":{"10":{"content":"[B]"},"11":{"content":"[B]"}}}"#).contains("twice"));
    }
}
