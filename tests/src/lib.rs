//! What the tests and the `lab` share: differential [`cases`], timed ones ([`bench`]), [`random`] kernels.

pub mod bench;
pub mod cases;
pub mod random;
