//! Properties of the layouts that kernels are given.

use super::Chip;
use super::assign::{Assignment, assign, operand_layout};
use super::layout::{Conversion, Level, LinearLayout, Place, check_conversion, coords};
use super::suitable::{axis_bits, in_order_layout};
use crate::ir::{Access, Builder, Combine, DType, Kernel, Loc, OpKind, Precision, Shape, Type, ValueId};

/// softmax(a · b) · c and its row sums, transposed, sliced and joined on the way: m×k by k×n by n×k.
fn chain(m: u32, n: u32, k: u32, dtype: DType) -> Kernel {
    let mut b = Builder::new("chain", Loc::caller());
    let mut view = |name: &str, d, rank, access| b.kernel_mut().add_param(name, Type::View(d, rank), access, None);
    let (x, y, z) =
        (view("a", dtype, 2, Access::Read), view("b", dtype, 2, Access::Read), view("c", dtype, 2, Access::Read));
    let (out, sums) = (view("out", DType::F32, 2, Access::Write), view("sums", DType::F32, 1, Access::Write));
    let zero = b.i32(0);
    let p = b.load(x, &[zero, zero], Shape::new(&[m, k]), None);
    let q = b.load(y, &[zero, zero], Shape::new(&[n, k]), None);
    let q = b.transpose(q, &[1, 0]);
    let r = b.load(z, &[zero, zero], Shape::new(&[n, k]), None);
    let acc = b.splat(DType::F32, Shape::new(&[m, n]), 0.0);
    let s = b.dot(p, q, acc, Precision::Tf32);
    let top = b.reduce(s, 1, Combine::Max);
    let top = b.reshape(top, Shape::new(&[m, 1]));
    let top = b.broadcast(top, Shape::new(&[m, n]));
    let e = b.binary(crate::ir::BinaryOp::Sub, s, top);
    let sum = b.reduce(e, 1, Combine::Sum);
    b.store(sums, sum, &[zero]);
    let e = b.cast(e, dtype);
    let (left, right) =
        (b.slice(e, &[0, 0], Shape::new(&[m, n / 2])), b.slice(e, &[0, n / 2], Shape::new(&[m, n / 2])));
    let e = b.join(right, left, 1);
    let acc = b.splat(DType::F32, Shape::new(&[m, k]), 0.0);
    let o = b.dot(e, r, acc, Precision::Tf32);
    let o = b.scan(o, 0, Combine::Sum, false);
    b.store(out, o, &[zero, zero]);
    b.finish()
}

fn values(k: &Kernel) -> impl Iterator<Item = (ValueId, DType, Shape)> {
    (0..k.values.len() as u32).map(ValueId).filter_map(|v| match k.ty(v) {
        Type::Tile(d, s) if s.rank() > 0 => Some((v, d, s)),
        _ => None,
    })
}

/// Each index bit along `axis` is counted by exactly one hardware bit, and that bit moves nothing else.
fn assert_counted(layout: &LinearLayout, axis: usize, bits: &[(Level, usize)]) {
    let shape = layout.shape();
    assert_eq!(1 << bits.len(), shape.dim(axis));
    for (k, &(level, bit)) in bits.iter().enumerate() {
        let mut step = Place::default();
        match level {
            Level::Register => step.register = 1 << bit,
            Level::Lane => step.lane = 1 << bit,
            Level::Warp => step.warp = 1 << bit,
            Level::Block => step.block = 1 << bit,
        }
        let c = coords(shape, layout.flat_at(step));
        assert!((0..shape.rank()).all(|a| c[a] == if a == axis { 1 << k } else { 0 }), "{layout}");
    }
}

#[test]
fn layouts_for_an_axis_count_it_with_one_bit_each() {
    for dims in [&[1u32] as &[u32], &[2], &[4096], &[1, 512], &[64, 64], &[512, 2], &[8, 2, 128], &[2, 64, 1, 16]] {
        let shape = Shape::new(dims);
        for (axis, warps) in (0..shape.rank()).flat_map(|a| [1, 4, 8].map(|w| (a, w))) {
            let l = in_order_layout(shape, axis, warps);
            assert_eq!((l.size(Level::Lane), l.warps()), (32, warps));
            let bits = axis_bits(&l, axis).expect("made for the axis");
            assert_counted(&l, axis, &bits);
            assert!(bits.is_sorted(), "{l}: registers, then lanes, then warps");
            for memory_axis in 0..shape.rank() {
                let l = LinearLayout::coalesced(shape, memory_axis, 4, warps).unwrap();
                assert_counted(&l, axis, &axis_bits(&l, axis).expect("every bit steps once"));
            }
        }
    }
}

#[test]
fn assigned_layouts_fit_and_convert() {
    for (m, n, k, dtype) in
        [(8, 64, 32, DType::BF16), (1, 16, 64, DType::F16), (64, 64, 64, DType::BF16), (128, 32, 32, DType::F32)]
    {
        let kernel = chain(m, n, k, dtype);
        crate::ir::verify(&kernel).unwrap();
        let plan: Assignment =
            assign(&kernel, Chip { warpgroups: false, shared_bytes: 163 << 10, ring_bytes: 160 << 10 });
        assert!(plan.dots.values().all(|d| d.is_mma()));
        let mut conversions = 0;
        for (v, dtype, shape) in values(&kernel) {
            for l in &plan.versions[v.index()] {
                assert_eq!((l.shape(), l.warps(), l.size(Level::Lane)), (&shape, plan.warps, 32), "{v:?}");
                let home = &plan.versions[v.index()][0];
                conversions += usize::from(check_conversion(home, l, dtype.size()) != Conversion::Identity);
            }
        }
        assert!(conversions > 0);
        for op in &kernel.ops {
            // What a pure operation needs exists, and comes from its operand's home.
            let moves = matches!(
                op.kind,
                OpKind::Transpose { .. } | OpKind::Reshape | OpKind::Broadcast | OpKind::Slice { .. }
            );
            if let (true, [result]) = (moves, &op.results[..]) {
                for l in plan.versions[result.index()].iter().take(1) {
                    let need = operand_layout(&kernel, op, 0, l).expect("a tile");
                    assert!(plan.versions[op.operands[0].index()].contains(&need), "{:?}", op.kind);
                }
            }
            if let OpKind::Reduce { axis, .. } | OpKind::Scan { axis, .. } = op.kind {
                let id = kernel.defining_op(op.results[0]).expect("an operation's result");
                let l = &plan.work[&id];
                assert_counted(l, axis as usize, &axis_bits(l, axis as usize).expect("chosen for that"));
            }
        }
    }
}

#[test]
fn wide_and_narrow_loads_of_one_shape_lie_in_the_same_threads() {
    let mut b = Builder::new("scaled", Loc::caller());
    let mut view = |name: &str, d, access| b.kernel_mut().add_param(name, Type::View(d, 1), access, None);
    let (x, scale) = (view("x", DType::BF16, Access::Read), view("scale", DType::F32, Access::Read));
    let out = view("out", DType::BF16, Access::Write);
    let zero = b.i32(0);
    let shape = Shape::new(&[2048]);
    let (p, q) = (b.load(x, &[zero], shape, None), b.load(scale, &[zero], shape, None));
    let wide = b.cast(p, DType::F32);
    let y = b.binary(crate::ir::BinaryOp::Mul, wide, q);
    let y = b.cast(y, DType::BF16);
    b.store(out, y, &[zero]);
    let mut k = b.finish();
    // Addresses and extents are multiples of 16, strides are 1.
    k.facts = (0..9).map(|i| if i % 3 == 2 { crate::ir::Fact::One } else { crate::ir::Fact::Multiple16 }).collect();
    let plan = assign(&k, Chip { warpgroups: false, shared_bytes: 163 << 10, ring_bytes: 0 });
    assert_eq!(plan.home[p.index()], plan.home[q.index()]);
    assert_eq!(plan.home[q.index()].as_ref().unwrap().vectorise(0, 8).width, 8);
    assert!(plan.versions.iter().all(|v| v.len() <= 1), "nothing is converted");
}

/// As a matrix does that is computed from a load, copies of one let a product's operands lie as they are read.
#[test]
fn operands_beside_copies_of_a_matrix_stay_where_they_are_read() {
    let mut b = Builder::new("copies", Loc::caller());
    let mut view = |name: &str, d, access| b.kernel_mut().add_param(name, Type::View(d, 3), access, None);
    let (x, y) = (view("x", DType::BF16, Access::Read), view("y", DType::BF16, Access::Read));
    let out = view("out", DType::F32, Access::Write);
    let (zero, matrices) = (b.i32(0), Shape::new(&[4, 16, 32]));
    let doubled = |b: &mut Builder, from, shape| {
        let loaded = b.load(from, &[zero; 3], shape, None);
        (loaded, b.binary(crate::ir::BinaryOp::Add, loaded, loaded))
    };
    let (loaded, rows) = doubled(&mut b, x, matrices);
    let (_, columns) = doubled(&mut b, y, Shape::new(&[1, 16, 32]));
    let columns = b.broadcast(columns, matrices);
    let columns = b.transpose(columns, &[0, 2, 1]);
    let acc = b.splat(DType::F32, Shape::new(&[4, 16, 16]), 0.0);
    let product = b.dot(rows, columns, acc, Precision::Tf32);
    b.store(out, product, &[zero; 3]);
    let mut k = b.finish();
    // Of each view the address, extents and strides, the last of which is 1.
    k.facts = (0..21).map(|i| if i % 7 == 6 { crate::ir::Fact::One } else { crate::ir::Fact::Multiple16 }).collect();
    crate::ir::verify(&k).unwrap();
    let plan = assign(&k, Chip { warpgroups: false, shared_bytes: 163 << 10, ring_bytes: 0 });
    assert_eq!(plan.versions[rows.index()].len(), 1, "{}", plan.dump());
    assert_eq!(plan.home[loaded.index()].as_ref().unwrap().vectorise(2, 8).width, 8);
}
