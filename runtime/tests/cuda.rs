//! What only a GPU has: asynchronous launches, recycled memory, graphs, device time. Without a GPU each test says that
//! it did not run.
#![cfg(feature = "cuda")]

use kiln::prelude::*;
use kiln::tune::measure;
use kiln::{Bench, DType, Device, Error, Graph, Tensor};

#[kernel]
fn scale<const B: usize>(x: &View<f32, 1>, factor: f32, out: &mut Block<f32, B>) {
    let x: Tile<f32, B> = x.load(out.origin(0));
    out.store(x * factor);
}

/// `out[position] = 10·position`, then `position += 1`, as two kernels.
#[kernel]
fn note(position: &View<i32, 1>, out: &mut View<i32, 1>) {
    let at = position.get(0);
    // SAFETY: there is one program.
    unsafe { out.set(at, at * 10) };
}

#[kernel]
fn advance(position: &mut Block<i32, 1>) {
    position.store(position.load() + 1);
}

fn gpu() -> Option<Device> {
    match Device::Cuda(0).check() {
        Ok(()) => Some(Device::Cuda(0)),
        Err(e) => {
            eprintln!("not run: {e}");
            None
        }
    }
}

fn counting(n: usize, device: Device) -> Tensor {
    Tensor::from_slice(&(0..n).map(|i| i as f32).collect::<Vec<_>>(), &[n], device).unwrap()
}

#[test]
fn launches_queue_and_copies_wait() {
    let Some(device) = gpu() else { return };
    eprintln!("{}", device.describe().unwrap());
    let n = 1 << 20;
    let mut a = counting(n, device);
    let mut b = Tensor::uninit(&[n], DType::F32, device).unwrap();
    for _ in 0..10 {
        scale::<1024>(&a, 2.0, &mut b).run().unwrap();
        scale::<1024>(&b, 0.5, &mut a).run().unwrap();
    }
    let got = a.to_vec::<f32>().unwrap();
    assert!(got.iter().enumerate().all(|(i, &v)| v == i as f32));
    assert!(kiln::kernel_reports().iter().any(|r| r.kernel == "scale" && r.registers > 0));
}

/// Temporaries are dropped while their readers are still queued: recycling must follow the stream's order.
#[test]
fn dropped_memory_is_recycled_in_order() {
    let Some(device) = gpu() else { return };
    let n = 1 << 18;
    let mut x = counting(n, device);
    for _ in 0..200 {
        let mut y = Tensor::uninit(&[n], DType::F32, device).unwrap();
        scale::<1024>(&x, -1.0, &mut y).run().unwrap();
        x = y;
    }
    assert!(x.to_vec::<f32>().unwrap().iter().enumerate().all(|(i, &v)| v == i as f32));
}

#[test]
fn graphs_replay_on_new_inputs_and_keep_their_memory() {
    let Some(device) = gpu() else { return };
    let n = 5000;
    let mut input = counting(n, device);
    let mut output = Tensor::zeros(&[n], DType::F32, device).unwrap();
    let work = |input: &Tensor, output: &mut Tensor| {
        let mut half = Tensor::uninit(&[n], DType::F32, device)?;
        scale::<256>(input, 0.5, &mut half).run()?;
        let mut quarter = Tensor::uninit(&[n], DType::F32, device)?;
        scale::<256>(&half, 0.5, &mut quarter).run()?;
        drop(half);
        let mut again = Tensor::uninit(&[n], DType::F32, device)?;
        scale::<256>(&quarter, 8.0, &mut again).run()?;
        output.copy_from(&again)
    };
    let graph = Graph::capture(device, || work(&input, &mut output)).unwrap();
    assert!(output.to_vec::<f32>().unwrap().iter().all(|&v| v == 0.0), "recording runs nothing");
    // Whoever allocates now must not get the graph's memory.
    let mut others = vec![];
    for _ in 0..8 {
        others.push(Tensor::full(&[n], DType::F32, 7.0, device).unwrap());
    }
    for factor in [1.0f32, 3.0] {
        input.write_slice(&(0..n).map(|i| factor * i as f32).collect::<Vec<_>>()).unwrap();
        graph.replay().unwrap();
        let got = output.to_vec::<f32>().unwrap();
        assert!(got.iter().enumerate().all(|(i, &v)| v == 2.0 * factor * i as f32));
    }
    assert!(others.iter().all(|t| t.to_vec::<f32>().unwrap().iter().all(|&v| v == 7.0)));
    // The graph outlives the tensors it was recorded with.
    drop((input, output));
    graph.replay().unwrap();
    device.synchronize().unwrap();
}

/// What varies from replay to replay lies in device memory: a graph goes on where the last replay stopped.
#[test]
fn graphs_count_on_the_device() {
    let Some(device) = gpu() else { return };
    let mut position = Tensor::zeros(&[1], DType::I32, device).unwrap();
    let mut out = Tensor::full(&[8], DType::I32, -1.0, device).unwrap();
    let captures = kiln::captures();
    let graph = Graph::capture(device, || {
        note(&position, &mut out).grid(1).run()?;
        advance(&mut position).run()
    });
    let graph = graph.unwrap();
    assert!(kiln::captures() > captures);
    let mut seen = vec![];
    for _ in 0..5 {
        seen.push(position.fetch().unwrap());
        graph.replay().unwrap();
    }
    for (turn, fetch) in seen.into_iter().enumerate() {
        assert_eq!(fetch.wait::<i32>().unwrap(), [turn as i32]);
    }
    assert_eq!(out.to_vec::<i32>().unwrap(), [0, 10, 20, 30, 40, -1, -1, -1]);
}

#[test]
fn what_a_graph_cannot_hold_is_an_error_and_the_device_lives_on() {
    let Some(device) = gpu() else { return };
    let x = counting(100, device);
    assert!(matches!(Graph::capture(device, || x.to_vec::<f32>().map(drop)), Err(Error::Driver { .. })));
    assert!(Graph::capture(device, || device.synchronize()).is_err());
    assert!(Graph::capture(device, || Graph::capture(device, || Ok::<(), Error>(())).map(drop)).is_err());
    assert_eq!(x.to_vec::<f32>().unwrap()[99], 99.0);
}

#[test]
fn too_much_memory_is_an_error_and_kept_blocks_are_given_back_first() {
    let Some(device) = gpu() else { return };
    let e = Tensor::uninit(&[1 << 45], DType::U8, device).unwrap_err().to_string();
    assert!(e.contains(&(1u64 << 45).to_string()) && e.contains("free"), "{e}");
    // Each size is new, so only giving back the kept ones makes room for the next.
    for i in 0..12 {
        Tensor::uninit(&[(16 << 30) + (i << 32)], DType::U8, device).unwrap();
    }
}

#[test]
fn bench_measures_device_time() {
    let Some(device) = gpu() else { return };
    let n = 64 << 20;
    let x = Tensor::zeros(&[n], DType::F32, device).unwrap();
    let mut y = Tensor::uninit(&[n], DType::F32, device).unwrap();
    let timing = Bench::new(device).run(|| scale::<2048>(&x, 2.0, &mut y).run()).unwrap();
    let bytes_per_second = 2.0 * 4.0 * n as f64 / timing.median().as_secs_f64();
    eprintln!("{:?}, {:.0} GB/s", timing.median(), bytes_per_second / 1e9);
    assert!((1e11..1e13).contains(&bytes_per_second), "{bytes_per_second}");
    let small = Tensor::zeros(&[1024], DType::F32, device).unwrap();
    let mut out = Tensor::uninit(&[1024], DType::F32, device).unwrap();
    for (name, bench) in [("graph", Bench::new(device)), ("launches", Bench::new(device).without_graph())] {
        let t = bench.run(|| (0..100).try_for_each(|_| scale::<1024>(&small, 2.0, &mut out).run())).unwrap();
        eprintln!("{name}: {:?} per launch of a tiny kernel", t.median() / 100);
    }
}

/// A fetch brings what was there when it was asked for, waits once and not for what was asked later.
#[test]
fn a_fetch_is_of_its_moment() {
    let Some(device) = gpu() else { return };
    let n = 3000;
    let x = counting(n, device);
    let mut y = x.deep_clone().unwrap();
    let mut fetches = vec![];
    for turn in 0..20 {
        scale::<1024>(&x, turn as f32, &mut y).run().unwrap();
        fetches.push(y.narrow(0, n - 10, 10).unwrap().fetch().unwrap());
        // One that nobody waits for.
        drop(y.fetch().unwrap());
    }
    let waits = kiln::waits();
    for (turn, fetch) in fetches.into_iter().enumerate() {
        let want: Vec<f32> = (n - 10..n).map(|i| (turn * i) as f32).collect();
        assert_eq!(fetch.wait::<f32>().unwrap(), want);
    }
    // Other tests of this process wait as well.
    assert!(kiln::waits() >= waits + 20);
    assert!(matches!(Graph::capture(device, || x.fetch().map(drop)), Err(Error::Driver { .. })));
}

#[kernel(deny(uncoalesced))]
fn first_column(x: &View<f32, 2>, out: &mut Block<f32, 64>) {
    let x: Tile<f32, 64, 1> = x.load((out.origin(0), 0));
    out.store(x.reshape());
}

#[test]
fn a_kernel_with_what_it_denies_is_refused_by_kernel_place_and_remedy() {
    let Some(device) = gpu().filter(|d| d.describe().unwrap().contains("sm_90")) else { return };
    let x = Tensor::zeros(&[64, 80], DType::F32, device).unwrap();
    let mut out = Tensor::uninit(&[64], DType::F32, device).unwrap();
    let line = line!() - 9;
    let e = first_column(&x, &mut out).run().unwrap_err().to_string();
    for part in ["`first_column`", &format!("cuda.rs:{line}:"), "32 sectors", "stride 1", "KILN_DENY=off"] {
        assert!(e.contains(part), "{part} in {e}");
    }
    let report = kiln::kernel_reports().into_iter().find(|r| r.kernel == "first_column").unwrap();
    assert!(report.programs_per_sm > 0 && report.findings.iter().any(|f| f.lint == kiln::ir::Lint::Uncoalesced));
    // No other test of this process denies anything.
    kiln::tolerate_findings();
    first_column(&x, &mut out).run().unwrap();
}

/// out ← 2x. Small blocks take many programs.
#[kernel(tune(B in [1024, 32]))]
fn double<const B: usize>(x: &View<f32, 1>, out: &mut Block<f32, B>) {
    let x: Tile<f32, B> = x.load(out.origin(0));
    out.store(x + x);
}

#[test]
fn candidates_are_measured_on_the_device_and_not_in_a_graph() {
    let Some(device) = gpu() else { return };
    let n = 1 << 24;
    let x = counting(n, device);
    let mut out = Tensor::zeros(&[n], DType::F32, device).unwrap();
    let mut graph = None;
    let found = measure(5, || {
        graph = Some(Graph::capture(device, || double_tuned(&x, &mut out).run())?);
        Ok::<(), Error>(())
    });
    assert!(found.unwrap().is_empty());
    graph.expect("captured").replay().unwrap();
    assert_eq!(out.narrow(0, 7, 1).unwrap().to_vec::<f32>().unwrap(), [14.0]);

    let found = measure(5, || double_tuned(&x, &mut out).run()).unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].bucket.starts_with(&device.model().unwrap()), "{}", found[0]);
    assert!(found[0].candidates.iter().all(|(_, time)| time.is_ok()) && found[0].best() == Some(0), "{}", found[0]);
    let got = out.to_vec::<f32>().unwrap();
    assert!(got.iter().enumerate().all(|(i, &v)| v == 2.0 * i as f32));
}

#[test]
fn prepared_launches_go_into_graphs_and_beside_others() {
    let Some(device) = gpu() else { return };
    let mut x = counting(5000, device);
    let mut y = Tensor::zeros(&[5000], DType::F32, device).unwrap();
    let mut z = y.deep_clone().unwrap();
    let twice = scale::<256>(&x, 2.0, &mut y).prepare().unwrap();
    let thrice = scale::<256>(&x, 3.0, &mut z).prepare().unwrap();
    let both = || device.beside(|| twice.run(), || thrice.run());
    let is = |factor: f32, t: &Tensor| {
        assert!(t.to_vec::<f32>().unwrap().iter().enumerate().all(|(i, &v)| v == factor * i as f32), "{factor}");
    };
    both().unwrap();
    is(2.0, &y);
    is(3.0, &z);
    y.fill(0.0).unwrap();
    let graph = Graph::capture(device, both).unwrap();
    assert!(y.to_vec::<f32>().unwrap().iter().all(|&v| v == 0.0), "recording runs nothing");
    x.write_slice(&(0..5000).map(|i| 4.0 * i as f32).collect::<Vec<_>>()).unwrap();
    graph.replay().unwrap();
    is(8.0, &y);
    is(12.0, &z);
    // The graph outlives the launches and their tensors.
    drop((x, twice, thrice));
    let _others: Vec<_> = (0..8).map(|_| Tensor::full(&[5000], DType::F32, 7.0, device).unwrap()).collect();
    graph.replay().unwrap();
    is(8.0, &y);
    is(12.0, &z);
}

/// What other threads do while a graph is captured is done at once, and is not in the graph.
#[test]
fn other_threads_work_while_a_graph_is_captured() {
    let Some(device) = gpu() else { return };
    let [mut captured, mut first, mut second] = [0; 3].map(|_| Tensor::zeros(&[1], DType::I32, device).unwrap());
    let read = |t: &Tensor| t.to_vec::<i32>().unwrap()[0];
    let (in_graph, beside) = (advance(&mut captured).prepare().unwrap(), advance(&mut first).prepare().unwrap());
    let others = || {
        device.beside(|| beside.run(), || advance(&mut second).run()).unwrap();
        // Made and given back meanwhile.
        let copies = [first.deep_clone().unwrap(), second.deep_clone().unwrap()];
        copies.map(|copy| read(&copy))
    };
    let work = || {
        in_graph.run()?;
        std::thread::scope(|scope| assert_eq!(scope.spawn(others).join().unwrap(), [1, 1]));
        in_graph.run()
    };
    let graph = Graph::capture(device, work).unwrap();
    assert_eq!(read(&captured), 0);
    (0..3).for_each(|_| graph.replay().unwrap());
    assert_eq!([&captured, &first, &second].map(read), [6, 1, 1]);
}
