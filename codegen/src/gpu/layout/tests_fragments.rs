//! Fragments of products, and what lanes do for one another, checked element by element against their definitions.

use super::test_support::Rng;
use super::*;
use crate::ir::Shape;

/// One operand's element in a `mma.sync` fragment: of lane `lane` the word `word` and the part `part` of it. The row of A
/// or the column of B, and K: the PTX manual's tables.
fn hardware(operand: Operand, per_word: u32, lane: u32, word: u32, part: u32) -> (u32, u32) {
    let (group, t) = (lane / 4, lane % 4);
    let half = 4 * per_word;
    match operand {
        Operand::A => (group + 8 * (word & 1), t * per_word + part + half * (word >> 1)),
        Operand::B => (group, t * per_word + part + half * word),
    }
}

/// For each register of an operand: which fragment along K and along the other axis, and (word, part) in it.
fn places(operand: Operand, per_word: u32, registers: u32, fragments: u32) -> Vec<(u32, u32, u32, u32)> {
    let words = if operand == Operand::A { 4 } else { 2 };
    let each = words * per_word;
    (0..registers).map(|r| (r / each % fragments, r / each / fragments, r % each / per_word, r % per_word)).collect()
}

/// Whether layouts of A, B and the accumulator describe products: computes every fragment with the indices that the
/// layouts give for the places that the hardware joins, and counts which k each sum has seen.
fn describe_products(a: &LinearLayout, b: &LinearLayout, acc: &LinearLayout, elem_bytes: usize) {
    let per_word = 4 / elem_bytes as u32;
    let rank = acc.shape().rank();
    let depth = a.shape().dim(rank - 1) as u32;
    let fragments = depth / (8 * per_word);
    // (matrix, index along `axis` of the last two, the other)
    let at = |l: &LinearLayout, r: u32, lane: u32, warp: u32| {
        let c = coords(l.shape(), l.flat(r, lane, warp));
        (if rank == 3 { c[0] } else { 0 }, c[rank - 2], c[rank - 1])
    };
    let batch = acc.registers() as u32 / {
        let first = if rank == 3 { acc.axis_bases(Level::Register, 0) } else { vec![] };
        let batch = first.iter().fold(1u32, |n, &b| n << u32::from(b != 0));
        acc.registers() as u32 / batch
    };
    for warp in 0..acc.warps() as u32 {
        // [fragment along M or N, over all matrices][fragment along K][row or column][K]
        let gather = |l: &LinearLayout, operand| {
            let mut found = std::collections::HashMap::new();
            for (r, (k, other, word, part)) in
                places(operand, per_word, l.registers() as u32, fragments).into_iter().enumerate()
            {
                for lane in 0..32 {
                    let (row, depth) = hardware(operand, per_word, lane, word, part);
                    let previous = found.insert((other, k, row, depth), at(l, r as u32, lane, warp));
                    assert_eq!(previous, None);
                }
            }
            found
        };
        let (left, right) = (gather(a, Operand::A), gather(b, Operand::B));
        let [m, n] = [(a, 4), (b, 2)].map(|(l, words)| l.registers() as u32 / (words * per_word * fragments * batch));
        assert_eq!(acc.registers() as u32, 4 * m * n * batch);
        for r in 0..acc.registers() as u32 {
            let (fragment, i) = (r / 4, r % 4);
            let (matrix, row, column) = (fragment / (m * n), fragment / n % m, fragment % n);
            for lane in 0..32 {
                let (x, y) = (lane / 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1));
                let want = at(acc, r, lane, warp);
                let mut seen = vec![false; depth as usize];
                for (k, d) in (0..fragments).flat_map(|k| (0..8 * per_word).map(move |d| (k, d))) {
                    let p = left[&(matrix * m + row, k, x, d)];
                    let q = right[&(matrix * n + column, k, y, d)];
                    assert_eq!((p.0, q.0, p.1, q.2), (want.0, want.0, want.1, want.2), "{a} {b} {acc}");
                    assert_eq!(p.2, q.1, "K of A and of B: {a} {b}");
                    assert!(!std::mem::replace(&mut seen[p.2 as usize], true), "an index is counted twice");
                }
                assert!(seen.iter().all(|&s| s), "an index is missing");
            }
        }
    }
}

#[test]
fn fragments_describe_products() {
    for elem_bytes in [1, 2, 4] {
        let least = 32 / elem_bytes as u32;
        for (m, n, k, warps) in [
            (16, 8, least, [1, 1]),
            (16, 16, 2 * least, [1, 1]),
            (32, 16, 4 * least, [2, 1]),
            (32, 64, 8 * least, [2, 2]),
            (8, 4, 2 * least, [1, 1]),
            (16, 32, least, [1, 4]),
        ] {
            let matrix = |r, c| Shape::new(&[r, c]);
            let a = LinearLayout::mma_operand(matrix(m, k), Operand::A, elem_bytes, warps).unwrap();
            let b = LinearLayout::mma_operand(matrix(k, n), Operand::B, elem_bytes, warps).unwrap();
            let acc = LinearLayout::mma_accumulator(matrix(m, n), warps).unwrap();
            let (ra, rb) = (a.in_runs(Operand::A, elem_bytes), b.in_runs(Operand::B, elem_bytes));
            for (a, b) in [(&a, &b), (&ra, &rb)] {
                describe_products(a, b, &acc, elem_bytes);
                for (batch, apart) in [(1, 1), (2, 1), (2, 2), (8, 4), (4, 1)] {
                    let [a, b, acc] = [a, b, &acc].map(|l| l.batched(batch, apart).unwrap());
                    assert_eq!(acc.warps(), warps[0] * warps[1] * apart);
                    describe_products(&a, &b, &acc, elem_bytes);
                }
            }
            // Threads hold up to 16 bytes in a row along K.
            let run = (k as usize * elem_bytes / 4).min(16) / elem_bytes;
            assert_eq!(ra.vectorise(1, 16).width, run, "{ra}");
            assert_eq!(rb.transpose(&[1, 0]).vectorise(1, 16).width, run, "{rb}");
        }
    }
}

#[test]
fn batched_layouts_hold_one_matrix_after_the_other() {
    let inner = LinearLayout::mma_accumulator(Shape::new(&[16, 16]), [1, 1]).unwrap();
    let l = inner.batched(8, 4).unwrap();
    let (registers, warps) = (inner.registers() as u32, inner.warps() as u32);
    assert_eq!(
        (l.registers() as u32, l.warps() as u32, l.shape().dims()),
        (2 * registers, 4 * warps, &[8, 16, 16][..])
    );
    for (r, t, w) in (0..2 * registers).flat_map(|r| (0..32).flat_map(move |t| (0..4).map(move |w| (r, t, w)))) {
        let c = coords(l.shape(), l.flat(r, t, w));
        let matrix = w + 4 * (r / registers);
        assert_eq!(matrix * 256 + inner.flat(r % registers, t, 0), flat(l.shape(), &[c[0], c[1], c[2]]));
    }
    // More warps than matrices hold copies.
    assert_eq!(inner.batched(2, 4).unwrap().redundant().warp, 2);
    assert!(inner.batched(3, 1).is_err() && inner.batched(4, 3).is_err());
}

/// Against the PTX manual: thread t receives elements 2(t mod 4) and 2(t mod 4) + 1 of row t / 4 of the transposed matrix,
/// and gave those of the matrix.
#[test]
fn transpositions_are_movmatrix() {
    let mut rng = Rng::new(31);
    let mut found = 0;
    let mut check = |l: &LinearLayout| {
        for pair in 0..l.bases(Level::Register).len() {
            let Some(after) = l.transposed_within_warps(pair) else { continue };
            found += 1;
            assert_eq!((after.registers(), after.warps(), after.shape()), (l.registers(), l.warps(), l.shape()));
            for warp in 0..l.warps() as u32 {
                for low in (0..l.registers() as u32).filter(|r| r >> pair & 1 == 0) {
                    let matrix = |l: &LinearLayout, row: u32, column: u32| {
                        l.flat(low | (column % 2) << pair, 4 * row + column / 2, warp)
                    };
                    for (row, column) in (0..8).flat_map(|r| (0..8).map(move |c| (r, c))) {
                        assert_eq!(matrix(&after, row, column), matrix(l, column, row), "{l}, {pair}");
                    }
                }
            }
        }
    };
    for (m, n, warps) in [(16, 16, [1, 1]), (64, 32, [4, 1]), (32, 64, [2, 2]), (8, 8, [1, 1])] {
        let acc = LinearLayout::mma_accumulator(Shape::new(&[m, n]), warps).unwrap();
        check(&acc);
        check(&acc.transpose(&[1, 0]));
        check(&acc.batched(4, 2).unwrap());
    }
    // Registers in any order, and rows of the matrices anywhere.
    let acc = LinearLayout::mma_accumulator(Shape::new(&[32, 64]), [2, 2]).unwrap();
    for _ in 0..100 {
        let [mut register, mut lane, warp, block] = Level::ALL.map(|l| acc.bases(l).to_vec());
        for i in (1..register.len()).rev() {
            register.swap(i, rng.below(i as u32 + 1) as usize);
        }
        lane[2 + rng.below(3) as usize] ^= register[rng.below(register.len() as u32) as usize];
        check(&LinearLayout::new(*acc.shape(), register, lane, warp, block).unwrap());
    }
    assert!(found > 100, "{found}");
}

/// The accumulator of a product, narrowed, becomes the second operand of the next without shared memory.
#[test]
fn an_accumulator_becomes_a_second_operand_within_warps() {
    for batch in [1, 2, 4, 8] {
        for (k, n) in [(16, 16), (32, 16), (64, 32)] {
            let shape = Shape::new(&[k, n]);
            let acc = LinearLayout::mma_accumulator(shape, [1, 1]).unwrap().batched(batch, batch.min(4)).unwrap();
            let b = LinearLayout::mma_operand(shape, Operand::B, 2, [1, 1]).unwrap();
            let b = b.batched(batch, batch.min(4)).unwrap();
            let plan = super::convert_tests::check_conversion(&acc, &b, 2);
            let Conversion::Transpose { then, .. } = plan else { panic!("{plan:?}") };
            assert!(matches!(*then, Conversion::Identity | Conversion::Registers(_)), "{then:?}");
        }
    }
}

/// Every thread that reads what its plan says holds the box's element that the layout says.
#[test]
fn slices_read_the_right_lanes() {
    let mut rng = Rng::new(32);
    let mut found = [0; 2];
    for _ in 0..6000 {
        let shape = rng.shape(10);
        let warp_bits = rng.below(2) as usize;
        let l = rng.layout(shape, warp_bits);
        let mut dims = vec![];
        let mut offsets = vec![];
        for &d in shape.dims() {
            let part = d >> rng.below(d.ilog2() + 1);
            dims.push(part);
            offsets.push(part * rng.below(d / part));
        }
        let part = Shape::new(&dims);
        let Some(map) = l.slice_within_warps(&offsets, part) else { continue };
        found[usize::from(map.mask != 0)] += 1;
        assert_eq!((map.layout.shape(), map.layout.warps()), (&part, l.warps()));
        assert_eq!(map.registers.len(), map.layout.registers());
        assert_eq!(map.lane & !map.mask, 0, "the lane's other bits stay");
        for (warp, lane) in (0..l.warps() as u32).flat_map(|w| (0..32).map(move |t| (w, t))) {
            for (r, &from) in map.registers.iter().enumerate() {
                let got = coords(&shape, l.flat(from, lane & !map.mask | map.lane, warp));
                let want = coords(&part, map.layout.flat(r as u32, lane, warp));
                let moved = (0..shape.rank()).all(|a| got[a] == want[a] + offsets[a]);
                assert!(moved, "{l}: {part} at {offsets:?}, register {r} of lane {lane}: {map:?}");
            }
        }
    }
    assert!(found[0] > 100 && found[1] > 100, "{found:?}");
    // Rows of an accumulator.
    let acc = LinearLayout::mma_accumulator(Shape::new(&[16, 32]), [1, 1]).unwrap();
    assert!((0..16).all(|row| acc.slice_within_warps(&[row, 0], Shape::new(&[1, 32])).is_some()));
    // Of rows in other warps nothing can be read.
    let apart = LinearLayout::mma_accumulator(Shape::new(&[64, 32]), [4, 1]).unwrap();
    assert_eq!(apart.slice_within_warps(&[16, 0], Shape::new(&[16, 32])), None);
}
