//! The vector form of the epilogues: what the accumulators of a block become on their way to memory.

#![allow(unsafe_code)]

use super::layout::{Block, block_order};
use super::vector::Vector;
use crate::sink::Sink;

/// Bytes of the constants of a block of `width` channels: see [`write_constants`].
pub(crate) const fn constants_bytes(width: usize) -> usize {
    12 * width
}

/// Writes what the micro-kernels read of one block, in block order: the accumulators' initial values
/// `-zero_point * sums`, then scales, then biases. `sums` are the sums of a channel's weights, in channel order.
///
/// # Safety
/// `to` has [`constants_bytes`] writable bytes, and `sums` covers the block's channels.
pub(crate) unsafe fn write_constants(to: *mut u8, block: Block, sums: &[i32], zero_point: u8, sink: &Sink<'_>) {
    let (scale, bias): (&[f32], &[f32]) = match sink {
        Sink::I32(_) => (&[], &[]),
        Sink::F32(_, form) => (form.scale, form.bias),
        Sink::U8(_, form) => (form.scale, form.bias),
    };
    // SAFETY: `block_order` is a permutation of the block's channels, so every element is inside the constants.
    unsafe {
        to.write_bytes(0, constants_bytes(block.width));
        for (channel, &sum) in sums.iter().enumerate() {
            let (register, lane) = block_order(channel);
            let at = to.add(register * block.width + 4 * lane);
            at.cast::<i32>().write_unaligned(sum.wrapping_mul(-i32::from(zero_point)));
            let n = block.start + channel;
            if let Some(&scale) = if scale.len() == 1 { scale.first() } else { scale.get(n) } {
                at.add(4 * block.width).cast::<f32>().write_unaligned(scale);
            }
            if let Some(&bias) = bias.get(n) {
                at.add(8 * block.width).cast::<f32>().write_unaligned(bias);
            }
        }
    }
}

/// Where the outputs of one block begin, and the block's constants.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub sink: &'a Sink<'a>,
    /// See [`write_constants`].
    pub constants: *const u8,
    /// Channels that count.
    pub count: usize,
}

/// The usual epilogue, by value so that its constants stay in registers: a whole block requantized to bytes, without a
/// residual and without a table.
#[derive(Clone, Copy)]
pub(crate) struct PlainBytes {
    pub to: *mut u8,
    /// `max - zero_point`: see [`Vector::words`].
    pub high: f32,
    pub zero: i16,
    pub min: u8,
    pub max: u8,
}

impl Place<'_> {
    /// The epilogue, where it is the usual one.
    #[inline(always)]
    pub fn plain_bytes<V: Vector>(&self) -> Option<PlainBytes> {
        match self.sink {
            Sink::U8(to, form) if form.residual.is_none() && form.table.is_none() && self.count == V::BYTES => {
                let zero = i16::from(form.zero_point);
                let high = f32::from(i16::from(form.max) - zero);
                Some(PlainBytes { to: *to, high, zero, min: form.min, max: form.max })
            }
            _ => None,
        }
    }

    /// `sum * scale + bias` for registers `2 half` and `2 half + 1`.
    ///
    /// # Safety
    /// As [`Vector`]'s.
    #[inline(always)]
    pub unsafe fn affine<V: Vector>(&self, sums: [V::Reg; 2], half: usize) -> [V::Float; 2] {
        // SAFETY: the constants hold four registers of initial values, then of scales, then of biases.
        unsafe {
            let scale = self.constants.add((4 + 2 * half) * V::BYTES).cast::<f32>();
            let (bias, lanes) = (scale.add(V::BYTES), V::BYTES / 4);
            [V::affine(sums[0], scale, bias), V::affine(sums[1], scale.add(lanes), bias.add(lanes))]
        }
    }

    /// The initial value of accumulator register `register`.
    ///
    /// # Safety
    /// As [`Vector`]'s.
    #[inline(always)]
    pub unsafe fn initial<V: Vector>(&self, register: usize) -> V::Reg {
        // SAFETY: the constants hold four registers of initial values.
        unsafe { V::load(self.constants.add(register * V::BYTES)) }
    }

    /// Finishes registers `2 half` and `2 half + 1` of the outputs at element `at`. For bytes, half 0 returns the packed
    /// words, which half 1 takes as `first` and stores with its own.
    ///
    /// # Safety
    /// As [`Vector`]'s; `at` is the block's first channel of an output pixel of this task.
    #[inline(always)]
    pub unsafe fn finish<V: Vector>(&self, sums: [V::Reg; 2], half: usize, at: usize, first: V::Reg) -> V::Reg {
        // SAFETY: the constants hold four registers each of scales and of biases; `at` is good for `count` elements of
        // the output, and of the residual, which is as long.
        unsafe {
            match self.sink {
                Sink::U8(to, form) => {
                    let mut values = self.affine::<V>(sums, half);
                    if let Some(residual) = &form.residual {
                        let bytes = self.load::<V>(residual.data.as_ptr().add(at));
                        let bytes = V::widen(bytes, half);
                        let zero = i32::from(residual.zero_point);
                        values[0] = V::add_residual(values[0], bytes[0], zero, residual.scale);
                        values[1] = V::add_residual(values[1], bytes[1], zero, residual.scale);
                    }
                    let zero = i16::from(form.zero_point);
                    let words = V::words(values, f32::from(i16::from(form.max) - zero), zero);
                    if half == 1 {
                        let bytes = V::bytes([first, words], form.min, form.max);
                        match form.table {
                            None => self.store::<V>(to.add(at), bytes),
                            Some(table) => self.store_mapped::<V>(to.add(at), bytes, table),
                        }
                    }
                    words
                }
                Sink::F32(to, form) => {
                    let [a, b] = self.affine::<V>(sums, half);
                    let a = V::bits(V::clamp(a, form.min, form.max));
                    let b = V::bits(V::clamp(b, form.min, form.max));
                    self.store_words::<V>(to.add(at).cast(), [a, b], half);
                    first
                }
                Sink::I32(to) => {
                    self.store_words::<V>(to.add(at).cast(), sums, half);
                    first
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(&self, from: *const u8) -> V::Reg {
        // SAFETY: by the contract of `finish`, `count` bytes are readable.
        unsafe { if self.count == V::BYTES { V::load(from) } else { V::load_first(from, self.count) } }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(&self, to: *mut u8, bytes: V::Reg) {
        // SAFETY: by the contract of `finish`, `count` bytes are writable.
        unsafe { if self.count == V::BYTES { V::store(to, bytes) } else { V::store_first(to, bytes, self.count) } }
    }

    /// Looks every byte up before it is stored: a block that overlaps the one before must not map a byte twice.
    #[inline(always)]
    unsafe fn store_mapped<V: Vector>(&self, to: *mut u8, bytes: V::Reg, table: &[u8; 256]) {
        let mut unmapped = [0u8; 64];
        // SAFETY: a register is at most 64 bytes, and `count` bytes are writable.
        unsafe {
            V::store(unmapped.as_mut_ptr(), bytes);
            for (n, &byte) in unmapped[..self.count].iter().enumerate() {
                *to.add(n) = table[usize::from(byte)];
            }
        }
    }

    /// Registers `2 half` and `2 half + 1` of 32-bit elements, put into channel order.
    #[inline(always)]
    unsafe fn store_words<V: Vector>(&self, to: *mut u32, values: [V::Reg; 2], half: usize) {
        // SAFETY: a whole block is writable where it counts whole; else it goes over the stack, and only the channels
        // that count are copied.
        unsafe {
            if self.count == V::BYTES {
                V::store_lanes(to.add(8 * half), values[0]);
                V::store_lanes(to.add(8 * half + 4), values[1]);
            } else {
                let mut whole = [0u32; 64];
                V::store_lanes(whole.as_mut_ptr(), values[0]);
                V::store_lanes(whole.as_mut_ptr().add(4), values[1]);
                for channel in (0..self.count).filter(|channel| channel % 16 / 8 == half) {
                    *to.add(channel) = whole[channel - 8 * half];
                }
            }
        }
    }
}
