//! What the direct convolutions need of an instruction set: one small trait, filled in by a file each.
//!
//! A block is `BYTES` channels: one register of bytes, or four registers of i32. **Block order** is how those four are
//! numbered: register `g`, 128-bit lane `j`, element `i` is channel `16 j + 4 g + i` of the block. It is what unpacking
//! bytes twice within 128-bit lanes gives, and what packing twice undoes, so bytes enter and leave in channel order
//! without a permutation; scales, biases and corrections are brought into block order once a call.

#![allow(unsafe_code)]

/// A register width with its dot product. All methods compile to a few instructions and must be inlined into a function
/// with the instruction set's `#[target_feature]`.
///
/// # Safety
/// Every method needs the instruction set of the implementing type, and pointers that are good for what it reads or
/// writes; no alignment is needed.
pub(crate) trait Vector: Copy {
    /// Channels a block: bytes of a register.
    const BYTES: usize;
    /// Weights are kept as pairs of i16 rather than quads of i8 (see [`super::layout`]).
    const WIDENED: bool;
    /// An integer register.
    type Reg: Copy;
    /// A register of f32.
    type Float: Copy;
    /// Four activations a lane, as the dot product wants them.
    type Taps: Copy;
    /// Four weights a lane, as the dot product wants them.
    type Weights: Copy;

    /// `byte` everywhere.
    unsafe fn splat(byte: u8) -> Self::Reg;
    /// `BYTES` bytes.
    unsafe fn load(from: *const u8) -> Self::Reg;
    /// `count < BYTES` bytes, the others undefined; reads nothing beyond them.
    unsafe fn load_first(from: *const u8, count: usize) -> Self::Reg;
    /// `BYTES` bytes.
    unsafe fn store(to: *mut u8, bytes: Self::Reg);
    /// The first `count < BYTES` bytes; writes nothing beyond them.
    unsafe fn store_first(to: *mut u8, bytes: Self::Reg, count: usize);

    /// Byte `k` of 32-bit lane `n`, in block order, is byte `n` of `rows[k]`.
    unsafe fn interleave(rows: [Self::Reg; 4]) -> [Self::Reg; 4];
    /// Register `k`: the `k`-th four bytes of each 128-bit lane, in all four places of that lane.
    unsafe fn spread(bytes: Self::Reg) -> [Self::Reg; 4];

    /// 128-bit lanes `2 j` and `2 j + 1` exchanged.
    unsafe fn swap_lanes(bytes: Self::Reg) -> Self::Reg;

    /// Four activations a lane, from `BYTES` bytes.
    unsafe fn taps(from: *const u8) -> Self::Taps;
    /// Four weights a lane.
    unsafe fn weights(from: *const u8) -> Self::Weights;
    /// `sum + x0 w0 + x1 w1 + x2 w2 + x3 w3` in each i32 lane, exactly (modulo 2^32).
    unsafe fn dot(sum: Self::Reg, taps: Self::Taps, weights: Self::Weights) -> Self::Reg;

    /// `sum * scale + bias`, one fused multiply-add; scale and bias from memory.
    unsafe fn affine(sum: Self::Reg, scale: *const f32, bias: *const f32) -> Self::Float;
    /// Registers `2 half` and `2 half + 1` of bytes widened to i32, in block order.
    unsafe fn widen(bytes: Self::Reg, half: usize) -> [Self::Reg; 2];
    /// `(value - zero) * scale + sum`, one fused multiply-add.
    unsafe fn add_residual(sum: Self::Float, value: Self::Reg, zero: i32, scale: f32) -> Self::Float;
    /// `max(min(v, high), low)` as f32, for a `low` that is not NaN.
    unsafe fn clamp(value: Self::Float, low: f32, high: f32) -> Self::Float;
    /// `min(v, high)` rounded half to even, plus `zero`, in saturated i16: two registers' 32-bit lanes packed into one.
    unsafe fn words(values: [Self::Float; 2], high: f32, zero: i16) -> Self::Reg;
    /// Two registers of words packed into saturated bytes, then at least `low`, then at most `high`.
    unsafe fn bytes(words: [Self::Reg; 2], low: u8, high: u8) -> Self::Reg;

    /// The same bits.
    unsafe fn bits(value: Self::Float) -> Self::Reg;
    /// 128-bit lane `j` to `to + 16 j` (in 32-bit elements).
    unsafe fn store_lanes(to: *mut u32, value: Self::Reg);
}
