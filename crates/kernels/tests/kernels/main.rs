//! Every kernel on every instruction set of the machine: the bits of the scalar path, nothing outside the slices touched, and
//! the scalar path against its definition, PyTorch's or libtorch's results.

mod conv;
mod depthwise;
mod direct_convolution;
mod elementwise;
mod embedding;
mod fake_quantize;
mod float;
mod gemm;
mod geometry;
mod grouped;
mod guarded;
mod libtorch;
mod norm;
mod pool;
mod rnn;
mod stretch;
mod threads;
mod weight_only;
