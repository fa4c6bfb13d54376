//! Tables of what is best: a line a bucket, sorted, so that they can be read, compared and shipped as text.
//!
//! `device | kernel | extents | choice | time`: the first three fields are the bucket, the time is for people.

use super::measure::{Measured, microseconds};
use crate::{disk, knobs};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// The best candidates of some buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(BTreeMap<String, Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    choice: String,
    time: String,
}

const FIELDS: &str = "# device | kernel | extents, rounded up | best | median\n";

impl Table {
    /// The entries of a text. A line that is none is left out.
    pub fn parse(text: &str) -> Table {
        let entry = |line: &str| {
            let mut fields = line.rsplitn(3, " | ");
            let (time, choice, bucket) = (fields.next()?, fields.next()?, fields.next()?);
            Some((bucket.to_string(), Entry { choice: choice.into(), time: time.into() }))
        };
        Table(text.lines().filter(|line| !line.starts_with('#')).filter_map(entry).collect())
    }

    /// Puts what was found in the place of what was known of the bucket, if anything was found.
    pub fn insert(&mut self, measured: &Measured) {
        let Some((choice, Ok(time))) = measured.best().map(|best| &measured.candidates[best]) else { return };
        let entry = Entry { choice: choice.clone(), time: microseconds(*time) };
        self.0.insert(measured.bucket.clone(), entry);
    }

    fn choice(&self, bucket: &str) -> Option<String> {
        self.0.get(bucket).map(|entry| entry.choice.clone())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FIELDS)?;
        self.0.iter().try_for_each(|(bucket, Entry { choice, time })| writeln!(f, "{bucket} | {choice} | {time}"))
    }
}

static SHIPPED: Mutex<Table> = Mutex::new(Table(BTreeMap::new()));
static KEPT: LazyLock<Mutex<Table>> = LazyLock::new(|| Mutex::new(file().map(|path| read(&path)).unwrap_or_default()));

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a table to what programs know from the start, in the form of [`Table`]'s text. Before the first launches that it
/// is for.
pub fn ship(table: &str) {
    lock(&SHIPPED).0.extend(Table::parse(table).0);
}

/// The name of a bucket: the device and the rest of it.
pub(super) fn key(device: &str, arguments: &str) -> String {
    format!("{device} | {arguments}")
}

/// What the shipped tables say of such arguments, on any device, each once.
pub(super) fn shipped(arguments: &str) -> BTreeSet<String> {
    let table = lock(&SHIPPED);
    let fits = |bucket: &str| bucket.split_once(" | ").is_some_and(|(_, rest)| rest == arguments);
    table.0.iter().filter(|(bucket, _)| fits(bucket)).map(|(_, entry)| entry.choice.clone()).collect()
}

/// What the file and the shipped tables say of a bucket.
pub(super) fn choices(bucket: &str) -> [Option<String>; 2] {
    [&*KEPT, &SHIPPED].map(|table| lock(table).choice(bucket))
}

/// Keeps what was found, in the file too if that is possible.
pub(super) fn keep(measured: &Measured) {
    let mut kept = lock(&KEPT);
    kept.insert(measured);
    if let Some(path) = file() {
        // Other processes have added to it meanwhile. A failure costs time at the next start, nothing else.
        let mut all = read(&path);
        all.insert(measured);
        let _ = disk::replace(&path, all.to_string().as_bytes());
    }
}

fn file() -> Option<PathBuf> {
    Some(knobs::knobs().cache_dir.as_ref()?.join("tuned.txt"))
}

fn read(path: &Path) -> Table {
    let bytes = std::fs::read(path).unwrap_or_default();
    Table::parse(&String::from_utf8_lossy(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn measured(bucket: &str, times: &[Option<u64>]) -> Measured {
        let time = |&n: &Option<u64>| n.map(Duration::from_nanos).ok_or_else(|| "spills".to_string());
        let candidates = times.iter().enumerate().map(|(i, n)| (format!("N={i}"), time(n))).collect();
        Measured { bucket: bucket.into(), candidates }
    }

    #[test]
    fn tables_round_trip_sorted_and_keep_the_fastest() {
        let mut table = Table::default();
        table.insert(&measured("gpu | k<f32> | 8x8", &[Some(53_240), None, Some(9_000)]));
        table.insert(&measured("gpu | a | 4", &[Some(1_000), Some(1_000)]));
        table.insert(&measured("gpu | b | 4", &[None]));
        let text = table.to_string();
        assert_eq!(text, format!("{FIELDS}gpu | a | 4 | N=0 | 1.0 us\ngpu | k<f32> | 8x8 | N=2 | 9.0 us\n"));
        assert_eq!(Table::parse(&text), table);
        table.insert(&measured("gpu | a | 4", &[None, Some(3_000)]));
        assert_eq!(table.choice("gpu | a | 4").as_deref(), Some("N=1"));
        assert_eq!(table.choice("gpu | b | 4"), None);
    }

    #[test]
    fn a_damaged_line_takes_no_other_with_it() {
        let text = "nonsense\n\0\u{fffd}\na | b\ngpu | a | 4 | N=1 | 1.0 us\ngpu | c | 4 | N=";
        let table = Table::parse(text);
        assert_eq!(table.choice("gpu | a | 4").as_deref(), Some("N=1"));
        assert_eq!(table.choice("gpu | c | 4"), None);
    }
}
