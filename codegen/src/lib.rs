//! Kiln's compiler.
//!
//! A kernel enters as tile IR ([`ir`]), is simplified ([`passes`]) and leaves through one of three doors: the
//! interpreter ([`interp`]), which *defines* every operation; Cranelift ([`cpu`]); or LLVM and PTX (`nvptx`,
//! feature `llvm`). Nothing here talks to a device, and nothing here is global: an IR goes in, code comes out.

mod channel;
pub mod cpu;
pub mod gpu;
pub mod interp;
pub mod ir;
pub mod nvptx;
pub mod passes;
pub mod semantics;

/// This compiler: its version, and a hash of its sources.
pub const COMPILER: &str = env!("KILN_COMPILER");
