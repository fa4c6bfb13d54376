//! Conversions within a warp by shuffles.
//!
//! In a round every lane offers one register and reads what one lane offers. Which register a lane offers, which lane
//! it reads and into which register the answer goes are affine functions of the thread, so each round serves one
//! element per lane, whatever the layouts.
//!
//! For the destination's register k, lane l wants register f(k, l) of lane g(k, l), both linear. If two lanes want
//! different registers of one lane, a round must serve them different destination registers: k ^ h(l) instead of k,
//! with h linear. The round is sound if whatever l is served from its own constant (g(h(l), l) = 0) also wants its
//! constant register (f(h(l), l) = 0). h is found by giving each offending l its own direction out of the lanes already
//! read: from copies in the source, else from the destination's registers.

use super::convert::{Affine, Local};
use super::f2::apply;
use super::{F2Map, LANE_BITS, Level, LinearLayout, Span};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShufflePlan {
    /// Registers written by the rounds, all of them once.
    pub registers: usize,
    pub rounds: Vec<ShuffleRound>,
    /// For each register of the destination, the written register that holds its element.
    pub copies: Vec<u32>,
    /// Elements that share a shuffle: a round moves them side by side in 32 bits.
    pub packed: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShuffleRound {
    /// The source register that a lane offers: element j of the pack is register `send ^ moves[j].0`.
    pub send: Affine,
    /// The lane that it reads.
    pub from: Affine,
    /// The written register that receives: element j of the pack goes to `receive ^ moves[j].1`.
    pub receive: Affine,
    pub moves: Vec<(u32, u32)>,
}

impl ShufflePlan {
    /// `None` if an element is not in the warp that needs it, or lanes would have to offer two registers at a time.
    pub(super) fn new(src: &LinearLayout, dst: &LinearLayout, elem_bytes: usize) -> Option<ShufflePlan> {
        if src.bases(Level::Lane).len() != LANE_BITS {
            return None;
        }
        let (compact, copies) = dst.compact_registers();
        let mut local = Local::find(src, &compact)?;
        let serve = separate_lanes(src, &mut local)?;

        // Registers that travel together: those whose number alone decides the source's register.
        let packed_bits: Vec<usize> = (0..local.register.len())
            .filter(|&i| local.register[i].1 == 0)
            .take((4 / elem_bytes).max(1).ilog2() as usize)
            .collect();
        let pack_src: Vec<u32> = packed_bits.iter().map(|&i| local.register[i].0).collect();
        let pack_dst: Vec<u32> = packed_bits.iter().map(|&i| 1 << i).collect();
        let packed = 1u32 << packed_bits.len();
        let moves: Vec<(u32, u32)> = (0..packed).map(|j| (apply(&pack_src, j), apply(&pack_dst, j))).collect();
        let pack_mask = apply(&pack_dst, packed - 1);

        let register = |f: fn(&(u32, u32)) -> u32, x: u32| apply(&local.register.iter().map(f).collect::<Vec<_>>(), x);
        let (source_register, source_lane) = (|x| register(|p| p.0, x), |x| register(|p| p.1, x));
        // What lane bit i contributes in a round: to the register wanted (f) and to the lane read (g).
        let f: Vec<u32> = (0..LANE_BITS).map(|i| local.lane[i].0 ^ source_register(serve[i])).collect();
        let g: Vec<u32> = (0..LANE_BITS).map(|i| local.lane[i].1 ^ source_lane(serve[i])).collect();
        // From the lane that is read back to one that reads it (where nobody does, anything).
        let mut readers = Span::of(&g);
        for i in 0..LANE_BITS {
            readers.insert(1 << i, 0);
        }
        let wanted_of = |lane: u32| apply(&f, readers.solve(lane).expect("all lanes are spanned"));

        let rounds = (0..compact.registers() as u32)
            .filter(|k| k & pack_mask == 0)
            .map(|k| ShuffleRound {
                send: Affine {
                    constant: source_register(k) ^ wanted_of(source_lane(k)),
                    lane: (0..LANE_BITS).map(|i| wanted_of(1 << i)).collect(),
                    warp: local.warp.iter().map(|w| w.0 ^ wanted_of(w.1)).collect(),
                },
                from: Affine {
                    constant: source_lane(k),
                    lane: g.clone(),
                    warp: local.warp.iter().map(|w| w.1).collect(),
                },
                receive: Affine { constant: k, lane: serve.clone(), warp: vec![0; local.warp.len()] },
                moves: moves.clone(),
            })
            .collect();
        Some(ShufflePlan { registers: compact.registers(), rounds, copies, packed: packed as usize })
    }

    /// Instructions per warp, roughly: shuffles, and selections among registers whose number depends on the thread.
    pub(super) fn cost(&self, elem_bytes: usize) -> usize {
        let per_round = |r: &ShuffleRound| {
            let shuffles = if r.from.is_lane() { 0 } else { elem_bytes.div_ceil(4) * 2 };
            let selects = (r.send.values() - 1 + r.receive.values() - 1) * self.packed;
            shuffles + selects + usize::from(self.packed > 1)
        };
        self.rounds.iter().map(per_round).sum()
    }
}

/// Finds h (see above) for each lane bit, changing which of the source's copies `local` reads where that helps.
fn separate_lanes(src: &LinearLayout, local: &mut Local) -> Option<Vec<u32>> {
    let wanted: Vec<u32> = local.lane.iter().map(|l| l.0).collect();
    let read: Vec<u32> = local.lane.iter().map(|l| l.1).collect();
    // Lane numbers that read their constant's lane: fine if they want its constant's register, offending otherwise.
    let mut distinct = Span::new();
    let (mut fine, mut offending) = (Vec::new(), Vec::new());
    for l in F2Map::new(read.clone(), LANE_BITS as u32).kernel() {
        let (rest, by) = distinct.reduce(apply(&wanted, l));
        if rest == 0 {
            fine.push(l ^ by);
        } else {
            distinct.insert(apply(&wanted, l), l);
            offending.push(l);
        }
    }
    // Directions out of the lanes that are read: (lane direction, copy in the source, destination register).
    let register_bits = src.bases(Level::Register).len();
    let own_warp: Vec<u32> = [Level::Register, Level::Lane].iter().flat_map(|&l| src.bases(l)).copied().collect();
    let copies = F2Map::new(own_warp, 32).kernel().into_iter().map(|z| (z >> register_bits, z, 0));
    let others = local.register.iter().enumerate().map(|(i, r)| (r.1, 0, 1u32 << i));
    let mut reached = Span::of(&read);
    let mut directions = copies.chain(others).filter(|d| reached.insert(d.0, 0)).collect::<Vec<_>>().into_iter();

    let (mut copy_of, mut serve_of) = (Span::new(), Span::new());
    for &l in &offending {
        let (_, copy, serve) = directions.next()?;
        copy_of.insert(l, copy);
        serve_of.insert(l, serve);
    }
    let units: Vec<u32> = (0..LANE_BITS).map(|i| 1 << i).collect();
    for &l in fine.iter().chain(&units) {
        copy_of.insert(l, 0);
        serve_of.insert(l, 0);
    }
    for (i, lane) in local.lane.iter_mut().enumerate() {
        let copy = copy_of.solve(units[i]).expect("all lanes are spanned");
        lane.0 ^= copy & ((1 << register_bits) - 1);
        lane.1 ^= copy >> register_bits;
    }
    Some(units.iter().map(|&u| serve_of.solve(u).expect("all lanes are spanned")).collect())
}
