//! Appends operations to a kernel, innermost region first.

use super::{
    AtomicOp, BinaryOp, Bits, CmpOp, Combine, DType, Kernel, Loc, OpId, OpKind, Precision, RegionId, Role, Shape, Type,
    UnaryOp, ValueId,
};

/// Builds one kernel. Types of results follow from the operands or are given; whether they are right is the verifier's
/// business, which whoever finishes a kernel runs.
#[derive(Debug)]
pub struct Builder {
    kernel: Kernel,
    open: Vec<RegionId>,
    /// The location given to the operations appended next.
    pub loc: Loc,
}

impl Builder {
    pub fn new(name: impl Into<String>, loc: Loc) -> Builder {
        let kernel = Kernel::new(name, loc);
        let open = vec![kernel.body];
        Builder { kernel, open, loc }
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// For parameters and options; operations are appended through the builder.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Ends the body and returns the kernel.
    pub fn finish(mut self) -> Kernel {
        assert_eq!(self.open.len(), 1, "a region is still open");
        self.emit(OpKind::Yield, &[], &[]);
        self.kernel
    }

    /// Appends an operation without regions.
    pub fn emit(&mut self, kind: OpKind, operands: &[ValueId], results: &[Type]) -> OpId {
        self.emit_with_regions(kind, operands, results, &[])
    }

    pub fn emit_with_regions(
        &mut self,
        kind: OpKind,
        operands: &[ValueId],
        results: &[Type],
        regions: &[RegionId],
    ) -> OpId {
        let op = self.kernel.new_op(kind, operands, results, regions, self.loc);
        let region = *self.open.last().expect("the body is open until `finish`");
        self.kernel.regions[region.index()].ops.push(op);
        op
    }

    fn emit1(&mut self, kind: OpKind, operands: &[ValueId], result: Type) -> ValueId {
        let op = self.emit(kind, operands, &[result]);
        self.kernel.op(op).results[0]
    }

    pub fn results(&self, op: OpId) -> Vec<ValueId> {
        self.kernel.op(op).results.to_vec()
    }

    /// Opens a region with arguments of these types; operations go there until [`Builder::close`].
    pub fn open(&mut self, args: &[Type]) -> (RegionId, Vec<ValueId>) {
        let region = self.kernel.new_region(args);
        self.open.push(region);
        (region, self.kernel.region(region).args.clone())
    }

    /// Yields and closes the innermost region.
    pub fn close(&mut self, yielded: &[ValueId]) {
        assert!(self.open.len() > 1, "the body is closed by `finish`");
        self.emit(OpKind::Yield, yielded, &[]);
        self.open.pop();
    }

    pub fn ty(&self, v: ValueId) -> Type {
        self.kernel.ty(v)
    }

    fn tile(&self, v: ValueId) -> (DType, Shape) {
        (self.ty(v).dtype(), self.ty(v).shape())
    }

    // -- sources -------------------------------------------------------------------------------------------------------

    pub fn constant(&mut self, dtype: DType, shape: Shape, bits: Bits) -> ValueId {
        self.emit1(OpKind::Const(bits), &[], Type::Tile(dtype, shape))
    }

    /// A constant by value, rounded to `dtype`.
    pub fn splat(&mut self, dtype: DType, shape: Shape, value: f64) -> ValueId {
        self.constant(dtype, shape, Bits::from_f64(dtype, value))
    }

    pub fn i32(&mut self, value: i32) -> ValueId {
        self.constant(DType::I32, Shape::SCALAR, Bits::from_i64(DType::I32, value as i64))
    }

    pub fn iota(&mut self, shape: Shape, axis: usize) -> ValueId {
        self.emit1(OpKind::Iota { axis: axis as u8 }, &[], Type::Tile(DType::I32, shape))
    }

    pub fn program_id(&mut self, axis: usize) -> ValueId {
        self.emit1(OpKind::ProgramId { axis: axis as u8 }, &[], Type::scalar(DType::I32))
    }

    pub fn num_programs(&mut self, axis: usize) -> ValueId {
        self.emit1(OpKind::NumPrograms { axis: axis as u8 }, &[], Type::scalar(DType::I32))
    }

    // -- elementwise ---------------------------------------------------------------------------------------------------

    pub fn unary(&mut self, op: UnaryOp, x: ValueId) -> ValueId {
        let ty = self.ty(x);
        self.emit1(OpKind::Unary(op), &[x], ty)
    }

    pub fn binary(&mut self, op: BinaryOp, x: ValueId, y: ValueId) -> ValueId {
        let ty = self.ty(x);
        self.emit1(OpKind::Binary(op), &[x, y], ty)
    }

    pub fn compare(&mut self, op: CmpOp, x: ValueId, y: ValueId) -> ValueId {
        let shape = self.tile(x).1;
        self.emit1(OpKind::Compare(op), &[x, y], Type::Tile(DType::Bool, shape))
    }

    /// x·a + b of floats, the product exact.
    pub fn fma(&mut self, x: ValueId, a: ValueId, b: ValueId) -> ValueId {
        let ty = self.ty(x);
        self.emit1(OpKind::Fma, &[x, a, b], ty)
    }

    pub fn select(&mut self, c: ValueId, x: ValueId, y: ValueId) -> ValueId {
        let ty = self.ty(x);
        self.emit1(OpKind::Select, &[c, x, y], ty)
    }

    pub fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        let (from, shape) = self.tile(x);
        if from == to { x } else { self.emit1(OpKind::Cast, &[x], Type::Tile(to, shape)) }
    }

    pub fn bitcast(&mut self, x: ValueId, to: DType) -> ValueId {
        let (from, shape) = self.tile(x);
        if from == to { x } else { self.emit1(OpKind::Bitcast, &[x], Type::Tile(to, shape)) }
    }

    // -- shape ---------------------------------------------------------------------------------------------------------

    pub fn broadcast(&mut self, x: ValueId, shape: Shape) -> ValueId {
        let (dtype, from) = self.tile(x);
        if from == shape { x } else { self.emit1(OpKind::Broadcast, &[x], Type::Tile(dtype, shape)) }
    }

    pub fn reshape(&mut self, x: ValueId, shape: Shape) -> ValueId {
        let (dtype, from) = self.tile(x);
        if from == shape { x } else { self.emit1(OpKind::Reshape, &[x], Type::Tile(dtype, shape)) }
    }

    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> ValueId {
        let (dtype, from) = self.tile(x);
        let mut p = [0, 1, 2, 3];
        let mut extents = vec![];
        for (i, &axis) in perm.iter().enumerate() {
            p[i] = axis as u8;
            extents.push(from.dims()[axis]);
        }
        self.emit1(OpKind::Transpose { perm: p }, &[x], Type::Tile(dtype, Shape::new(&extents)))
    }

    pub fn slice(&mut self, x: ValueId, offsets: &[u32], shape: Shape) -> ValueId {
        let dtype = self.tile(x).0;
        let mut o = [0; super::MAX_RANK];
        o[..offsets.len()].copy_from_slice(offsets);
        self.emit1(OpKind::Slice { offsets: o }, &[x], Type::Tile(dtype, shape))
    }

    pub fn join(&mut self, x: ValueId, y: ValueId, axis: usize) -> ValueId {
        let (dtype, s) = self.tile(x);
        self.emit1(OpKind::Join { axis: axis as u8 }, &[x, y], Type::Tile(dtype, s.with(axis, 2 * s.dims()[axis])))
    }

    // -- along an axis -------------------------------------------------------------------------------------------------

    /// Reduces with a named combination.
    pub fn reduce(&mut self, x: ValueId, axis: usize, combine: Combine) -> ValueId {
        let (dtype, s) = self.tile(x);
        self.emit1(OpKind::Reduce { axis: axis as u8, combine }, &[x], Type::Tile(dtype, s.without(axis)))
    }

    pub fn scan(&mut self, x: ValueId, axis: usize, combine: Combine, reverse: bool) -> ValueId {
        let ty = self.ty(x);
        self.emit1(OpKind::Scan { axis: axis as u8, combine, reverse }, &[x], ty)
    }

    /// Reduces n tiles with the combination that `f` builds from 2n scalars.
    pub fn reduce_by(
        &mut self,
        xs: &[ValueId],
        axis: usize,
        f: impl FnOnce(&mut Builder, &[ValueId], &[ValueId]) -> Vec<ValueId>,
    ) -> Vec<ValueId> {
        let results: Vec<Type> = xs.iter().map(|&x| Type::Tile(self.tile(x).0, self.tile(x).1.without(axis))).collect();
        self.combine_by(OpKind::Reduce { axis: axis as u8, combine: Combine::Region }, xs, &results, f)
    }

    /// Scans n tiles with the combination that `f` builds from 2n scalars.
    pub fn scan_by(
        &mut self,
        xs: &[ValueId],
        axis: usize,
        reverse: bool,
        f: impl FnOnce(&mut Builder, &[ValueId], &[ValueId]) -> Vec<ValueId>,
    ) -> Vec<ValueId> {
        let results: Vec<Type> = xs.iter().map(|&x| self.ty(x)).collect();
        self.combine_by(OpKind::Scan { axis: axis as u8, combine: Combine::Region, reverse }, xs, &results, f)
    }

    fn combine_by(
        &mut self,
        kind: OpKind,
        xs: &[ValueId],
        results: &[Type],
        f: impl FnOnce(&mut Builder, &[ValueId], &[ValueId]) -> Vec<ValueId>,
    ) -> Vec<ValueId> {
        let scalars: Vec<Type> = xs.iter().chain(xs).map(|&x| Type::scalar(self.tile(x).0)).collect();
        let (region, args) = self.open(&scalars);
        let (left, right) = args.split_at(xs.len());
        let out = f(self, left, right);
        self.close(&out);
        let op = self.emit_with_regions(kind, xs, results, &[region]);
        self.results(op)
    }

    pub fn dot(&mut self, a: ValueId, b: ValueId, acc: ValueId, precision: Precision) -> ValueId {
        let ty = self.ty(acc);
        self.emit1(OpKind::Dot(precision), &[a, b, acc], ty)
    }

    // -- memory --------------------------------------------------------------------------------------------------------

    pub fn dim(&mut self, view: ValueId, dim: usize) -> ValueId {
        self.emit1(OpKind::Dim { dim: dim as u8 }, &[view], Type::scalar(DType::I32))
    }

    pub fn view_select(&mut self, view: ValueId, dim: usize, index: ValueId) -> ValueId {
        let Type::View(dtype, rank) = self.ty(view) else { panic!("view_select of a tile") };
        self.emit1(OpKind::ViewSelect { dim: dim as u8 }, &[view, index], Type::View(dtype, rank - 1))
    }

    pub fn view_narrow(&mut self, view: ValueId, dim: usize, start: ValueId, len: ValueId) -> ValueId {
        let ty = self.ty(view);
        self.emit1(OpKind::ViewNarrow { dim: dim as u8 }, &[view, start, len], ty)
    }

    pub fn load(&mut self, view: ValueId, coords: &[ValueId], shape: Shape, other: Option<ValueId>) -> ValueId {
        let dtype = self.ty(view).dtype();
        let operands: Vec<_> = [view].iter().chain(coords).chain(&other).copied().collect();
        self.emit1(OpKind::Load { has_other: other.is_some() }, &operands, Type::Tile(dtype, shape))
    }

    pub fn store(&mut self, view: ValueId, value: ValueId, coords: &[ValueId]) {
        let operands: Vec<_> = [view, value].iter().chain(coords).copied().collect();
        self.emit(OpKind::Store, &operands, &[]);
    }

    pub fn store_add(&mut self, view: ValueId, value: ValueId, coords: &[ValueId]) {
        let operands: Vec<_> = [view, value].iter().chain(coords).copied().collect();
        self.emit(OpKind::StoreAdd, &operands, &[]);
    }

    /// `masked`: the mask, and the value where it is false.
    pub fn gather(&mut self, view: ValueId, index: &[ValueId], masked: Option<(ValueId, ValueId)>) -> ValueId {
        let ty = Type::Tile(self.ty(view).dtype(), self.tile(index[0]).1);
        let mut operands: Vec<_> = [view].iter().chain(index).copied().collect();
        operands.extend(masked.iter().flat_map(|&(m, o)| [m, o]));
        self.emit1(OpKind::Gather { masked: masked.is_some() }, &operands, ty)
    }

    pub fn scatter(&mut self, view: ValueId, value: ValueId, index: &[ValueId], mask: Option<ValueId>) {
        let operands: Vec<_> = [view, value].iter().chain(index).chain(&mask).copied().collect();
        self.emit(OpKind::Scatter { masked: mask.is_some() }, &operands, &[]);
    }

    pub fn atomic(
        &mut self,
        op: AtomicOp,
        view: ValueId,
        value: ValueId,
        index: &[ValueId],
        mask: Option<ValueId>,
    ) -> ValueId {
        let ty = self.ty(value);
        let operands: Vec<_> = [view, value].iter().chain(index).chain(&mask).copied().collect();
        self.emit1(OpKind::Atomic { op, masked: mask.is_some() }, &operands, ty)
    }

    pub fn signal(&mut self, view: ValueId, count: ValueId, at: &[ValueId]) {
        let operands: Vec<_> = [view, count].iter().chain(at).copied().collect();
        self.emit(OpKind::Signal, &operands, &[]);
    }

    pub fn wait(&mut self, view: ValueId, count: ValueId, at: &[ValueId]) {
        let operands: Vec<_> = [view, count].iter().chain(at).copied().collect();
        self.emit(OpKind::Wait, &operands, &[]);
    }

    // -- programs that meet --------------------------------------------------------------------------------------------

    /// Combines what all programs of the cluster have.
    pub fn cluster_reduce(&mut self, x: ValueId, combine: Combine) -> ValueId {
        let ty = self.ty(x);
        self.emit1(OpKind::ClusterReduce(combine), &[x], ty)
    }

    /// Waits for all programs of the launch.
    pub fn grid_sync(&mut self) {
        self.emit(OpKind::GridSync, &[], &[]);
    }

    // -- roles ---------------------------------------------------------------------------------------------------------

    /// A channel of messages of these tiles.
    pub fn channel(&mut self, slots: u8, message: &[Type]) -> ValueId {
        self.emit1(OpKind::Channel { slots, message: message.into() }, &[], Type::Channel)
    }

    pub fn send(&mut self, channel: ValueId, tiles: &[ValueId]) {
        let operands: Vec<_> = [channel].iter().chain(tiles).copied().collect();
        self.emit(OpKind::Send, &operands, &[]);
    }

    /// The slot and the tiles of the message, which are of the types `message`.
    pub fn receive(&mut self, channel: ValueId, message: &[Type]) -> (ValueId, Vec<ValueId>) {
        let types: Vec<Type> = [Type::Slot].iter().chain(message).copied().collect();
        let op = self.emit(OpKind::Receive, &[channel], &types);
        let results = self.results(op);
        (results[0], results[1..].to_vec())
    }

    pub fn release(&mut self, slot: ValueId) {
        self.emit(OpKind::Release, &[slot], &[]);
    }

    /// The roles whose regions have been built between [`Builder::open`] and [`Builder::close`].
    pub fn roles(&mut self, roles: &[(Role, RegionId)]) {
        let (roles, regions): (_, Vec<_>) = roles.iter().copied().unzip();
        self.emit_with_regions(OpKind::Roles(roles), &[], &[], &regions);
    }

    // -- diagnostics ---------------------------------------------------------------------------------------------------

    pub fn assert(&mut self, condition: ValueId, message: impl Into<String>) {
        self.emit(OpKind::Assert { message: message.into() }, &[condition], &[]);
    }

    pub fn print(&mut self, message: impl Into<String>, values: &[ValueId]) {
        self.emit(OpKind::Print { message: message.into() }, values, &[]);
    }
}
