//! Launches of kernels built by hand: what a launch checks, derives and runs, without the language in between.

use kiln::ir::{Access, BinaryOp, Bits, Builder, DType, Loc, Shape, Type};
use kiln::{Device, Error, Launch, Source, Tensor};
use std::any::TypeId;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The devices of this machine; `KILN_DEVICE` narrows them to one.
fn devices() -> Vec<Device> {
    if std::env::var_os("KILN_DEVICE").is_some() {
        return vec![Device::auto().unwrap()];
    }
    [Device::Cpu, Device::Interpret, Device::Cuda(0)].into_iter().filter(|d| d.check().is_ok()).collect()
}
const BLOCK: u32 = 8;

fn loc() -> Loc {
    Loc { file: "hand.rs", line: 1, column: 1 }
}

/// out = x · scale, in blocks of 8.
fn scaled() -> Result<kiln::ir::Kernel, Error> {
    let mut b = Builder::new("scaled", loc());
    let k = b.kernel_mut();
    let x = k.add_param("x", Type::View(DType::F32, 1), Access::Read, None);
    let scale = k.add_param("scale", Type::scalar(DType::F32), Access::Read, None);
    let out = k.add_param("out", Type::View(DType::F32, 1), Access::Write, Some(Shape::new(&[BLOCK])));
    let pid = b.program_id(0);
    let width = b.i32(BLOCK as i32);
    let start = b.binary(BinaryOp::Mul, pid, width);
    let loaded = b.load(x, &[start], Shape::new(&[BLOCK]), None);
    let factor = b.broadcast(scale, Shape::new(&[BLOCK]));
    let product = b.binary(BinaryOp::Mul, loaded, factor);
    b.store(out, product, &[start]);
    Ok(b.finish())
}

struct Scaled;

fn launch<'a>(x: &'a Tensor, scale: f32, out: &'a mut Tensor) -> Launch<'a> {
    let mut l = Launch::new(Source { name: "scaled", key: TypeId::of::<Scaled>(), stage: scaled });
    l.push_view("x", x, DType::F32, 1);
    l.push_scalar("scale", DType::F32, Bits::from_f64(DType::F32, scale as f64));
    l.push_view_mut("out", out, DType::F32, 1);
    l
}

fn counting(n: usize, device: Device) -> Tensor {
    Tensor::from_slice(&(0..n).map(|i| i as f32).collect::<Vec<_>>(), &[n], device).unwrap()
}

#[test]
fn the_grid_covers_the_output_and_masks_its_end() {
    for device in devices() {
        for n in [1, 7, 8, 9, 100] {
            let x = counting(n, device);
            let mut out = Tensor::uninit(&[n], DType::F32, device).unwrap();
            launch(&x, 2.0, &mut out).run().unwrap();
            let expected: Vec<f32> = (0..n).map(|i| 2.0 * i as f32).collect();
            assert_eq!(out.to_vec::<f32>().unwrap(), expected, "{device} {n}");
        }
    }
}

#[test]
fn an_explicit_grid_is_what_runs() {
    for device in devices() {
        let x = counting(20, device);
        let mut out = Tensor::zeros(&[20], DType::F32, device).unwrap();
        launch(&x, 1.0, &mut out).grid(1).run().unwrap();
        let got = out.to_vec::<f32>().unwrap();
        assert_eq!((got[7], got[8]), (7.0, 0.0));
        launch(&x, 1.0, &mut out).grid([0, 1, 1]).run().unwrap();
    }
}

#[test]
fn strided_and_offset_views() {
    for device in devices() {
        let m = counting(30, device).reshape(&[5, 6]).unwrap();
        let mut out = Tensor::zeros(&[5, 2], DType::F32, device).unwrap();
        let column = m.select(1, 3).unwrap();
        launch(&column, 1.0, &mut out.select(1, 1).unwrap()).run().unwrap();
        let expected = [0.0, 3.0, 0.0, 9.0, 0.0, 15.0, 0.0, 21.0, 0.0, 27.0];
        assert_eq!(out.to_vec::<f32>().unwrap(), expected);
        out.fill(0.0).unwrap();
    }
}

#[test]
fn empty_outputs_launch_nothing() {
    for device in devices() {
        let x = counting(0, device);
        let mut out = Tensor::uninit(&[0], DType::F32, device).unwrap();
        launch(&x, 1.0, &mut out).run().unwrap();
    }
}

#[test]
fn an_output_that_shares_memory_is_refused_and_its_neighbour_is_not() {
    for device in devices() {
        let x = counting(20, device);
        let e = launch(&x, 1.0, &mut x.clone()).run().unwrap_err().to_string();
        assert!(e.contains("`scaled`") && e.contains("`out`") && e.contains("`x`"), "{e}");
        let overlapping = launch(&x.narrow(0, 0, 11).unwrap(), 1.0, &mut x.narrow(0, 10, 10).unwrap()).run();
        assert!(matches!(overlapping, Err(Error::Argument { .. })));
        launch(&x.narrow(0, 0, 10).unwrap(), 1.0, &mut x.narrow(0, 10, 10).unwrap()).run().unwrap();
        assert_eq!(x.to_vec::<f32>().unwrap()[10..], (0..10).map(|i| i as f32).collect::<Vec<_>>());
    }
}

#[test]
fn wrong_arguments_are_named() {
    for device in devices() {
        let x = counting(8, device);
        let mut ints = Tensor::zeros(&[8], DType::I32, device).unwrap();
        let e = launch(&x, 1.0, &mut ints).run().unwrap_err().to_string();
        assert!(e.contains("`scaled`") && e.contains("`out`") && e.contains("f32") && e.contains("i32"), "{e}");
        let mut matrix = Tensor::zeros(&[2, 4], DType::F32, device).unwrap();
        let e = launch(&x, 1.0, &mut matrix).run().unwrap_err().to_string();
        assert!(e.contains("rank 1") && e.contains("[2, 4]"), "{e}");
        let mut out = Tensor::zeros(&[8], DType::F32, device).unwrap();
        let e = launch(&x, 1.0, &mut out).grid([1, 2]).run().unwrap_err().to_string();
        assert!(e.contains("several owners"), "{e}");
        assert!(launch(&x, 1.0, &mut out).grid(1 << 40).run().is_err());
        let mut l = Launch::new(Source { name: "scaled", key: TypeId::of::<Scaled>(), stage: scaled });
        l.push_view("x", &x, DType::F32, 1);
        assert!(matches!(l.run(), Err(Error::Launch { .. })));
    }
    let x = counting(8, Device::Cpu);
    let mut out = Tensor::zeros(&[8], DType::F32, Device::Interpret).unwrap();
    let e = launch(&x, 1.0, &mut out).run().unwrap_err().to_string();
    assert!(e.contains("cpu") && e.contains("interpret"), "{e}");
}

/// out = 7, without blocks: nothing says how large the grid is.
fn unpartitioned() -> Result<kiln::ir::Kernel, Error> {
    let mut b = Builder::new("unpartitioned", loc());
    let out = b.kernel_mut().add_param("out", Type::View(DType::I32, 1), Access::Write, None);
    let seven = b.splat(DType::I32, Shape::new(&[1]), 7.0);
    let pid = b.program_id(0);
    b.store(out, seven, &[pid]);
    Ok(b.finish())
}

#[test]
fn without_blocks_there_must_be_a_grid() {
    struct Unpartitioned;
    for device in devices() {
        let mut out = Tensor::zeros(&[3], DType::I32, device).unwrap();
        let source = Source { name: "unpartitioned", key: TypeId::of::<Unpartitioned>(), stage: unpartitioned };
        let mut l = Launch::new(source);
        l.push_view_mut("out", &mut out, DType::I32, 1);
        let e = l.run().unwrap_err().to_string();
        assert!(e.contains("unpartitioned") && e.contains(".grid("), "{e}");
        let mut l = Launch::new(source);
        l.push_view_mut("out", &mut out, DType::I32, 1);
        l.grid(3).run().unwrap();
        assert_eq!(out.to_vec::<i32>().unwrap(), [7, 7, 7]);
    }
}

/// Asserts that its argument is positive.
fn asserting() -> Result<kiln::ir::Kernel, Error> {
    let mut b = Builder::new("asserting", loc());
    let x = b.kernel_mut().add_param("x", Type::scalar(DType::I32), Access::Read, None);
    let zero = b.i32(0);
    let positive = b.compare(kiln::ir::CmpOp::Gt, x, zero);
    b.assert(positive, "x must be positive");
    Ok(b.finish())
}

#[test]
fn a_failed_assertion_is_an_error_with_kernel_place_and_message() {
    struct Asserting;
    // On a GPU a failed assertion traps, which ends the work of the whole process there.
    for device in [Device::Cpu, Device::Interpret] {
        let run = |x: i32| {
            let source = Source { name: "asserting", key: TypeId::of::<Asserting>(), stage: asserting };
            let mut l = Launch::new(source);
            l.push_scalar("x", DType::I32, Bits::from_i64(DType::I32, x as i64));
            l.grid(2).on(device).run()
        };
        run(1).unwrap();
        let e = run(-1).unwrap_err().to_string();
        assert!(e.contains("asserting") && e.contains("hand.rs:1:1") && e.contains("x must be positive"), "{e}");
    }
}

fn clustered() -> Result<kiln::ir::Kernel, Error> {
    let mut b = Builder::new("clustered", loc());
    b.kernel_mut().options.cluster = 2;
    Ok(b.finish())
}

#[test]
fn a_grid_is_whole_clusters() {
    struct Clustered;
    for device in devices() {
        let run = |programs: usize| {
            let source = Source { name: "clustered", key: TypeId::of::<Clustered>(), stage: clustered };
            Launch::new(source).grid(programs).on(device).run()
        };
        run(4).unwrap();
        let e = run(3).unwrap_err().to_string();
        assert!(e.contains("[3, 1, 1]") && e.contains("not a multiple of the kernel's clusters of 2"), "{e}");
    }
}

/// IR that breaks a rule of the verifier: an f32 tile stored to an i32 view.
fn invalid() -> Result<kiln::ir::Kernel, Error> {
    let mut b = Builder::new("invalid", loc());
    let out = b.kernel_mut().add_param("out", Type::View(DType::I32, 1), Access::Write, None);
    let half = b.splat(DType::F32, Shape::new(&[1]), 0.5);
    let zero = b.i32(0);
    b.store(out, half, &[zero]);
    Ok(b.finish())
}

#[test]
fn invalid_ir_and_failed_staging_are_errors_each_time() {
    struct Invalid;
    struct Failing;
    for _ in 0..2 {
        let mut out = Tensor::zeros(&[1], DType::I32, Device::Cpu).unwrap();
        let mut l = Launch::new(Source { name: "invalid", key: TypeId::of::<Invalid>(), stage: invalid });
        l.push_view_mut("out", &mut out, DType::I32, 1);
        assert!(l.grid(1).run().unwrap_err().to_string().contains("invalid"));
        let stage = || Err(Error::staging("failing", [(loc(), "no such shape".to_string())]));
        let l = Launch::new(Source { name: "failing", key: TypeId::of::<Failing>(), stage });
        let e = l.on(Device::Cpu).grid(1).run().unwrap_err().to_string();
        assert!(e.contains("failing") && e.contains("hand.rs:1:1: no such shape"), "{e}");
    }
}

/// Many threads at once, with one storage shared by all: one staging, right results.
#[test]
fn launches_from_many_threads_stage_once() {
    struct Shared;
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    fn stage() -> Result<kiln::ir::Kernel, Error> {
        COUNT.fetch_add(1, Ordering::SeqCst);
        scaled()
    }
    for device in devices() {
        let all = Tensor::zeros(&[8, 32], DType::F32, device).unwrap();
        std::thread::scope(|s| {
            for t in 0..8 {
                let mut out = all.select(0, t).unwrap();
                s.spawn(move || {
                    let x = counting(32, device);
                    let mut l = Launch::new(Source { name: "scaled", key: TypeId::of::<Shared>(), stage });
                    l.push_view("x", &x, DType::F32, 1);
                    l.push_scalar("scale", DType::F32, Bits::from_f64(DType::F32, t as f64));
                    l.push_view_mut("out", &mut out, DType::F32, 1);
                    l.run().unwrap();
                });
            }
        });
        let expected: Vec<f32> = (0..8).flat_map(|t| (0..32).map(move |i| (t * i) as f32)).collect();
        assert_eq!(all.to_vec::<f32>().unwrap(), expected);
    }
    assert_eq!(COUNT.load(Ordering::SeqCst), 1, "staged once");
}

/// What the interpreter is for: a read of what nobody wrote is an error that names the parameter.
#[test]
fn the_interpreter_refuses_unwritten_memory() {
    let x = Tensor::uninit(&[8], DType::F32, Device::Interpret).unwrap();
    assert!(x.to_vec::<f32>().is_err());
    let mut out = Tensor::uninit(&[8], DType::F32, Device::Interpret).unwrap();
    let e = launch(&x, 1.0, &mut out).run().unwrap_err().to_string();
    assert!(e.contains("scaled") && e.contains("`x`"), "{e}");
}
