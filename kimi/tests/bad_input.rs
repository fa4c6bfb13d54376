//! Bad input, seen from outside: every damaged checkpoint gets an error that names what is wrong and a failing exit
//! status, and a checkpoint whose numbers are off by little is noticed by `kimi verify`. (Control tokens in what users
//! write stay text: the tests of `template` and `tokenizer`.)

use kimi::chat::talker::Talker;
use kimi::engine::{self, Device, EngineError, SessionId, Want};
use kimi::sampling::Sampling;
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/kimi-tiny")
}

/// A folder with the shipped checkpoint's files, removed when dropped.
struct Checkpoint(PathBuf);

impl Checkpoint {
    fn new(name: &str) -> Checkpoint {
        let folder = std::env::temp_dir().join(format!("kimi-bad-input-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for file in
            ["config.json", "generation_config.json", "tokenizer_config.json", "tiktoken.model", "model.safetensors"]
        {
            std::fs::copy(kimi::shipped_model().join(file), folder.join(file)).unwrap();
        }
        Checkpoint(folder)
    }

    fn edit(self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) -> Checkpoint {
        let path = self.0.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        std::fs::write(path, bytes).unwrap();
        self
    }

    /// Replaces a text that is there exactly once by one of the same length.
    fn replace(self, file: &str, from: &str, to: &str) -> Checkpoint {
        self.edit(file, |bytes| {
            let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
            assert_eq!(places.len(), 1, "{from:?} in {file}");
            bytes.splice(places[0]..places[0] + from.len(), to.bytes());
        })
    }

    fn without(self, file: &str) -> Checkpoint {
        std::fs::remove_file(self.0.join(file)).unwrap();
        self
    }

    /// Runs `kimi verify` on two short prompts; gives its success and everything it wrote.
    fn verify(&self) -> (bool, String) {
        self.verify_on("reference")
    }

    fn verify_on(&self, device: &str) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kimi"))
            .args(["verify", "--device", device, "--prompts", "short", "--tokens", "2"])
            .args([&self.0, &golden()])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn refused(checkpoint: Checkpoint, words: &[&str]) {
    let (success, text) = checkpoint.verify();
    assert!(!success && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn the_shipped_checkpoint_passes() {
    let (success, text) = Checkpoint::new("whole").verify();
    assert!(success && text.contains("18 checks, 18 passed, 0 failed"), "{text}");
}

#[test]
fn damaged_weights_are_refused() {
    let model = "model.safetensors";
    refused(
        Checkpoint::new("cut").edit(model, |bytes| bytes.truncate(bytes.len() - 1)),
        &["truncated", "lies at bytes"],
    );
    refused(Checkpoint::new("stub").edit(model, |bytes| bytes.truncate(5)), &["truncated", "5 bytes"]);
    refused(Checkpoint::new("empty").edit(model, Vec::clear), &[model]);
    refused(Checkpoint::new("text").edit(model, |bytes| bytes[8] = b'x'), &["not a JSON object"]);
    // The final norm moved onto its neighbour.
    let overlap = Checkpoint::new("overlap").replace(model, "[19666512,19667024]", "[19666510,19667022]");
    refused(overlap, &["overlap", "model.norm.weight"]);
    let renamed = Checkpoint::new("renamed").replace(model, "\"model.norm.weight\"", "\"model.Norm.weight\"");
    refused(renamed, &["`model.norm.weight` is missing"]);
    let missing = Checkpoint::new("missing").without(model);
    refused(missing, &["neither model.safetensors nor"]);
    // Integers of the same size where weights belong.
    let (weights, integers) = (r#""model.norm.weight":{"dtype":"BF16""#, r#""model.norm.weight":{"dtype": "I16""#);
    let dtype = Checkpoint::new("dtype").replace(model, weights, integers);
    refused(dtype, &["`model.norm.weight` is I16, expected BF16, F16 or F32"]);
}

#[test]
fn shards_that_are_missing_or_damaged_are_refused() {
    let (whole, shard) = ("model.safetensors", "model-1.safetensors");
    let sharded = |name: &str| {
        let checkpoint = Checkpoint::new(name);
        let bytes = std::fs::read(checkpoint.0.join(whole)).unwrap();
        let header = &bytes[8..][..u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize];
        let tensors: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
        let map: serde_json::Map<_, _> =
            tensors.keys().filter(|k| *k != "__metadata__").map(|k| (k.clone(), shard.into())).collect();
        let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
        std::fs::write(checkpoint.0.join("model.safetensors.index.json"), index).unwrap();
        std::fs::rename(checkpoint.0.join(whole), checkpoint.0.join(shard)).unwrap();
        checkpoint
    };
    let (success, text) = sharded("shards").verify();
    assert!(success, "{text}");
    refused(sharded("no-shard").without(shard), &[shard, "cannot read"]);
    refused(sharded("cut-shard").edit(shard, |bytes| bytes.truncate(bytes.len() / 2)), &[shard, "truncated"]);
}

/// What a chat says instead of starting.
#[track_caller]
fn does_not_talk(checkpoint: Checkpoint, words: &[&str]) {
    let error = Talker::open(&checkpoint.0, Device::Reference, &mut |_, _| {}).err().expect("it should be refused");
    let text = format!("{error:#}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

#[test]
fn damaged_tokenizers_are_refused() {
    let (words, names) = ("tiktoken.model", "tokenizer_config.json");
    does_not_talk(Checkpoint::new("no-words").without(words), &[words]);
    does_not_talk(Checkpoint::new("no-names").without(names), &[names]);
    does_not_talk(Checkpoint::new("empty-words").edit(words, Vec::clear), &[words]);
    does_not_talk(Checkpoint::new("binary-words").edit(words, |bytes| bytes[100] = 0xff), &[words]);
    // Cut within a line, and after one: the words that are missing leave a gap before the control tokens.
    does_not_talk(Checkpoint::new("cut-words").edit(words, |bytes| bytes.truncate(bytes.len() - 3)), &[words]);
    let half = |bytes: &mut Vec<u8>| {
        let line = bytes.len() / 2 + bytes[bytes.len() / 2..].iter().position(|b| *b == b'\n').unwrap();
        bytes.truncate(line + 1);
    };
    does_not_talk(Checkpoint::new("half-words").edit(words, half), &[names]);
    does_not_talk(Checkpoint::new("cut-names").edit(names, |bytes| bytes.truncate(bytes.len() / 2)), &[names]);
}

#[test]
fn devices_that_are_not_there_are_named() {
    let checkpoint = Checkpoint::new("device");
    for (device, words) in [
        ("cuda:7777", &["cuda:7777 is not available: "][..]),
        ("gpu", &["\"gpu\"", "expected auto, cpu, cuda, cuda:N or interpret"]),
    ] {
        let (success, text) = checkpoint.verify_on(device);
        assert!(!success && words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// A prompt that cannot be run is refused before anything is, and the session goes on as if it had not been asked.
#[test]
fn prompts_that_cannot_be_are_refused() {
    let mut engine = engine::open(&kimi::shipped_model(), Device::Cpu, &mut |_, _| {}).unwrap();
    let session = engine.open_session().unwrap();
    engine.append(session, &[3843, 426, 3857], Want::Nothing).unwrap();
    for (ids, words) in [
        (vec![1; 4094], &["3 tokens and 4094 more", "context of 4096"][..]),
        (vec![1, 4096], &["token id 4096", "4096 tokens"]),
        (vec![u32::MAX], &["token id 4294967295"]),
    ] {
        let text = engine.append(session, &ids, Want::Last).unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    let other = engine.open_session().unwrap();
    engine.append(other, &[3843, 426, 3857], Want::Nothing).unwrap();
    let greedy = Sampling::greedy();
    assert_eq!(engine.step(session, &greedy).unwrap(), engine.step(other, &greedy).unwrap());
}

/// Steps before the first token, in a session that is not open, and beyond the context; up to there every one is made,
/// also where the caches can only grow to a size that is no power of two.
#[test]
fn steps_that_cannot_be_are_refused() {
    const LIMIT: usize = kimi::model::FIRST_CAPACITY + 3;
    let limit = format!("\"model_max_length\": {LIMIT}");
    let checkpoint = Checkpoint::new("steps").replace("config.json", "\"model_max_length\": 4096", &limit);
    let mut engine = engine::open(&checkpoint.0, Device::Cpu, &mut |_, _| {}).unwrap();
    let (session, greedy) = (engine.open_session().unwrap(), Sampling::greedy());
    assert!(matches!(engine.step(session, &greedy), Err(EngineError::NoLogits)));
    assert!(matches!(engine.step(SessionId(77), &greedy), Err(EngineError::UnknownSession(_))));
    engine.append(session, &vec![426; LIMIT - 5], Want::Nothing).unwrap();
    for tokens in LIMIT - 5..LIMIT {
        assert_eq!(engine.tokens(session), tokens);
        engine.step(session, &greedy).unwrap();
    }
    let before = engine.sample(session, &greedy).unwrap();
    assert!(matches!(engine.step(session, &greedy), Err(EngineError::ContextExceeded { have: LIMIT, more: 1, .. })));
    assert_eq!((engine.tokens(session), engine.sample(session, &greedy).unwrap()), (LIMIT, before));
}

#[test]
fn configs_of_other_models_are_refused() {
    let config = "config.json";
    let edit = |name: &str, from: &str, to: &str| Checkpoint::new(name).replace(config, from, to);
    refused(edit("rope", "\"mla_use_nope\": true", "\"mla_use_nope\": false"), &["mla_use_nope", "rotary"]);
    refused(
        edit("mtp", "\"num_nextn_predict_layers\": 0", "\"num_nextn_predict_layers\": 1"),
        &["num_nextn_predict_layers"],
    );
    refused(
        edit("shape", "\"hidden_size\": 256", "\"hidden_size\": 512"),
        &["model.embed_tokens.weight", "[4096, 512]"],
    );
    refused(edit("list", "            7\n", "            6\n"), &["linear_attn_config.", "exactly one list"]);
    refused(Checkpoint::new("half").edit(config, |bytes| bytes.truncate(100)), &["config.json", "not a JSON object"]);
}

#[test]
fn small_mistakes_in_numbers_are_noticed() {
    // The selection bias of layer 1 counts for one expert as if it were far larger: other experts are chosen.
    let bias = Checkpoint::new("bias").edit("model.safetensors", |bytes| {
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[data + 1040..data + 1044].copy_from_slice(&5f32.to_le_bytes());
    });
    let (success, text) = bias.verify();
    assert!(!success && text.contains("FAILED: prompt 1, layer 2: "), "{text}");

    let epsilon =
        Checkpoint::new("epsilon").replace("config.json", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-03");
    let (success, text) = epsilon.verify();
    assert!(!success && text.contains("logits are off"), "{text}");
}
