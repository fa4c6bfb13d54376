//! Linear layers, by what suits so many rows: one row against the weight's, few rows with the inner dimension in parts,
//! many rows in tiles.

use super::{Activation, FEW_ROWS, Ops, Result, WARP};
use crate::kernels::linear;
use kiln::{Float, Tensor};

/// Tiles of large linear layers, and the time that one takes relative to the first (measured on an H100): what is taken
/// where no table knows better, and what a cut into whole rounds is judged by.
const TILES: [(usize, usize, f64); 4] = [(128, 256, 1.0), (128, 128, 0.57), (64, 256, 0.55), (64, 128, 0.36)];
/// The tile with which `programs` finish a linear layer first, each doing one tile after the other, and the time in
/// tiles of the first kind.
fn best_tiles(rows: usize, columns: usize, programs: usize) -> ((usize, usize), f64) {
    let time = |&(m, n, one): &(usize, usize, f64)| {
        (rows.div_ceil(m) * columns.div_ceil(n)).div_ceil(programs.max(1)) as f64 * one
    };
    let all = TILES.iter().map(|tile| ((tile.0, tile.1), time(tile)));
    all.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are some")
}

/// How many columns of a linear layer to do first, in large tiles that fill whole rounds of `programs`, if that and the
/// rest in the best tiles for it take less time than all in one kind.
fn whole_rounds(rows: usize, columns: usize, programs: usize) -> Option<usize> {
    // Time of a launch and of the programs that wait for the last one.
    const ANOTHER_LAUNCH: f64 = 0.1;
    let (m, n, one) = TILES[0];
    let high = rows.div_ceil(m);
    let rounds = high * columns.div_ceil(n) / programs.max(1);
    let first = rounds * programs / high * n;
    let time = rounds as f64 * one + best_tiles(rows, columns.saturating_sub(first), programs).1 + ANOTHER_LAUNCH;
    (0 < first && first < columns && time < best_tiles(rows, columns, programs).1).then_some(first)
}

impl<T: Activation, W: Float> Ops<T, W> {
    /// x [n, in] of `T`, weight [out, in] of `W` → [n, out].
    pub fn linear<Y: Float>(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mut y = self.empty::<Y>(&[x.shape()[0], weight.shape()[0]])?;
        self.linear_into::<Y>(x, weight, &mut y)?;
        Ok(y)
    }

    /// [`Ops::linear`] into a tensor that is there.
    pub fn linear_into<Y: Float>(self, x: &Tensor, weight: &Tensor, y: &mut Tensor) -> Result<()> {
        self.matmul::<W, T, Y>(x, weight, y)
    }

    /// x·weightᵀ in f32, perhaps in parts whose sum it is: [parts, n, out].
    pub fn linear_parts(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (rows, columns, inner) = (x.shape()[0], weight.shape()[0], weight.shape()[1]);
        let parts = self.parts::<T>(rows, columns, inner);
        let mut partial = self.empty::<f32>(&[parts, rows, columns])?;
        if parts > 1 {
            self.matmul_in_parts::<W>(x, weight, &mut partial)?;
        } else {
            self.matmul::<W, T, f32>(x, weight, &mut partial.reshape(&[rows, columns])?)?;
        }
        Ok(partial)
    }

    /// The router's logits, computed in f32: x [n, hidden], weight [experts, hidden] f32 → [n, experts] f32.
    pub fn router_logits(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mut y = self.empty::<f32>(&[x.shape()[0], weight.shape()[0]])?;
        self.matmul::<f32, f32, f32>(x, weight, &mut y)?;
        Ok(y)
    }

    /// Into how many parts, at most 4, the inner dimension of a product is cut: as many as give each multiprocessor three
    /// programs, if each keeps some steps. Only for few rows and columns, whose tiles would leave multiprocessors idle.
    fn parts<C: Activation>(self, rows: usize, columns: usize, inner: usize) -> usize {
        if !self.gpu || C::DTYPE.size() != 2 || !(2..=64).contains(&rows) {
            return 1;
        }
        let tiles = columns.div_ceil(64).max(1);
        if tiles >= self.multiprocessors {
            return 1;
        }
        (3 * self.multiprocessors / tiles).min(inner.div_ceil(64) / 4).clamp(1, 4)
    }

    /// x·weightᵀ of 2 to 64 rows → partial [parts, n, out].
    fn matmul_in_parts<V: Float>(self, x: &Tensor, weight: &Tensor, partial: &mut Tensor) -> Result<()> {
        if x.shape()[0] <= 16 {
            linear::linear_part::<T, V, 16, 64, 64>(x, weight, partial).run()?;
        } else {
            linear::linear_part::<T, V, 64, 64, 64>(x, weight, partial).run()?;
        }
        Ok(())
    }

    fn matmul<V: Float, C: Activation, Y: Float>(self, x: &Tensor, weight: &Tensor, y: &mut Tensor) -> Result<()> {
        let (rows, columns, inner) = (x.shape()[0], weight.shape()[0], weight.shape()[1]);
        if !self.gpu {
            if rows < FEW_ROWS {
                linear::linear_row::<T, V, Y, 32, 1, 64, 4>(x, weight, y).run()?;
            } else {
                linear::linear::<T, V, C, Y, 32, 32, 64>(x, weight, y).run()?;
            }
            return Ok(());
        }
        let parts = self.parts::<C>(rows, columns, inner);
        if rows == 1 || rows < FEW_ROWS && C::DTYPE.size() == 4 {
            // A power of two of chunks, or 9 for a width like 2304; a grid has at most 65,535 programs along its second axis.
            if columns > 65_535 {
                linear::linear_row::<T, V, Y, 4, 4, WARP, 1>(x, weight, y).run()?;
            } else if inner.is_multiple_of(9 * WARP) {
                linear::linear_row::<T, V, Y, 1, 9, WARP, 1>(x, weight, y).run()?;
            } else {
                linear::linear_row::<T, V, Y, 2, 4, WARP, 1>(x, weight, y).run()?;
            }
        } else if parts > 1 {
            let mut partial = self.empty::<f32>(&[parts, rows, columns])?;
            self.matmul_in_parts::<V>(x, weight, &mut partial)?;
            linear::sum_parts::<Y, 4, 128>(&partial, y).run()?;
        } else if rows <= 16 && C::DTYPE.size() == 2 {
            linear::linear::<T, V, C, Y, 16, 64, 64>(x, weight, y).run()?;
        } else if rows <= 64 && C::DTYPE.size() == 2 {
            linear::linear::<T, V, C, Y, 64, 64, 64>(x, weight, y).run()?;
        } else if C::DTYPE.size() == 2 {
            let programs = self.multiprocessors;
            if let Some(first) = whole_rounds(rows, columns, programs) {
                for (start, len) in [(0, first), (first, columns - first)] {
                    let weight = weight.narrow(0, start, len)?;
                    self.matmul::<V, C, Y>(x, &weight, &mut y.narrow(1, start, len)?)?;
                }
                return Ok(());
            }
            let (m, n) = best_tiles(rows, columns, programs).0;
            let whole_clusters = |[.., p]: [usize; 4]| (programs / p).max(1) * p;
            let tiles = linear::linear_tiles_tuned::<T, V, C, Y, 16>(x, weight, y);
            tiles.otherwise([m, n, 64, 1]).grid(whole_clusters).run()?;
        } else {
            linear::linear::<T, V, C, Y, 64, 128, 32>(x, weight, y).run()?;
        }
        Ok(())
    }

    /// x [n, in], weight [out, in] e4m3 with a scale per row, x_scale [n], weight_scale [out] f32 → [n, out].
    pub fn linear_scaled<Y: Float>(
        self,
        x: &Tensor,
        x_scale: &Tensor,
        weight: &Tensor,
        weight_scale: &Tensor,
    ) -> Result<Tensor> {
        let mut y = self.empty::<Y>(&[x.shape()[0], weight.shape()[0]])?;
        let programs = self.multiprocessors;
        if self.gpu {
            linear::linear_scaled_tuned::<Y, 16>(x, weight, x_scale, weight_scale, &mut y).grid(|_| programs).run()?
        } else {
            linear::linear_scaled::<Y, 32, 32, 64, 16>(x, weight, x_scale, weight_scale, &mut y).grid(programs).run()?
        }
        Ok(y)
    }

    /// gate_up [n, 2·width] → [n, width].
    pub fn swiglu(self, gate_up: &Tensor) -> Result<Tensor> {
        let mut out = self.empty::<T>(&[gate_up.shape()[0], gate_up.shape()[1] / 2])?;
        linear::swiglu::<T, 256>(gate_up, &mut out).run()?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::{best_tiles, whole_rounds};

    #[test]
    fn tiles_are_chosen_by_rounds() {
        // 512 large tiles are 3.9 rounds; of 192 the second round would be half empty.
        assert_eq!(best_tiles(4096, 4096, 132).0, (128, 256));
        assert_ne!(best_tiles(512, 12288, 132).0, (128, 256));
        assert_eq!(whole_rounds(4096, 4096, 132), None);
        // 288 tiles: two rounds of 132 are 66 columns of four, the rest is small.
        assert_eq!(whole_rounds(512, 18432, 132), Some(66 * 256));
        // What is left after the first part is not cut again.
        assert_eq!(whole_rounds(512, 66 * 256, 132), None);
        assert_eq!(whole_rounds(512, 18432 - 66 * 256, 132), None);
        assert_eq!(whole_rounds(512, 2304, 132), None);
    }
}
