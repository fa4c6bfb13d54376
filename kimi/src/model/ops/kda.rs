//! A layer of Kimi Delta Attention between its projections: few tokens in one kernel, prompts one operation after
//! another.

use super::batch::Short;
use super::delta::{DeltaInput, state_blocks, value_heads_a_key_head};
use super::{Activation, Batch, Gate, Ops, Result, unsupported};
use crate::kernels::kda::{self, STATE_COLUMNS};
use kiln::{Float, Tensor};

impl<T: Activation, W: Float> Ops<T, W> {
    /// Convolution, delta rule and gated RMSNorm. x [n, channels of q, k, v] before the convolution, conv
    /// [taps, channels], inputs [slots, taps - 1, channels] and state [slots, heads, width / 32, width, 32] f32
    /// (replaced), gate [n, heads, width] → [n, heads, width]; else as [`Ops::delta_rule`].
    ///
    /// What a sequence gets does not depend on the others: of fewer than 16 tokens it takes [`kda::kda_step`] whatever
    /// else is in the batch.
    ///
    /// # Errors
    /// As [`Ops::delta_rule`], and if the convolution has other than 2 to 4 taps.
    #[allow(clippy::too_many_arguments)]
    pub fn kda(
        self,
        x: &Tensor,
        conv: &Tensor,
        decay: &Tensor,
        beta: &Tensor,
        a_log: &Tensor,
        dt_bias: &Tensor,
        kind: Gate,
        gate: &Tensor,
        norm: &Tensor,
        eps: f64,
        inputs: &mut Tensor,
        state: &mut Tensor,
        at: &Batch,
    ) -> Result<Tensor> {
        at.check_pool(state.shape()[0].min(inputs.shape()[0]))?;
        let (mut state, heads, width) = state_blocks(state)?;
        let group = value_heads_a_key_head(conv.shape()[1], heads, width)?;
        let mut input = DeltaInput { qkv: x, decay, beta, a_log, dt_bias, gate: kind, group };
        let mut out = self.empty::<T>(gate.shape())?;
        if let Some(short) = &at.short {
            self.kda_step(&input, conv, gate, norm, eps, inputs, &mut state, short, &mut out)?;
        }
        if let Some(long) = &at.long {
            let qkv = self.convolved::<f32>(x, conv, inputs, at, &long.inputs)?;
            input.qkv = &qkv;
            let mut o = self.empty::<T>(gate.shape())?;
            self.delta_rule_long(&input, &mut state, at, &mut o)?;
            for tokens in &long.tokens {
                let part = |tensor: &Tensor| tensor.narrow(0, tokens.start, tokens.len());
                self.gated_rms_norm_into(&part(&o)?, &part(gate)?, norm, eps, &mut part(&out)?)?;
            }
        }
        Ok(out)
    }

    /// Sequences of few tokens, in one kernel. Where value heads have a key head in common a second one replaces
    /// inputs, which several programs read.
    #[allow(clippy::too_many_arguments)]
    fn kda_step(
        self,
        input: &DeltaInput,
        conv: &Tensor,
        gate: &Tensor,
        norm: &Tensor,
        eps: f64,
        inputs: &mut Tensor,
        state: &mut Tensor,
        short: &Short,
        out: &mut Tensor,
    ) -> Result<()> {
        let DeltaInput { qkv: x, decay, beta, a_log, dt_bias, gate: kind, group } = *input;
        let Short { sequences, longest, kept, keeps, inputs: ends } = short;
        let (heads, width) = (gate.shape()[1], gate.shape()[2]);
        let (n, taps, channels) = (x.shape()[0], conv.shape()[0], conv.shape()[1]);
        // q, k, v of a head below each other, if they have as many.
        let parts = if group == 1 { 3 } else { 1 };
        let by_part = [parts, channels / parts];
        let rows = &x.reshape(&[&[n][..], &by_part].concat())?;
        let weight = &conv.reshape(&[&[taps][..], &by_part].concat())?;
        let past = &mut inputs.reshape(&[&[inputs.shape()[0], taps - 1][..], &by_part].concat())?;
        let eps = eps as f32;
        let [programs, clusters] = [heads * sequences.shape()[0], usize::from(self.device.has_clusters()?)];
        // Many programs share multiprocessors, few have one each for a whole state, or for a block of its columns.
        let few = programs < 2 * self.multiprocessors;
        with_const!(J = taps, of [2, 3, 4], "linear_attn_config.short_conv_kernel_size", {
            with_const!(D = width, of [64, 128], "linear_attn_config.head_dim", {
                const V: usize = STATE_COLUMNS;
                const B: usize = D / V;
                let blocks = |tensor: &Tensor| tensor.reshape(&[tensor.shape()[0], heads, B, V]);
                let (gate, norm) = (&blocks(gate)?, &norm.reshape(&[B, V])?);
                let by_block = &mut blocks(out)?;
                let fewest = B * programs <= clusters * self.multiprocessors;
                // Tokens, blocks of a program and at a time, programs that the registers are to suffice for, whether
                // states are kept.
                macro_rules! step {
                    ($N:literal, $O:tt, $C:literal, $P:literal, $KEEP:literal, $GROUPED:literal) => {{
                        let grid = [heads / group * (B / $O), sequences.shape()[0], group];
                        match kind {
                            Gate::Softplus => {
                                kda::kda_step::<T, $N, D, B, V, $O, $C, { 2 * $C }, J, false, $KEEP, $GROUPED, $P>(
                                    rows, weight, decay, beta, a_log, dt_bias, 0.0, gate, norm, eps, sequences,
                                    kept, past, state, by_block,
                                )
                                .grid(grid)
                                .run()?
                            }
                            Gate::Bounded(low) => {
                                kda::kda_step::<T, $N, D, B, V, $O, $C, { 2 * $C }, J, true, $KEEP, $GROUPED, $P>(
                                    rows, weight, decay, beta, a_log, dt_bias, low, gate, norm, eps, sequences,
                                    kept, past, state, by_block,
                                )
                                .grid(grid)
                                .run()?
                            }
                        }
                    }};
                }
                match (group, longest, keeps) {
                    (1, 1, false) if fewest => step!(1, 1, 1, 1, false, false),
                    (1, 1, false) if few => step!(1, B, 2, 2, false, false),
                    (1, 1, false) => step!(1, B, 1, 4, false, false),
                    (1, 2..=4, false) => step!(4, B, 1, 3, false, false),
                    (1, _, false) => step!(16, B, 1, 2, false, false),
                    (1, 1..=8, true) => step!(8, B, 1, 2, true, false),
                    (1, _, true) => step!(16, B, 1, 2, true, false),
                    (_, 1, false) => step!(1, B, 1, 4, false, true),
                    (_, _, false) => step!(16, B, 1, 2, false, true),
                    (_, 1..=8, true) => step!(8, B, 1, 2, true, true),
                    (_, _, true) => step!(16, B, 1, 2, true, true),
                }
            })
        });
        if group > 1 {
            // What is kept on the way may need what a sequence began with.
            for rows in ends.kept.iter().chain([&ends.last]) {
                self.keep_inputs(x, taps, inputs, rows)?;
            }
        }
        Ok(())
    }
}
