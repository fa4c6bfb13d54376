//! Every operation of the model on kernels, against the naive f64 reference: interpreted and compiled for the CPU.

use kiln::Device;
use kiln_tests::cases::{self, Tiles};

/// Runs all cases in parallel and lists those that fail.
fn check(device: Device, tiles: Tiles) {
    cases::poison_new_tensors();
    let cases = cases::cases();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let run = |case: cases::Case| {
            let start = std::time::Instant::now();
            let (passed, text) = match case.run(device, tiles, 1) {
                Ok(report) => (report.passed(), report.to_string()),
                Err(error) => (false, format!("{error:#}")),
            };
            println!("{:28} {device} {:5.1} s  {text}", case.name, start.elapsed().as_secs_f64());
            (!passed).then(|| format!("{}: {text}", case.name))
        };
        let threads: Vec<_> = cases.into_iter().map(|case| scope.spawn(move || run(case))).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("a case panicked")).collect()
    });
    assert!(failures.is_empty(), "{} cases fail on {device}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn interpreted() {
    check(Device::Interpret, Tiles::OfDevice);
}

/// The GPU's instances under the interpreter's checks: bounds, uninitialised reads, races.
#[test]
fn instances_for_a_gpu_interpreted() {
    check(Device::Interpret, Tiles::OfGpu);
}

#[test]
fn compiled_for_the_cpu() {
    check(Device::Cpu, Tiles::OfDevice);
}
