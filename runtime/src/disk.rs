//! Writing files that others read meanwhile.

use std::io::Result;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Puts `data` in the place of a file, with the directories that lead there: it is written to a temporary file, which is
/// renamed, so that nobody reads half of it.
pub(crate) fn replace(path: &Path, data: &[u8]) -> Result<()> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{serial}.tmp", std::process::id()));
    let done = std::fs::write(&temporary, data).and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done
}
