//! Tensors: what goes in comes out, views name the right elements, and misuse is an error.

use half::{bf16, f16};
use kiln::ir::DType;
use kiln::{Device, Tensor};

/// The devices of this machine; `KILN_DEVICE` narrows them to one.
fn devices() -> Vec<Device> {
    if std::env::var_os("KILN_DEVICE").is_some() {
        return vec![Device::auto().unwrap()];
    }
    [Device::Cpu, Device::Interpret, Device::Cuda(0)].into_iter().filter(|d| d.check().is_ok()).collect()
}

fn counting(shape: &[usize], device: Device) -> Tensor {
    let data: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
    Tensor::from_slice(&data, shape, device).unwrap()
}

#[test]
fn host_data_round_trips_on_every_device() {
    for device in devices() {
        let t = counting(&[2, 3], device);
        assert_eq!(t.to_vec::<i32>().unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(t.to_vec_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let b = Tensor::from_slice(&[true, false], &[2], device).unwrap();
        assert_eq!(b.to_vec::<bool>().unwrap(), [true, false]);
        let h = Tensor::from_slice(&[bf16::from_f32(1.5)], &[], device).unwrap();
        assert_eq!((h.rank(), h.to_vec_f32().unwrap()), (0, vec![1.5]));
        let f = Tensor::from_f32(&[0.1, 70000.0], DType::F16, &[2], device).unwrap();
        assert_eq!(f.to_vec::<f16>().unwrap(), [f16::from_f32(0.1), f16::INFINITY]);
        assert_eq!(Tensor::full(&[3], DType::U8, 7.0, device).unwrap().to_vec::<u8>().unwrap(), [7, 7, 7]);
        assert_eq!(Tensor::zeros(&[2], DType::F8E4M3, device).unwrap().to_vec_f32().unwrap(), [0.0, 0.0]);
        assert_eq!(Tensor::zeros(&[0, 5], DType::I64, device).unwrap().to_vec::<i64>().unwrap(), []);
    }
}

#[test]
fn views_share_memory_and_name_the_right_elements() {
    for device in devices() {
        let t = counting(&[3, 4], device);
        assert_eq!(t.narrow(1, 1, 2).unwrap().to_vec::<i32>().unwrap(), [1, 2, 5, 6, 9, 10]);
        assert_eq!(t.select(1, 3).unwrap().to_vec::<i32>().unwrap(), [3, 7, 11]);
        assert_eq!(t.select(0, 1).unwrap().to_vec::<i32>().unwrap(), [4, 5, 6, 7]);
        let tr = t.transpose(0, 1).unwrap();
        assert_eq!(tr.shape(), [4, 3]);
        assert!(!tr.is_contiguous());
        assert_eq!(tr.to_vec::<i32>().unwrap(), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(tr.contiguous().unwrap().reshape(&[12]).unwrap().to_vec::<i32>().unwrap()[..3], [0, 4, 8]);
        t.narrow(0, 1, 1).unwrap().fill(-1.0).unwrap();
        assert_eq!(t.to_vec::<i32>().unwrap(), [0, 1, 2, 3, -1, -1, -1, -1, 8, 9, 10, 11]);
        let own = t.deep_clone().unwrap();
        assert!(!own.overlaps(&t) && t.clone().overlaps(&t));
    }
}

#[test]
fn copies_between_devices_and_layouts() {
    for from in devices() {
        for to in devices() {
            let source = counting(&[4, 3], from).transpose(0, 1).unwrap();
            let mut target = Tensor::zeros(&[3, 8], DType::I32, to).unwrap();
            target.narrow(1, 2, 4).unwrap().copy_from(&source).unwrap();
            assert_eq!(target.to_vec::<i32>().unwrap()[..8], [0, 0, 0, 3, 6, 9, 0, 0]);
            target.narrow(1, 2, 4).unwrap().write_slice(&[5i32; 12]).unwrap();
            assert_eq!(target.to_vec::<i32>().unwrap()[8..16], [0, 0, 5, 5, 5, 5, 0, 0]);
            assert!(target.copy_from(&source).is_err());
        }
    }
}

#[test]
fn misuse_is_an_error_not_a_panic() {
    for device in devices() {
        let mut t = counting(&[3, 4], device);
        assert!(t.narrow(0, 1, 3).is_err());
        assert!(t.select(2, 0).is_err());
        assert!(t.transpose(0, 2).is_err());
        assert!(t.reshape(&[5]).is_err());
        assert!(t.to_vec::<f32>().is_err());
        assert!(t.write_slice(&[1.0f32; 12]).is_err());
        assert!(t.write_slice(&[1i32; 11]).is_err());
        assert!(t.copy_from(&t.clone()).is_err());
        assert!(Tensor::from_slice(&[1i32], &[2], device).is_err());
        assert!(Tensor::zeros(&[1; 7], DType::I32, device).is_err());
        assert!(Tensor::zeros(&[usize::MAX, usize::MAX], DType::I32, device).is_err());
    }
}

#[test]
fn out_of_memory_says_how_much_was_asked_for() {
    for device in devices() {
        let e = Tensor::zeros(&[1 << 58], DType::F32, device).unwrap_err().to_string();
        assert!(e.contains(&(1u64 << 60).to_string()), "{e}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so() {
    let e = Tensor::zeros(&[1], DType::F32, Device::Cuda(0)).unwrap_err().to_string();
    assert!(e.contains("--features cuda"), "{e}");
}

#[test]
fn a_fetch_brings_what_was_there_when_it_was_asked_for() {
    for device in devices() {
        let mut t = counting(&[3, 4], device);
        let (all, column) = (t.fetch().unwrap(), t.select(1, 2).unwrap().fetch().unwrap());
        let none = t.narrow(0, 1, 0).unwrap().fetch().unwrap();
        let of_another_type = t.fetch().unwrap();
        t.fill(-1.0).unwrap();
        assert_eq!(all.wait::<i32>().unwrap(), (0..12).collect::<Vec<_>>());
        assert_eq!(column.wait::<i32>().unwrap(), [2, 6, 10]);
        assert_eq!(none.wait::<i32>().unwrap(), []);
        let e = of_another_type.wait::<f32>().unwrap_err().to_string();
        assert!(e.contains("i32") && e.contains("f32"), "{e}");
        assert_eq!(t.to_vec::<i32>().unwrap(), [-1; 12]);
    }
    // What was never written cannot be brought.
    assert!(Tensor::uninit(&[1], DType::I32, Device::Interpret).unwrap().fetch().is_err());
}
