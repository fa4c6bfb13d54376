//! Thousands of random kernels: the interpreter before and after the passes, and the CPU back end.
//!
//! KILN_SEED=n runs one seed alone; KILN_CASES=n runs more or fewer than usual.

use kiln::Device;
use kiln_codegen::ir::{BinaryOp, OpKind, UnaryOp};
use kiln_tests::random::{self, Case, Cpu, Interpreter, Limits, OnDevice, Runner};
use std::sync::Mutex;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{v}`")))
}

/// Checks seeds from `first` on two threads; `runners` makes the runners of a thread.
fn check_many(first: u64, cases: u64, runners: impl Fn() -> Vec<Box<dyn Runner>> + Sync) {
    let (first, cases) = number("KILN_SEED").map_or((first, number("KILN_CASES").unwrap_or(cases)), |seed| (seed, 1));
    let failure = Mutex::new(None);
    random::check_many(first..first + cases, Limits::default(), 2, runners, |_, result| match result {
        Ok(()) => true,
        Err(found) => {
            failure.lock().unwrap().get_or_insert(found);
            false
        }
    });
    if let Some(failure) = failure.into_inner().unwrap() {
        panic!("{failure}");
    }
}

#[test]
fn passes_do_not_change_what_a_kernel_computes() {
    check_many(0, 4000, || vec![Box::new(Interpreter { optimise: true })]);
}

#[test]
fn the_cpu_computes_what_the_interpreter_does() {
    check_many(1 << 20, 1500, || vec![Box::new(Cpu { optimise: true }), Box::new(Cpu { optimise: false })]);
}

/// The way by which `lab random` brings kernels to a GPU.
#[test]
fn devices_of_the_runtime_compute_what_the_interpreter_does() {
    let (cpu, interpreter) = (OnDevice::new(Device::Cpu), OnDevice::new(Device::Interpret));
    check_many(1 << 21, 200, || vec![Box::new(cpu.clone()), Box::new(interpreter.clone())]);
    assert_eq!((cpu.lost_to(), cpu.running()), (None, None));
}

/// What failed on a device that is lost to it is told as it was generated: nothing smaller could be tried.
#[test]
fn a_lost_runner_is_not_asked_again() {
    struct Lost(usize);
    impl Runner for Lost {
        fn name(&self) -> &str {
            "a lost device"
        }

        fn run(&mut self, _: &Case) -> Result<Vec<Vec<u8>>, String> {
            self.0 += 1;
            assert_eq!(self.0, 1, "asked again");
            Err("trapped".into())
        }

        fn is_lost(&self) -> bool {
            self.0 > 0
        }
    }
    let limits = Limits::default();
    let failure = random::check(7, limits, &mut [Box::new(Lost(0))]).unwrap_err();
    assert_eq!(failure.kernel.to_string(), random::generate(7, limits).kernel.to_string());
    let text = failure.to_string();
    assert!(text.contains("seed 7 on a lost device: trapped") && text.contains("--seed 7"), "{text}");
}

/// The check itself: a back end that mistakes one function for another, or scans from the wrong end, is caught.
#[test]
fn planted_mistakes_are_caught() {
    /// What it does instead of an operation, if it gets that one wrong.
    struct Mistaken(fn(&OpKind) -> Option<OpKind>);
    impl Runner for Mistaken {
        fn name(&self) -> &str {
            "a mistaken interpreter"
        }

        fn run(&mut self, case: &Case) -> Result<Vec<Vec<u8>>, String> {
            let mut case = case.clone();
            for op in &mut case.kernel.ops {
                if let Some(wrong) = (self.0)(&op.kind) {
                    op.kind = wrong;
                }
            }
            Interpreter { optimise: false }.run(&case)
        }
    }
    let mistakes: [fn(&OpKind) -> Option<OpKind>; 3] = [
        |kind| (*kind == OpKind::Unary(UnaryOp::Exp)).then_some(OpKind::Unary(UnaryOp::Exp2)),
        |kind| (*kind == OpKind::Binary(BinaryOp::Max)).then_some(OpKind::Binary(BinaryOp::Min)),
        |kind| match *kind {
            OpKind::Scan { axis, combine, reverse } => Some(OpKind::Scan { axis, combine, reverse: !reverse }),
            _ => None,
        },
    ];
    for (i, mistake) in mistakes.into_iter().enumerate() {
        let mut runner = Mistaken(mistake);
        let caught = (0..400).filter(|&seed| {
            let case = random::generate(seed, Limits::default());
            random::agrees(&case, &mut runner).is_err()
        });
        assert!(caught.count() >= 5, "mistake {i} goes unnoticed");
    }
}
