//! What the tests and the `lab` share: differential [`cases`], timed ones ([`bench`]), [`random`] kernels, and two ways to
//! [`decode`].

pub mod bench;
pub mod cases;
pub mod decode;
pub mod drift;
pub mod random;
