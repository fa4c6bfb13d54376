//! A launch that was made before allocates nothing, and neither does a prepared one: counted, on the thread that launches.

use kiln::prelude::*;
use kiln::{DType, Device, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with what each thread asks of it counted.
struct Counting;

// SAFETY: the system's allocator does it all; counting touches a thread-local number that needs neither making nor
// dropping.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How often this thread allocates in `f`.
fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATED.get();
    f();
    ALLOCATED.get() - before
}

/// out ← a·b + out, of one program: others would be given to threads, which allocates.
#[kernel]
fn multiply_add<const M: usize>(a: &View<f32, 2>, b: &View<f32, 2>, factor: f32, out: &mut Block<f32, M, M>) {
    let (a, b): (Tile<f32, M, M>, Tile<f32, M, M>) = (a.load((0, 0)), b.load((0, 0)));
    out.store(out.load() + a * b * factor);
}

#[test]
fn launching_again_allocates_nothing() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1, "the count");
    for device in [Device::Cpu, Device::Cuda(0)].into_iter().filter(|device| device.check().is_ok()) {
        let [a, b] = [2.0, 3.0].map(|x| Tensor::full(&[16, 16], DType::F32, x, device).unwrap());
        let mut out = Tensor::zeros(&[16, 16], DType::F32, device).unwrap();
        let prepared = multiply_add::<16>(&a, &b, 0.5, &mut out).prepare().unwrap();
        prepared.run().unwrap();
        let runs = allocations(|| (0..100).for_each(|_| prepared.run().unwrap()));
        assert_eq!(runs, 0, "{device}, prepared");
        let launches = allocations(|| (0..100).for_each(|_| multiply_add::<16>(&a, &b, 0.5, &mut out).run().unwrap()));
        assert_eq!(launches, 0, "{device}, eager");
        assert_eq!(out.to_vec::<f32>().unwrap(), [3.0 * 201.0; 256], "{device}");
    }
}
