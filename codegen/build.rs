//! Gives the compiler a fingerprint, a hash of its sources: compiled kernels are found again by the same compiler only.

use std::path::{Path, PathBuf};

fn files(directory: &Path, out: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).expect("the sources are there");
    for path in entries.map(|entry| entry.expect("a directory can be read").path()) {
        if path.is_dir() { files(&path, out) } else { out.push(path) }
    }
}

fn main() {
    let mut all = vec![PathBuf::from("Cargo.toml")];
    files(Path::new("src"), &mut all);
    all.sort();
    // FNV-1a, 64 bits: the same in every build, and nobody tries to deceive it.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for path in all {
        let text = std::fs::read(&path).expect("a source can be read");
        for byte in path.to_string_lossy().bytes().chain(text).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    println!("cargo:rerun-if-changed=src\ncargo:rerun-if-changed=Cargo.toml");
    println!("cargo:rustc-env=KILN_COMPILER={} {hash:016x}", std::env::var("CARGO_PKG_VERSION").unwrap_or_default());
}
