//! What the tests and the `lab` share: differential [`cases`] and timed ones ([`bench`]).

pub mod bench;
pub mod cases;
