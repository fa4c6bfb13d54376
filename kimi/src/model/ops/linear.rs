//! Linear layers, by what suits so many rows: one row against the weight's, few rows with the inner dimension in parts,
//! many rows in tiles.

use super::{Activation, FEW_ROWS, Ops, Result, WARP};
use crate::kernels::{linear, swiglu};
use kiln::{Float, Tensor};

/// Bytes of a weight up to which it is better that the second-level cache does not keep what is read once: three times
/// the cache. What is evicted meanwhile has to be written back; of more bytes all of it is, whoever goes first (measured
/// on an H100: 85 MB take 0.89 of the time, 755 MB take 1.04).
const ONCE_BYTES: usize = 150 << 20;

/// Tiles of large linear layers (rows, columns, strips beside them, columns of a strip, programs of a cluster), and the
/// time that one takes relative to the first (measured on an H100): what is taken where no table knows better.
const TILES: [([usize; 5], f64); 8] = [
    ([128, 256, 0, 64, 1], 1.0),
    ([128, 256, 0, 64, 2], 0.98),
    ([128, 128, 1, 64, 1], 0.80),
    ([128, 128, 1, 64, 2], 0.785),
    ([128, 128, 0, 64, 1], 0.57),
    ([64, 256, 0, 64, 1], 0.60),
    ([64, 128, 1, 16, 1], 0.50),
    (SMALLEST, 0.36),
];
const SMALLEST: [usize; 5] = [64, 128, 0, 64, 1];
/// Rows of tiles that are done column by column.
const BAND: usize = 16;

/// The tile with which `programs` finish a linear layer first, each doing one tile after the other. `wide`: the weight has
/// elements of 32 bits, of which threads read narrow strips with bank conflicts.
fn best_tile(rows: usize, columns: usize, programs: usize, wide: bool) -> [usize; 5] {
    let time = |&([m, n, e, x, p], one): &([usize; 5], f64)| {
        let clusters = rows.div_ceil(m * p) * columns.div_ceil(n + e * x);
        clusters.div_ceil((programs / p).max(1)) as f64 * one
    };
    // Of fewer rows the programs of a cluster wait for each other longer than they save.
    let tiles = TILES.iter().filter(|([.., x, p], _)| (*p == 1 || rows >= 1024) && (*x >= 64 || !wide));
    tiles.min_by(|a, b| time(a).total_cmp(&time(b))).expect("there are some").0
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

    /// The router's logits: x [n, hidden] f32, weight [experts, hidden] f32 → [n, experts] f32. In bf16 x would lose
    /// what decides between experts that are nearly tied.
    pub fn router_logits(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.cast::<f32, f32>().linear::<f32>(x, weight)
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
                linear::linear_row::<T, V, Y, 32, 1, 64, 4, false, false>(x, weight, y).run()?;
            } else {
                linear::linear::<T, V, C, Y, 32, 32, 64, false>(x, weight, y).run()?;
            }
            return Ok(());
        }
        let parts = self.parts::<C>(rows, columns, inner);
        // The weight has to be read from memory once: of one row, or of tiles by tensor cores.
        let once = (rows == 1 || C::DTYPE.size() == 2) && columns * inner * V::DTYPE.size() <= ONCE_BYTES;
        macro_rules! few_rows {
            ($kernel:ident::<$($generic:tt),*>) => {
                match once {
                    true => linear::$kernel::<$($generic),*, true>(x, weight, y).run()?,
                    false => linear::$kernel::<$($generic),*, false>(x, weight, y).run()?,
                }
            };
        }
        if rows == 1 || rows < FEW_ROWS && C::DTYPE.size() == 4 {
            // A power of two of chunks, or 9 for a width like 2304; a grid has at most 65,535 programs along its second axis.
            if columns > 65_535 {
                few_rows!(linear_row::<T, V, Y, 4, 4, WARP, 1, false>)
            } else if inner.is_multiple_of(9 * WARP) {
                few_rows!(linear_row::<T, V, Y, 1, 9, WARP, 1, false>)
            } else if inner <= 4 * WARP {
                few_rows!(linear_row::<T, V, Y, 2, 4, WARP, 1, true>)
            } else {
                few_rows!(linear_row::<T, V, Y, 2, 4, WARP, 1, false>)
            }
        } else if parts > 1 {
            let mut partial = self.empty::<f32>(&[parts, rows, columns])?;
            self.matmul_in_parts::<V>(x, weight, &mut partial)?;
            linear::sum_parts::<Y, 4, 128>(&partial, y).run()?;
        } else if rows <= 16 && C::DTYPE.size() == 2 {
            few_rows!(linear::<T, V, C, Y, 16, 64, 64>)
        } else if rows <= 64 && C::DTYPE.size() == 2 {
            few_rows!(linear::<T, V, C, Y, 64, 64, 64>)
        } else if C::DTYPE.size() == 2 {
            // What comes by other ways than bulk copies takes registers.
            let aligned = (x.strides()[0] * T::DTYPE.size()).is_multiple_of(16);
            let wide = V::DTYPE.size() > 2;
            let tile = if aligned { best_tile(rows, columns, self.multiprocessors, wide) } else { SMALLEST };
            macro_rules! tiles {
                ($once:literal) => {
                    linear::linear_tiles_tuned::<T, V, C, Y, 64, BAND, $once>(x, weight, y)
                        .otherwise(tile)
                        .grid(|[.., p]| whole_clusters(self.multiprocessors, p))
                        .run()?
                };
            }
            // Those tiles of a band that read the same rows of the weight do so at the same time.
            if once && rows <= BAND * tile[0] { tiles!(true) } else { tiles!(false) }
        } else {
            linear::linear::<T, V, C, Y, 64, 128, 32, false>(x, weight, y).run()?;
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
        if self.gpu {
            linear::linear_scaled_tuned::<Y, BAND>(x, weight, x_scale, weight_scale, &mut y)
                .grid(|[.., p]| whole_clusters(self.multiprocessors, p))
                .run()?
        } else {
            linear::linear_scaled::<Y, 32, 32, 64, BAND, 1>(x, weight, x_scale, weight_scale, &mut y)
                .grid(self.multiprocessors)
                .run()?
        }
        Ok(y)
    }

    /// x [n, in], gate_up [2·width, in] (gate, then up) → silu(x·gateᵀ) · (x·upᵀ) [n, width]. Both products are f32.
    pub fn linear_swiglu(self, x: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
        let (rows, width, inner) = (x.shape()[0], gate_up.shape()[0] / 2, x.shape()[1]);
        let mut y = self.empty::<T>(&[rows, width])?;
        let (gate, up) = (&gate_up.narrow(0, 0, width)?, &gate_up.narrow(0, width, width)?);
        let narrow = T::DTYPE.size() == 2;
        if !self.gpu {
            if rows < FEW_ROWS {
                swiglu::linear_swiglu_row::<T, W, 32, 1, 64>(x, gate, up, &mut y).run()?;
            } else {
                swiglu::linear_swiglu::<T, W, 32, 32, 64>(x, gate, up, &mut y).run()?;
            }
        } else if rows == 1 || rows < FEW_ROWS && !narrow {
            if inner.is_multiple_of(9 * WARP) {
                swiglu::linear_swiglu_row::<T, W, 1, 9, WARP>(x, gate, up, &mut y).run()?;
            } else {
                swiglu::linear_swiglu_row::<T, W, 2, 4, WARP>(x, gate, up, &mut y).run()?;
            }
        } else if rows <= 64 && narrow {
            let partial = self.linear_parts(x, gate_up)?;
            swiglu::swiglu_parts::<T, 4, 128>(&partial, &mut y).run()?;
        } else if narrow && rows.div_ceil(128) * width.div_ceil(128) >= self.multiprocessors {
            swiglu::linear_swiglu::<T, W, 128, 128, 64>(x, gate, up, &mut y).run()?;
        } else if narrow {
            swiglu::linear_swiglu::<T, W, 64, 64, 64>(x, gate, up, &mut y).run()?;
        } else {
            swiglu::linear_swiglu::<T, W, 64, 64, 32>(x, gate, up, &mut y).run()?;
        }
        Ok(y)
    }
}

/// As many programs as fit side by side, in clusters of `p`.
fn whole_clusters(programs: usize, p: usize) -> usize {
    (programs / p).max(1) * p
}

#[cfg(test)]
mod tests {
    use super::{SMALLEST, best_tile};

    #[test]
    fn tiles_are_chosen_by_rounds() {
        // 512 large tiles are 3.9 rounds; of 192 the second round would be half empty, and that of 256 narrower ones is not.
        assert_eq!(best_tile(4096, 4096, 132, false), [128, 256, 0, 64, 2]);
        assert_eq!(best_tile(512, 12288, 132, false), [128, 128, 1, 64, 1]);
        // 2.2 rounds of large tiles, or 2.9 of narrower ones.
        assert_eq!(best_tile(4096, 2304, 132, false), [128, 128, 1, 64, 2]);
        // One round that leaves four of 132 multiprocessors idle.
        assert_eq!(best_tile(512, 2304, 132, false), [64, 128, 1, 16, 1]);
        assert_eq!(best_tile(512, 2304, 132, true), [128, 128, 0, 64, 1]);
        // Fewer tiles than multiprocessors.
        assert_eq!(best_tile(65, 300, 132, false), SMALLEST);
    }
}
