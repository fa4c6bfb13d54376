//! Programs that meet: those of a cluster exchange tiles, combined on the way; those of a launch wait for each other.

use super::{Number, Shape, Tile};
use crate::stage;
use kiln_codegen::ir::Combine;

/// Waits for all programs of the launch: what any of them did to memory before comes before what the others do
/// afterwards. So a kernel may read what its own programs have written, and needs no second one for that.
///
/// All programs must come here equally often. (The interpreter and the CPU report those that do not.) On a GPU they must
/// all find room at the same time: as many as its multiprocessors hold
/// ([`KernelReport`](crate::KernelReport) says how many one does); otherwise the launch is an error. A meeting there costs
/// about as much as a second kernel that follows in a graph. On the CPU at most 1,024 programs meet. Not in roles, nor in
/// a kernel whose clusters exchange tiles. Loads are copied by a warp of their own only if all meetings come after them,
/// outside of loops and branches with such loads.
#[track_caller]
pub fn grid_sync() {
    stage::emit(|b| b.grid_sync());
}

/// Exchanges within the cluster, of `#[kernel(cluster = N)]`: the `N` neighbours along axis 0 of the grid that run at
/// the same time. All of them must come to the same exchange equally often: whether they do may depend on what they
/// have in common only, as `program_id(0) / N`. (The interpreter and the CPU report programs that do not meet.) A tile
/// has at most 64 KiB.
///
/// What a program did to memory before an exchange comes before what the others do after it. So one program may replace
/// what others read before, or read what they wrote. A GPU waits for that until its stores are in memory: what can be
/// stored after an exchange should be.
///
/// Without `cluster`, a program is alone and has what it brought. Not in roles. On a GPU it takes Hopper; loads are copied by
/// a warp of their own only if all exchanges come after them, outside of loops and branches with such loads.
impl<T: Number, S: Shape> Tile<T, S> {
    #[track_caller]
    fn exchanged(self, combine: Combine) -> Tile<T, S> {
        Tile::from_id(stage::emit(|b| b.cluster_reduce(self.id(), combine)))
    }

    /// Element by element, the sum over the programs of the cluster, added in the order of their ranks,
    /// `(p0 + p1) + p2` ..: all get the same bits.
    #[track_caller]
    pub fn cluster_sum(self) -> Tile<T, S> {
        self.exchanged(Combine::Sum)
    }

    /// Element by element, the largest among the programs of the cluster; NaN only if all are.
    #[track_caller]
    pub fn cluster_max(self) -> Tile<T, S> {
        self.exchanged(Combine::Max)
    }
}
