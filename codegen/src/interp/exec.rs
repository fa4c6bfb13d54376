//! Operations: one program at a time, its values in an array by `ValueId`. Regions and control flow: `control.rs`.

use super::axis::{self, Lines};
use super::error::{ErrorKind, Fault};
use super::memory::{self, Accessor, Indices, View, program_index};
use super::tile::{Data, Tile, map_elements, unflatten};
use super::{Held, Options, TraceEvent, dot, elementwise, shape};
use crate::channel::Ring;
use crate::ir::{Bits, Combine, DType, Kernel, Op, OpId, OpKind, RegionId, Reuse, Shape, Type, ValueId};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::rc::Rc;

/// What a `ValueId` stands for at the moment.
#[derive(Clone)]
pub(super) enum Value {
    /// Not computed yet.
    Nothing,
    Tile(Rc<Data>),
    View(View),
    /// A received message, by its number.
    Slot(u64),
}

pub(super) type Values = SmallVec<[Value; 4]>;

impl Value {
    pub(super) fn scalar(dtype: DType, bits: Bits) -> Value {
        Value::Tile(Rc::new(Data::splat(dtype, 1, bits)))
    }
}

pub(super) fn invalid(what: impl Into<String>) -> Fault {
    ErrorKind::InvalidIr(what.into()).into()
}

/// How many roles a program has; 1 without any.
pub(super) fn role_count(kernel: &Kernel) -> u32 {
    let roles = |&op: &OpId| matches!(kernel.op(op).kind, OpKind::Roles(_)).then(|| kernel.op(op).regions.len());
    kernel.region(kernel.body).ops.iter().find_map(roles).unwrap_or(1) as u32
}

/// The state of a launch.
pub(super) struct Machine<'k, 'b, 'o, 'c> {
    pub(super) kernel: &'k Kernel,
    pub(super) grid: [u32; 3],
    pub(super) held: Held<'b>,
    options: &'o mut Options<'c>,
    pub(super) values: Vec<Value>,
    /// The channels that the program has made.
    pub(super) channels: HashMap<ValueId, Ring<Values>>,
    pub(super) program: [u32; 3],
    pub(super) linear: u32,
    /// Whether programs meet.
    pub(super) meets: bool,
    /// The role that runs, and how many a program has.
    pub(super) role: Option<u32>,
    roles: u32,
    pub(super) steps: u64,
}

impl<'k, 'b, 'o, 'c> Machine<'k, 'b, 'o, 'c> {
    pub(super) fn new(
        kernel: &'k Kernel,
        grid: [u32; 3],
        group: u32,
        held: Held<'b>,
        params: Vec<Value>,
        options: &'o mut Options<'c>,
    ) -> Self {
        let mut values = vec![Value::Nothing; kernel.values.len()];
        for (param, value) in kernel.params.iter().zip(params) {
            values[param.value.index()] = value;
        }
        let (channels, roles) = (HashMap::new(), role_count(kernel));
        Machine {
            kernel,
            grid,
            held,
            options,
            values,
            channels,
            program: [0; 3],
            linear: 0,
            meets: group > 1,
            role: None,
            roles,
            steps: 0,
        }
    }

    /// Runs one program.
    pub(super) fn program(&mut self, linear: u32) -> Result<(), Fault> {
        (self.linear, self.program, self.role, self.steps) = (linear, program_index(linear, self.grid), None, 0);
        self.channels.clear();
        self.body()
    }

    pub(super) fn tile(&self, v: ValueId) -> Result<&Rc<Data>, Fault> {
        match &self.values[v.index()] {
            Value::Tile(data) => Ok(data),
            _ => Err(invalid(format!("{v:?} is used as a tile before it is one"))),
        }
    }

    fn view(&self, v: ValueId) -> Result<View, Fault> {
        match &self.values[v.index()] {
            Value::View(view) => Ok(*view),
            _ => Err(invalid(format!("{v:?} is used as a view before it is one"))),
        }
    }

    pub(super) fn i32(&self, v: ValueId) -> Result<i32, Fault> {
        Ok(self.tile(v)?.i32_at(0))
    }

    fn i32s(&self, vs: &[ValueId]) -> Result<Vec<i64>, Fault> {
        vs.iter().map(|&v| self.i32(v).map(i64::from)).collect()
    }

    pub(super) fn get(&self, vs: &[ValueId]) -> Values {
        vs.iter().map(|v| self.values[v.index()].clone()).collect()
    }

    pub(super) fn set(&mut self, vs: &[ValueId], values: impl IntoIterator<Item = Value>) {
        for (v, value) in vs.iter().zip(values) {
            self.values[v.index()] = value;
        }
    }

    pub(super) fn tile_type(&self, v: ValueId) -> Result<(DType, Shape), Fault> {
        match self.kernel.ty(v) {
            Type::Tile(dtype, shape) => Ok((dtype, shape)),
            ty => Err(invalid(format!("{v:?} is a {ty} where a tile is expected"))),
        }
    }

    pub(super) fn step(&mut self) -> Result<(), Fault> {
        self.steps += 1;
        let limit = self.options.step_limit;
        if self.steps > limit { Err(ErrorKind::StepLimit(limit).into()) } else { Ok(()) }
    }

    fn snapshot(&self, v: ValueId) -> Option<Tile> {
        match (self.kernel.ty(v), &self.values[v.index()]) {
            (Type::Tile(dtype, shape), Value::Tile(data)) => Some(Tile::new(dtype, shape, data.clone())),
            _ => None,
        }
    }

    /// Tells who listens what an operation has computed.
    pub(super) fn trace(&mut self, id: OpId) {
        if self.options.trace.is_none() {
            return;
        }
        let op = self.kernel.op(id);
        let results: Vec<Tile> = op.results.iter().filter_map(|&v| self.snapshot(v)).collect();
        let (kernel, program) = (self.kernel, self.program);
        if let Some(trace) = &mut self.options.trace {
            trace(&TraceEvent { kernel, program, op: id, loc: op.loc, results: &results });
        }
    }

    /// Runs one operation without control flow and stores its results.
    pub(super) fn op(&mut self, op: &'k Op) -> Result<(), Fault> {
        match &op.kind {
            OpKind::Reduce { axis, combine } => {
                let results = self.along_axis(op, *axis, *combine, None)?;
                self.set(&op.results, results.into_iter().map(Value::Tile));
                Ok(())
            }
            OpKind::Scan { axis, combine, reverse } => {
                let results = self.along_axis(op, *axis, *combine, Some(*reverse))?;
                self.set(&op.results, results.into_iter().map(Value::Tile));
                Ok(())
            }
            OpKind::Assert { message } => {
                let (_, shape) = self.tile_type(op.operands[0])?;
                let condition = self.tile(op.operands[0])?;
                match (0..condition.len()).find(|&i| !condition.bool_at(i)) {
                    Some(i) => Err(Fault::from(ErrorKind::Assert(message.clone())).at(unflatten(shape, i))),
                    None => Ok(()),
                }
            }
            OpKind::Print { message } => {
                let [x, y, z] = self.program;
                let mut line = format!("({x}, {y}, {z}) {message}");
                for tile in op.operands.iter().filter_map(|&v| self.snapshot(v)) {
                    line += &format!(" {tile}");
                }
                match &mut self.options.print {
                    Some(print) => print(&line),
                    None => println!("{line}"),
                }
                Ok(())
            }
            OpKind::Store | OpKind::StoreAdd | OpKind::Scatter { .. } => self.write(op),
            OpKind::Signal | OpKind::Wait => self.semaphore(op),
            // Of a single program: others meet (`meeting.rs`).
            OpKind::GridSync => Ok(()),
            _ => {
                let value = self.value(op)?;
                self.set(&op.results, [value]);
                Ok(())
            }
        }
    }

    /// The result of an operation that has exactly one and no region.
    fn value(&mut self, op: &'k Op) -> Result<Value, Fault> {
        let operand = |i: usize| -> Result<ValueId, Fault> {
            op.operands.get(i).copied().ok_or_else(|| invalid("an operand is missing"))
        };
        let result = *op.results.first().ok_or_else(|| invalid("an operation without result"))?;
        if let Type::View(..) = self.kernel.ty(result) {
            return self.derived_view(op).map(Value::View);
        }
        let (dtype, shape) = self.tile_type(result)?;
        let data = match &op.kind {
            OpKind::Const(bits) => Data::splat(dtype, shape.numel(), *bits),
            OpKind::Iota { axis } => shape::iota(shape, *axis as usize),
            OpKind::ProgramId { axis } => Data::W4(vec![self.program[*axis as usize]]),
            OpKind::NumPrograms { axis } => Data::W4(vec![self.grid[*axis as usize]]),
            OpKind::Dim { dim } => Data::W4(vec![self.view(operand(0)?)?.dim(*dim as usize) as u32]),
            // Of a cluster of one.
            OpKind::ClusterReduce(_) => return Ok(Value::Tile(self.tile(operand(0)?)?.clone())),
            OpKind::Broadcast | OpKind::Reshape | OpKind::Transpose { .. } | OpKind::Slice { .. } => {
                let from = self.tile_type(operand(0)?)?.1;
                let x = self.tile(operand(0)?)?;
                match &op.kind {
                    OpKind::Broadcast => shape::broadcast(x, from, shape),
                    OpKind::Transpose { perm } => shape::transpose(x, from, shape, perm),
                    OpKind::Slice { offsets } => shape::slice(x, from, shape, offsets),
                    _ => return Ok(Value::Tile(x.clone())),
                }
            }
            OpKind::Join { axis } => {
                let from = self.tile_type(operand(0)?)?.1;
                shape::join(dtype, self.tile(operand(0)?)?, self.tile(operand(1)?)?, from, *axis as usize)
            }
            OpKind::Dot(precision) => {
                let from = self.tile_type(operand(0)?)?.0;
                let dims = self.kernel.dot_extents(op);
                let [a, b, acc] = [self.tile(operand(0)?)?, self.tile(operand(1)?)?, self.tile(operand(2)?)?];
                dot::dot(*precision, from, dims, a, b, acc)
            }
            OpKind::Load { .. } | OpKind::Gather { .. } | OpKind::Atomic { .. } => self.read(op, dtype, shape)?,
            _ => {
                let operands: SmallVec<[Rc<Data>; 4]> =
                    op.operands.iter().map(|&v| self.tile(v).cloned()).collect::<Result<_, _>>()?;
                self.elementwise(op, shape, &operands)?
            }
        };
        Ok(Value::Tile(Rc::new(data)))
    }

    /// Operations on elements; `operands` may have more elements than their types say (see [`Machine::lanes`]).
    fn elementwise(&self, op: &Op, shape: Shape, operands: &[Rc<Data>]) -> Result<Data, Fault> {
        let result = self.kernel.ty(op.results[0]).dtype();
        let from = op.operands.first().map_or(result, |&v| self.kernel.ty(v).dtype());
        Ok(match (&op.kind, operands) {
            (OpKind::Unary(f), [x]) => elementwise::unary(*f, from, x),
            (OpKind::Binary(f), [x, y]) => elementwise::binary(*f, from, shape, x, y)?,
            (OpKind::Compare(f), [x, y]) => elementwise::compare(*f, from, x, y),
            (OpKind::Fma, [x, a, b]) => elementwise::fma(from, x, a, b),
            (OpKind::Select, [c, x, y]) => elementwise::select(c, x, y),
            (OpKind::Cast, [x]) => elementwise::cast(from, result, x),
            (OpKind::Bitcast, [x]) => elementwise::bitcast(result, x),
            (kind, _) => return Err(invalid(format!("{kind:?} is not possible here"))),
        })
    }

    // -- along an axis -------------------------------------------------------------------------------------------------

    /// A scan if `scan` says in which direction, else a reduction.
    fn along_axis(
        &mut self,
        op: &'k Op,
        axis: u8,
        combine: Combine,
        scan: Option<bool>,
    ) -> Result<Vec<Rc<Data>>, Fault> {
        let (_, shape) = self.tile_type(op.operands[0])?;
        let lines = Lines::new(shape, axis as usize);
        let mut xs = vec![];
        let mut dtypes = vec![];
        for &v in &op.operands {
            xs.push(self.tile(v)?.clone());
            dtypes.push(self.tile_type(v)?.0);
        }
        if combine == Combine::Region {
            let region = op.regions[0];
            let mut step = |left: &[Rc<Data>], right: &[Rc<Data>]| self.lanes(region, left, right, lines.count());
            return match scan {
                None => axis::reduce_by(lines, &xs, &mut step),
                Some(reverse) => axis::scan_by(lines, reverse, &dtypes, &xs, &mut step),
            };
        }
        let along = |(x, &dtype): (&Rc<Data>, &DType)| {
            Rc::new(match scan {
                None => axis::reduce(combine, dtype, lines, x),
                Some(reverse) => axis::scan(combine, dtype, lines, reverse, x),
            })
        };
        Ok(xs.iter().zip(&dtypes).map(along).collect())
    }

    /// Evaluates a combining region, each of whose scalars is a vector of `lanes` elements here.
    fn lanes(
        &mut self,
        region: RegionId,
        left: &[Rc<Data>],
        right: &[Rc<Data>],
        lanes: usize,
    ) -> Result<Vec<Rc<Data>>, Fault> {
        let region = self.kernel.region(region);
        self.set(&region.args, left.iter().chain(right).cloned().map(Value::Tile));
        for &id in &region.ops {
            let op = self.kernel.op(id);
            let inside = |fault: Fault| fault.located(op.loc);
            self.step().map_err(inside)?;
            match &op.kind {
                OpKind::Yield => return op.operands.iter().map(|&v| self.spread(v, lanes)).collect(),
                OpKind::Const(_) => {
                    let value = self.value(op).map_err(inside)?;
                    self.set(&op.results, [value]);
                }
                _ => {
                    let operands: SmallVec<[Rc<Data>; 4]> =
                        op.operands.iter().map(|&v| self.spread(v, lanes)).collect::<Result<_, _>>().map_err(inside)?;
                    let data = self.elementwise(op, Shape::SCALAR, &operands).map_err(inside)?;
                    self.set(&op.results, [Value::Tile(Rc::new(data))]);
                }
            }
        }
        Err(invalid("a region ends without yield"))
    }

    /// A value in a combining region: one element per lane, or one for all.
    fn spread(&self, v: ValueId, lanes: usize) -> Result<Rc<Data>, Fault> {
        let data = self.tile(v)?;
        match data.len() {
            n if n == lanes => Ok(data.clone()),
            1 => Ok(Rc::new(map_elements!(&**data, x => vec![x[0]; lanes]))),
            _ => Err(invalid(format!("{v:?} is a tile where a combining region needs a scalar"))),
        }
    }

    // -- memory --------------------------------------------------------------------------------------------------------

    fn derived_view(&self, op: &Op) -> Result<View, Fault> {
        let view = self.view(op.operands[0])?;
        match op.kind {
            OpKind::ViewSelect { dim } => view
                .select(dim as usize, self.i32(op.operands[1])?)
                .map_err(|kind| Fault::from(kind).of(&self.kernel.params[view.param].name)),
            OpKind::ViewNarrow { dim } => {
                Ok(view.narrow(dim as usize, self.i32(op.operands[1])?, self.i32(op.operands[2])?))
            }
            _ => Err(invalid("a view comes from a parameter, view_select or view_narrow")),
        }
    }

    fn accessor(&self) -> Accessor {
        Accessor { program: self.linear, grid: self.grid, role: self.role, roles: self.roles }
    }

    /// Load, gather, atomic.
    fn read(&mut self, op: &Op, dtype: DType, shape: Shape) -> Result<Data, Fault> {
        let view = self.view(op.operands[0])?;
        let name = &self.kernel.params[view.param].name;
        let who = self.accessor();
        let result = match &op.kind {
            OpKind::Load { has_other } => {
                let (coords, other) = op.operands[1..].split_at(shape.rank());
                let start = self.i32s(coords)?;
                let other = if *has_other { self.tile(other[0])?.get(0) } else { Bits(0) };
                let memory = &mut self.held.memories[view.buffer];
                let loaded = memory::load(memory, who, &view, &start, shape, other);
                if self.kernel.params[view.param].reuse == Reuse::Discard {
                    memory::discard(memory, &view, &start, shape);
                }
                loaded
            }
            OpKind::Gather { masked } => {
                let rank = op.operands.len() - 1 - if *masked { 2 } else { 0 };
                let (index, masked) = op.operands[1..].split_at(rank);
                let (index, masked) = (self.tiles(index)?, self.tiles(masked)?);
                let masked = if let [m, o] = &masked[..] { Some((&**m, &**o)) } else { None };
                let index = Indices(index.iter().map(|x| &**x).collect());
                memory::gather(&mut self.held.memories[view.buffer], who, &view, &index, shape.numel(), masked)
            }
            OpKind::Atomic { op: f, masked } => {
                let (value, index, mask) = self.value_index_mask(op, *masked)?;
                let index = Indices(index.iter().map(|x| &**x).collect());
                let memory = &mut self.held.memories[view.buffer];
                memory::atomic(memory, who, *f, &view, &value, &index, mask.as_deref())
            }
            kind => Err(invalid(format!("{kind:?} of {dtype} reads no memory"))),
        };
        result.map_err(|fault| fault.of(name))
    }

    /// Stores, scatter.
    fn write(&mut self, op: &Op) -> Result<(), Fault> {
        let view = self.view(op.operands[0])?;
        let name = &self.kernel.params[view.param].name;
        let who = self.accessor();
        let result = match op.kind {
            OpKind::Scatter { masked } => {
                let (value, index, mask) = self.value_index_mask(op, masked)?;
                let index = Indices(index.iter().map(|x| &**x).collect());
                let memory = &mut self.held.memories[view.buffer];
                memory::scatter(memory, who, &view, &value, &index, mask.as_deref())
            }
            _ => {
                let (_, shape) = self.tile_type(op.operands[1])?;
                let value = self.tile(op.operands[1])?.clone();
                let start = self.i32s(&op.operands[2..])?;
                let memory = &mut self.held.memories[view.buffer];
                if op.kind == OpKind::StoreAdd {
                    memory::store_add(memory, who, &view, &start, shape, &value)
                } else {
                    memory::store(memory, who, &view, &start, shape, &value)
                }
            }
        };
        result.map_err(|fault| fault.of(name))
    }

    fn semaphore(&mut self, op: &Op) -> Result<(), Fault> {
        let view = self.view(op.operands[0])?;
        let name = &self.kernel.params[view.param].name;
        let who = self.accessor();
        let count = self.i32(op.operands[1])?;
        let count = if op.kind == OpKind::Signal { count } else { count.wrapping_neg() };
        let at = self.i32s(&op.operands[2..])?;
        memory::semaphore(&mut self.held.memories[view.buffer], who, &view, &at, count).map_err(|f| f.of(name))
    }

    fn tiles(&self, vs: &[ValueId]) -> Result<Vec<Rc<Data>>, Fault> {
        vs.iter().map(|&v| self.tile(v).cloned()).collect()
    }

    /// The operands (view, value, indices…, [mask]) after the view.
    #[allow(clippy::type_complexity)]
    fn value_index_mask(&self, op: &Op, masked: bool) -> Result<(Rc<Data>, Vec<Rc<Data>>, Option<Rc<Data>>), Fault> {
        let mut index = self.tiles(&op.operands[1..])?;
        let mask = if masked { index.pop() } else { None };
        let value = index.remove(0);
        Ok((value, index, mask))
    }
}
