//! Kernel packs: compiled kernels in one file, so that a program without LLVM and `ptxas` has them at its first launch.
//!
//! [`add_to_pack`](crate::add_to_pack) compiles kernels into a pack without a GPU; `KILN_RECORD=FILE` makes a program add
//! every kernel that it launches on one. A program finds its pack through `KILN_PACK`, or has it in itself
//! ([`embed_pack`]), or finds it as `kernels.pack` beside itself. A kernel is found by its tile IR as staged, the target and the compiler. Of its variants, which differ in the
//! facts about arguments that they rely on, a launch takes the one with most facts among those that its own arguments
//! justify: code that relies on less runs as well.
//!
//! The file begins with a line that names the compiler; entries follow: the length of the rest, its SHA-256, the key, the
//! number of facts, the facts, the image. Invariant: what is damaged is not there. An entry whose digest is wrong is
//! skipped, a file that ends early has the entries before that.

use crate::key::Key;
use crate::knobs::knobs;
use kiln_codegen::ir::Fact;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The kernels of a file.
#[derive(Default)]
pub(crate) struct Pack {
    kernels: HashMap<Key, Vec<Variant>>,
    /// Why it has none, if the file is to blame.
    fault: Option<&'static str>,
}

struct Variant {
    facts: Vec<Fact>,
    image: Vec<u8>,
}

fn first_line() -> Vec<u8> {
    format!("kiln kernels, compiler {}\n", kiln_codegen::COMPILER).into_bytes()
}

const FACTS: [Fact; 3] = [Fact::Unknown, Fact::One, Fact::Multiple16];

/// Whether arguments that justify `all` justify `some`.
fn follow(some: &[Fact], all: &[Fact]) -> bool {
    some.len() == all.len() && some.iter().zip(all).all(|(s, a)| s == a || *s == Fact::Unknown)
}

fn known(facts: &[Fact]) -> usize {
    facts.iter().filter(|&&f| f != Fact::Unknown).count()
}

impl Pack {
    pub(crate) fn read(path: &Path) -> Pack {
        match std::fs::read(path) {
            Err(_) => Pack { fault: Some("it cannot be read"), ..Pack::default() },
            Ok(bytes) => Pack::parse(&bytes),
        }
    }

    fn parse(bytes: &[u8]) -> Pack {
        let Some(mut bytes) = bytes.strip_prefix(&first_line()[..]) else {
            return Pack { fault: Some("it is of another compiler, or no pack"), ..Pack::default() };
        };
        let mut pack = Pack::default();
        while let Some((len, rest)) = bytes.split_first_chunk::<8>()
            && let Some((digest, rest)) = rest.split_first_chunk::<32>()
            && let Some((entry, rest)) =
                usize::try_from(u64::from_le_bytes(*len)).ok().and_then(|n| rest.split_at_checked(n))
        {
            if Sha256::digest(entry)[..] == *digest
                && let Some((key, variant)) = Variant::parse(entry)
            {
                pack.kernels.entry(key).or_default().push(variant);
            }
            bytes = rest;
        }
        pack
    }

    /// The variant for arguments that justify these facts: its image, and whether it relies on all of them.
    pub(crate) fn find(&self, key: &Key, facts: &[Fact]) -> Option<(&[u8], bool)> {
        let fitting = self.kernels.get(key)?.iter().filter(|v| follow(&v.facts, facts));
        fitting.max_by_key(|v| known(&v.facts)).map(|v| (&v.image[..], v.facts == facts))
    }
}

impl Variant {
    fn parse(entry: &[u8]) -> Option<(Key, Variant)> {
        let (key, rest) = entry.split_first_chunk::<32>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let (facts, image) = rest.split_at_checked(u32::from_le_bytes(*count) as usize)?;
        let facts = facts.iter().map(|&f| FACTS.get(f as usize).copied()).collect::<Option<_>>()?;
        Some((Key(*key), Variant { facts, image: image.to_vec() }))
    }
}

/// Adds a kernel to a file, which is made or begun anew if it is no pack of this compiler.
pub(crate) fn add(path: &Path, key: &Key, facts: &[Fact], image: &[u8]) -> std::io::Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pack = Pack::read(path);
    if pack.find(key, facts).is_some_and(|(_, exact)| exact) {
        return Ok(());
    }
    let number = |fact: &Fact| FACTS.iter().position(|f| f == fact).expect("all are listed") as u8;
    let facts: Vec<u8> = facts.iter().map(number).collect();
    let entry = [&key.0[..], &(facts.len() as u32).to_le_bytes(), &facts, image].concat();
    let mut bytes = [&(entry.len() as u64).to_le_bytes()[..], &Sha256::digest(&entry), &entry].concat();
    if pack.fault.is_none() {
        return std::fs::File::options().append(true).open(path)?.write_all(&bytes);
    }
    bytes.splice(0..0, first_line());
    std::fs::write(path, bytes)
}

/// Adds a kernel that runs to the file of `KILN_RECORD`, if there is one.
pub(crate) fn record(key: &Key, facts: &[Fact], image: impl FnOnce() -> Vec<u8>) {
    let Some(path) = &knobs().record else { return };
    if let Err(e) = add(path, key, facts, &image()) {
        eprintln!("kiln: a kernel cannot be recorded in {}: {e}", path.display());
    }
}

/// The pack in the program itself.
static EMBEDDED: OnceLock<&[u8]> = OnceLock::new();

/// Gives a program the contents of a pack that it carries in itself (`include_bytes!`), instead of a file beside it.
/// `KILN_PACK` goes before. To be called before the first launch on a GPU; what is given later, or a second time, is ignored.
pub fn embed_pack(pack: &'static [u8]) {
    let _ = EMBEDDED.set(pack);
}

/// This program's pack.
pub(crate) fn pack() -> &'static Pack {
    static PACK: OnceLock<Pack> = OnceLock::new();
    PACK.get_or_init(|| match (EMBEDDED.get(), path()) {
        (Some(bytes), _) if knobs().pack.is_none() => Pack::parse(bytes),
        (_, Some(path)) => Pack::read(&path),
        (_, None) => Pack::default(),
    })
}

fn path() -> Option<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("kernels.pack"));
    knobs().pack.clone().or_else(beside)
}

/// Why a program without a compiler cannot run a kernel, and what to do.
#[cfg(not(feature = "llvm"))]
pub(crate) fn missing(kernel: &str) -> String {
    let embedded = EMBEDDED.get().is_some() && knobs().pack.is_none();
    let path = match path() {
        _ if embedded => "the pack in it".into(),
        Some(path) => path.display().to_string(),
        None => "kernels.pack".into(),
    };
    let fault = pack().fault.map_or_else(String::new, |why| format!(" ({why})"));
    format!(
        "kernel `{kernel}`: this program was built without LLVM, and {path}{fault} has no variant of the kernel for such \
         arguments on this GPU. On such a GPU, run a program built with LLVM (feature `llvm`) that launches it, with \
         KILN_RECORD=FILE, and put that file there or name it by KILN_PACK"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use Fact::{Multiple16, One, Unknown};

    fn file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kiln-pack-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn packs_round_trip_and_take_the_variant_with_most_facts() {
        let path = file("round-trip");
        let (a, b) = (Key::new(&[b"a"]), Key::new(&[b"b"]));
        assert!(Pack::read(&path).fault.is_some(), "there is no file");
        add(&path, &a, &[Unknown, One], b"one").unwrap();
        add(&path, &a, &[Multiple16, One], b"both").unwrap();
        add(&path, &b, &[], b"").unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        add(&path, &a, &[Unknown, One], b"again").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size, "a variant is kept once");
        let pack = Pack::read(&path);
        assert_eq!(pack.find(&a, &[Multiple16, One]), Some((&b"both"[..], true)));
        assert_eq!(pack.find(&a, &[Unknown, One]), Some((&b"one"[..], true)));
        assert_eq!(pack.find(&a, &[One, One]), Some((&b"one"[..], false)));
        assert_eq!(pack.find(&a, &[Multiple16, Unknown]), None, "what it relies on is not justified");
        assert_eq!(pack.find(&a, &[]), None);
        assert_eq!(pack.find(&b, &[]), Some((&b""[..], true)));
        assert_eq!(pack.find(&Key::new(&[b"c"]), &[]), None);
        // As a program has it in itself.
        let embedded = Pack::parse(&std::fs::read(&path).unwrap());
        assert_eq!(embedded.find(&a, &[Multiple16, One]), Some((&b"both"[..], true)));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_damaged_is_not_there() {
        let path = file("damaged");
        let keys = [Key::new(&[b"first"]), Key::new(&[b"second"])];
        for key in &keys {
            add(&path, key, &[One], b"some code").unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        let found = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let pack = Pack::read(&path);
            keys.map(|key| pack.find(&key, &[One]).is_some())
        };
        assert_eq!(found(&whole), [true, true]);
        assert_eq!(found(&whole[..whole.len() - 1]), [true, false]);
        let start = first_line().len();
        // Any byte of the first entry but its length, by which the second is found.
        for at in [start + 8, start + 40, (start + whole.len()) / 2 - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(found(&damaged), [false, true], "byte {at}");
        }
        let mut endless = whole.clone();
        endless[start..start + 8].fill(0xff);
        assert_eq!(found(&endless), [false, false]);
        assert_eq!(found(b"something else"), [false, false]);
        assert_eq!(found(b""), [false, false]);
        // Of another compiler: begun anew.
        let mut other = whole.clone();
        other[start - 2] ^= 1;
        assert_eq!(found(&other), [false, false]);
        add(&path, &keys[1], &[One], b"some code").unwrap();
        let pack = Pack::read(&path);
        assert_eq!(keys.map(|key| pack.find(&key, &[One]).is_some()), [false, true]);
        std::fs::remove_file(path).unwrap();
    }
}
