//! Choosing among the instances of a kernel: measured once, remembered for arguments like these.
//!
//! A kernel says which values of its constants are worth a try, `#[kernel(tune(M, N in [(128, 256), (64, 128)]))]`. Its
//! host function `NAME_tuned`, which lacks those constants, gives a [`Tuned`] launch. Which candidate it runs is looked up
//! in memory, then in the file `tuned.txt` of `KILN_CACHE_DIR`, then in the tables that programs [`ship`]. Where nothing
//! is known it is the author's: the one that the caller names, or the first. With `KILN_AUTOTUNE=full` it is measured
//! instead, there and then, and the file remembers it; a graph that is being captured is no time to measure.
//!
//! Arguments are alike, of one bucket, if kernel and device are the same, as are the extents, rounded up to four binary
//! digits, and whether rows are aligned (what is not takes slower ways to the tensor cores). Four digits because a choice
//! among tile sizes depends on how many rounds of programs the tiles are: up to an extent of 2048 a bucket has one number
//! of tiles of 128.
//!
//! Invariant: what is known only chooses. An entry that is damaged or names no candidate is none, and where a candidate
//! that was chosen so cannot be launched, the author's is.

mod measure;
mod table;

pub use measure::{Measured, measure};
pub use table::{Table, ship};

use crate::knobs::{Autotune, knobs};
use crate::{Device, Error, Grid, Launch, Prepared, Result, Source, record};
use smallvec::SmallVec;
use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError, RwLock};

/// A launch of the best among some instances of a kernel. Made by the host function `NAME_tuned` of a kernel with
/// `tune`; ends with [`Tuned::run`] or [`Tuned::prepare`]. `N` constants are chosen.
#[must_use = "nothing happens until `run` is called"]
pub struct Tuned<'a, const N: usize> {
    /// The arguments; of which instance, changes.
    launch: Launch<'a>,
    /// The kernel with its other generic arguments, as text.
    kernel: fn() -> String,
    names: [&'static str; N],
    candidates: SmallVec<[Candidate<N>; 8]>,
    /// The candidate to take where nothing is known; the first without it.
    otherwise: Option<[usize; N]>,
}

struct Candidate<const N: usize> {
    values: [usize; N],
    source: Source,
    grid: Option<Grid>,
}

/// Launches that are alike.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Bucket {
    /// Of the first candidate.
    kernel: TypeId,
    device: Device,
    extents: SmallVec<[usize; 16]>,
    /// By tensor, of the first 64.
    aligned: u64,
}

/// What this process knows of a bucket.
#[derive(Clone, Copy)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// That nothing can be known: no candidate could be measured, or the best cannot be launched.
    Hopeless,
    /// The best candidate's number.
    Best(usize),
}

static KNOWN: LazyLock<RwLock<HashMap<Bucket, Known>>> = LazyLock::new(Default::default);

fn known(bucket: &Bucket) -> Option<Known> {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(bucket).copied()
}

fn learn(bucket: Bucket, known: Known) -> Known {
    KNOWN.write().unwrap_or_else(PoisonError::into_inner).insert(bucket, known);
    known
}

/// `n` with all but its first four binary digits rounded up.
fn rounded(n: usize) -> usize {
    let unit = 1 << (usize::BITS - n.leading_zeros()).saturating_sub(4);
    n.next_multiple_of(unit)
}

impl<'a, const N: usize> Tuned<'a, N> {
    /// A launch with arguments, as yet without candidates.
    pub fn new(launch: Launch<'a>, kernel: fn() -> String, names: [&'static str; N]) -> Tuned<'a, N> {
        Tuned { launch, kernel, names, candidates: SmallVec::new(), otherwise: None }
    }

    /// One more candidate: the instance with these values.
    pub fn push(&mut self, values: [usize; N], source: Source) {
        self.candidates.push(Candidate { values, source, grid: None });
    }

    /// The number of programs along each axis, for a candidate's values. Without it, as many as the outputs have blocks.
    pub fn grid<G: Into<Grid>>(mut self, grid: impl Fn([usize; N]) -> G) -> Self {
        self.candidates.iter_mut().for_each(|c| c.grid = Some(grid(c.values).into()));
        self
    }

    /// The device of a kernel that has no tensor among its arguments.
    pub fn on(mut self, device: Device) -> Self {
        self.launch = self.launch.on(device);
        self
    }

    /// The candidate to take where nothing is known, if it is not the first.
    pub fn otherwise(mut self, values: [usize; N]) -> Self {
        self.otherwise = Some(values);
        self
    }

    /// This candidate and no other.
    pub fn only(mut self, values: [usize; N]) -> Self {
        self.candidates.retain(|c| c.values == values);
        self.otherwise = Some(values);
        self
    }

    /// The values of all candidates, in the order of the kernel's attribute.
    pub fn candidates(&self) -> Vec<[usize; N]> {
        self.candidates.iter().map(|c| c.values).collect()
    }

    /// Runs the best candidate, as [`Launch::run`] does. Recorded launches ([`record`](crate::record())) are those that
    /// other devices may run: of the author's candidate, and of those that a shipped table has for any device.
    ///
    /// # Errors
    /// Those of [`Launch::run`]; if there is no candidate, or the one to take otherwise is none.
    pub fn run(mut self) -> Result<()> {
        let device = self.launch.find_device()?;
        let author = self.author()?;
        if record::is_recording() {
            let shipped = table::shipped(&self.arguments());
            let mut numbers = vec![author];
            numbers.extend(shipped.iter().filter_map(|choice| self.number(choice)).filter(|&i| i != author));
            return numbers.into_iter().try_for_each(|i| self.instance(i).launch());
        }
        self.with_best(device, author, Launch::launch)
    }

    /// Prepares the best candidate, as [`Launch::prepare`] does: what is learnt later changes nothing.
    ///
    /// # Errors
    /// Those of [`Tuned::run`], before the kernel runs.
    pub fn prepare(mut self) -> Result<Prepared> {
        let device = self.launch.find_device()?;
        let author = self.author()?;
        self.with_best(device, author, Launch::prepared)
    }

    /// Does this with the best candidate, or with the author's where that cannot be launched.
    fn with_best<R>(&mut self, device: Device, author: usize, act: fn(&Launch<'a>) -> Result<R>) -> Result<R> {
        let chosen = self.choose(device, author);
        match act(self.instance(chosen)) {
            // Nothing ran yet.
            Err(Error::Stage { .. } | Error::Compile { .. } | Error::Launch { .. } | Error::Argument { .. })
                if chosen != author =>
            {
                learn(self.bucket(device), Known::Hopeless);
                act(self.instance(author))
            }
            done => done,
        }
    }

    /// The number of the candidate to take where nothing is known.
    fn author(&self) -> Result<usize> {
        let found = match self.otherwise {
            Some(values) => self.candidates.iter().position(|c| c.values == values),
            None => (!self.candidates.is_empty()).then_some(0),
        };
        found.ok_or_else(|| {
            let named = self.otherwise.map(|values| format!(" with {}", self.text(&values)));
            let all: Vec<String> = self.candidates.iter().map(|c| self.text(&c.values)).collect();
            self.launch.error(format!(
                "`tune` has no candidate{}, only [{}]",
                named.unwrap_or_default(),
                all.join(", ")
            ))
        })
    }

    /// The launch of a candidate.
    fn instance(&mut self, number: usize) -> &Launch<'a> {
        let Candidate { source, grid, .. } = self.candidates[number];
        (self.launch.source, self.launch.grid) = (source, grid);
        &self.launch
    }

    /// `M=128 N=256`: how tables name a candidate.
    fn text(&self, values: &[usize; N]) -> String {
        let each: Vec<String> = self.names.iter().zip(values).map(|(name, value)| format!("{name}={value}")).collect();
        each.join(" ")
    }

    /// The number of the candidate that tables name so.
    fn number(&self, choice: &str) -> Option<usize> {
        self.candidates.iter().position(|c| self.text(&c.values) == choice)
    }

    fn bucket(&self, device: Device) -> Bucket {
        let extents = self.launch.shapes().flat_map(|(shape, _)| shape).map(|&n| rounded(n)).collect();
        let aligned = self.launch.shapes().take(64).fold(0, |bits, (_, aligned)| bits << 1 | u64::from(aligned));
        Bucket { kernel: self.candidates[0].source.key, device, extents, aligned }
    }

    /// How tables name a bucket: `device | kernel | extents`.
    fn key(&self, device: Device) -> Result<String> {
        Ok(table::key(&device.model()?, &self.arguments()))
    }

    /// The part of it that no device is in. Extents are `64x128`, with a `u` at the end if rows are unaligned.
    fn arguments(&self) -> String {
        let shapes = self.launch.shapes().map(|(shape, aligned)| {
            let extents: Vec<String> = shape.iter().map(|&n| rounded(n).to_string()).collect();
            extents.join("x") + if aligned { "" } else { "u" }
        });
        format!("{} | {}", (self.kernel)(), shapes.collect::<Vec<_>>().join(" "))
    }

    /// The number of the candidate to run.
    fn choose(&mut self, device: Device, author: usize) -> usize {
        if device == Device::Interpret || self.candidates.len() == 1 {
            return author;
        }
        self.measure_if_asked(device);
        let mode = knobs().autotune;
        if mode == Autotune::Off {
            return author;
        }
        let bucket = self.bucket(device);
        let mut found = known(&bucket)
            .unwrap_or_else(|| learn(bucket.clone(), self.look_up(device).map_or(Known::Nothing, Known::Best)));
        if matches!(found, Known::Nothing) && mode == Autotune::Full && self.can_be_measured(device) {
            found = self.find_out(device, bucket);
        }
        match found {
            Known::Best(number) => number,
            Known::Nothing | Known::Hopeless => author,
        }
    }

    /// The best candidate by the tables.
    fn look_up(&self, device: Device) -> Option<usize> {
        let key = self.key(device).ok()?;
        table::choices(&key).into_iter().flatten().find_map(|choice| self.number(&choice))
    }

    /// The best candidate by measuring, for this process and later ones.
    fn find_out(&mut self, device: Device, bucket: Bucket) -> Known {
        /// Enough for a median, few enough for a first launch.
        const SAMPLES: usize = 10;
        // One at a time: what runs beside a measurement is in it.
        static MEASURING: Mutex<()> = Mutex::new(());
        let _guard = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found @ (Known::Hopeless | Known::Best(_))) = known(&bucket) {
            return found;
        }
        let Ok(measured) = self.measured(device, SAMPLES) else { return learn(bucket, Known::Hopeless) };
        table::keep(&measured);
        learn(bucket, measured.best().map_or(Known::Hopeless, Known::Best))
    }
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn extents_are_rounded_up_to_four_binary_digits() {
        for n in (0..=16).chain([18, 2304, 12288, 163_840]) {
            assert_eq!(rounded(n), n);
        }
        for (n, up) in [(17, 18), (31, 32), (33, 36), (63, 64), (513, 576), (2305, 2560), (4095, 4096), (4097, 4608)] {
            assert_eq!(rounded(n), up);
        }
        for n in 1..=2048usize {
            assert_eq!(n.div_ceil(128), rounded(n).div_ceil(128), "tiles of {n} rows");
        }
    }
}
