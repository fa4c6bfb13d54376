//! What the lowering reports of memory accesses is what the simulator sees happen.

use super::differential::specialised;
use super::simulate::{Order, Simulator, Touch, address_of};
use super::tests_kernels as kernels;
use super::tests_kernels::{built, view};
use super::tests_tiles::recurrence;
use super::{Lowered, Target, llvm_text};
use crate::gpu::layout::wavefronts_of;
use crate::ir::{
    Access, Builder, CmpOp, Combine, DType, Fact, Finding, Kernel, Lint, Loc, OpKind, Precision, Shape, Type, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// The accesses of each warp in one program, or in one cluster of them, lanes together.
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
    simulator.run(&params, [0; 3], [lowered.cluster, 1, 1], Order { backwards: false, early: true });
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

/// Programs of a cluster exchange sums that several threads have, row by row; lanes have runs of a row, or of a column. (The
/// sums before, across warps, have no conflicts.)
#[test]
fn exchanges_within_clusters_are_counted() {
    let exchanged = |turned: bool| {
        let mut k = moved("exchanged", DType::F32, &[64, 16, 16], |b, x| {
            let x = if turned { b.transpose(x, &[0, 2, 1]) } else { x };
            let sums = b.reduce(x, 0, Combine::Sum);
            b.cluster_reduce(sums, Combine::Sum)
        });
        k.options.cluster = 2;
        let findings = check(&k, 90, &[&[64, 16, 16], &[16, 16]]);
        found(&findings, Lint::BankConflict).iter().map(|f| f.message.clone()).collect::<Vec<_>>()
    };
    let waits = |what: &str| format!("f32<16x16>, {what} a cluster: 16 wavefronts a warp, 4 without conflicts");
    assert_eq!(exchanged(false), Vec::<String>::new());
    assert_eq!(exchanged(true), [waits("stores for"), waits("loads from")]);
}

/// How a test changes the load of the first operand, at line 7: from this view, at this row and column.
type Load = fn(&mut Builder, ValueId, [ValueId; 2]) -> ValueId;

/// Rows of `x` that are known when the kernel runs, from a tile that is loaded.
fn computed_row(b: &mut Builder, x: ValueId, [row, _]: [ValueId; 2]) -> ValueId {
    let tile = b.load(x, &[row, row], Shape::new(&[1, 64]), None);
    let most = b.reduce(tile, 1, Combine::Max);
    let most = b.reshape(most, Shape::SCALAR);
    b.cast(most, DType::I32)
}

fn bf16s(b: &mut Builder, x: ValueId, at: [ValueId; 2]) -> ValueId {
    b.load(x, &at, Shape::new(&[64, 64]), None)
}

/// c = a·b in a loop of which the first operand is loaded so; what is found about it, for this chip.
fn fallbacks(sm: u32, access: Access, facts: fn(&mut Kernel), load: Load) -> Vec<String> {
    let k = built("product", |b| {
        let (x, y) = (view(b, "x", DType::BF16, 2, access), view(b, "y", DType::BF16, 2, Access::Read));
        let out = view(b, "out", DType::F32, 2, Access::Write);
        let (zero, depth) = (b.i32(0), b.dim(y, 0));
        let acc = b.splat(DType::F32, Shape::new(&[64, 64]), 0.0);
        let sum = kernels::for_loop(b, depth, 64, &[acc], |b, i, c| {
            b.loc = Loc { file: "product.rs", line: 7, column: 1 };
            let p = load(b, x, [zero, i]);
            b.loc.line = 8;
            let q = b.load(y, &[i, zero], Shape::new(&[64, 64]), None);
            vec![b.dot(p, q, c[0], Precision::F32)]
        });
        b.store(out, sum[0], &[zero, zero]);
    });
    let mut k = kernels::contiguous(k);
    facts(&mut k);
    said(k, sm)
}

fn said(mut k: Kernel, sm: u32) -> Vec<String> {
    crate::passes::optimize(&mut k);
    let lowered = llvm_text(&k, Target { sm }).unwrap_or_else(|e| panic!("{e}"));
    found(&lowered.findings, Lint::Fallback).iter().map(|f| f.to_string()).collect()
}

/// A load that a product takes and that runs ahead by a slower way, or not at all: the finding stands there and says why.
#[test]
fn loads_that_are_no_bulk_copies_say_why() {
    let narrowed: Load = |b, x, [row, column]| {
        let n = b.i32(48);
        let x = b.view_narrow(x, 0, row, n);
        bf16s(b, x, [row, column])
    };
    let from_outside: Load = |b, x, [row, column]| {
        let other = b.splat(DType::BF16, Shape::SCALAR, 1.0);
        b.load(x, &[row, column], Shape::new(&[64, 64]), Some(other))
    };
    let computed: Load = |b, x, at| {
        let row = computed_row(b, x, at);
        bf16s(b, x, [row, at[1]])
    };
    let in_a_branch: Load = |b, x, at| {
        let ty = Type::Tile(DType::BF16, Shape::new(&[64, 64]));
        let row = computed_row(b, x, at);
        let here = b.compare(CmpOp::Eq, row, at[0]);
        let branches = [at[0], at[1]].map(|row| {
            let (region, _) = b.open(&[]);
            let tile = bf16s(b, x, [row, at[1]]);
            b.close(&[tile]);
            region
        });
        let op = b.emit_with_regions(OpKind::If, &[here], &[ty], &branches);
        b.results(op)[0]
    };
    let none: fn(&mut Kernel) = |_| {};
    let cases: [(&str, Access, fn(&mut Kernel), Load, &str); 7] = [
        ("as it should be", Access::Read, none, bf16s, ""),
        ("narrowed", Access::Read, none, narrowed, "runs ahead by cp.async, not as a bulk copy: its view was narrowed"),
        ("other", Access::Read, none, from_outside, "does not run ahead: it has an `other` value"),
        (
            "of an unknown address",
            Access::Read,
            |k| k.facts[0] = Fact::Unknown,
            bf16s,
            "does not run ahead: its address or a stride is not known to be a multiple of 16 bytes",
        ),
        (
            "of an unknown last stride",
            Access::Read,
            |k| k.facts[4] = Fact::Unknown,
            bf16s,
            "does not run ahead: its last dimension is not known to be contiguous",
        ),
        (
            "of a row that is computed",
            Access::Read,
            none,
            computed,
            "does not run ahead: a coordinate is not a scalar that the producer can compute",
        ),
        ("written to", Access::Write, none, bf16s, "does not run ahead: the kernel may write to its parameter"),
    ];
    for (name, access, facts, load, why) in cases {
        let expected =
            if why.is_empty() { vec![] } else { vec![format!("product.rs:7:1: fallback: bf16<64x64> {why}")] };
        assert_eq!(fallbacks(90, access, facts, load), expected, "{name}");
    }
    // No product takes a load as it is: nothing is said.
    assert_eq!(fallbacks(90, Access::Read, none, in_a_branch), Vec::<String>::new());
    // What came before Hopper has no bulk copies to fall back from.
    let unknown: fn(&mut Kernel) = |k| k.facts[0] = Fact::Unknown;
    let why = "does not run ahead: its rows are not known to consist of whole, aligned runs of 16 bytes";
    assert_eq!(fallbacks(80, Access::Read, none, narrowed), Vec::<String>::new());
    assert_eq!(fallbacks(80, Access::Read, unknown, bf16s), [format!("product.rs:7:1: fallback: bf16<64x64> {why}")]);
}

/// Where a load stands says as much: loops that the producer cannot walk, branches, waits, meetings.
#[test]
fn places_where_loads_do_not_run_ahead() {
    const PRODUCT: &str = "%p: T<64x64> = load %x[%zero, %i]
        %q: T<64x64> = load %y[%i, %zero]
        %next: f32<64x64> = dot tf32 %p, %q, %sums";
    const LOOP: &str = "%depth: i32 = dim 0 %y
        %sum: f32<64x64> = for %i: i32 = %zero to %depth step %step carrying (%sums: f32<64x64> = %none) {
          PRODUCT
          yield %next
        }";
    let outside = PRODUCT.replace("%next", "%sum").replace("%sums", "%none").replace("%i", "%zero");
    let branch = "%first: bool = eq %i, %zero
        %next: f32<64x64> = if %first { PRODUCT yield %in } else { yield %sums }";
    let branch = branch.replace("PRODUCT", &PRODUCT.replace("%next", "%in"));
    let said = |sm: u32, dtype: &str, statements: &str| {
        let text = format!(
            "kernel product(%x: view<T,2>, %y: view<T,2>, %n: write view<i32,1>, %out: write view<f32,2>) {{
              %zero: i32 = const 0
              %step: i32 = const 64
              %none: f32<64x64> = const 0.0
              {}
              store %out[%zero, %zero], %sum
              yield
            }}",
            statements.replace("PRODUCT", PRODUCT)
        );
        let text = text.replace("T<", &format!("{dtype}<")).replace("<T", &format!("<{dtype}"));
        let k = crate::ir::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        crate::ir::verify(&k).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let found = said(kernels::contiguous(k), sm).into_iter();
        found.map(|f| f.split_once("fallback: ").expect("only these").1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(said(90, "bf16", LOOP), Vec::<String>::new());
    assert_eq!(said(90, "bf16", &outside), Vec::<String>::new());
    let bound = LOOP.replace("dim 0 %y", "gather %n[%zero]");
    assert_eq!(
        said(90, "bf16", &bound),
        ["bf16<64x64> runs ahead by cp.async, not as a bulk copy: the producer cannot compute a loop's bounds or a \
             condition around it"]
    );
    assert_eq!(
        said(90, "bf16", &LOOP.replace("PRODUCT", &branch)),
        ["bf16<64x64> does not run ahead: it does not stand in a `for` itself"]
    );
    let narrowed =
        format!("%part: view<bf16,2> = view_narrow 0 %x, %zero, %step\n {}", outside.replace("%x[", "%part["));
    assert_eq!(said(90, "bf16", &narrowed), ["bf16<64x64> is no bulk copy: its view was narrowed"]);
    assert_eq!(
        said(90, "f32", LOOP)[1..],
        [
            "f32<64x64> runs ahead in slots of each thread's own: it is no matrix of 16-bit elements",
            "f32<64x64> does not run ahead: it is no matrix of 16-bit elements"
        ]
    );
    let waits = LOOP.replace("PRODUCT", "wait %n[%zero], %step\n PRODUCT");
    assert_eq!(
        said(80, "bf16", &waits),
        ["bf16<64x64> does not run ahead: what comes after a wait may not be read before"]
    );
    let meets = format!("grid_sync\n {LOOP}");
    assert_eq!(said(90, "bf16", &meets), ["no bulk copies: the producer cannot come to where programs meet"]);
}
