//! Kernels given as text, launched on any device.

use kiln::ir::{Bits, Fact, Kernel};
use kiln::{DType, Device, RawArg, RawKernel, Tensor};

/// out[p, :] = x[p, :] · factor, for rows of up to 4.
const SCALE: &str = "kernel scale(%x: view<f32,2>, %factor: f32, %out: write view<f32,2>) {
  %0: i32 = program_id 0
  %1: i32 = const 0
  %2: f32<1x4> = load %x[%0, %1]
  %3: f32<1x4> = broadcast %factor
  %4: f32<1x4> = mul %2, %3
  store %out[%0, %1], %4
  yield
}";

fn scale() -> Kernel {
    SCALE.parse().unwrap()
}

/// The devices of this machine.
fn devices() -> Vec<Device> {
    let all = [Device::Cpu, Device::Interpret, Device::Cuda(0)];
    all.into_iter().filter(|d| d.check().is_ok()).collect()
}

fn counting(n: usize, device: Device) -> Tensor {
    Tensor::from_slice(&(0..n).map(|i| i as f32).collect::<Vec<_>>(), &[n], device).unwrap()
}

fn factor(value: f64) -> RawArg<'static> {
    RawArg::Scalar(Bits::from_f64(DType::F32, value))
}

/// Launches `kernel` on windows of `x` and of a new output of 3 rows of 3; the output, or the error's text.
fn run(
    kernel: Kernel,
    device: Device,
    x: &Tensor,
    offset: usize,
    shape: [i64; 2],
    strides: [i64; 2],
) -> Result<Vec<f32>, String> {
    let out = Tensor::zeros(&[9], DType::F32, device).unwrap();
    let kernel = RawKernel::new(kernel).map_err(|e| e.to_string())?;
    kernel.compile(device).map_err(|e| e.to_string())?;
    let args = [
        RawArg::View { memory: x, offset, shape: &shape, strides: &strides },
        factor(2.0),
        RawArg::View { memory: &out, offset: 0, shape: &[3, 3], strides: &[3, 1] },
    ];
    // SAFETY: each program writes a row of its own, and rows are apart.
    unsafe { kernel.launch(device, 3, &args) }.map_err(|e| e.to_string())?;
    Ok(out.to_vec().unwrap())
}

#[test]
fn windows_of_any_strides_are_read() {
    for device in devices() {
        let x = counting(12, device);
        let of = |offset, strides| run(scale(), device, &x, offset, [3, 3], strides).unwrap();
        assert_eq!(of(0, [4, 1]), [0.0, 2.0, 4.0, 8.0, 10.0, 12.0, 16.0, 18.0, 20.0]);
        assert_eq!(of(10, [-4, -1]), [20.0, 18.0, 16.0, 12.0, 10.0, 8.0, 4.0, 2.0, 0.0]);
        assert_eq!(of(5, [0, 1]), [10.0, 12.0, 14.0, 10.0, 12.0, 14.0, 10.0, 12.0, 14.0]);
        // A window on a tensor that is itself part of another begins at that tensor's first element.
        let part = x.narrow(0, 3, 9).unwrap();
        assert_eq!(run(scale(), device, &part, 0, [3, 3], [3, 1]).unwrap()[..3], [6.0, 8.0, 10.0]);
        // Fewer rows than programs: the last finds nothing there.
        assert_eq!(run(scale(), device, &x, 0, [2, 1], [1, 1]).unwrap(), [0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    for device in devices() {
        let x = counting(12, device);
        let refused = |offset, shape, strides, what: &str| {
            let error = run(scale(), device, &x, offset, shape, strides).unwrap_err();
            assert!(error.contains("`scale`") && error.contains("`x`") && error.contains(what), "{error}");
        };
        refused(4, [3, 3], [4, 1], "from 4 to 14");
        refused(1, [3, 3], [-1, 1], "from -1 to 3");
        refused(0, [3, 3], [i64::MAX, 1], "outside");
        refused(0, [-1, 3], [4, 1], "extent -1");
        refused(0, [1 << 31, 3], [0, 1], "extent 2147483648");
        refused(13, [0, 3], [4, 1], "outside");
        let wrong = Tensor::zeros(&[12], DType::BF16, device).unwrap();
        let error = run(scale(), device, &wrong, 0, [3, 3], [4, 1]).unwrap_err();
        assert!(error.contains("expected a contiguous tensor of f32"), "{error}");
        let spread = x.reshape(&[3, 4]).unwrap().narrow(1, 0, 2).unwrap();
        assert!(run(scale(), device, &spread, 0, [1, 1], [1, 1]).unwrap_err().contains("contiguous"));

        let kernel = RawKernel::new(scale()).unwrap();
        let window = |memory| RawArg::View { memory, offset: 0, shape: &[3, 3], strides: &[3, 1] };
        let out = Tensor::zeros(&[9], DType::F32, device).unwrap();
        let one = RawArg::View { memory: &x, offset: 0, shape: &[3], strides: &[1] };
        let wide = RawArg::Scalar(Bits(1 << 32));
        for (args, what) in [
            (&[window(&x), factor(1.0)][..], "2 arguments for 3 parameters"),
            (&[factor(1.0), factor(1.0), window(&out)], "a scalar for a parameter of view<f32,2>"),
            (&[window(&x), window(&x), window(&out)], "a view for a parameter of f32"),
            (&[window(&x), wide, window(&out)], "0x100000000 is more than the 4 bytes of f32"),
            (&[one, factor(1.0), window(&out)], "of a view of rank 2"),
            (&[window(&x), factor(1.0), window(&x)], "shares memory with argument `x`"),
        ] {
            // SAFETY: refused, so it does not run.
            let error = unsafe { kernel.launch(device, 3, args) }.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let elsewhere = if device == Device::Cpu { Device::Interpret } else { Device::Cpu };
        let args = [window(&x), factor(1.0), window(&out)];
        // SAFETY: as above.
        let error = unsafe { kernel.launch(elsewhere, 3, &args) }.unwrap_err().to_string();
        assert!(error.contains(&format!("is on {device}, the launch on {elsewhere}")), "{error}");
        // SAFETY: as above.
        let error = unsafe { kernel.launch(device, [1, 1 << 40], &args) }.unwrap_err().to_string();
        assert!(error.contains("axis 1"), "{error}");
    }
}

/// A kernel compiled under an assumption never runs where that does not hold.
#[test]
fn facts_must_hold() {
    for device in devices() {
        let x = counting(64, device);
        let mut kernel = scale();
        // Of x: address, two extents, two strides.
        kernel.facts = vec![Fact::Multiple16, Fact::Unknown, Fact::Unknown, Fact::Multiple16, Fact::One];
        let of = |offset, strides| run(kernel.clone(), device, &x, offset, [3, 3], strides);
        assert_eq!(of(4, [16, 1]).unwrap()[..4], [8.0, 10.0, 12.0, 40.0]);
        for (offset, strides, what) in [(1, [16, 1], "Address"), (0, [8, 1], "Stride(0)"), (0, [16, 2], "Stride(1)")] {
            let error = of(offset, strides).unwrap_err();
            assert!(error.contains(what) && error.contains("`x`"), "{error}");
        }
    }
}

#[test]
fn invalid_ir_is_refused() {
    let mut kernel = scale();
    kernel.regions[0].ops.remove(2);
    let error = RawKernel::new(kernel).err().unwrap().to_string();
    assert!(error.contains("`scale`") && error.contains("invalid IR"), "{error}");
}

#[test]
fn a_recorded_launch_does_nothing() {
    let x = counting(12, Device::Cpu);
    let mut result = vec![];
    let kernels = kiln::record(|| {
        result = run(scale(), Device::Cpu, &x, 0, [3, 3], [4, 1]).unwrap();
        Ok::<(), kiln::Error>(())
    });
    assert_eq!((kernels.unwrap().len(), result), (1, vec![0.0; 9]));
}

#[test]
fn compiling_takes_time_that_is_counted() {
    let (before, start) = (kiln::compile_time(), std::time::Instant::now());
    let kernel = RawKernel::new(scale()).unwrap();
    kernel.compile(Device::Cpu).unwrap();
    let elapsed = start.elapsed();
    assert!(kiln::compile_time() - before > elapsed / 4, "of {elapsed:?}");
}
