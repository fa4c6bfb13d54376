//! One small kernel per operation, with hostile inputs, and one per rule that can be broken.

mod axes;
mod clusters;
mod control;
mod document;
mod elements;
mod memory;
mod roles;
mod rules;

use super::*;
use crate::ir::{Builder, Shape, ValueId};

pub(super) const F32: DType = DType::F32;
pub(super) const I32: DType = DType::I32;

pub(super) fn dims(extents: &[u32]) -> Shape {
    Shape::new(extents)
}

/// A kernel under construction together with its arguments.
pub(super) struct Case {
    pub b: Builder,
    pub args: Vec<Arg>,
}

impl Case {
    pub fn new() -> Case {
        Case { b: Builder::new("case", Loc { file: "case.rs", line: 1, column: 1 }), args: vec![] }
    }

    /// A parameter that is a row-major view of a whole buffer.
    pub fn view(&mut self, name: &str, dtype: DType, shape: &[i64], access: Access, buffer: &Arc<Buffer>) -> ValueId {
        self.args.push(Arg::contiguous(buffer, shape));
        self.b.kernel_mut().add_param(name, Type::View(dtype, shape.len() as u8), access, None)
    }

    /// A parameter that is a view given in full.
    pub fn strided(&mut self, name: &str, dtype: DType, access: Access, arg: Arg) -> ValueId {
        let Arg::View { shape, .. } = &arg else { panic!("a view") };
        let ty = Type::View(dtype, shape.len() as u8);
        self.args.push(arg);
        self.b.kernel_mut().add_param(name, ty, access, None)
    }

    /// Values as a constant input: a read-only buffer, loaded whole.
    pub fn input(&mut self, dtype: DType, shape: &[u32], values: &[f64]) -> ValueId {
        let bits: Vec<Bits> = values.iter().map(|&v| Bits::from_f64(dtype, v)).collect();
        self.input_bits(dtype, shape, &bits)
    }

    pub fn input_bits(&mut self, dtype: DType, shape: &[u32], values: &[Bits]) -> ValueId {
        assert_eq!(values.len(), dims(shape).numel());
        let bytes: Vec<u8> = values.iter().flat_map(|b| b.0.to_le_bytes()[..dtype.size()].to_vec()).collect();
        let extents: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let view = self.view("x", dtype, &extents, Access::Read, &Arc::new(Buffer::from_bytes(bytes)));
        let zeros = self.zeros(shape.len());
        self.b.load(view, &zeros, dims(shape), None)
    }

    pub fn zeros(&mut self, n: usize) -> Vec<ValueId> {
        (0..n).map(|_| self.b.i32(0)).collect()
    }

    /// A parameter that receives `tile`, whole; its buffer.
    pub fn output(&mut self, tile: ValueId) -> Arc<Buffer> {
        let (dtype, shape) = (self.b.ty(tile).dtype(), self.b.ty(tile).shape());
        let buffer = Arc::new(Buffer::uninit(dtype.size() * shape.numel()));
        let extents: Vec<i64> = shape.dims().iter().map(|&d| d as i64).collect();
        let view = self.view("out", dtype, &extents, Access::Write, &buffer);
        let zeros = self.zeros(shape.rank());
        self.b.store(view, tile, &zeros);
        buffer
    }

    pub fn run_grid(self, grid: [u32; 3]) -> Result<(), Error> {
        run(&self.b.finish(), grid, &self.args)
    }

    pub fn run(self) -> Result<(), Error> {
        self.run_grid([1, 1, 1])
    }

    /// Runs one program; the bits of the tiles computed.
    pub fn bits(mut self, tile: ValueId) -> Vec<Bits> {
        let dtype = self.b.ty(tile).dtype();
        let out = self.output(tile);
        self.run().expect("runs");
        elements(&out, dtype)
    }

    /// Runs one program; the values of the tile computed.
    pub fn values(self, tile: ValueId) -> Vec<f64> {
        let dtype = self.b.ty(tile).dtype();
        self.bits(tile).into_iter().map(|b| b.to_f64(dtype)).collect()
    }
}

pub(super) fn elements(buffer: &Buffer, dtype: DType) -> Vec<Bits> {
    let bytes = buffer.to_bytes().expect("all written");
    bytes
        .chunks_exact(dtype.size())
        .map(|c| {
            let mut raw = [0; 8];
            raw[..c.len()].copy_from_slice(c);
            Bits(u64::from_le_bytes(raw))
        })
        .collect()
}

/// A buffer of f32 values.
pub(super) fn f32s(values: &[f32]) -> Arc<Buffer> {
    Arc::new(Buffer::from_bytes(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()))
}

pub(super) fn f32_values(buffer: &Buffer) -> Vec<f32> {
    elements(buffer, F32).iter().map(|b| f32::from_bits(b.0 as u32)).collect()
}

pub(super) fn i32_values(buffer: &Buffer) -> Vec<i32> {
    elements(buffer, I32).iter().map(|b| b.0 as u32 as i32).collect()
}
