//! Compiled kernels on disk, found by the hash of everything that went into them.
//!
//! Invariant: the cache never turns a working launch into a failing one. A directory that cannot be written, an entry
//! that is damaged or of another version is a miss; nobody reads half of one.

use crate::key::Key;
use crate::{disk, knobs};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The entry of `key`, if there is a whole one.
pub(crate) fn get(key: &Key) -> Option<Vec<u8>> {
    read(knobs::knobs().cache_dir.as_deref()?, key)
}

/// Keeps `data` as the entry of `key`, if that is possible.
pub(crate) fn put(key: &Key, data: &[u8]) {
    if let Some(dir) = knobs::knobs().cache_dir.as_deref() {
        // A failure costs time at the next start, nothing else.
        let _ = write(dir, key, data);
    }
}

fn path(dir: &Path, key: &Key) -> PathBuf {
    dir.join(format!("{}.kernel", key.hex()))
}

fn read(dir: &Path, key: &Key) -> Option<Vec<u8>> {
    let mut entry = std::fs::read(path(dir, key)).ok()?;
    let (digest, data) = entry.split_at_checked(32)?;
    if Sha256::digest(data)[..] != *digest {
        return None;
    }
    entry.drain(..32);
    Some(entry)
}

fn write(dir: &Path, key: &Key, data: &[u8]) -> std::io::Result<()> {
    disk::replace(&path(dir, key), &[&Sha256::digest(data)[..], data].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("kiln-cache-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn entries_round_trip() {
        let dir = directory("round-trip");
        let key = Key::new(&[b"ab", b"c"]);
        assert_eq!(read(&dir, &key), None);
        write(&dir, &key, b"code").unwrap();
        assert_eq!(read(&dir, &key).as_deref(), Some(&b"code"[..]));
        assert_eq!(read(&dir, &Key::new(&[b"other"])), None);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn damaged_entries_are_misses() {
        let dir = directory("damaged");
        let key = Key::new(&[b"x"]);
        write(&dir, &key, b"some code").unwrap();
        let whole = std::fs::read(path(&dir, &key)).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..10], &[], &[&whole[..], b"!"].concat()] {
            std::fs::write(path(&dir, &key), damaged).unwrap();
            assert_eq!(read(&dir, &key), None);
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_is_no_failure() {
        let dir = directory("file");
        std::fs::write(&dir, "in the way").unwrap();
        let key = Key::new(&[]);
        assert!(write(&dir, &key, b"code").is_err());
        assert_eq!(read(&dir, &key), None);
        std::fs::remove_file(dir).unwrap();
    }
}
