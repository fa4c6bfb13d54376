//! What the lowering reports of memory accesses is what the simulator sees happen.

use super::differential::specialised;
use super::simulate::{Order, Simulator, Touch, address_of};
use super::tests_kernels as kernels;
use super::tests_kernels::{built, view};
use super::tests_tiles::recurrence;
use super::{Lowered, Target, llvm_text};
use crate::gpu::layout::wavefronts_of;
use crate::ir::{Access, Builder, DType, Finding, Kernel, Lint, Loc, Precision, Shape, Type, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// The accesses of each warp in one program, lanes together.
fn accesses(k: &Kernel, lowered: &Lowered, shapes: &[&[i64]]) -> Vec<Vec<Touch>> {
    let mut params = vec![];
    let mut global = vec![];
    for (i, (p, shape)) in k.params.iter().zip(shapes).enumerate() {
        let Type::View(dtype, _) = k.ty(p.value) else { panic!("views only") };
        params.push(address_of(i));
        params.extend(shape.iter().map(|&n| n as u64));
        params.extend((0..shape.len()).map(|d| shape[d + 1..].iter().product::<i64>() as u64));
        // Zeros: indices that are loaded lie in every view.
        global.push(vec![0; shape.iter().product::<i64>() as usize * dtype.size()]);
    }
    let mut simulator = Simulator::new(lowered, global);
    simulator.touches = Some(vec![]);
    simulator.run(&params, [0; 3], [1; 3], Order { backwards: false, early: true });
    // Of each thread, the how-manieth time that it comes to an instruction.
    let (mut times, mut all) = (BTreeMap::new(), BTreeMap::<_, Vec<Touch>>::new());
    for touch in simulator.touches.expect("just given") {
        let time: &mut usize = times.entry((touch.thread, touch.pc, touch.shared)).or_default();
        all.entry((touch.thread / 32, touch.pc, touch.shared, *time)).or_default().push(touch);
        *time += 1;
    }
    all.into_values().collect()
}

/// Whether a warp waits for banks, and whether it touches more sectors than its bytes fill.
fn seen(k: &Kernel, lowered: &Lowered, shapes: &[&[i64]]) -> [bool; 2] {
    let mut seen = [false; 2];
    for lanes in accesses(k, lowered, shapes) {
        let width = lanes[0].bytes;
        if lanes[0].shared {
            let addresses: Vec<u32> = lanes.iter().map(|t| t.address as u32).collect();
            seen[0] |= wavefronts_of(&addresses, width).conflicts() > 0;
        } else {
            let bytes: BTreeSet<u64> = lanes.iter().flat_map(|t| t.address..t.address + width as u64).collect();
            let sectors: BTreeSet<u64> = bytes.iter().map(|b| b / 32).collect();
            seen[1] |= sectors.len() > bytes.len().div_ceil(32);
        }
    }
    seen
}

fn found(findings: &[Finding], lint: Lint) -> Vec<&Finding> {
    findings.iter().filter(|f| f.lint == lint).collect()
}

/// Asserts that reports and simulation agree; the findings.
fn check(k: &Kernel, sm: u32, shapes: &[&[i64]]) -> Vec<Finding> {
    let k = specialised(k, shapes);
    let lowered = llvm_text(&k, Target { sm }).unwrap_or_else(|e| panic!("{e}"));
    let reported = [Lint::BankConflict, Lint::Uncoalesced].map(|lint| !found(&lowered.findings, lint).is_empty());
    assert_eq!(reported, seen(&k, &lowered, shapes), "{} for sm_{sm}: {:#?}", k.name, lowered.findings);
    lowered.findings
}

#[test]
fn reported_accesses_are_those_that_the_simulator_sees() {
    let mut conflicts = 0;
    for sm in [80, 90] {
        for (m, n, k, dtype, precision) in [
            (64, 64, 32, DType::BF16, Precision::F32),
            (128, 64, 64, DType::BF16, Precision::F32),
            (16, 32, 32, DType::F16, Precision::F32),
            (32, 32, 32, DType::F32, Precision::Tf32),
            (32, 32, 16, DType::F32, Precision::F32),
            (64, 128, 32, DType::F32, Precision::F32),
        ] {
            let kernel = kernels::gemm(m, n, k, dtype, precision);
            let [m, n, k] = [m, n, 3 * k].map(i64::from);
            let findings = check(&kernel, sm, &[&[m, k], &[k, n], &[m, n]]);
            conflicts += found(&findings, Lint::BankConflict).len();
        }
        let square: &[i64] = &[64, 64];
        check(&kernels::attention(64, 64, 64), sm, &[square; 4]);
        check(&kernels::rmsnorm(256), sm, &[&[2, 256], &[256], &[2, 256]]);
        for (rows, n, axis, warps) in [(8, 64, 1, 1), (64, 8, 0, 4), (1, 512, 1, 8), (32, 32, 0, 4)] {
            // Rows that are shorter than a sector stand apart.
            let shape: &[i64] = &[rows.into(), n.max(32).into()];
            check(&kernels::scans(rows, n, axis, warps, false), sm, &[shape; 12]);
        }
    }
    assert!(conflicts >= 2, "multiply-adds have some");
}

/// `f(b, x)` of a box of x, stored.
fn moved(name: &str, dtype: DType, shape: &[u32], f: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> Kernel {
    built(name, |b| {
        let rank = shape.len() as u8;
        let x = view(b, "x", dtype, rank, Access::Read);
        let zeros = vec![b.i32(0); shape.len()];
        b.loc = Loc { file: "moved.rs", line: 1, column: 1 };
        let tile = b.load(x, &zeros, Shape::new(shape), None);
        let y = f(b, tile);
        let rank = b.ty(y).shape().rank();
        let out = view(b, "out", dtype, rank as u8, Access::Write);
        b.loc.line = 2;
        b.store(out, y, &zeros[..rank]);
    })
}

/// Conversions choose a swizzle: none of a transposition's accesses wait, whatever the type.
#[test]
fn transpositions_have_no_bank_conflicts() {
    for dtype in [DType::I8, DType::BF16, DType::F32, DType::I64] {
        for shape in [[64, 64], [16, 128], [128, 32]] {
            let k = moved("transposed", dtype, &shape, |b, x| b.transpose(x, &[1, 0]));
            let [m, n] = shape.map(i64::from);
            assert_eq!(
                found(&check(&k, 80, &[&[m, n], &[n, m.max(32)]]), Lint::BankConflict),
                Vec::<&Finding>::new(),
                "{dtype} {shape:?}"
            );
        }
    }
}

/// A column of a matrix: each lane has a sector of its own. The finding says by how much, and where.
#[test]
fn a_column_is_not_coalesced() {
    let k = moved("column", DType::F32, &[64, 1], |_, x| x);
    let shapes: &[&[i64]] = &[&[64, 80], &[64, 80]];
    let findings = check(&k, 90, shapes);
    let [load, store] = &found(&findings, Lint::Uncoalesced)[..] else { panic!("two accesses: {findings:?}") };
    for (finding, line) in [(load, 1), (store, 2)] {
        let message = "uncoalesced: f32<64x1>: a warp's access touches 32 sectors of 32 bytes, 4 would do";
        assert_eq!(finding.to_string(), format!("moved.rs:{line}:1: {message}"));
    }
    assert_eq!(check(&moved("row", DType::F32, &[1, 64], |_, x| x), 90, shapes), []);
    // Without facts nothing is known to be contiguous.
    let k = moved("row", DType::F32, &[1, 64], |_, x| x);
    assert_eq!(found(&llvm_text(&k, Target { sm: 90 }).unwrap().findings, Lint::Uncoalesced).len(), 2);
}

/// What each thread copies for the next iteration lies beside its neighbours', in slots of the copies' own size.
#[test]
fn slots_of_small_copies_have_no_bank_conflicts() {
    let (k, all): (_, &[i64]) = (recurrence(1, DType::BF16), &[80, 16]);
    let shapes = &[all, all, &[80], all, &[80], all, &[16, 16]];
    let k = specialised(&k, shapes);
    let lowered = llvm_text(&k, Target { sm: 90 }).unwrap();
    assert!(lowered.text.contains("cp.async.ca.shared.global [$0], [$1], 4"), "a copy of 4 bytes in\n{}", lowered.text);
    assert_eq!(found(&lowered.findings, Lint::BankConflict), Vec::<&Finding>::new());
    assert!(!seen(&k, &lowered, shapes)[0]);
}
