//! From tile IR to what a GPU thread does: where each element of a tile lives ([`layout`]), which facts make accesses
//! wide ([`facts`]) and what they cost ([`sectors`]), how products are computed ([`mma`]) and from which loads
//! ([`origins`]), what runs ahead ([`pipeline`]) and is shared by neighbours ([`cluster`]), which stores are copies ([`stores`]), which tiles loops put together
//! in shared memory ([`assembly`]), which layouts suit an access or an axis ([`suitable`]), and which every value exists in
//! ([`assign`]).

pub mod assembly;
pub mod assign;
#[cfg(test)]
mod assign_tests;
pub mod bulk;
pub mod cluster;
pub mod facts;
pub mod layout;
pub mod mma;
pub mod origins;
pub mod panels;
pub mod pipeline;
pub mod sectors;
pub mod stores;
pub mod suitable;

/// What the choice of layouts and instructions knows of a chip.
#[derive(Clone, Copy, Debug)]
pub struct Chip {
    /// It has products by warpgroups (`wgmma`) and bulk copies (the tensor memory accelerator): Hopper.
    pub warpgroups: bool,
    /// Bytes of shared memory that a program may have.
    pub shared_bytes: usize,
    /// Bytes of it that the rings of pipelined loops may take.
    pub ring_bytes: usize,
}
