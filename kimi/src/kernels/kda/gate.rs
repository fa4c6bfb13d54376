//! Who begins first, of two kernels side by side.

use kiln::prelude::*;

/// Looks at the counter before it is given up, some twenty microseconds.
const LOOKS: i32 = 32;

/// Lets what is queued behind it begin when so many programs of [`super::kda_state`] have their places: these need all
/// of a multiprocessor, which [`super::kda_chunk`] would not leave to them before its end.
///
/// started `[1]`: the programs that have begun, counted from 0, which it is again when all have. If they do not come, the
/// gate opens nevertheless: nobody depends on the order. Program: one.
#[kernel(warps = 1)]
pub fn kda_gate(started: &mut View<i32, 1>, walkers: i32) {
    let zero: Tile<i32> = full(0.0);
    let (mut seen, mut looks) = (zero, zero);
    while (seen < walkers) & (looks < LOOKS) {
        // SAFETY: everybody adds.
        seen = unsafe { started.atomic_add(zero, zero) };
        looks += 1;
    }
    // SAFETY: as above.
    unsafe { started.atomic_add(zero, zero - walkers) };
}
