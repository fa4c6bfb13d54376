//! Talks with a Kimi Linear model; with no argument, with the small one that ships in the repository.
//!
//! ```text
//! cargo run --release -p kimi --example chat
//! cargo run --release -p kimi --example chat -- --prompt "Hello! What is your name?" --temperature 0
//! ```

fn main() -> std::process::ExitCode {
    kimi::chat::main()
}
