//! Whole chats with the shipped model on the reference engine.

use clap::Parser;

use super::*;
use crate::chat::talker::Stats;
use crate::engine::Device;

/// Runs a program with this command line; gives what it wrote to (standard output, standard error).
fn run(arguments: &[&str], body: impl FnOnce(&mut Program)) -> (String, String) {
    let arguments = Arguments::try_parse_from([&["chat"], arguments].concat()).unwrap();
    let talker = Talker::open(&crate::shipped_model(), Device::Reference, &mut |_, _| {}).unwrap();
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    body(&mut Program::new(talker, &arguments, &mut out, &mut notes).unwrap());
    (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
}

const GREEDY: [&str; 2] = ["--temperature", "0"];

#[test]
fn remembers_what_was_said() {
    let (out, notes) = run(&["--temperature", "0", "--stats"], |program| {
        program.say("My dog is called Max.").unwrap();
        program.say("What is the name of my dog?").unwrap();
    });
    assert!(out.lines().count() == 2 && out.ends_with("Max.\n"), "{out}");
    // The second prompt begins with the first one and its reply, which the session holds.
    let stats: Vec<&str> = notes.lines().collect();
    assert!(stats.len() == 2 && !stats[0].contains("reused") && stats[1].contains("reused"), "{notes}");
    assert!(notes.contains("load ") && notes.contains("prefill ") && notes.contains("decode "), "{notes}");
}

/// The first reply compiles kernels: that is told apart from the rates.
#[test]
fn rates_are_without_compiling() {
    let second = std::time::Duration::from_secs(1);
    let mut stats = Stats { prompt: 300, prefill: second, reply: 61, decode: second, ..Stats::default() };
    assert_eq!(stats.to_string(), "load 0.00 s; prefill 300 tokens, 300.0 tok/s; decode 61 tokens, 60.0 tok/s");
    stats.compile = second / 4;
    assert!(stats.to_string().ends_with("; besides, 0.25 s for compiling kernels"), "{stats}");
}

#[test]
fn tokens_alone_go_to_standard_output() {
    let prompt = "3843 426 3857 1013 0 3842 3844 431 3857";
    let arguments = ["--prompt-tokens", prompt, "--print-tokens", "--temperature", "0", "--max-tokens", "6"];
    let (out, notes) = run(&arguments, |program| {
        let ids = Arguments::try_parse_from([&["chat"], &arguments[..]].concat()).unwrap().prompt_tokens().unwrap();
        program.complete(ids.unwrap()).unwrap();
    });
    let ids: Vec<u32> = out.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert!(out.ends_with('\n') && out.lines().count() == 1 && (1..=6).contains(&ids.len()), "{out}");
    assert!(ids[..ids.len() - 1].iter().all(|id| *id < 3840));
    assert!(notes.is_empty(), "{notes}");
}

#[test]
fn the_seed_decides() {
    let with = |seed: &str| {
        run(&["--seed", seed, "--temperature", "1", "--max-tokens", "12"], |p| p.say("Do you have a hobby?").unwrap()).0
    };
    assert_eq!(with("1"), with("1"));
    assert_ne!(with("1"), with("2"));
}

#[test]
fn commands_work_and_mistakes_change_nothing() {
    let file = std::env::temp_dir().join(format!("kimi-chat-{}.json", std::process::id()));
    let name = file.to_str().unwrap();
    let (_, notes) = run(&GREEDY, |program| {
        assert_eq!(program.line("/set max-tokens 5").unwrap(), Flow::Continue);
        program.line("My name is Rosa.").unwrap();
        program.line(&format!("/save {name}")).unwrap();
        let saved = program.conversation.clone();
        assert_eq!(saved.messages.len(), 2);
        program.line("/clear").unwrap();
        assert!(program.conversation.messages.is_empty());
        program.line(&format!("/load {name}")).unwrap();
        assert_eq!(program.conversation, saved);
        for wrong in ["/load /no/such/file", "/set top-p 7", "/nonsense"] {
            assert!(program.line(wrong).is_err(), "{wrong}");
        }
        let long = "word ".repeat(5000);
        let error = program.line(&long).unwrap_err().to_string();
        assert!(error.contains("exceed the model's context of 4096"), "{error}");
        assert_eq!(program.conversation, saved);
        assert_eq!(program.settings.max_tokens, Some(5));
        program.line("/system Be brief.").unwrap();
        assert_eq!(program.conversation.system.as_deref(), Some("Be brief."));
        assert_eq!(program.line("/help").unwrap(), Flow::Continue);
        assert_eq!(program.line("/stats").unwrap(), Flow::Continue);
        assert_eq!(program.line("/bye").unwrap(), Flow::Leave);
    });
    std::fs::remove_file(&file).unwrap();
    assert!(notes.contains("/save FILE") && notes.contains("max-tokens 5") && notes.contains("prefill"), "{notes}");
}

#[test]
fn terminals_are_not_told_to_do_things() {
    assert_eq!(printable("a\x1b[31mb\r\u{9b}\nc\t"), "a\u{fffd}[31mb\u{fffd}\u{fffd}\nc\t");
}

#[test]
fn raw_text_is_continued() {
    let (out, _) = run(&["--raw", "--temperature", "0", "--max-tokens", "8"], |program| {
        program.say("The adjective cold means having a low temperature or feeling. For example: \"A").unwrap();
        assert!(program.conversation.messages.is_empty());
    });
    assert!(out.trim().len() > 8, "{out}");
}

#[test]
fn contradicting_arguments_are_refused() {
    for wrong in [
        &["--raw", "--system", "x"][..],
        &["--prompt", "x", "--prompt-tokens", "1"],
        &["--device", "gpu"],
        &["--top-k", "-1"],
    ] {
        assert!(Arguments::try_parse_from([&["chat"], wrong].concat()).is_err(), "{wrong:?}");
    }
    for ids in ["", "1 x", "-1", "1,2"] {
        let arguments = Arguments { prompt_tokens: Some(ids.into()), ..Arguments::default() };
        assert!(arguments.prompt_tokens().is_err(), "{ids:?}");
    }
}
