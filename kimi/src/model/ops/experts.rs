//! Mixture of experts: the router's choice, and the chosen experts' sum.

use super::{Activation, Ops, Result, WARP, unsupported};
use crate::kernels::{experts, router};
use kiln::{Float, Tensor};

/// From so many assignments to experts on their tiles come in many rounds.
const MANY_ASSIGNMENTS: usize = 1 << 16;
/// Up to so many assignments the experts are not sorted by expert.
const FEW_ASSIGNMENTS: usize = 32;

impl<T: Activation, W: Float> Ops<T, W> {
    /// logits [n, experts] f32 → chosen experts [n, k] i32 and their weights [n, k] f32.
    pub fn route(
        self,
        logits: &Tensor,
        bias: &Tensor,
        k: usize,
        renormalize: bool,
        scale: f64,
    ) -> Result<(Tensor, Tensor)> {
        let n = logits.shape()[0];
        let (mut chosen, mut weights) = (self.empty::<i32>(&[n, k])?, self.empty::<f32>(&[n, k])?);
        let scale = scale as f32;
        with_const!(
            E = logits.shape()[1].next_power_of_two().max(16),
            of [16, 32, 64, 128, 256, 512],
            "num_experts",
            router::route::<E>(logits, bias, renormalize, scale, &mut chosen, &mut weights).grid([n]).run()?
        );
        Ok((chosen, weights))
    }

    /// out [n, hidden] f32 += the weighted experts of x [n, hidden]. gate, up [experts, width, hidden], down
    /// [experts, hidden, width].
    #[allow(clippy::too_many_arguments)]
    pub fn experts_add(
        self,
        x: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        down: &Tensor,
        chosen: &Tensor,
        weights: &Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let (n, k, hidden) = (x.shape()[0], chosen.shape()[1], x.shape()[1]);
        let (count, width, choices) = (gate.shape()[0], gate.shape()[1], chosen.shape()[1] as i32);
        let chosen = chosen.reshape(&[n * k])?;
        let mut h = self.empty::<T>(&[n * k, width])?;
        let mut y = self.empty::<T>(&[n * k, hidden])?;
        let sorted = n * k > FEW_ASSIGNMENTS;
        let mut place = self.empty::<i32>(&[n * k])?;
        if !sorted {
            if self.gpu {
                experts::experts_gate_up_row::<T, W, 1, 9, WARP>(x, gate, up, &chosen, choices, &mut h).run()?;
                experts::experts_down_row::<T, W, 2, 4, WARP>(&h, down, &chosen, &mut y).run()?;
            } else {
                experts::experts_gate_up_row::<T, W, 32, 1, 64>(x, gate, up, &chosen, choices, &mut h).run()?;
                experts::experts_down_row::<T, W, 32, 1, 64>(&h, down, &chosen, &mut y).run()?;
            }
        } else {
            let mut bounds = self.empty::<i32>(&[count, 2])?;
            if n * k > MANY_ASSIGNMENTS {
                experts::group_by_expert::<8192, 4096>(&chosen, &mut place, &mut bounds).grid([count]).run()?;
            } else {
                experts::group_by_expert::<4096, 1024>(&chosen, &mut place, &mut bounds).grid([count]).run()?;
            }
            let mut rows = self.empty::<T>(&[n * k, hidden])?;
            experts::spread_tokens::<T, WARP>(x, &place, choices, &mut rows).grid([n, hidden.div_ceil(WARP)]).run()?;
            // Rows of an expert, on average, decide on the height of the tiles.
            let large = self.gpu && T::DTYPE.size() == 2;
            let height = match large {
                true if n * k > 64 * count => 128,
                true => 64,
                false => 16,
            };
            let most = (n * k / height + count).min(n * k);
            let mut tiles = self.empty::<i32>(&[most, 3])?;
            with_const!(
                E = count.next_power_of_two().max(16),
                of [16, 32, 64, 128, 256, 512, 1024],
                "num_experts",
                match height {
                    128 => experts::tile_experts::<128, E>(&bounds, &mut tiles).grid([count]).run()?,
                    64 => experts::tile_experts::<64, E>(&bounds, &mut tiles).grid([count]).run()?,
                    _ => experts::tile_experts::<16, E>(&bounds, &mut tiles).grid([count]).run()?,
                }
            );
            // One program for each tile, or where there are very many as many as run side by side.
            let programs = |wide: usize, channels: usize| {
                let tiles = most * channels.div_ceil(wide);
                if n * k > MANY_ASSIGNMENTS { tiles.min(self.multiprocessors) } else { tiles }
            };
            if height == 128 {
                experts::experts_gate_up::<T, W, 128, 128, 64>(&rows, gate, up, &tiles, &mut h)
                    .grid(programs(128, width))
                    .run()?;
                experts::experts_down::<T, W, 128, 256, 64>(&h, down, &tiles, &mut y)
                    .grid(programs(256, hidden))
                    .run()?;
            } else if large {
                experts::experts_gate_up::<T, W, 64, 64, 64>(&rows, gate, up, &tiles, &mut h)
                    .grid(programs(64, width))
                    .run()?;
                experts::experts_down::<T, W, 64, 128, 64>(&h, down, &tiles, &mut y)
                    .grid(programs(128, hidden))
                    .run()?;
            } else {
                experts::experts_gate_up::<T, W, 16, 64, 64>(&rows, gate, up, &tiles, &mut h)
                    .grid(programs(64, width))
                    .run()?;
                experts::experts_down::<T, W, 16, 64, 64>(&h, down, &tiles, &mut y).grid(programs(64, hidden)).run()?;
            }
        }
        with_const!(
            S = k.next_power_of_two(),
            of [1, 2, 4, 8, 16, 32],
            "num_experts_per_token",
            if sorted {
                experts::combine_experts::<T, true, S, WARP>(&y, &place, weights, out).run()?
            } else {
                experts::combine_experts::<T, false, S, WARP>(&y, &place, weights, out).run()?
            }
        );
        Ok(())
    }
}
