//! What compiled kernels are found by: the hash of everything that went into them.

use sha2::{Digest, Sha256};

/// The version of how an `Image` is kept.
const FORMAT: &str = "3";

/// The hash of what an entry was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) [u8; 32]);

impl Key {
    /// From all that determines the result besides the compiler, which is added here: by its sources, so that every
    /// program with the same compiler has the same keys, and one with another compiler does not find what this one made.
    pub(crate) fn new(parts: &[&[u8]]) -> Key {
        let mut hash = Sha256::new();
        for part in [kiln_codegen::COMPILER.as_bytes(), FORMAT.as_bytes()].iter().chain(parts) {
            // With its length, so that no two lists of parts run into the same bytes.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize().into())
    }

    /// Sixteen digits, enough to tell variants of a kernel apart in file names.
    pub(crate) fn short(&self) -> String {
        self.hex()[..16].into()
    }

    pub(crate) fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn keys_tell_parts_apart() {
        assert_eq!(Key::new(&[b"ab", b"c"]), Key::new(&[b"ab", b"c"]));
        assert_ne!(Key::new(&[b"ab", b"c"]), Key::new(&[b"a", b"bc"]));
    }

    /// Not a test by itself: what [`a_copy_of_the_program_has_the_same_keys`] asks the copy.
    #[test]
    fn prints_a_key() {
        println!("key {}", Key::new(&[b"kernel"]).hex());
    }

    /// A program of another place and age.
    #[test]
    fn a_copy_of_the_program_has_the_same_keys() {
        let copy = std::env::temp_dir().join(format!("kiln-key-test-{}", std::process::id()));
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        std::fs::File::options().append(true).open(&copy).unwrap().set_modified(old).unwrap();
        // What another test starts meanwhile holds the copy open for writing until it executes its own program.
        let run = (0..500)
            .map(|tries| {
                std::thread::sleep(std::time::Duration::from_millis(10 * u64::from(tries > 0)));
                std::process::Command::new(&copy).args(["--nocapture", "prints_a_key"]).output()
            })
            .find(|run| !matches!(run, Err(e) if e.kind() == ErrorKind::ExecutableFileBusy))
            .expect("nobody holds it for five seconds");
        std::fs::remove_file(&copy).unwrap();
        let text = String::from_utf8(run.unwrap().stdout).unwrap();
        assert!(text.contains(&format!("key {}", Key::new(&[b"kernel"]).hex())), "{text}");
    }
}
