//! What Kiln's tests share: random kernels and the comparison of back ends on them.

pub mod random;
