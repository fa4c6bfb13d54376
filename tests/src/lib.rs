//! What the tests and the `lab` share: differential [`cases`], timed ones ([`bench`]), [`random`] kernels, two ways to
//! [`decode`], and the [`drift`] of a device from f32.

pub mod bench;
pub mod cases;
pub mod decode;
pub mod drift;
pub mod random;
