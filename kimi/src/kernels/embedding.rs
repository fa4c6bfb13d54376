//! Token embedding: `out[n, :] = table[ids[n], :]`.

use kiln::prelude::*;

/// ids `[n]` i32, table `[vocabulary, width]` → out `[n, width]` f32, in blocks of `B` channels.
#[kernel]
pub fn embedding<W: Float, const B: usize>(ids: &View<i32, 1>, table: &View<W, 2>, out: &mut Block<f32, 1, B>) {
    let row = table.select(0, ids.get(program_id(0)));
    let values: Tile<W, B> = row.load(out.origin(1));
    out.store(values.cast::<f32>().reshape());
}
