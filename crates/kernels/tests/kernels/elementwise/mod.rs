//! The element-wise kernels: every ISA gives the bits of the scalar path, nothing outside the slices is touched, and
//! the scalar path follows its formula.

mod ops;
mod quantize;
