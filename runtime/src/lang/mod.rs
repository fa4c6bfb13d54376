//! The vocabulary of kernels: tiles, views, and what can be done with them.
//!
//! A value here is a handle: calling `a + b` on two [`Tile`]s appends an addition to the kernel being staged. All of it
//! works inside `#[kernel]` and `#[device]` functions only.

mod along;
mod element;
mod elementwise;
mod meeting;
mod outer;
mod roles;
mod shape;
mod shaping;
mod tile;
mod view;

pub use along::{dot, dot_batch, dot_batch_with, dot_with};
pub use element::{DotElement, Element, Float, Int, Logical, Number, bf16, f8e4m3, f8e5m2, f16};
pub use kiln_codegen::ir::Precision;
pub use meeting::grid_sync;
pub use roles::{Message, Receiver, Role, Sender, Slot, channel, role, roles};
pub use shape::{Axis, D0, D1, D2, D3, D4, Ranked, Shape};
pub use tile::{Col, Operand, Row, Scalar, Tile, full, iota, num_programs, program_id, select, zeros};
pub use view::{Block, Coords, Indices, View};
