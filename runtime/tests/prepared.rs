//! Launches prepared once and made many times: they do what those made one by one do.

use kiln::prelude::*;
use kiln::{DType, Device, Error, Prepared, Tensor};

/// The devices of this machine; `KILN_DEVICE` narrows them to one.
fn devices() -> Vec<Device> {
    if std::env::var_os("KILN_DEVICE").is_some() {
        return vec![Device::auto().unwrap()];
    }
    [Device::Cpu, Device::Interpret, Device::Cuda(0)].into_iter().filter(|d| d.check().is_ok()).collect()
}

/// out ← out + factor·x
#[kernel]
fn add_scaled<const B: usize>(x: &View<f32, 2>, factor: f32, out: &mut Block<f32, B, B>) {
    let x: Tile<f32, B, B> = x.load((out.origin(0), out.origin(1)));
    out.store(out.load() + x * factor);
}

#[kernel]
fn increment<const B: usize>(x: &mut Block<i32, B>) {
    x.store(x.load() + 1);
}

/// Each program stores its number, and after a meeting adds that of the next one.
#[kernel]
fn neighbours(x: &mut View<i32, 1>, out: &mut Block<i32, 1>) {
    let at = program_id(0);
    // SAFETY: a program stores its own number; others read it after the meeting.
    unsafe { x.set(at, at) };
    grid_sync();
    let all: Tile<i32, 1> = out.load();
    out.store(all + x.get((at + 1) % num_programs(0)));
}

fn counting(shape: [usize; 2], device: Device) -> Tensor {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| i as f32).collect();
    Tensor::from_slice(&values, &shape, device).unwrap()
}

#[test]
fn a_prepared_launch_is_the_eager_one() {
    for device in devices() {
        // Part of a larger tensor, transposed, with an end that fills no block.
        let x = counting([9, 30], device).transpose(0, 1).unwrap().narrow(0, 3, 21).unwrap();
        let [mut eager, mut prepared] = [0; 2].map(|_| Tensor::zeros(&[21, 9], DType::F32, device).unwrap());
        let launch = add_scaled::<8>(&x, 0.5, &mut prepared).prepare().unwrap();
        for _ in 0..3 {
            add_scaled::<8>(&x, 0.5, &mut eager).run().unwrap();
            launch.run().unwrap();
        }
        let got = prepared.to_vec::<f32>().unwrap();
        assert_eq!(got, eager.to_vec::<f32>().unwrap(), "{device}");
        assert_eq!(got[..2], [1.5 * 3.0, 1.5 * 33.0]);
    }
}

#[test]
fn it_takes_what_the_tensors_hold_now() {
    for device in devices() {
        let mut x = counting([8, 8], device);
        let mut out = Tensor::zeros(&[8, 8], DType::F32, device).unwrap();
        let launch = add_scaled::<8>(&x, 2.0, &mut out).prepare().unwrap();
        launch.run().unwrap();
        x.fill(1.0).unwrap();
        launch.run().unwrap();
        assert_eq!(out.to_vec::<f32>().unwrap()[..3], [2.0, 4.0, 6.0], "{device}");
        out.fill(10.0).unwrap();
        launch.run().unwrap();
        assert!(out.to_vec::<f32>().unwrap().iter().all(|&v| v == 12.0), "{device}");
    }
}

#[test]
fn it_keeps_the_memory() {
    for device in devices() {
        let mut out = Tensor::zeros(&[8, 8], DType::F32, device).unwrap();
        let launch = add_scaled::<8>(&counting([8, 8], device), 1.0, &mut out).prepare().unwrap();
        // Who gets memory now must not get x's.
        let _others: Vec<_> = (0..4).map(|_| Tensor::full(&[8, 8], DType::F32, -1.0, device).unwrap()).collect();
        launch.run().unwrap();
        assert_eq!(out.to_vec::<f32>().unwrap()[63], 63.0, "{device}");
        drop(out);
        launch.run().unwrap();
        device.synchronize().unwrap();
    }
}

#[test]
fn what_cannot_be_launched_cannot_be_prepared() {
    for device in devices() {
        let x = counting([8, 8], device);
        let e = add_scaled::<8>(&x, 1.0, &mut x.clone()).prepare().unwrap_err().to_string();
        assert!(e.contains("`add_scaled`") && e.contains("`out`") && e.contains("shares memory"), "{e}");
        let mut ints = Tensor::zeros(&[8, 8], DType::I32, device).unwrap();
        let e = add_scaled::<8>(&x, 1.0, &mut ints).prepare().unwrap_err().to_string();
        assert!(e.contains("`out`") && e.contains("f32") && e.contains("i32"), "{e}");
        let e = add_scaled::<8>(&x, 1.0, &mut x.deep_clone().unwrap()).grid([1, 1, 2]).prepare().unwrap_err();
        assert!(matches!(&e, Error::Argument { .. }) && e.to_string().contains("several owners"), "{e}");
    }
    let mut out = Tensor::zeros(&[8, 8], DType::F32, Device::Interpret).unwrap();
    let e = add_scaled::<8>(&counting([8, 8], Device::Cpu), 1.0, &mut out).prepare().unwrap_err().to_string();
    assert!(e.contains("cpu") && e.contains("interpret"), "{e}");
}

#[test]
fn without_programs_it_does_nothing() {
    for device in devices() {
        let mut x = Tensor::zeros(&[0], DType::I32, device).unwrap();
        increment::<8>(&mut x).prepare().unwrap().run().unwrap();
        let mut x = Tensor::zeros(&[8], DType::I32, device).unwrap();
        increment::<8>(&mut x).grid(0).prepare().unwrap().run().unwrap();
        assert_eq!(x.to_vec::<i32>().unwrap(), [0; 8]);
    }
}

#[test]
fn programs_meet_at_each_run() {
    for device in devices() {
        let mut x = Tensor::uninit(&[5], DType::I32, device).unwrap();
        let mut out = Tensor::zeros(&[5], DType::I32, device).unwrap();
        let launch = neighbours(&mut x, &mut out).prepare().unwrap();
        (0..3).for_each(|_| launch.run().unwrap());
        assert_eq!(out.to_vec::<i32>().unwrap(), [3, 6, 9, 12, 0], "{device}");
    }
}

#[test]
fn any_thread_may_run_it() {
    for device in devices() {
        let mut x = Tensor::zeros(&[100], DType::I32, device).unwrap();
        let launch: Prepared = increment::<128>(&mut x).prepare().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).for_each(|_| launch.run().unwrap()));
            }
        });
        assert_eq!(x.to_vec::<i32>().unwrap(), [100; 100], "{device}");
    }
}

#[test]
fn a_recorded_run_does_nothing() {
    let mut x = Tensor::zeros(&[16], DType::I32, Device::Cpu).unwrap();
    let launch = increment::<8>(&mut x).prepare().unwrap();
    let eager = kiln::record(|| increment::<8>(&mut x).run()).unwrap();
    let prepared = kiln::record(|| launch.run()).unwrap();
    assert_eq!(prepared.len(), 1);
    assert_eq!((prepared[0].to_string(), &prepared[0].facts), (eager[0].to_string(), &eager[0].facts));
    assert_eq!(x.to_vec::<i32>().unwrap(), [0; 16]);
}

/// The driver's call alone is a GPU's, and the same launch.
#[test]
fn bare_is_the_same_launch_on_a_gpu_and_an_error_elsewhere() {
    for device in devices() {
        let mut x = Tensor::zeros(&[100], DType::I32, device).unwrap();
        let launch = increment::<64>(&mut x).prepare().unwrap();
        match (launch.bare(), device) {
            (Ok(bare), Device::Cuda(_)) => (0..10).for_each(|_| bare().unwrap()),
            (Err(e), Device::Cpu | Device::Interpret) => {
                assert!(e.to_string().contains("only a GPU"), "{e}");
                continue;
            }
            (bare, _) => panic!("{device}: {:?}", bare.err()),
        }
        assert_eq!(x.to_vec::<i32>().unwrap(), [10; 100]);
    }
}
