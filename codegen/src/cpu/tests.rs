//! Compiled kernels against the definition of each operation.
