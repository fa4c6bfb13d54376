//! Properties of layouts against enumeration of every place.

use super::test_support::Rng;
use super::*;
use crate::ir::Shape;

/// Every (place, flat coordinate) of a layout.
fn places(l: &LinearLayout) -> Vec<(Place, u32)> {
    (0..1u32 << l.map().in_bits()).map(|i| (l.place(i), l.map().apply(i))).collect()
}

#[test]
fn places_redundancy_and_inverse() {
    let mut rng = Rng::new(10);
    for _ in 0..300 {
        let shape = rng.shape(9);
        let l = rng.layout(shape, 2);
        let redundant = l.redundant();
        let mut held = vec![0; shape.numel()];
        let mut owned = vec![0; shape.numel()];
        for (p, x) in places(&l) {
            assert_eq!(l.flat_at(p), x);
            assert_eq!(l.place(l.index(p)), p);
            assert_eq!(flat(&shape, &coords(&shape, x)), x);
            held[x as usize] += 1;
            if Level::ALL.iter().all(|&v| p.get(v) & redundant.get(v) == 0) {
                owned[x as usize] += 1;
            }
        }
        assert!(held.iter().all(|&n| n == l.copies()), "{l}");
        assert!(owned.iter().all(|&n| n == 1), "{l}");
        let inverse = l.inverse();
        assert!((0..shape.numel() as u32).all(|x| l.map().apply(inverse.apply(x)) == x));

        let (compact, map) = l.compact_registers();
        assert_eq!(compact.redundant().register, 0);
        for (p, x) in places(&l) {
            assert_eq!(compact.flat_at(Place { register: map[p.register as usize], ..p }), x);
        }
        for axis in 0..shape.rank() {
            let sums = places(&l).iter().all(|(p, x)| {
                let (thread, register) = (l.flat(0, p.lane, p.warp), l.flat(p.register, 0, 0));
                let [whole, thread, register] = [*x, thread, register].map(|f| coords(&shape, f)[axis]);
                whole == thread + register
            });
            assert_eq!(l.registers_add(axis), sums, "{l}");
        }
        for level in Level::ALL {
            for axis in 0..shape.rank() {
                let terms = ShiftTerm::of(&l.axis_bases(level, axis));
                let map = F2Map::new(l.axis_bases(level, axis), 31);
                for x in 0..l.size(level) as u32 {
                    assert_eq!(terms.iter().fold(0, |v, t| v ^ t.apply(x)), map.apply(x));
                }
            }
        }
    }
}

#[test]
fn vectors_are_aligned_runs() {
    let mut rng = Rng::new(11);
    let mut wide = 0;
    for _ in 0..500 {
        let shape = rng.shape(10);
        let l = rng.layout(shape, 1);
        for axis in 0..shape.rank() {
            let v = l.vectorise(axis, 8);
            wide += usize::from(v.width > 1);
            let mut all: Vec<u32> = v.groups.concat();
            all.sort_unstable();
            assert_eq!(all, (0..l.registers() as u32).collect::<Vec<_>>());
            for (lane, warp, group) in (0..32)
                .flat_map(|l| (0..2).map(move |w| (l, w)))
                .flat_map(|(lane, w)| v.groups.iter().map(move |g| (lane, w, g)))
            {
                let first = l.apply(group[0], lane, warp);
                assert_eq!(first[axis] as usize % v.width, 0);
                for (j, &r) in group.iter().enumerate() {
                    let mut want = first;
                    want[axis] += j as u32;
                    assert_eq!(l.apply(r, lane, warp), want);
                }
            }
        }
    }
    assert!(wide > 50);
}

#[test]
fn blocked_is_a_box_of_boxes() {
    let l = LinearLayout::blocked(Shape::new(&[32, 64]), &[2, 4], &[8, 4], &[2, 2], &[1, 0]).unwrap();
    assert_eq!(l.registers(), 16);
    for (p, _) in places(&l) {
        let (r, t, w) = (p.register, p.lane, p.warp);
        let row = (w / 2 % 2) * 16 + (t / 4) * 2 + r / 4 % 2;
        let col = (w % 2) * 16 + (t % 4) * 4 + r % 4 + r / 8 * 32;
        assert_eq!(l.apply(r, t, w)[..2], [row, col]);
    }
    // A tile smaller than the block: copies, in lanes and warps only.
    let small = LinearLayout::blocked(Shape::new(&[4, 4]), &[1, 4], &[8, 4], &[2, 2], &[1, 0]).unwrap();
    assert_eq!(small.to_string(), "4x4 reg[(0,1) (0,2)] lane[(0,0) (0,0) (1,0) (2,0) (0,0)] warp[(0,0) (0,0)]");
}

#[test]
fn coalesced_fills_lanes_along_the_axis() {
    let l = LinearLayout::coalesced(Shape::new(&[16, 256]), 1, 8, 4).unwrap();
    assert_eq!(l.vectorise(1, 8).width, 8);
    assert_eq!(l.apply(0, 31, 0), [0, 248, 0, 0]);
    assert_eq!(l.apply(0, 0, 3), [3, 0, 0, 0]);
    // Threads come before vector width.
    assert_eq!(LinearLayout::coalesced(Shape::new(&[128]), 0, 8, 4).unwrap().registers(), 1);
    assert_eq!(LinearLayout::coalesced(Shape::SCALAR, 0, 1, 4).unwrap().copies(), 128);
}

/// The tables of the PTX manual, chapter "Matrix fragments", typed out.
#[test]
fn mma_fragments_follow_the_manual() {
    let c = LinearLayout::mma_accumulator(Shape::new(&[16, 8]), [1, 1]).unwrap();
    let a = LinearLayout::mma_operand(Shape::new(&[16, 16]), Operand::A, 2, [1, 1]).unwrap();
    let b = LinearLayout::mma_operand(Shape::new(&[16, 8]), Operand::B, 2, [1, 1]).unwrap();
    let a4 = LinearLayout::mma_operand(Shape::new(&[16, 8]), Operand::A, 4, [1, 1]).unwrap();
    let b4 = LinearLayout::mma_operand(Shape::new(&[8, 8]), Operand::B, 4, [1, 1]).unwrap();
    let a1 = LinearLayout::mma_operand(Shape::new(&[16, 32]), Operand::A, 1, [1, 1]).unwrap();
    let b1 = LinearLayout::mma_operand(Shape::new(&[32, 8]), Operand::B, 1, [1, 1]).unwrap();
    assert_eq!([c.registers(), a.registers(), b.registers()], [4, 8, 4]);
    assert_eq!([a4.registers(), b4.registers(), a1.registers(), b1.registers()], [4, 2, 16, 8]);
    for lane in 0..32 {
        let (group, thread) = (lane >> 2, lane % 4);
        for i in 0..4 {
            let row = if i < 2 { group } else { group + 8 };
            assert_eq!(c.apply(i, lane, 0)[..2], [row, thread * 2 + (i & 1)]);
        }
        for i in 0..8 {
            let row = if matches!(i, 0 | 1 | 4 | 5) { group } else { group + 8 };
            let col = if i < 4 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
            assert_eq!(a.apply(i, lane, 0)[..2], [row, col]);
        }
        for i in 0..4 {
            let row = if i < 2 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
            assert_eq!(b.apply(i, lane, 0)[..2], [row, group]);
        }
        for i in 0..4 {
            let row = if i == 0 || i == 2 { group } else { group + 8 };
            let col = if i < 2 { thread } else { thread + 4 };
            assert_eq!(a4.apply(i, lane, 0)[..2], [row, col]);
        }
        for i in 0..2 {
            assert_eq!(b4.apply(i, lane, 0)[..2], [if i == 0 { thread } else { thread + 4 }, group]);
        }
        for i in 0..16 {
            let row = if matches!(i, 0..4 | 8..12) { group } else { group + 8 };
            let col = if i < 8 { thread * 4 + (i & 3) } else { thread * 4 + (i & 3) + 16 };
            assert_eq!(a1.apply(i, lane, 0)[..2], [row, col]);
        }
        for i in 0..8 {
            let row = if i < 4 { thread * 4 + (i & 3) } else { thread * 4 + (i & 3) + 16 };
            assert_eq!(b1.apply(i, lane, 0)[..2], [row, group]);
        }
    }
}

/// Multiplying fragment by fragment, as the lowering does, gives the product of the matrices; also where M and N are
/// smaller than the fragment.
#[test]
fn fragments_multiply() {
    for (m, n, k, warps) in [(64, 32, 32, [2, 2]), (16, 64, 64, [1, 4]), (32, 16, 16, [4, 1]), (4, 4, 16, [2, 1])] {
        let c = LinearLayout::mma_accumulator(Shape::new(&[m, n]), warps).unwrap();
        let a = LinearLayout::mma_operand(Shape::new(&[m, k]), Operand::A, 2, warps).unwrap();
        let b = LinearLayout::mma_operand(Shape::new(&[k, n]), Operand::B, 2, warps).unwrap();
        let (steps, ms, ns) =
            (k as usize / 16, a.registers() / 8 / (k as usize / 16), b.registers() / 4 / (k as usize / 16));
        assert_eq!(c.registers(), ms * ns * 4);
        for warp in 0..c.warps() as u32 {
            for (im, inn) in (0..ms).flat_map(|i| (0..ns).map(move |j| (i, j))) {
                for (lane, r) in (0..32).flat_map(|l| (0..4).map(move |r| (l, r))) {
                    let [row, col, ..] = c.apply(((im * ns + inn) * 4 + r) as u32, lane, warp);
                    // Which k this element of the product sees, over all instructions.
                    let mut seen = vec![0; k as usize];
                    for s in 0..steps {
                        for (l2, r2) in (0..32).flat_map(|l| (0..8).map(move |r| (l, r))) {
                            // The instruction pairs A's fragment row (its place) with C's: same group, same half.
                            if l2 >> 2 != lane >> 2 || (r2 >> 1 & 1) != (r >> 1 & 1) {
                                continue;
                            }
                            let [arow, ak, ..] = a.apply(((im * steps + s) * 8 + r2) as u32, l2, warp);
                            assert_eq!(arow, row);
                            // B's place with the same k and C's column.
                            let l3 = ((lane & 3) * 2 + (r as u32 & 1)) * 4 + (l2 & 3);
                            let r3 = (r2 & 1) + (r2 >> 2) * 2;
                            let [bk, bcol, ..] = b.apply(((inn * steps + s) * 4 + r3) as u32, l3, warp);
                            assert_eq!((bk, bcol), (ak, col));
                            seen[ak as usize] += 1;
                        }
                    }
                    assert!(seen.iter().all(|&x| x == 1));
                }
            }
        }
    }
}

#[test]
fn wgmma_accumulator_follows_the_manual() {
    let l = LinearLayout::wgmma_accumulator(Shape::new(&[128, 256]), 128, [2, 1]).unwrap();
    for warp in 0..8u32 {
        for lane in 0..32 {
            for i in 0..128u32 {
                let row = 16 * (warp % 4) + lane / 4 + 8 * (i % 4 / 2);
                let col = 8 * (i / 4) + lane % 4 * 2 + i % 2;
                assert_eq!(l.apply(i % 64, lane, warp)[..2], [row + 64 * (warp / 4), col % 128]);
                if i >= 64 {
                    assert_eq!(l.apply(i, lane, warp)[1], col);
                }
            }
        }
    }
    let a = LinearLayout::wgmma_operand_a(Shape::new(&[64, 16]), 2, [1, 2]).unwrap();
    assert_eq!(a.apply(7, 5, 6)[..2], [16 * 2 + 1 + 8, 2 + 1 + 8]);
}

#[test]
fn shape_operations_move_no_data() {
    let mut rng = Rng::new(12);
    for _ in 0..400 {
        let shape = rng.shape(9);
        let l = rng.layout(shape, 1);
        let rank = shape.rank();
        let perm: Vec<u8> = {
            let mut p: Vec<u8> = (0..rank as u8).collect();
            p.rotate_left(rng.below(rank as u32) as usize);
            p
        };
        let t = l.transpose(&perm);
        assert_eq!(t.transpose_source(&perm), l);
        for (p, x) in places(&l) {
            let (c, d) = (coords(&shape, x), coords(t.shape(), t.flat_at(p)));
            assert!((0..rank).all(|i| d[i] == c[perm[i] as usize]));
        }

        let flat_shape = Shape::new(&[shape.numel() as u32]);
        assert!(places(&l.reshape(flat_shape).unwrap()).iter().zip(places(&l)).all(|(a, b)| *a == b));

        // Broadcasting: an operand with some extents 1.
        let dims: Vec<u32> = shape.dims().iter().map(|&d| if rng.below(2) == 0 { 1 } else { d }).collect();
        let operand = Shape::new(&dims);
        let source = l.broadcast_source(operand).unwrap();
        for (p, x) in places(&l) {
            let (c, d) = (coords(&shape, x), coords(&operand, source.flat_at(p)));
            assert!((0..rank).all(|i| d[i] == if dims[i] == 1 { 0 } else { c[i] }));
        }
        let narrow = rng.layout(operand, 1);
        let wide = narrow.broadcast(shape).unwrap();
        for (p, x) in places(&wide) {
            let (c, r) = (coords(&shape, x), p.register % narrow.registers() as u32);
            let d = coords(&operand, narrow.flat_at(Place { register: r, ..p }));
            assert!((0..rank).all(|i| d[i] == if dims[i] == 1 { 0 } else { c[i] }));
        }

        // Slices, both ways.
        let dims: Vec<u32> = shape.dims().iter().map(|&d| 1 + rng.below(d)).map(|d| 1 << d.ilog2()).collect();
        let part = Shape::new(&dims);
        let offsets: Vec<u32> = (0..rank).map(|i| rng.below(shape.dims()[i] / dims[i]) * dims[i]).collect();
        let check = |whole: &LinearLayout, slice: &LinearLayout, registers: &[u32]| {
            for (p, x) in places(slice) {
                let c = coords(&part, x);
                let d = coords(&shape, whole.flat_at(Place { register: registers[p.register as usize], ..p }));
                assert!((0..rank).all(|i| d[i] == c[i] + offsets[i]), "{whole} to {slice}");
            }
        };
        if let Some(s) = l.slice(&offsets, part) {
            check(&l, &s.layout, &s.registers);
        }
        let piece = rng.layout(part, 1);
        let s = piece.slice_source(&offsets, shape);
        check(&s.layout, &piece, &s.registers);
        assert!(s.layout.slice(&offsets, part).is_some());

        // Join, both ways.
        let axis = rng.below(rank as u32) as usize;
        let joined = l.join(axis);
        let back = joined.join_source(axis).unwrap();
        assert_eq!(back.layout.shape(), &shape);
        for candidate in [joined, rng.layout(shape.with(axis, shape.dims()[axis] * 2), 1)] {
            let Some(back) = candidate.join_source(axis) else { continue };
            for (p, x) in places(&candidate) {
                let (operand, register) = back.registers[p.register as usize];
                let c = coords(candidate.shape(), x);
                let d = coords(&shape, back.layout.flat_at(Place { register, ..p }));
                assert_eq!(u32::from(operand), c[axis] / shape.dims()[axis]);
                assert!((0..rank).all(|i| d[i] == if i == axis { c[i] % shape.dims()[i] } else { c[i] }));
            }
        }
    }
}

#[test]
fn reductions_leave_results_in_place() {
    let mut rng = Rng::new(13);
    for _ in 0..300 {
        let shape = rng.shape(8);
        let axis = rng.below(shape.rank() as u32) as usize;
        let l = rng.layout(shape, 2);
        let sliced = l.reduce(axis);
        assert_eq!((sliced.shape(), sliced.redundant().register), (&shape.without(axis), 0));
        // Every thread has the result of every element that it had.
        for (p, x) in places(&l) {
            let mut c = coords(&shape, x)[..shape.rank()].to_vec();
            c.remove(axis);
            let mut registers = 0..sliced.registers() as u32;
            assert!(registers.any(|r| sliced.apply(r, p.lane, p.warp)[..c.len()] == c), "{l} along {axis}");
        }
        let back = sliced.reduce_source(axis, shape.dims()[axis]).unwrap();
        assert_eq!((back.shape(), back.reduce(axis)), (&shape, sliced));
    }
}

#[test]
fn products_are_block_diagonal() {
    let mut rng = Rng::new(14);
    for _ in 0..100 {
        let draw = |rng: &mut Rng| Shape::new(&[1 << rng.below(3), 1 << rng.below(3)]);
        let (s, t) = (draw(&mut rng), draw(&mut rng));
        let a = LinearLayout::new(s, (0..s.numel().trailing_zeros()).map(|i| 1 << i).collect(), vec![], vec![], vec![])
            .unwrap();
        let b = rng.layout(t, 1);
        let p = a.product(&b).unwrap();
        for (place, x) in places(&p) {
            let inner = coords(&s, a.flat(place.register % a.registers() as u32, 0, 0));
            let outer = coords(&t, b.flat_at(Place { register: place.register / a.registers() as u32, ..place }));
            let c = coords(p.shape(), x);
            assert!((0..2).all(|i| c[i] == inner[i] + outer[i] * s.dims()[i]));
        }
    }
}

#[test]
fn wrong_requests_are_errors() {
    let odd = LinearLayout::coalesced(Shape::new(&[3, 4]), 1, 1, 1).unwrap_err();
    assert_eq!(odd.to_string(), "extents of a distributed tile must be powers of two, found 3x4");
    let hole = LinearLayout::new(Shape::new(&[4]), vec![1], vec![], vec![], vec![]).unwrap_err();
    assert_eq!(hole.to_string(), "the layout leaves elements of the 4 tile unassigned");
    assert!(LinearLayout::new(Shape::new(&[4]), vec![1, 4], vec![], vec![], vec![]).is_err());
    let k = LinearLayout::mma_operand(Shape::new(&[16, 8]), Operand::A, 2, [1, 1]).unwrap_err();
    assert_eq!(k.to_string(), "this matrix product needs K of at least 16, found 8");
    assert!(LinearLayout::wgmma_accumulator(Shape::new(&[32, 64]), 64, [1, 1]).is_err());
}
