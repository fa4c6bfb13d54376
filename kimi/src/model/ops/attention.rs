//! Multi-head latent attention: the cache, prefill over expanded keys, decode over latents.

use super::{Activation, Ops, Result, unsupported};
use crate::kernels::attention;
use kiln::{Float, Tensor};

/// Programs that share the context of one decoded token.
const MAX_SPLITS: usize = 64;
/// From so many elements on latents are read as fast as memory gives them, whatever they evict from the cache (measured on
/// an H100: 67 million are read in 0.96 of the time if they are evicted first, 268 million in 1.05).
const ONCE_ELEMENTS: usize = 128 << 20;
/// Keys that are worth a program, of a context that several share.
const KEYS: usize = 128;

/// Widths of latent attention.
#[derive(Clone, Copy)]
pub struct MlaShape {
    pub heads: usize,
    pub nope: usize,
    pub rope: usize,
    pub value: usize,
}

impl MlaShape {
    fn scale(self) -> f32 {
        ((self.nope + self.rope) as f32).powf(-0.5)
    }
}

impl<T: Activation, W: Float> Ops<T, W> {
    /// Puts n tokens' latents and shared keys into the caches at `position`. projected [n, latent + rope].
    pub fn mla_cache(
        self,
        projected: &Tensor,
        weight: &Tensor,
        eps: f64,
        position: &Tensor,
        latent: &mut Tensor,
        shared: &mut Tensor,
    ) -> Result<()> {
        let (n, eps) = (projected.shape()[0], eps as f32);
        with_const!(R = latent.shape()[1], of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(P = shared.shape()[1].next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                attention::mla_cache::<T, f32, R, P>(projected, weight, eps, position, latent, shared)
                    .grid([n])
                    .run()?
            })
        });
        Ok(())
    }

    /// Causal attention of a piece of prompt. q [n, heads·(nope + rope)], kv [context, heads·(nope + value)], shared
    /// [context, rope] → [n, heads·value].
    pub fn mla_prefill(
        self,
        q: &Tensor,
        kv: &Tensor,
        shared: &Tensor,
        position: &Tensor,
        shape: MlaShape,
    ) -> Result<Tensor> {
        let n = q.shape()[0];
        let mut out = self.empty::<T>(&[n, shape.heads * shape.value])?;
        if shape.nope != shape.value {
            return unsupported("v_head_dim", shape.value, "a value as wide as qk_nope_head_dim");
        }
        let scale = shape.scale();
        // Heads whose keys and values fill half of an H100's L2 cache.
        let head_bytes = kv.shape()[0] * (shape.nope + shape.value) * T::DTYPE.size();
        let together = ((24 << 20) / head_bytes.max(1)).clamp(1, shape.heads) as i32;
        with_const!(V = shape.value, of [32, 64, 128], "v_head_dim", {
            with_const!(P = shape.rope.next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                let grid = |queries: usize| n.div_ceil(queries) * shape.heads;
                if self.gpu && n > 64 {
                    attention::mla_prefill::<T, V, P, V, 128, 128>(q, kv, shared, position, scale, together, &mut out)
                        .grid(grid(128))
                        .run()?
                } else if self.gpu {
                    attention::mla_prefill::<T, V, P, V, 64, 64>(q, kv, shared, position, scale, together, &mut out)
                        .grid(grid(64))
                        .run()?
                } else {
                    attention::mla_prefill::<T, V, P, V, 16, 32>(q, kv, shared, position, scale, together, &mut out)
                        .grid(grid(16))
                        .run()?
                }
            })
        });
        Ok(out)
    }

    /// Absorbed attention of few tokens over the latent cache of their sequence, which all n belong to; what is launched
    /// depends on the cache's capacity, not on `position`. q [n, heads·(nope + rope)], latent [capacity, R], shared
    /// [capacity, rope], kv_b [heads·(nope + value), R] → [n, heads·value].
    pub fn mla_decode(
        self,
        q: &Tensor,
        latent: &Tensor,
        shared: &Tensor,
        kv_b: &Tensor,
        position: &Tensor,
        shape: MlaShape,
    ) -> Result<Tensor> {
        let absorbed = self.mla_absorb_query(q, kv_b, shape)?;
        let one = |cache: &Tensor| cache.reshape(&[1, cache.shape()[0], cache.shape()[1]]);
        let attended = self.mla_attend(&absorbed, q, &one(latent)?, &one(shared)?, position, shape)?;
        self.mla_expand_value(&attended, kv_b, shape)
    }

    /// Queries as the latent sees them: q [n, heads·(nope + rope)] → [n, heads, R].
    pub fn mla_absorb_query(self, q: &Tensor, kv_b: &Tensor, shape: MlaShape) -> Result<Tensor> {
        let (n, heads, r) = (q.shape()[0], shape.heads, kv_b.shape()[1]);
        let (rope, value) = (shape.rope as i32, shape.value as i32);
        let mut absorbed = self.empty::<T>(&[n, heads * r])?;
        with_const!(R = r, of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(N = shape.nope, of [32, 64, 128], "qk_nope_head_dim", {
                attention::mla_absorb_query::<T, W, N, R, 8>(q, kv_b, rope, value, &mut absorbed).run()?
            })
        });
        Ok(absorbed.reshape(&[n, heads, r])?)
    }

    /// Values of attended latents: [n, heads, R] f32 → [n, heads·value].
    pub fn mla_expand_value(self, attended: &Tensor, kv_b: &Tensor, shape: MlaShape) -> Result<Tensor> {
        let (n, heads, r) = (attended.shape()[0], shape.heads, kv_b.shape()[1]);
        let nope = shape.nope as i32;
        let attended = attended.reshape(&[n, heads * r])?;
        let mut out = self.empty::<T>(&[n, heads * shape.value])?;
        with_const!(R = r, of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(V = shape.value, of [32, 64, 128], "v_head_dim", {
                attention::mla_expand_value::<T, W, V, R, 32>(&attended, kv_b, nope, &mut out).run()?
            })
        });
        Ok(out)
    }

    /// Attention over latents of n tokens, as many of each sequence. absorbed [n, heads, R], q [n, heads·(nope + rope)],
    /// latent [sequences, capacity, R] and shared [sequences, capacity, rope], finite beyond the tokens, position
    /// [sequences]: of each sequence's first token here → [n, heads, R] f32.
    pub fn mla_attend(
        self,
        absorbed: &Tensor,
        q: &Tensor,
        latent: &Tensor,
        shared: &Tensor,
        position: &Tensor,
        shape: MlaShape,
    ) -> Result<Tensor> {
        let (n, heads, r) = (q.shape()[0], shape.heads, latent.shape()[2]);
        let q = q.reshape(&[n, heads, shape.nope + shape.rope])?;
        // Where the context is split, half the heads and half the splits leave half as much to put together, and the cache has
        // what a neighbour reads.
        let wide = self.gpu && heads > 16 && T::DTYPE.size() == 2 && n * heads.div_ceil(16) > self.multiprocessors;
        let tiles = heads.div_ceil(if wide { 32 } else { 16 });
        let once = n == latent.shape()[0] && latent.shape().iter().product::<usize>() < ONCE_ELEMENTS;
        // As many programs as multiprocessors, each with as much of the context; by the capacity, so that the same launches
        // serve while the context grows.
        let most = (self.multiprocessors / (n * tiles).max(1)).clamp(1, MAX_SPLITS);
        let splits = latent.shape()[1].div_ceil(KEYS).clamp(1, most);
        let scale = shape.scale();
        let kept = if splits > 1 { splits } else { 0 };
        let mut partial = self.empty::<f32>(&[n, kept, heads, r])?;
        let mut highest = self.empty::<f32>(&[n, kept, heads])?;
        let mut total = self.empty::<f32>(&[n, kept, heads])?;
        let mut attended = self.empty::<f32>(&[n, heads, r])?;
        let (partial, highest, total, out) = (&mut partial, &mut highest, &mut total, &mut attended);
        with_const!(R = r, of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(P = shape.rope.next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                macro_rules! decode {
                    ($H:literal, $B:literal, $S:literal, $ONCE:literal) => {{
                        const PARTS: [usize; 2] = attention::part_of_tile($H, R, $S);
                        attention::mla_decode::<T, R, P, $H, $B, $S, { PARTS[0] }, { PARTS[1] }, $ONCE>(
                            absorbed, &q, latent, shared, position, scale, partial, highest, total, out,
                        )
                        .grid([tiles, splits, n])
                        .run()?
                    }};
                    ($H:literal, $B:literal, $ONCE:literal) => {
                        match splits {
                            1 => decode!($H, $B, 1, $ONCE),
                            2..=4 => decode!($H, $B, 4, $ONCE),
                            5..=8 => decode!($H, $B, 8, $ONCE),
                            9..=32 => decode!($H, $B, 32, $ONCE),
                            _ => decode!($H, $B, 64, $ONCE),
                        }
                    };
                }
                // Wide tiles are for more than half of the multiprocessors, so that their context is never split.
                match (wide, self.gpu && T::DTYPE.size() == 2) {
                    (true, _) if once => decode!(32, 64, 1, true),
                    (true, _) => decode!(32, 64, 1, false),
                    (_, true) if once => decode!(16, 64, true),
                    (_, true) => decode!(16, 64, false),
                    _ => decode!(16, 16, false),
                }
            })
        });
        Ok(attended)
    }
}
