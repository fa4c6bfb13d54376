//! What the lowering finds out about memory accesses: lanes that wait for one another in shared memory, warps that touch
//! more sectors of global memory than they use. Both are counted from the layouts, for every access that is written.

use super::lower::Lower;
use crate::gpu::facts::Access;
use crate::gpu::layout::{LinearLayout, SharedLayout, VectorAccess, Wavefronts};
use crate::gpu::sectors::sectors;
use crate::ir::{DType, Finding, Lint, Shape, Type, ValueId};

impl Lower<'_> {
    /// Reports something about the operation being lowered; once, if it is the same for several of its parts.
    pub(super) fn find(&mut self, lint: Lint, message: String) {
        let finding = Finding::new(lint, self.at, message);
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// An access to shared memory, of a tile: reported if it has bank conflicts.
    pub(super) fn shared_access(&mut self, what: &str, dtype: DType, shape: Shape, cost: Wavefronts) {
        if cost.conflicts() > 0 {
            let Wavefronts { actual, ideal } = cost;
            let tile = Type::Tile(dtype, shape);
            self.find(
                Lint::BankConflict,
                format!("{tile}, {what}: {actual} wavefronts a warp, {ideal} without conflicts"),
            );
        }
    }

    /// As [`Lower::shared_access`], of a tile whose threads have this layout.
    pub(super) fn shared_tile(
        &mut self,
        what: &str,
        dtype: DType,
        layout: &LinearLayout,
        shared: &SharedLayout,
        access: &VectorAccess,
    ) {
        let Wavefronts { actual, ideal } = shared.wavefronts(layout, access, dtype.size());
        // Every warp's are alike.
        let cost = Wavefronts { actual: actual / layout.warps(), ideal: ideal / layout.warps() };
        self.shared_access(what, dtype, *layout.shape(), cost);
    }

    /// An access to a box in global memory: reported if it is not coalesced.
    pub(super) fn global_access(&mut self, view: ValueId, layout: &LinearLayout, access: Access) {
        let cost = sectors(self.k, view, layout, access);
        if cost.touched > cost.least {
            let tile = Type::Tile(self.k.ty(view).dtype(), *layout.shape());
            let message = format!(
                "{tile}: a warp's access touches {} sectors of 32 bytes, {} would do",
                cost.touched, cost.least
            );
            self.find(Lint::Uncoalesced, message);
        }
    }
}
