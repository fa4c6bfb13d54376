//! Transposing 8×8 matrices of 16-bit elements within a warp (`movmatrix`).
//!
//! Lane l holds elements 2(l mod 4) and 2(l mod 4) + 1 of row l / 4, side by side in a 32-bit register, before and after.
//! So the instruction exchanges one bit of the register's number and two of the lane's for the three others of the lane:
//! it turns the accumulator of a product, narrowed to 16 bits, into the second operand of another.

use super::{LANE_BITS, Level, LinearLayout};

impl LinearLayout {
    /// The layout after transposing the matrices that the lanes and register bit `pair` hold: registers keep their
    /// numbers. `None` if a row of them is no run of eight along one axis.
    pub fn transposed_within_warps(&self, pair: usize) -> Option<LinearLayout> {
        let (registers, lanes) = (self.bases(Level::Register), self.bases(Level::Lane));
        if lanes.len() != LANE_BITS {
            return None;
        }
        let first = registers[pair];
        let run = first != 0 && lanes[0] == first << 1 && lanes[1] == first << 2;
        if !run || lanes[2..].contains(&0) {
            return None;
        }
        let mut register = registers.to_vec();
        register[pair] = lanes[2];
        let lane = vec![lanes[3], lanes[4], first, lanes[0], lanes[1]];
        let [warp, block] = [Level::Warp, Level::Block].map(|l| self.bases(l).to_vec());
        LinearLayout::new(*self.shape(), register, lane, warp, block).ok()
    }
}
