//! The rules that every kernel in tile IR obeys, checked.
//!
//! - Types: as the documentation of each operation in `op.rs` says. Extents are powers of two, a tile has at most
//!   [`MAX_ELEMENTS`] elements.
//! - Visibility: an operand is a parameter, or defined earlier in the same region or in a region around it.
//! - Regions end with the only `yield` in them; it yields what the operation around them says.
//! - Memory is written only through parameters with [`Access::Write`]; views are not carried, yielded or selected, so
//!   the parameter behind a view is always known.
//! - `roles` ends the kernel; before it there are only channels and operations without effect, which every role may do for
//!   itself. One role sends on a channel and one other receives. A slot is released once, in the region that received it.
//!   What the roles say to each other fits, where that is decidable (`protocol`).
//! - Programs of a cluster exchange tiles of [`MAX_EXCHANGED`] bytes at most, and not in roles.
//! - The region of a combination works on scalars, elementwise, without effects: a back end may evaluate it anywhere.
//!
//! Everything after the verifier relies on these rules and may panic where they do not hold.

mod roles;

use super::names::computes;
use super::*;
use std::collections::HashMap;

/// The most elements of one tile.
pub const MAX_ELEMENTS: usize = 1 << 20;
/// The most bytes of a tile that the programs of a cluster exchange.
pub const MAX_EXCHANGED: usize = 64 << 10;

/// A rule that a kernel breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}`, `{op}` at {loc}: {what}: expected {expected}, found {found}")]
pub struct VerifyError {
    pub kernel: Box<str>,
    /// The operation's name; `kernel` for a mistake in the signature.
    pub op: &'static str,
    pub loc: Loc,
    /// The part of the operation that is wrong.
    pub what: Box<str>,
    pub expected: Box<str>,
    pub found: Box<str>,
}

/// What an operand is expected to be.
const VISIBLE: &str = "a value that is defined before and visible";

impl VerifyError {
    /// Whether roles or what they exchange, or what programs of a cluster do, does not fit, which the types of the
    /// language cannot tell.
    pub fn is_about_exchanges(&self) -> bool {
        ["roles", "channel", "send", "receive", "release", "cluster_reduce"].contains(&self.op)
    }

    /// Whether a value is used outside the region that makes it.
    pub fn is_escape(&self) -> bool {
        &*self.expected == VISIBLE
    }
}

/// Checks all rules; the first that is broken is the error.
pub fn verify(kernel: &Kernel) -> Result<(), VerifyError> {
    let mut v = Verifier::new(kernel);
    v.form()?;
    protocol::check(kernel).or_else(|(op, what, expected, found)| {
        v.op = Some(op);
        v.fail(what, expected, found)
    })
}

/// Checks all rules but those of the protocol: a pass keeps these, and may make a mistake in those decidable.
pub(crate) fn verify_form(kernel: &Kernel) -> Result<(), VerifyError> {
    Verifier::new(kernel).form()
}

struct Verifier<'a> {
    k: &'a Kernel,
    /// The operation being checked; `None` in the signature.
    op: Option<OpId>,
    visible: Vec<bool>,
    /// The region being checked, and the role that it is part of.
    region: RegionId,
    role: Option<usize>,
    /// Slots that this region has received and not released.
    held: Vec<ValueId>,
    /// The roles that send on a channel and receive from it.
    ends: HashMap<ValueId, [Option<usize>; 2]>,
}

type Check<T = ()> = Result<T, VerifyError>;

const I32: Type = Type::scalar(DType::I32);

impl Verifier<'_> {
    fn new(kernel: &Kernel) -> Verifier<'_> {
        Verifier {
            k: kernel,
            op: None,
            visible: vec![false; kernel.values.len()],
            region: kernel.body,
            role: None,
            held: vec![],
            ends: HashMap::new(),
        }
    }

    fn form(&mut self) -> Check {
        self.signature()?;
        self.region(self.k.body, &[], &[], false)
    }

    fn fail<T>(&self, what: impl ToString, expected: impl ToString, found: impl ToString) -> Check<T> {
        let (op, loc) = match self.op {
            Some(op) => (self.k.op(op).kind.mnemonic(), self.k.op(op).loc),
            None => ("kernel", self.k.loc),
        };
        Err(VerifyError {
            kernel: self.k.name.as_str().into(),
            op,
            loc,
            what: what.to_string().into(),
            expected: expected.to_string().into(),
            found: found.to_string().into(),
        })
    }

    fn require(&self, holds: bool, what: &str, expected: impl ToString, found: impl ToString) -> Check {
        if holds { Ok(()) } else { self.fail(what, expected, found) }
    }

    fn same(&self, what: &str, expected: Type, found: Type) -> Check {
        self.require(expected == found, what, expected, found)
    }

    // -- signature and types -------------------------------------------------------------------------------------------

    fn signature(&mut self) -> Check {
        let slots = self.k.slots().len();
        self.require(self.k.facts.len() <= slots, "facts", format!("at most {slots}"), self.k.facts.len())?;
        let cluster = self.k.options.cluster;
        self.require(cluster == 0 || cluster.is_power_of_two() && cluster <= 8, "cluster", "1, 2, 4 or 8", cluster)?;
        for (i, p) in self.k.params.iter().enumerate() {
            let (ty, what) = (self.k.ty(p.value), format!("parameter `{}`", p.name));
            self.well_formed(&what, ty)?;
            match ty {
                Type::Tile(_, shape) => {
                    self.require(shape.rank() == 0, &what, "a scalar or a view", ty)?;
                    self.require(p.access == Access::Read, &what, "a scalar to be read only", "a writable one")?;
                    self.require(p.block.is_none(), &what, "a scalar without block", "one with a block")?;
                    self.require(p.reuse == Reuse::Unknown, &what, "no hint of its reuse", format!("{:?}", p.reuse))?;
                    self.require(!p.settled, &what, "no settled memory", "some")?;
                }
                Type::View(dtype, rank) => {
                    let discarded = p.settled && p.reuse == Reuse::Discard;
                    self.require(!discarded, &what, "settled or discarded memory", "what is both")?;
                    if let Some(block) = p.block {
                        self.well_formed(&what, Type::Tile(dtype, block))?;
                        let expected = format!("a block of rank {rank}");
                        self.require(block.rank() == rank as usize, &what, expected, format!("{block:?}"))?;
                        self.require(p.access == Access::Write, &what, "a block of an output", "one of an input")?;
                    }
                }
                Type::Channel | Type::Slot => return self.fail(what, "a scalar or a view", ty),
            }
            self.require(
                self.k.def(p.value) == Def::Param(i as u32),
                &what,
                format!("definition as parameter {i}"),
                format!("{:?}", self.k.def(p.value)),
            )?;
            self.visible[p.value.index()] = true;
        }
        Ok(())
    }

    fn well_formed(&self, what: &str, ty: Type) -> Check {
        match ty {
            Type::View(_, rank) => {
                self.require(rank as usize <= MAX_RANK, what, format!("a rank of at most {MAX_RANK}"), rank)
            }
            Type::Tile(_, shape) => {
                for &d in shape.dims() {
                    self.require(d.is_power_of_two(), what, "extents that are powers of two", ty)?;
                }
                // Each extent is below 2^32, so the product must be watched.
                let elements = shape.dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize));
                let fits = elements.is_some_and(|n| n <= MAX_ELEMENTS);
                self.require(fits, what, format!("a tile of at most {MAX_ELEMENTS} elements"), ty)
            }
            Type::Channel | Type::Slot => Ok(()),
        }
    }

    // -- regions -------------------------------------------------------------------------------------------------------

    /// Checks a region that has arguments of types `args` and yields `yields`. `scalar`: it is a combination's.
    fn region(&mut self, region: RegionId, args: &[Type], yields: &[Type], scalar: bool) -> Check {
        let owner = self.op;
        let around = std::mem::replace(&mut self.region, region);
        let held_around = std::mem::take(&mut self.held);
        let r = self.k.region(region);
        let found: Vec<Type> = r.args.iter().map(|&a| self.k.ty(a)).collect();
        self.require(found == args, "arguments of a region", types_text(args), types_text(&found))?;
        let mut defined = r.args.clone();
        r.args.iter().for_each(|a| self.visible[a.index()] = true);
        for (i, &op) in r.ops.iter().enumerate() {
            self.op = Some(op);
            let o = self.k.op(op);
            let last = i + 1 == r.ops.len();
            let ends = matches!(o.kind, OpKind::Roles(_)) && region == self.k.body;
            if ends && i + 2 != r.ops.len() {
                return self.fail("place", "the end of the kernel's body", "operations after it");
            }
            if matches!(o.kind, OpKind::Yield) != last {
                let found = if last { o.kind.mnemonic() } else { "yield before it" };
                return self.fail("the end of a region", "the region's only `yield`", found);
            }
            for (n, &v) in o.operands.iter().enumerate() {
                let what = format!("operand {n}");
                let visible = self.visible.get(v.index()).copied().unwrap_or(false);
                self.require(visible, &what, VISIBLE, format!("{v:?}"))?;
            }
            // First of all: what follows computes with shapes.
            for (n, &v) in o.results.iter().enumerate() {
                self.well_formed(&format!("result {n}"), self.k.ty(v))?;
            }
            if scalar {
                self.scalar_op(o)?;
            }
            if last {
                let found: Vec<Type> = o.operands.iter().map(|&v| self.k.ty(v)).collect();
                self.require(found == yields, "operands", types_text(yields), types_text(&found))?;
                self.require(o.results.is_empty() && o.regions.is_empty(), "results", "none", o.results.len())?;
            } else {
                self.operation(o)?;
            }
            self.op = Some(op);
            for (n, &v) in o.results.iter().enumerate() {
                let what = format!("result {n}");
                let fresh = !self.visible[v.index()] && self.k.def(v) == Def::Result(op, n as u32);
                self.require(fresh, &what, "a value that only this operation defines", format!("{v:?}"))?;
                self.visible[v.index()] = true;
                defined.push(v);
            }
        }
        if let Some(&slot) = self.held.first() {
            self.op = self.k.defining_op(slot);
            return self.fail("slot", "its `release` in the region that received it", "none");
        }
        (self.op, self.region, self.held) = (owner, around, held_around);
        self.require(!r.ops.is_empty(), "the end of a region", "a `yield`", "no operation")?;
        defined.iter().for_each(|v| self.visible[v.index()] = false);
        Ok(())
    }

    fn scalar_op(&self, o: &Op) -> Check {
        let allowed = o.kind.is_elementwise() || matches!(o.kind, OpKind::Const(_) | OpKind::Yield);
        let rule = "an elementwise operation on scalars without effect";
        self.require(allowed, "operation in the region of a combination", rule, o.kind.mnemonic())?;
        for &v in o.operands.iter().chain(&o.results) {
            self.require(self.k.ty(v).is_scalar(), "value in the region of a combination", "a scalar", self.k.ty(v))?;
        }
        Ok(())
    }

    // -- operations ----------------------------------------------------------------------------------------------------

    /// The types of exactly `N` operands.
    fn operands<const N: usize>(&self, o: &Op) -> Check<[Type; N]> {
        self.require(o.operands.len() == N, "operands", N, o.operands.len())?;
        Ok(std::array::from_fn(|i| self.k.ty(o.operands[i])))
    }

    /// The type of the only result.
    fn result(&self, o: &Op) -> Check<Type> {
        self.require(o.results.len() == 1, "results", 1, o.results.len())?;
        Ok(self.k.ty(o.results[0]))
    }

    fn no_results(&self, o: &Op) -> Check {
        self.require(o.results.is_empty(), "results", "none", o.results.len())
    }

    fn tile(&self, what: &str, ty: Type) -> Check<(DType, Shape)> {
        match ty {
            Type::Tile(d, s) => Ok((d, s)),
            _ => self.fail(what, "a tile", ty),
        }
    }

    fn view(&self, ty: Type) -> Check<(DType, u8)> {
        match ty {
            Type::View(d, r) => Ok((d, r)),
            _ => self.fail("operand 0", "a view", ty),
        }
    }

    fn axis(&self, axis: u8, rank: usize) -> Check {
        self.require((axis as usize) < rank, "axis", format!("less than the rank {rank}"), axis)
    }

    fn accepts(&self, accepted: bool, d: DType) -> Check {
        self.require(accepted, "element type", "one that the operation accepts", d)
    }

    fn operation(&mut self, o: &Op) -> Check {
        let regions = match o.kind {
            OpKind::For { .. } => 1,
            OpKind::While | OpKind::If => 2,
            OpKind::Reduce { combine: Combine::Region, .. } | OpKind::Scan { combine: Combine::Region, .. } => 1,
            OpKind::Roles(ref roles) => roles.len(),
            _ => 0,
        };
        self.require(o.regions.len() == regions, "regions", regions, o.regions.len())?;
        match &o.kind {
            OpKind::Const(_) | OpKind::Iota { .. } | OpKind::ProgramId { .. } | OpKind::NumPrograms { .. } => {
                self.source(o)
            }
            OpKind::Unary(_) | OpKind::Binary(_) | OpKind::Compare(_) | OpKind::Fma | OpKind::Select => {
                self.elementwise(o)
            }
            OpKind::Cast | OpKind::Bitcast | OpKind::Broadcast | OpKind::Reshape => self.conversion(o),
            OpKind::Transpose { .. } | OpKind::Slice { .. } | OpKind::Join { .. } => self.movement(o),
            OpKind::Reduce { axis, combine } => self.along_axis(o, *axis, *combine, true),
            OpKind::Scan { axis, combine, .. } => self.along_axis(o, *axis, *combine, false),
            OpKind::Dot(_) => self.dot(o),
            OpKind::Dim { dim } => {
                let rank = self.view(self.operands::<1>(o)?[0])?.1;
                self.axis(*dim, rank as usize)?;
                self.same("result", I32, self.result(o)?)
            }
            OpKind::ViewSelect { dim } => {
                let [view, index] = self.operands(o)?;
                let (dtype, rank) = self.view(view)?;
                self.axis(*dim, rank as usize)?;
                self.same("index", I32, index)?;
                self.same("result", Type::View(dtype, rank - 1), self.result(o)?)
            }
            OpKind::ViewNarrow { dim } => {
                let [view, start, len] = self.operands(o)?;
                self.axis(*dim, self.view(view)?.1 as usize)?;
                self.same("start", I32, start)?;
                self.same("length", I32, len)?;
                self.same("result", view, self.result(o)?)
            }
            OpKind::Load { .. } | OpKind::Store | OpKind::StoreAdd => self.box_access(o),
            OpKind::Gather { .. } | OpKind::Scatter { .. } | OpKind::Atomic { .. } => self.element_access(o),
            OpKind::Signal | OpKind::Wait => self.semaphore(o),
            OpKind::ClusterReduce(combine) => self.cluster_reduce(o, *combine),
            OpKind::GridSync => self.grid_sync(o),
            OpKind::For { .. } | OpKind::While | OpKind::If => self.control(o),
            OpKind::Channel { slots, message } => self.channel(o, *slots, message),
            OpKind::Roles(roles) => self.roles(o, roles),
            OpKind::Send | OpKind::Receive => self.exchange(o),
            OpKind::Release => self.release(o),
            OpKind::Yield => self.fail("place", "the end of a region", "the middle"),
            OpKind::Assert { .. } => {
                self.no_results(o)?;
                let [condition] = self.operands(o)?;
                let dtype = self.tile("operand 0", condition)?.0;
                self.require(dtype == DType::Bool, "operand 0", "a bool tile", condition)
            }
            OpKind::Print { .. } => {
                self.no_results(o)?;
                o.operands.iter().try_for_each(|&v| self.tile("operand", self.k.ty(v)).map(|_| ()))
            }
        }
    }

    fn source(&self, o: &Op) -> Check {
        let [] = self.operands(o)?;
        let ty = self.result(o)?;
        match o.kind {
            OpKind::Const(Bits(bits)) => {
                let d = self.tile("result", ty)?.0;
                let width = if d == DType::Bool { 1 } else { 8 * d.size() as u32 };
                let zero_extended = width == 64 || bits >> width == 0;
                let sign_extended =
                    d.is_int() && d.is_signed() && Bits::from_i64(d, bits as i64).to_i64(d) == bits as i64;
                self.require(zero_extended || sign_extended, "constant", format!("bits of {d}"), format!("{bits:#x}"))
            }
            OpKind::Iota { axis } => {
                let (d, s) = self.tile("result", ty)?;
                self.require(d == DType::I32, "result", "an i32 tile", ty)?;
                self.axis(axis, s.rank())
            }
            OpKind::ProgramId { axis } | OpKind::NumPrograms { axis } => {
                self.require(axis < 3, "axis", "0, 1 or 2", axis)?;
                self.same("result", I32, ty)
            }
            _ => Ok(()),
        }
    }

    fn elementwise(&self, o: &Op) -> Check {
        let ty = self.result(o)?;
        match o.kind {
            OpKind::Unary(op) => {
                let [x] = self.operands(o)?;
                self.accepts(op.accepts(self.tile("operand 0", x)?.0), x.dtype())?;
                self.same("result", x, ty)
            }
            OpKind::Binary(op) => {
                let [x, y] = self.operands(o)?;
                self.accepts(op.accepts(self.tile("operand 0", x)?.0), x.dtype())?;
                self.same("operand 1", x, y)?;
                self.same("result", x, ty)
            }
            OpKind::Compare(op) => {
                let [x, y] = self.operands(o)?;
                let (d, s) = self.tile("operand 0", x)?;
                self.accepts(op.accepts(d), d)?;
                self.same("operand 1", x, y)?;
                self.same("result", Type::Tile(DType::Bool, s), ty)
            }
            OpKind::Fma => {
                let [x, a, b] = self.operands(o)?;
                self.accepts(computes(self.tile("operand 0", x)?.0), x.dtype())?;
                self.same("operand 1", x, a)?;
                self.same("operand 2", x, b)?;
                self.same("result", x, ty)
            }
            _ => {
                let [c, x, y] = self.operands(o)?;
                let (_, s) = self.tile("operand 1", x)?;
                self.same("operand 0", Type::Tile(DType::Bool, s), c)?;
                self.same("operand 2", x, y)?;
                self.same("result", x, ty)
            }
        }
    }

    /// One tile to one tile, of which the type says everything.
    fn conversion(&self, o: &Op) -> Check {
        let [x] = self.operands(o)?;
        let ty = self.result(o)?;
        let ((from, s), (to, t)) = (self.tile("operand 0", x)?, self.tile("result", ty)?);
        match o.kind {
            OpKind::Cast => self.same("result", Type::Tile(to, s), ty),
            OpKind::Bitcast => {
                self.same("result", Type::Tile(to, s), ty)?;
                // Only 0 and 1 are bools.
                let fits = from.size() == to.size() && from != DType::Bool && to != DType::Bool;
                let rule = format!("an element type of {} bytes other than bool, from such a one", from.size());
                self.require(fits, "result", rule, format!("{to} from {from}"))
            }
            OpKind::Reshape => {
                self.same("result", Type::Tile(from, t), ty)?;
                self.require(s.numel() == t.numel(), "result", format!("{} elements", s.numel()), ty)
            }
            _ => {
                self.same("result", Type::Tile(from, t), ty)?;
                let repeats = s.rank() == t.rank() && s.dims().iter().zip(t.dims()).all(|(&a, &b)| a == b || a == 1);
                let rule = format!("the shape {s:?} with extents of 1 replaced");
                self.require(s.rank() == 0 || repeats, "result", rule, ty)
            }
        }
    }

    fn movement(&self, o: &Op) -> Check {
        let ty = self.result(o)?;
        match o.kind {
            OpKind::Transpose { perm } => {
                let [x] = self.operands(o)?;
                let (d, s) = self.tile("operand 0", x)?;
                let perm = &perm[..s.rank()];
                let is_permutation = (0..s.rank()).all(|a| perm.contains(&(a as u8)));
                self.require(
                    is_permutation,
                    "axes",
                    format!("a permutation of {} axes", s.rank()),
                    format!("{perm:?}"),
                )?;
                let dims: Vec<u32> = perm.iter().map(|&a| s.dims()[a as usize]).collect();
                self.same("result", Type::Tile(d, Shape::new(&dims)), ty)
            }
            OpKind::Slice { offsets } => {
                let [x] = self.operands(o)?;
                let ((d, s), t) = (self.tile("operand 0", x)?, self.tile("result", ty)?.1);
                self.same("result", Type::Tile(d, t), ty)?;
                self.require(s.rank() == t.rank(), "result", format!("rank {}", s.rank()), ty)?;
                for (i, &offset) in offsets[..s.rank()].iter().enumerate() {
                    let (outer, inner) = (s.dims()[i], t.dims()[i]);
                    let fits = offset.is_multiple_of(inner) && offset as u64 + inner as u64 <= outer as u64;
                    let rule = format!("a multiple of {inner}, at most {outer} - {inner}");
                    self.require(fits, &format!("offset {i}"), rule, offset)?;
                }
                Ok(())
            }
            OpKind::Join { axis } => {
                let [x, y] = self.operands(o)?;
                let (d, s) = self.tile("operand 0", x)?;
                self.same("operand 1", x, y)?;
                self.axis(axis, s.rank())?;
                let joined = s.with(axis as usize, s.dims()[axis as usize].saturating_mul(2));
                self.same("result", Type::Tile(d, joined), ty)
            }
            _ => Ok(()),
        }
    }

    fn along_axis(&mut self, o: &Op, axis: u8, combine: Combine, reduces: bool) -> Check {
        self.require(!o.operands.is_empty(), "operands", "at least 1", 0)?;
        let shape = self.tile("operand 0", self.k.ty(o.operands[0]))?.1;
        self.axis(axis, shape.rank())?;
        let (n, m) = (o.operands.len(), o.results.len());
        self.require(combine == Combine::Region || n == 1, "operands", "1 for a named combination", n)?;
        self.require(n == m, "results", format!("{n}, one for each operand"), m)?;
        let mut scalars = vec![];
        for (&x, &r) in o.operands.iter().zip(&o.results) {
            let d = self.tile("operand", self.k.ty(x))?.0;
            self.same("operand", Type::Tile(d, shape), self.k.ty(x))?;
            self.accepts(combine.accepts(d), d)?;
            let expected = if reduces { shape.without(axis as usize) } else { shape };
            self.same("result", Type::Tile(d, expected), self.k.ty(r))?;
            scalars.push(Type::scalar(d));
        }
        match o.regions.first() {
            Some(&region) => self.region(region, &[&scalars[..], &scalars].concat(), &scalars, true),
            None => Ok(()),
        }
    }

    fn dot(&self, o: &Op) -> Check {
        let [a, b, acc] = self.operands(o)?;
        let ((d, sa), (_, sb)) = (self.tile("operand 0", a)?, self.tile("operand 1", b)?);
        let sums = match d {
            DType::I8 | DType::U8 => DType::I32,
            d if d.is_float() => DType::F32,
            _ => return self.fail("operand 0", "a float, i8 or u8 tile", a),
        };
        self.require(matches!(sa.rank(), 2 | 3), "operand 0", "a tile of rank 2 or 3", a)?;
        self.require(sb.rank() == sa.rank(), "operand 1", format!("a tile of rank {}", sa.rank()), b)?;
        // One axis of products, perhaps, then rows and columns.
        let (row, column) = (sa.rank() - 2, sa.rank() - 1);
        let (depth, columns) = (sa.dims()[column], sb.dims()[column]);
        self.same("operand 1", Type::Tile(d, sa.with(row, depth).with(column, columns)), b)?;
        self.same("operand 2", Type::Tile(sums, sa.with(column, columns)), acc)?;
        self.same("result", acc, self.result(o)?)
    }

    // -- memory --------------------------------------------------------------------------------------------------------

    /// The parameter behind a view must be writable.
    fn writable(&self, mut view: ValueId) -> Check {
        loop {
            match self.k.def(view) {
                Def::Param(i) => {
                    let p = &self.k.params[i as usize];
                    let found = format!("`{}`, which is read only", p.name);
                    return self.require(
                        p.access == Access::Write,
                        "operand 0",
                        "a view of a writable parameter",
                        found,
                    );
                }
                Def::Result(op, _) => match self.k.op(op).kind {
                    OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. } => view = self.k.op(op).operands[0],
                    ref other => return self.fail("operand 0", "a view of a parameter", other.mnemonic()),
                },
                Def::Arg(..) => return self.fail("operand 0", "a view of a parameter", "a region's argument"),
            }
        }
    }

    fn box_access(&self, o: &Op) -> Check {
        let Some(&view) = o.operands.first() else { return self.fail("operands", "a view first", "none") };
        let (d, rank) = self.view(self.k.ty(view))?;
        let (store, has_other) = match o.kind {
            OpKind::Load { has_other } => (false, has_other),
            _ => (true, false),
        };
        let first = 1 + store as usize;
        let expected = first + rank as usize + has_other as usize;
        self.require(o.operands.len() == expected, "operands", expected, o.operands.len())?;
        for &c in &o.operands[first..first + rank as usize] {
            self.same("coordinate", I32, self.k.ty(c))?;
        }
        if o.kind == OpKind::StoreAdd {
            self.accepts(AtomicOp::Add.accepts(d), d)?;
        }
        let tile = if store {
            self.no_results(o)?;
            self.writable(view)?;
            self.k.ty(o.operands[1])
        } else {
            if has_other {
                self.same("other", Type::scalar(d), self.k.ty(o.operands[expected - 1]))?;
            }
            self.result(o)?
        };
        let (found, shape) = self.tile("tile", tile)?;
        let rule = format!("a tile of {d} of rank {rank}");
        self.require(found == d && shape.rank() == rank as usize, "tile", rule, tile)
    }

    fn element_access(&self, o: &Op) -> Check {
        let Some(&view) = o.operands.first() else { return self.fail("operands", "a view first", "none") };
        let (d, rank) = self.view(self.k.ty(view))?;
        self.require(rank >= 1, "operand 0", "a view of rank 1 or more", self.k.ty(view))?;
        let (stores, masked, has_other) = match o.kind {
            OpKind::Gather { masked } => (false, masked, masked),
            OpKind::Scatter { masked } | OpKind::Atomic { masked, .. } => (true, masked, false),
            _ => (false, false, false),
        };
        let first = 1 + stores as usize;
        let last = first + rank as usize;
        let expected = last + masked as usize + has_other as usize;
        self.require(o.operands.len() == expected, "operands", expected, o.operands.len())?;
        let shape = self.tile("index", self.k.ty(o.operands[first]))?.1;
        for &c in &o.operands[first..last] {
            self.same("index", Type::Tile(DType::I32, shape), self.k.ty(c))?;
        }
        let tile = Type::Tile(d, shape);
        if masked {
            self.same("mask", Type::Tile(DType::Bool, shape), self.k.ty(o.operands[last]))?;
        }
        if has_other {
            self.same("other", tile, self.k.ty(o.operands[last + 1]))?;
        }
        if stores {
            self.same("value", tile, self.k.ty(o.operands[1]))?;
            self.writable(view)?;
        }
        if let OpKind::Atomic { op, .. } = o.kind {
            self.accepts(op.accepts(d), d)?;
        }
        match o.kind {
            OpKind::Scatter { .. } => self.no_results(o),
            _ => self.same("result", tile, self.result(o)?),
        }
    }

    fn semaphore(&self, o: &Op) -> Check {
        self.no_results(o)?;
        let Some(&view) = o.operands.first() else { return self.fail("operands", "a view first", "none") };
        let (dtype, rank) = self.view(self.k.ty(view))?;
        self.require(
            dtype == DType::I32 && rank >= 1,
            "operand 0",
            "a view of i32 of rank 1 or more",
            self.k.ty(view),
        )?;
        self.writable(view)?;
        let expected = 2 + rank as usize;
        self.require(o.operands.len() == expected, "operands", expected, o.operands.len())?;
        o.operands[1..].iter().try_for_each(|&v| self.same("count or coordinate", I32, self.k.ty(v)))
    }

    // -- programs that meet --------------------------------------------------------------------------------------------

    fn grid_sync(&self, o: &Op) -> Check {
        let [] = self.operands(o)?;
        self.require(self.role.is_none(), "place", "outside of roles: whole programs meet", "in a role")?;
        let cluster = matches!(self.k.meeting(), Some((Meeting::Cluster(_), _)));
        self.require(!cluster, "kernel", "one whose clusters exchange nothing", "one whose clusters exchange tiles")
    }

    fn cluster_reduce(&self, o: &Op, combine: Combine) -> Check {
        let [x] = self.operands(o)?;
        let (d, s) = self.tile("operand 0", x)?;
        self.require(combine != Combine::Region, "combination", "one with a name", combine.name())?;
        self.accepts(combine.accepts(d), d)?;
        self.same("result", x, self.result(o)?)?;
        let fits = s.numel() * d.size() <= MAX_EXCHANGED;
        self.require(fits, "operand 0", format!("a tile of at most {MAX_EXCHANGED} bytes"), x)?;
        let grid = self.k.options.cluster > 1 && matches!(self.k.meeting(), Some((Meeting::Grid, _)));
        self.require(!grid, "kernel", "one in which the grid does not meet", "one in which the grid meets")?;
        // The roles of a program are at different places, and others would not know which of them comes.
        self.require(self.role.is_none(), "place", "outside of roles: whole programs meet", "in a role")
    }

    // -- control -------------------------------------------------------------------------------------------------------

    fn control(&mut self, o: &Op) -> Check {
        let results: Vec<Type> = o.results.iter().map(|&r| self.k.ty(r)).collect();
        for &ty in &results {
            self.tile("result", ty)?;
        }
        let given: Vec<Type> = o.operands.iter().map(|&v| self.k.ty(v)).collect();
        let bool_ = Type::scalar(DType::Bool);
        match o.kind {
            OpKind::For { .. } => {
                self.require(given.len() >= 3, "operands", "3 bounds and the carried values", given.len())?;
                for (what, &bound) in ["lower bound", "upper bound", "step"].into_iter().zip(&given) {
                    self.same(what, I32, bound)?;
                }
                self.require(given[3..] == results, "carried values", types_text(&results), types_text(&given[3..]))?;
                self.region(o.regions[0], &[&[I32], &results[..]].concat(), &results, false)
            }
            OpKind::While => {
                self.require(given == results, "carried values", types_text(&results), types_text(&given))?;
                self.region(o.regions[0], &results, &[bool_], false)?;
                self.region(o.regions[1], &results, &results, false)
            }
            _ => {
                self.require(given == [bool_], "condition", "one bool", types_text(&given))?;
                self.region(o.regions[0], &[], &results, false)?;
                self.region(o.regions[1], &[], &results, false)
            }
        }
    }
}

fn types_text(types: &[Type]) -> String {
    let names: Vec<String> = types.iter().map(Type::to_string).collect();
    format!("({})", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text form cannot say it, so it is built: a value used outside of the region that defines it.
    #[test]
    fn a_value_is_not_visible_outside_its_region() {
        let mut b = Builder::new("k", Loc::default());
        let c = b.splat(DType::Bool, Shape::SCALAR, 1.0);
        let (then, _) = b.open(&[]);
        let inner = b.i32(1);
        b.close(&[]);
        let (otherwise, _) = b.open(&[]);
        b.close(&[]);
        b.emit_with_regions(OpKind::If, &[c], &[], &[then, otherwise]);
        b.unary(UnaryOp::Neg, inner);
        let error = verify(&b.finish()).unwrap_err();
        assert_eq!((error.op, &*error.what), ("neg", "operand 0"), "{error}");
    }
}
