//! Plans executed on arrays: after any conversion every place holds the element that the destination's layout says.

use super::test_support::Rng;
use super::*;
use crate::ir::Shape;

const LANES: usize = 32;

/// values[warp][lane][register]: the flat coordinates of the elements.
type Values = Vec<Vec<Vec<u32>>>;

fn fill(l: &LinearLayout) -> Values {
    let registers = |w, t| (0..l.registers() as u32).map(|r| l.flat(r, t, w)).collect();
    (0..l.warps() as u32).map(|w| (0..LANES as u32).map(|t| registers(w, t)).collect()).collect()
}

fn map(v: &Values, f: impl Fn(&[u32]) -> Vec<u32>) -> Values {
    v.iter().map(|w| w.iter().map(|t| f(t)).collect()).collect()
}

fn shuffle(p: &ShufflePlan, v: &Values) -> Values {
    let mut out = vec![vec![vec![None; p.registers]; LANES]; v.len()];
    for round in &p.rounds {
        assert_eq!(round.moves.len(), p.packed);
        for (w, warp) in v.iter().enumerate() {
            for &(send, receive) in &round.moves {
                // What each lane offers is a function of that lane alone.
                let offered: Vec<u32> =
                    (0..LANES).map(|t| warp[t][(round.send.apply(t as u32, w as u32) ^ send) as usize]).collect();
                for t in 0..LANES as u32 {
                    let from = round.from.apply(t, w as u32) as usize;
                    let to = (round.receive.apply(t, w as u32) ^ receive) as usize;
                    assert_eq!(out[w][t as usize][to].replace(offered[from]), None, "written twice");
                }
            }
        }
    }
    let out: Values =
        out.into_iter().map(|w| w.into_iter().map(|t| t.into_iter().map(Option::unwrap).collect()).collect()).collect();
    map(&out, |t| p.copies.iter().map(|&r| t[r as usize]).collect())
}

fn through_scratch(p: &ScratchPlan, v: &Values, elem_bytes: usize) -> Values {
    let size = p.bytes / elem_bytes;
    // Where a lane's elements of an access are, and in which registers.
    let places = |side: &ScratchSide, a: &ScratchAccess, w: usize, t: usize| -> Vec<(usize, u32)> {
        let named = |t: usize| F2Map::new(side.thread.clone(), 31).apply((w * LANES + t) as u32) ^ a.offset;
        assert_eq!(a.registers.len(), side.width);
        let Some(transposed) = side.matrices else {
            let first = named(t) as usize;
            assert!(side.width * elem_bytes <= 16 && first.is_multiple_of(side.width));
            return a.registers.iter().enumerate().map(|(j, &r)| (first + j, r)).collect();
        };
        // `stmatrix`, `ldmatrix`: each lane's pairs are in rows that other lanes name.
        let place = |(i, &r): (usize, &u32)| {
            let (row, column) = (t / 4, 2 * (t % 4) + i % 2);
            let (row, column) = if transposed { (column, row) } else { (row, column) };
            let first = named(8 * (i / 2) + row);
            assert!(first.is_multiple_of(8), "rows are aligned");
            (first as usize + column, r)
        };
        a.registers.iter().enumerate().map(place).collect()
    };
    let mut out = vec![vec![vec![None; p.registers]; LANES]; v.len()];
    for pass in &p.passes {
        // (value, warp that wrote it)
        let mut memory: Vec<Option<(u32, usize)>> = vec![None; size];
        for (w, t) in (0..v.len()).flat_map(|w| (0..LANES).map(move |t| (w, t))) {
            if t as u32 & p.store.redundant_lanes != 0 || w as u32 & p.store.redundant_warps != 0 {
                continue;
            }
            for a in &pass.stores {
                for (at, r) in places(&p.store, a, w, t) {
                    assert_eq!(memory[at].replace((v[w][t][r as usize], w)), None, "stored twice");
                }
            }
        }
        for (w, t) in (0..v.len()).flat_map(|w| (0..LANES).map(move |t| (w, t))) {
            for a in &pass.loads {
                for (at, r) in places(&p.load, a, w, t) {
                    let (value, by) = memory[at].expect("loaded before stored");
                    assert!(!p.warp_local || by == w);
                    assert_eq!(out[w][t][r as usize].replace(value), None, "loaded twice");
                }
            }
        }
    }
    let out: Values =
        out.into_iter().map(|w| w.into_iter().map(|t| t.into_iter().map(Option::unwrap).collect()).collect()).collect();
    map(&out, |t| p.copies.iter().map(|&r| t[r as usize]).collect())
}

/// `movmatrix`, as the PTX manual has it: lane l holds elements 2(l mod 4) and 2(l mod 4) + 1 of row l / 4 of a matrix,
/// before, and of the transposed one after.
fn transpose(pair: usize, v: &Values) -> Values {
    let mut out = v.clone();
    for (warp, out) in v.iter().zip(&mut out) {
        for low in (0..warp[0].len()).filter(|r| r >> pair & 1 == 0) {
            let register = |column: usize| low | (column % 2) << pair;
            for (row, column) in (0..8).flat_map(|r| (0..8).map(move |c| (r, c))) {
                let from = warp[4 * row + column / 2][register(column)];
                out[4 * column + row / 2][register(row)] = from;
            }
        }
    }
    out
}

fn execute(plan: &Conversion, have: &Values, elem_bytes: usize) -> Values {
    match plan {
        Conversion::Identity => have.clone(),
        Conversion::Registers(from) => map(have, |t| from.iter().map(|&r| t[r as usize]).collect()),
        Conversion::Shuffle(p) => shuffle(p, have),
        Conversion::Transpose { pair, then } => {
            assert_eq!(elem_bytes, 2, "{plan:?}");
            execute(then, &transpose(*pair, have), elem_bytes)
        }
        Conversion::Shared(p) => through_scratch(p, have, elem_bytes),
    }
}

/// What of a plan goes through shared memory.
fn scratch_of(plan: &Conversion) -> Option<&ScratchPlan> {
    match plan {
        Conversion::Shared(p) => Some(p),
        Conversion::Transpose { then, .. } => scratch_of(then),
        _ => None,
    }
}

/// Plans, executes, compares; returns the plan.
fn check(src: &LinearLayout, dst: &LinearLayout, elem_bytes: usize, limit: usize) -> Conversion {
    let [plan, _] = [false, true].map(|by_matrices| {
        let plan = Conversion::plan_within(src, dst, elem_bytes, limit, by_matrices).unwrap();
        let (have, want) = (fill(src), fill(dst));
        let got = execute(&plan, &have, elem_bytes);
        assert_eq!(got, want, "{src} to {dst}: {plan:?}");
        if let Some(p) = scratch_of(&plan) {
            for warp in 0..src.warps() as u32 {
                for w in p.wavefronts(elem_bytes, warp) {
                    assert_eq!(w.conflicts(), 0, "bank conflicts: {src} to {dst}, {elem_bytes} bytes: {plan:?}");
                }
            }
        }
        plan
    });
    plan
}

/// Plans within the usual scratch memory, executes, compares.
pub(in crate::gpu) fn check_conversion(src: &LinearLayout, dst: &LinearLayout, elem_bytes: usize) -> Conversion {
    check(src, dst, elem_bytes, SCRATCH_BYTES)
}

#[test]
fn random_conversions_arrive_without_bank_conflicts() {
    let mut rng = Rng::new(20);
    let mut kinds = [0; 5];
    for round in 0..1200 {
        let shape = rng.shape(11);
        let warp_bits = rng.below(3) as usize;
        let (src, dst) = (rng.layout(shape, warp_bits), rng.layout(shape, warp_bits));
        let elem_bytes = 1 << rng.below(4);
        let limit = if round % 3 == 0 { 512 } else { SCRATCH_BYTES };
        kinds[match check(&src, &dst, elem_bytes, limit) {
            Conversion::Identity => 0,
            Conversion::Registers(_) => 1,
            Conversion::Shuffle(_) => 2,
            Conversion::Shared(_) => 3,
            Conversion::Transpose { .. } => 4,
        }] += 1;
    }
    assert!(kinds[1] > 10 && kinds[2] > 10 && kinds[3] > 200, "{kinds:?}");
}

/// Layouts that differ by an invertible map of the register and lane bits: always within reach of shuffles.
#[test]
fn conversions_within_a_warp_need_no_shared_memory() {
    let mut rng = Rng::new(21);
    for _ in 0..2000 {
        let shape = Shape::new(&[1 << rng.below(4), 64]);
        let warp_bits = 1;
        let bits = shape.numel().trailing_zeros();
        // A random basis of the coordinates, dealt to the levels twice.
        let mut span = Span::new();
        let mut basis: Vec<u32> = Vec::new();
        while basis.len() < bits as usize {
            let v = rng.below(1 << bits);
            if span.insert(v, 0) {
                basis.push(v);
            }
        }
        let warp = [basis.pop().unwrap()];
        let mut deal = |mut basis: Vec<u32>| {
            for _ in 0..40 {
                let (i, j) = (rng.below(basis.len() as u32) as usize, rng.below(basis.len() as u32) as usize);
                if i != j && rng.below(3) == 0 {
                    basis[i] ^= basis[j];
                } else {
                    basis.swap(i, j);
                }
            }
            let lane = basis.split_off(basis.len() - 5);
            // The warp's start may move within the warp's elements.
            let start = warp[0] ^ lane.iter().fold(0, |s, &b| if rng.below(2) == 0 { s } else { s ^ b });
            LinearLayout::new(shape, basis, lane, vec![start], vec![]).unwrap()
        };
        let (src, dst) = (deal(basis.clone()), deal(basis));
        assert_eq!(src.warps(), 1 << warp_bits);
        let plan = ShufflePlan::new(&src, &dst, 2).expect("a bijection within the warp");
        assert_eq!(shuffle(&plan, &fill(&src)), fill(&dst), "{src} to {dst}: {plan:?}");
        check(&src, &dst, 4, SCRATCH_BYTES);
    }
}

#[test]
fn the_layouts_of_a_product_convert() {
    let tile = Shape::new(&[64, 64]);
    let row = LinearLayout::coalesced(tile, 1, 8, 4).unwrap();
    let column = LinearLayout::coalesced(tile, 0, 8, 4).unwrap();
    let c = LinearLayout::mma_accumulator(tile, [4, 1]).unwrap();
    let a = LinearLayout::mma_operand(tile, Operand::A, 2, [4, 1]).unwrap();
    let b = LinearLayout::mma_operand(tile, Operand::B, 2, [2, 2]).unwrap();
    let w = LinearLayout::wgmma_accumulator(tile, 64, [1, 1]).unwrap();
    // An accumulator is the next product's operand without moving data: attention's P.
    assert!(matches!(check(&c, &a, 2, SCRATCH_BYTES), Conversion::Identity | Conversion::Registers(_)));
    assert!(matches!(check(&w, &c, 4, SCRATCH_BYTES), Conversion::Identity));
    for (src, dst) in [(&row, &a), (&row, &b), (&c, &row), (&row, &column), (&column, &row), (&w, &row), (&b, &column)]
    {
        for elem_bytes in [1, 2, 4, 8] {
            let plan = check(src, dst, elem_bytes, SCRATCH_BYTES);
            assert_eq!(scratch_of(&plan).expect("elements change warps").bytes, 4096 * elem_bytes, "{src} to {dst}");
            // Where both sides would like long runs, along different axes, words are put together first.
            let runs = [(&row, &column), (&column, &row)].contains(&(src, dst)) && elem_bytes == 2;
            let by_matrices =
                matches!(&plan, Conversion::Shared(p) if p.store.width == 8 && p.load.matrices == Some(true));
            assert!(!runs || by_matrices, "{src} to {dst}: {plan:?}");
            assert!(!matches!(plan, Conversion::Transpose { .. }), "{src} to {dst}: {plan:?}");
        }
    }
    // The epilogue of a matrix product: whole words, which matrices put into rows.
    let Conversion::Shared(p) = check(&c, &row, 2, SCRATCH_BYTES) else { panic!() };
    assert_eq!((p.store.width, p.load.width, p.load.matrices), (8, 8, Some(false)));
    // Where stores may, too, it is these that are matrices: the loads' words then are what the next stores take.
    let Ok(Conversion::Shared(p)) = Conversion::plan_within(&c, &row, 2, SCRATCH_BYTES, true) else { panic!() };
    assert_eq!((p.store.matrices, p.load.width, p.load.matrices), (Some(false), 8, None));
    // Rows become the second operand, whose words are pairs of a column.
    let Conversion::Shared(p) = check(&row, &b, 2, SCRATCH_BYTES) else { panic!() };
    assert_eq!((p.store.width, p.load.width, p.load.matrices), (8, 8, Some(true)));
    // A large accumulator goes in passes.
    let large = Shape::new(&[128, 256]);
    let w = LinearLayout::wgmma_accumulator(large, 256, [2, 1]).unwrap();
    let out = LinearLayout::coalesced(large, 1, 4, 8).unwrap();
    let Conversion::Shared(p) = check(&w, &out, 4, SCRATCH_BYTES) else { panic!() };
    assert_eq!((p.bytes, p.passes.len()), (SCRATCH_BYTES, 4));
}

/// Sums whose columns become rows, as the outputs of kda_state do: pairs of neighbours in a thread go to two rows by
/// one instruction for four matrices, where words of a pair would have to be taken apart.
#[test]
fn columns_of_sums_become_rows_by_matrices() {
    // Of 32 tokens and 128 values a warp has 16 values: eight of a token in a thread, neighbouring tokens before.
    let layout = |register: [u32; 4], lane: [u32; 5]| {
        LinearLayout::new(Shape::new(&[32, 128]), register.into(), lane.into(), vec![16, 32, 64], vec![]).unwrap()
    };
    let sums = layout([128, 8, 1024, 2048], [256, 512, 1, 2, 4]);
    let rows = layout([1, 2, 4, 2048], [8, 128, 256, 512, 1024]);
    let plan = |by_matrices| Conversion::plan_within(&sums, &rows, 2, SCRATCH_BYTES, by_matrices).unwrap();
    check(&sums, &rows, 2, SCRATCH_BYTES);
    // Without such stores neighbours are made by transposing before.
    let transposed = plan(false);
    assert!(matches!(transposed, Conversion::Transpose { .. }));
    let p = scratch_of(&transposed).expect("warps do not hold whole rows");
    assert_eq!((p.store.matrices, p.passes[0].stores.len(), p.passes[0].loads.len()), (None, 8, 2), "{p:?}");
    let Conversion::Shared(p) = plan(true) else { panic!() };
    assert_eq!((p.store.matrices, p.load.matrices), (Some(true), None));
    assert_eq!((p.passes[0].stores.len(), p.passes[0].loads.len()), (2, 2), "{p:?}");
    assert!(p.warp_local && p.wavefronts(2, 0)[0].actual == 8, "{p:?}");
}

/// Also where tiles are smaller than fragments or have fewer elements than there are threads.
#[test]
fn all_families_convert_to_each_other() {
    for (m, n, warps) in [(1, 32, [1, 4]), (8, 64, [2, 2]), (16, 128, [1, 4]), (64, 32, [4, 1]), (128, 64, [4, 2])] {
        let shape = Shape::new(&[m, n]);
        let count: usize = warps[0] * warps[1];
        let mut layouts = vec![
            LinearLayout::coalesced(shape, 0, 4, count).unwrap(),
            LinearLayout::coalesced(shape, 1, 8, count).unwrap(),
            LinearLayout::blocked(shape, &[2, 2], &[8, 4], &warps, &[1, 0]).unwrap(),
            LinearLayout::mma_accumulator(shape, warps).unwrap(),
        ];
        for (operand, elem_bytes) in
            [(Operand::A, 1), (Operand::A, 2), (Operand::A, 4), (Operand::B, 2), (Operand::B, 4)]
        {
            layouts.extend(LinearLayout::mma_operand(shape, operand, elem_bytes, warps));
        }
        if warps[0] >= 4 {
            layouts.extend(LinearLayout::wgmma_accumulator(shape, 16, [warps[0] / 4, warps[1]]));
        }
        layouts.push(layouts[0].join(1).slice(&[0, n], shape).unwrap().layout);
        if m < 16 {
            layouts.push(LinearLayout::replicated(shape, 5, count.ilog2() as usize));
        }
        for (src, dst) in layouts.iter().flat_map(|s| layouts.iter().map(move |d| (s, d))) {
            for elem_bytes in [2, 4] {
                let plan = check(src, dst, elem_bytes, SCRATCH_BYTES);
                assert!(src != dst || plan == Conversion::Identity || src.redundant().register != 0);
            }
        }
    }
}

#[test]
fn conversions_between_clusters_or_shapes_are_errors() {
    let a = LinearLayout::coalesced(Shape::new(&[64, 64]), 1, 8, 4).unwrap();
    let b = LinearLayout::coalesced(Shape::new(&[64, 32]), 1, 8, 4).unwrap();
    let c = LinearLayout::coalesced(Shape::new(&[64, 64]), 1, 8, 8).unwrap();
    assert!(matches!(Conversion::plan(&a, &b, 4), Err(LayoutError::Mismatch(_))));
    assert!(matches!(Conversion::plan(&a, &c, 4), Err(LayoutError::Mismatch(_))));
    assert!(matches!(Conversion::plan(&a, &a, 3), Err(LayoutError::Unsupported { .. })));
    assert_eq!(Conversion::plan(&a, &a, 2), Ok(Conversion::Identity));
}

// -- shared memory -----------------------------------------------------------------------------------------------------

#[test]
fn swizzles_follow_their_formulas() {
    let shape = Shape::new(&[32, 128]);
    let s = SharedLayout::swizzled(shape, &[1, 0], 8, 2, 4).unwrap();
    let t = SharedLayout::swizzled(shape, &[0, 1], 4, 1, 8).unwrap();
    for (row, col) in (0..32).flat_map(|r| (0..128).map(move |c| (r, c))) {
        let x = flat(&shape, &[row, col]);
        assert_eq!(s.offset(x), row * 128 + ((col / 8) ^ (row / 2 % 4)) * 8 + col % 8);
        assert_eq!(t.offset(x), col * 32 + ((row / 4) ^ (col % 8)) * 4 + row % 4);
        assert_eq!(s.flat_at(s.offset(x)), x);
    }
    for (swizzle, bytes, mask) in
        [(Swizzle::B128, 128, 7), (Swizzle::B64, 64, 3), (Swizzle::B32, 32, 1), (Swizzle::None, 16, 0)]
    {
        for elem in [1u32, 2, 4] {
            let p = SharedLayout::panels(shape, elem as usize, swizzle).unwrap();
            for (row, col) in (0..32).flat_map(|r| (0..128).map(move |c| (r, c))) {
                let (panel, within) = (col * elem / bytes, col * elem % bytes);
                let address = panel * 32 * bytes + row * bytes + within;
                let swizzled = address ^ ((address >> 7 & mask) << 4);
                assert_eq!(p.offset(flat(&shape, &[row, col])) * elem, swizzled);
            }
        }
    }
    assert!(SharedLayout::panels(Shape::new(&[32, 32]), 2, Swizzle::B128).is_err());
    assert!(SharedLayout::swizzled(shape, &[1, 0], 32, 1, 8).is_err());
    let moved = s.transpose(&[1, 0]);
    assert!((0..4096).all(|o| {
        let (a, b) = (coords(&shape, s.flat_at(o)), coords(moved.shape(), moved.flat_at(o)));
        a[0] == b[1] && a[1] == b[0]
    }));
}

#[test]
fn wavefronts_count_bank_conflicts() {
    let stride = |bytes: u32| (0..32).map(|lane| lane * bytes).collect::<Vec<u32>>();
    let cost = |addresses: &[u32], bytes| wavefronts_of(addresses, bytes).actual;
    assert_eq!(cost(&stride(4), 4), 1);
    assert_eq!(cost(&stride(2), 2), 1);
    assert_eq!(cost(&stride(0), 4), 1);
    assert_eq!(cost(&stride(8), 4), 2);
    assert_eq!(cost(&stride(128), 4), 32);
    assert_eq!(cost(&stride(8), 8), 2);
    assert_eq!(cost(&stride(16), 16), 4);
    assert_eq!(cost(&stride(128), 16), 32);
    assert_eq!(wavefronts_of(&stride(16), 16).conflicts(), 0);

    // Reading columns of a row-major tile conflicts; the 128-byte swizzle cures it.
    let shape = Shape::new(&[64, 64]);
    let columns = LinearLayout::blocked(shape, &[1, 8], &[32, 1], &[2, 2], &[1, 0]).unwrap();
    for (shared, conflicts) in [
        (SharedLayout::row_major(shape).unwrap(), true),
        (SharedLayout::panels(shape, 2, Swizzle::B128).unwrap(), false),
    ] {
        let access = shared.vectorise(&columns, 2);
        assert_eq!(access.width, 8);
        let w = shared.wavefronts(&columns, &access, 2);
        assert_eq!(w.actual, if conflicts { 8 * w.ideal } else { w.ideal }, "{shared}");
    }
}

/// Executes the instruction as the PTX manual describes it.
#[test]
fn ldmatrix_loads_fragments() {
    let mut cases = 0;
    for (shape, operand, elem_bytes, transposed) in [
        (Shape::new(&[64, 64]), Operand::A, 2, false),
        (Shape::new(&[64, 64]), Operand::B, 2, true),
        (Shape::new(&[64, 32]), Operand::A, 4, false),
        (Shape::new(&[32, 128]), Operand::A, 1, false),
        (Shape::new(&[16, 64]), Operand::A, 2, false),
    ] {
        let layout = LinearLayout::mma_operand(shape, operand, elem_bytes, [2, 2]).unwrap();
        for shared in [
            SharedLayout::row_major(shape).unwrap(),
            SharedLayout::panels(shape, elem_bytes, Swizzle::B128).unwrap(),
            SharedLayout::swizzled(shape, &[1, 0], 16 / elem_bytes as u32, 1, 4).unwrap(),
        ] {
            let plan = Ldmatrix::plan(&layout, &shared, elem_bytes).expect("fits");
            assert_eq!((plan.transposed, plan.matrices), (transposed, 4));
            let (per_word, row_elems) = (4 / elem_bytes, 16 / elem_bytes as u32);
            let mut loaded = vec![false; layout.registers()];
            for i in &plan.instructions {
                for (warp, lane) in (0..4u32).flat_map(|w| (0..32u32).map(move |l| (w, l))) {
                    for (j, &register) in i.registers.iter().enumerate() {
                        let (matrix, k) = (j / per_word, (j % per_word) as u32);
                        let (row, col) = if transposed {
                            (2 * (lane % 4) + k, lane / 4)
                        } else {
                            (lane / 4, lane % 4 * per_word as u32 + k)
                        };
                        let names = matrix as u32 * 8 + row;
                        let offset = F2Map::new(plan.thread.clone(), 31).apply(warp << 5 | names) ^ i.offset;
                        assert_eq!(offset % row_elems, 0);
                        assert_eq!(shared.flat_at(offset + col), layout.flat(register, lane, warp));
                        loaded[register as usize] = true;
                    }
                }
            }
            assert!(loaded.iter().all(|&l| l));
            cases += 1;
        }
        let b128 = SharedLayout::panels(shape, elem_bytes, Swizzle::B128).unwrap();
        assert_eq!(Ldmatrix::plan(&layout, &b128, elem_bytes).unwrap().wavefronts(elem_bytes).conflicts(), 0);
    }
    assert_eq!(cases, 15);
    // A row-wise layout is no fragment; a K-major B operand (stored N×K) needs no `.trans`.
    let shape = Shape::new(&[64, 64]);
    let row = LinearLayout::coalesced(shape, 1, 8, 4).unwrap();
    assert_eq!(Ldmatrix::plan(&row, &SharedLayout::row_major(shape).unwrap(), 2), None);
    let b = LinearLayout::mma_operand(shape, Operand::B, 2, [2, 2]).unwrap();
    let k_major = SharedLayout::ordered(shape, &[0, 1]).unwrap();
    assert!(!Ldmatrix::plan(&b, &k_major, 2).unwrap().transposed);
}
