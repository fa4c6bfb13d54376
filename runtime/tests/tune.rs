//! Choosing among instances: which one runs, by what is known, and how it comes to be known.
//!
//! The instances of a tuned kernel compute the same. Those here say who they are, so that the tests see who ran.

use kiln::prelude::*;
use kiln::tune::{Table, measure, ship};
use kiln::{DType, Device, Tensor};
use std::path::PathBuf;
use std::process::Command;

/// out ← N. The instance of 8, the author's, takes its time; that of 64 cannot be staged.
#[kernel(tune(N in [8, 16, 32, 64]))]
fn which<T: Float, const N: usize, const SLOW: usize>(x: &View<T, 1>, out: &mut Block<f32, N>) {
    static_assert!(N < 64, "too large");
    let rounds = if N == 8 { SLOW } else { 1 };
    let mut sum: Tile<T, N> = x.load(out.origin(0));
    for _ in 0..rounds as i32 {
        sum = (sum + 1.0).sqrt();
    }
    // Of a root no less than 0, so that the loop is not without effect.
    out.store(sum.cast::<f32>().min(0.0) + N as f32);
}

const BUCKET: &str = "cpu | which<f32, 100000> | 104 104";

fn tensors(n: usize, device: Device) -> (Tensor, Tensor) {
    let x = Tensor::full(&[n], DType::F32, 1.0, device).unwrap();
    (x, Tensor::uninit(&[n], DType::F32, device).unwrap())
}

/// Who wrote all of `out`; nobody (NaN) what is empty.
fn who(out: &Tensor) -> f32 {
    let values = out.to_vec::<f32>().unwrap();
    assert!(values.iter().all(|v| *v == values[0]), "{values:?}");
    values.first().copied().unwrap_or(f32::NAN)
}

fn run<const SLOW: usize>(n: usize, device: Device) -> f32 {
    let (x, mut out) = tensors(n, device);
    which_tuned::<f32, SLOW>(&x, &mut out).run().unwrap();
    who(&out)
}

/// Not a test by itself: what the others ask of other processes, whose settings are theirs.
#[test]
fn says_who_runs() {
    if let Ok(table) = std::env::var("TUNE_TEST_SHIPS") {
        ship(&table);
    }
    // 100 and 104 are alike.
    println!("who {} {}", run::<100_000>(100, Device::Cpu), run::<100_000>(104, Device::Cpu));
}

struct Process {
    cache: PathBuf,
}

impl Process {
    fn new(name: &str) -> Process {
        let cache = std::env::temp_dir().join(format!("kiln-tune-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&cache);
        Process { cache }
    }

    fn file(&self) -> PathBuf {
        self.cache.join("tuned.txt")
    }

    /// Who runs in a process with these settings: twice the same one.
    fn who(&self, settings: &[(&str, &str)]) -> u32 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env_remove("KILN_CACHE").env_remove("KILN_AUTOTUNE").env("KILN_CACHE_DIR", &self.cache);
        command.envs(settings.iter().copied()).args(["--exact", "says_who_runs", "--nocapture"]);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let line = text.lines().find_map(|line| line.split("who ").nth(1)).unwrap_or_else(|| panic!("{text}"));
        let ran: Vec<u32> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        assert_eq!(ran[0], ran[1]);
        ran[0]
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.cache);
    }
}

const OFF: (&str, &str) = ("KILN_AUTOTUNE", "off");
const FULL: (&str, &str) = ("KILN_AUTOTUNE", "full");

fn entry(values: &str) -> String {
    format!("{BUCKET} | {values} | 1.0 us\n")
}

#[test]
fn what_is_measured_once_is_known_to_later_processes() {
    let process = Process::new("kept");
    assert_eq!(process.who(&[]), 8, "nothing is known, and nothing is measured unasked");
    assert!(!process.file().exists());
    let best = process.who(&[FULL]);
    assert!([16, 32].contains(&best), "{best}");
    let kept = std::fs::read_to_string(process.file()).unwrap();
    let line = format!("{BUCKET} | N={best} | ");
    assert!(kept.lines().count() == 2 && kept.contains(&line), "{line} in\n{kept}");
    assert_eq!(process.who(&[]), best);
    assert_eq!(process.who(&[OFF]), 8);

    // What is known is not measured again; other entries stay where one is added.
    let (other, theirs) =
        (48 - best, format!("cpu | other | 4 | N=1 | 1.0 us\n{}", entry(&format!("N={}", 48 - best))));
    std::fs::write(process.file(), &theirs).unwrap();
    assert_eq!((process.who(&[FULL]), process.who(&[])), (other, other));
    assert_eq!(std::fs::read_to_string(process.file()).unwrap(), theirs);
    std::fs::write(process.file(), "cpu | other | 4 | N=1 | 1.0 us\n").unwrap();
    assert!(process.who(&[FULL]) != 8);
    let both = std::fs::read_to_string(process.file()).unwrap();
    assert!(both.contains("cpu | other | 4 | N=1") && both.contains(BUCKET), "{both}");
}

#[test]
fn damaged_and_stale_entries_are_none() {
    let process = Process::new("damaged");
    let write = |bytes: &[u8]| {
        std::fs::create_dir_all(&process.cache).unwrap();
        std::fs::write(process.file(), bytes).unwrap();
    };
    for bytes in [&b"\xff\0 | | |\n"[..], b"", entry("N=48").as_bytes(), entry("M=16").as_bytes(), BUCKET.as_bytes()] {
        write(bytes);
        assert_eq!(process.who(&[]), 8, "{bytes:?}");
        assert_ne!(process.who(&[FULL]), 8, "{bytes:?}");
    }
    // A candidate that cannot be launched.
    write(entry("N=64").as_bytes());
    assert_eq!(process.who(&[]), 8);
    // A file that cannot be.
    std::fs::remove_file(process.file()).unwrap();
    std::fs::create_dir(process.file()).unwrap();
    assert_eq!(process.who(&[]), 8);
    assert_ne!(process.who(&[FULL]), 8);
}

#[test]
fn shipped_tables_are_known_and_the_users_file_comes_first() {
    let process = Process::new("shipped");
    let ships = entry("N=32");
    let ships = ("TUNE_TEST_SHIPS", ships.as_str());
    assert_eq!(process.who(&[ships]), 32);
    assert_eq!(process.who(&[ships, FULL]), 32);
    assert!(!process.file().exists());
    assert_eq!(process.who(&[ships, OFF]), 8);
    assert_eq!(process.who(&[ships, ("KILN_CACHE", "off")]), 32);
    std::fs::create_dir_all(&process.cache).unwrap();
    std::fs::write(process.file(), entry("N=16")).unwrap();
    assert_eq!(process.who(&[ships]), 16);
    std::fs::write(process.file(), entry("N=17")).unwrap();
    assert_eq!(process.who(&[ships]), 32);
}

#[test]
fn measuring_on_request_times_every_candidate_once() {
    let found = measure(3, || {
        for n in [1000, 1001, 1] {
            // What was found counts at once.
            assert!(run::<50_000>(n, Device::Cpu) != 8.0);
        }
        assert_eq!(run::<50_000>(1000, Device::Interpret), 8.0);
        assert!(run::<50_000>(0, Device::Cpu).is_nan());
        Ok::<(), kiln::Error>(())
    });
    let found = found.unwrap();
    let buckets: Vec<&str> = found.iter().map(|m| m.bucket.as_str()).collect();
    assert_eq!(buckets, ["cpu | which<f32, 50000> | 1024 1024", "cpu | which<f32, 50000> | 1 1"]);
    for measured in &found {
        let names: Vec<&str> = measured.candidates.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(names, ["N=8", "N=16", "N=32", "N=64"]);
        let reason = measured.candidates[3].1.as_ref().unwrap_err();
        assert!(reason.contains("too large"), "{reason}");
        assert!([1, 2].contains(&measured.best().unwrap()), "{measured}");
        let text = measured.to_string();
        assert!(text.starts_with(&measured.bucket) && text.contains(" us*") && text.contains("N=64 -"), "{text}");
    }
    let mut table = Table::default();
    found.iter().for_each(|measured| table.insert(measured));
    assert_eq!(Table::parse(&table.to_string()), table);
    assert_ne!(table, Table::default());
}

/// Of what is best when they are prepared; where that cannot be staged, of the author's.
#[test]
fn prepared_launches_stay_what_they_were() {
    let (x, mut out) = tensors(300, Device::Cpu);
    let mut prepare = || which_tuned::<f32, 50_001>(&x, &mut out).prepare().unwrap();
    let before = prepare();
    measure(1, || {
        prepare();
        Ok::<(), kiln::Error>(())
    })
    .unwrap();
    let after = prepare();
    ship("cpu | which<f32, 50002> | 320 320 | N=64 | 1.0 us");
    let refused = which_tuned::<f32, 50_002>(&x, &mut out).prepare().unwrap();
    let wrote = |launch: &kiln::Prepared| {
        launch.run().unwrap();
        who(&out)
    };
    assert_eq!(wrote(&before), 8.0);
    assert!([16.0, 32.0].contains(&wrote(&after)));
    assert_eq!(wrote(&refused), 8.0);
}

/// out ← 2x, in tiles; the number of warps is a constant, too.
#[kernel(warps = P, tune(M, P in [(1, 4), (2, 8)], N in [4, 8], if M * N != 4))]
fn twice<const M: usize, const N: usize, const P: u8>(x: &View<f32, 2>, out: &mut View<f32, 2>) {
    let at = (program_id(0) * M, program_id(1) * N);
    let tile: Tile<f32, M, N> = x.load(at);
    // SAFETY: a tile is one program's.
    unsafe { out.store(at, tile + tile) };
}

#[test]
fn conditions_grids_and_single_candidates() {
    for device in [Device::Cpu, Device::Interpret] {
        let x = Tensor::from_slice(&(0..33).map(|i| i as f32).collect::<Vec<_>>(), &[3, 11], device).unwrap();
        let mut out = Tensor::uninit(&[3, 11], DType::F32, device).unwrap();
        let candidates = twice_tuned(&x, &mut out).candidates();
        assert_eq!(candidates, [[1, 4, 8], [2, 8, 4], [2, 8, 8]]);
        for one in candidates {
            out.fill(f64::NAN).unwrap();
            let grid = |[m, _, n]: [usize; 3]| [3usize.div_ceil(m), 11usize.div_ceil(n)];
            twice_tuned(&x, &mut out).grid(grid).only(one).run().unwrap();
            assert_eq!(out.to_vec::<f32>().unwrap(), (0..33).map(|i| 2.0 * i as f32).collect::<Vec<_>>());
        }
        for e in [twice_tuned(&x, &mut out).only([1, 4, 4]).run(), twice_tuned(&x, &mut out).otherwise([2, 4, 4]).run()]
        {
            let text = e.unwrap_err().to_string();
            assert!(text.contains("twice") && text.contains("no candidate with M="), "{text}");
        }
        let e = twice_tuned(&x, &mut out).run().unwrap_err().to_string();
        assert!(e.contains(".grid("), "{e}");
    }
    let (x, mut out) = tensors(100, Device::Cpu);
    which_tuned::<f32, 3>(&x, &mut out).otherwise([32]).run().unwrap();
    assert_eq!(who(&out), 32.0);
}

/// Rows that begin anywhere are a bucket of their own.
#[test]
fn buckets_tell_alignment() {
    let wide = Tensor::zeros(&[3, 32], DType::F32, Device::Cpu).unwrap();
    let mut out = Tensor::uninit(&[3, 16], DType::F32, Device::Cpu).unwrap();
    let mut measured = vec![];
    for x in [wide.narrow(1, 16, 16).unwrap(), wide.narrow(1, 3, 16).unwrap(), wide.narrow(1, 0, 16).unwrap()] {
        let found = measure(1, || twice_tuned(&x, &mut out).grid(|[m, _, n]| [3usize.div_ceil(m), 16 / n]).run());
        measured.extend(found.unwrap().into_iter().map(|measured| measured.bucket));
    }
    let (aligned, not) = ("cpu | twice | 3x16 3x16", "cpu | twice | 3x16u 3x16");
    assert_eq!(measured, [aligned, not, aligned]);
}

/// A program elsewhere runs the author's candidate, or what a table says of its device.
#[test]
fn recorded_are_the_authors_candidate_and_shipped_ones() {
    let x = Tensor::zeros(&[64, 128], DType::F32, Device::Cpu).unwrap();
    let mut out = Tensor::uninit(&[64, 128], DType::F32, Device::Cpu).unwrap();
    let mut kernels = || {
        let kernels = kiln::record(|| twice_tuned(&x, &mut out).otherwise([2, 8, 8]).grid(|_| 1).run()).unwrap();
        assert!(kernels.iter().all(|k| k.options.warps == 8));
        kernels.iter().map(|k| k.to_string().matches("f32<2x4>").count().min(1)).collect::<Vec<_>>()
    };
    assert_eq!(kernels(), [0]);
    for (device, values) in
        [("gpu", "M=2 P=8 N=4"), ("other gpu", "M=2 P=8 N=4"), ("third", "M=2 P=8 N=8"), ("fourth", "M=9 P=8 N=9")]
    {
        ship(&format!("{device} | twice | 64x128 64x128 | {values} | 1.0 us\n"));
    }
    ship("gpu | twice | 64x144 64x128 | M=1 P=4 N=8 | 1.0 us");
    assert_eq!(kernels(), [0, 1]);
}

#[kernel(tune(N in [8, 16]))]
fn adds<const N: usize>(x: &View<f32, 2>, out: &mut View<f32, 1>) {
    let row: Tile<f32, N> = x.select(0, 0).load(0);
    let before: Tile<f32, N> = out.narrow(0, 1, 8).load(0);
    // SAFETY: there is one program.
    unsafe { out.store(0, before + row) };
}

#[kernel(tune(N in [8, 16]))]
fn adds_up<const N: usize>(x: &View<f32, 2>, out: &mut View<f32, 1>) {
    let row: Tile<f32, N> = x.select(0, 0).load(0);
    // SAFETY: there is one program.
    unsafe { out.store_add(0, row) };
}

/// Its inputs may be windows on what it reads, and what it reads of a tensor's extents is no reading of it.
#[test]
fn a_kernel_that_reads_what_it_writes_is_not_tuned() {
    let (x, mut out) = (Tensor::zeros(&[1, 8], DType::F32, Device::Cpu).unwrap(), tensors(9, Device::Cpu).1);
    let line = line!() - 16;
    for (name, line, e) in [
        ("adds", line, adds::<8>(&x, &mut out).grid(1).run()),
        ("adds", line, adds_tuned(&x, &mut out).grid(|_| 1).run()),
        ("adds_up", line + 9, adds_up_tuned(&x, &mut out).grid(|_| 1).run()),
    ] {
        let text = e.unwrap_err().to_string();
        let (kernel, line) = (format!("kernel `{name}`"), format!("tune.rs:{line}:"));
        for part in [&kernel, &line, "`out` is written and read", "leave `tune` out"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
