//! The lines of a grouped convolution: rows of the input, each lane holding four input channels of its output channel's
//! group.
//!
//! A *source* is a register of such lanes. Where groups have 4, 8, 16 or 32 channels in and as many out, groups and
//! 128-bit lanes divide each other, and shuffles within lanes make the sources, which neighbouring output registers
//! share; other groups are gathered byte by byte, a source for each output register.

#![allow(unsafe_code)]

use super::GroupedShape;
use crate::kernel::depthwise::layout::{Block, block_order};
use crate::kernel::depthwise::line::Columns;
use crate::kernel::depthwise::vector::Vector;

/// How the sources of a line are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    /// By shuffles; with `steps` dot products a tap: 1, 2, 4 or 8.
    Spread { steps: usize },
    /// Byte by byte; with `steps` dot products a tap.
    Gathered { steps: usize },
}

impl Sources {
    /// The form for groups of `shape`, in blocks of `blocks`.
    pub fn of(shape: &GroupedShape, blocks: &[Block]) -> Self {
        let steps = shape.inputs.div_ceil(4);
        let even = shape.inputs == shape.outputs && matches!(shape.inputs, 4 | 8 | 16 | 32);
        let whole = blocks.iter().all(|block| block.count == block.width && block.start % shape.inputs.max(16) == 0);
        if even && whole { Sources::Spread { steps } } else { Sources::Gathered { steps } }
    }

    /// Dot products a tap.
    pub fn steps(self) -> usize {
        match self {
            Sources::Spread { steps } | Sources::Gathered { steps } => steps,
        }
    }

    /// Registers of a pixel in a line.
    pub fn registers(self) -> usize {
        match self {
            Sources::Spread { steps } => steps.max(4),
            Sources::Gathered { steps } => 4 * steps,
        }
    }

    /// The input channel of the group, less its position among four, that step `step` multiplies for channel `channel`
    /// of a block.
    pub fn input(self, step: usize, channel: usize) -> usize {
        match self {
            // A group of 32 spans two lanes: first the channels of the lane's own half, then those of the other.
            Sources::Spread { steps: 8 } => 4 * (step % 4) + 16 * ((channel / 16 + step / 4) % 2),
            _ => 4 * step,
        }
    }
}

/// The place of register `register`'s source for step `step`: `STEPS` are those of [`Sources::Spread`], or 0.
#[inline(always)]
pub(super) fn source<const STEPS: usize>(register: usize, step: usize) -> usize {
    match STEPS {
        0 => 4 * step + register,
        steps => register / steps * steps + step,
    }
}

/// What the rows of a call have in common.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    pub shape: GroupedShape,
    /// Pixels in a row.
    pub width: usize,
    pub zero_point: u8,
    pub block: Block,
    pub sources: Sources,
}

/// Fills a line from a row, which points to the first input channel of pixel 0 or is none in the padding.
///
/// # Safety
/// As [`Vector`]'s. The row has `pixels.width` pixels; `line` holds `columns.count` times the sources' registers.
#[inline(always)]
pub(super) unsafe fn fill<V: Vector, const STEPS: usize>(
    line: *mut u8,
    row: Option<*const u8>,
    columns: Columns,
    pixels: &Pixels,
) {
    let (inside, row) = match row {
        Some(row) => (columns.inside(pixels.width), row),
        None => (0..0, std::ptr::null()),
    };
    let registers = pixels.sources.registers();
    let step = pixels.shape.groups * pixels.shape.inputs;
    // SAFETY: columns inside the row are read from its pixels; stores stay within `columns.count`.
    unsafe {
        let padding = V::splat(pixels.zero_point);
        for column in (0..inside.start).chain(inside.end..columns.count) {
            for register in 0..registers {
                V::store(line.add((column * registers + register) * V::BYTES), padding);
            }
        }
        for column in inside {
            let pixel = (columns.start + column as isize) as usize;
            let from = row.add(pixel * step);
            let to = line.add(column * registers * V::BYTES);
            if STEPS == 0 {
                gather::<V>(to, from, pixels);
            } else {
                let bytes = V::load(from.add(pixels.block.start));
                store_spread::<V>(to, bytes);
                if STEPS == 8 {
                    store_spread::<V>(to.add(4 * V::BYTES), V::swap_lanes(bytes));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn store_spread<V: Vector>(to: *mut u8, bytes: V::Reg) {
    // SAFETY: the line holds four registers here.
    unsafe {
        let spread = V::spread(bytes);
        V::store(to, spread[0]);
        V::store(to.add(V::BYTES), spread[1]);
        V::store(to.add(2 * V::BYTES), spread[2]);
        V::store(to.add(3 * V::BYTES), spread[3]);
    }
}

/// Four input channels of each output channel's group, a step after the other.
#[inline(always)]
unsafe fn gather<V: Vector>(to: *mut u8, from: *const u8, pixels: &Pixels) {
    let (inputs, outputs) = (pixels.shape.inputs, pixels.shape.outputs);
    for step in 0..inputs.div_ceil(4) {
        let count = (inputs - 4 * step).min(4);
        for channel in 0..pixels.block.count {
            let (register, lane) = block_order(channel);
            let group = (pixels.block.start + channel) / outputs;
            // SAFETY: the group's input channels are inside the pixel, the lane inside the line.
            unsafe {
                let mut bytes = [0u8; 4];
                std::ptr::copy_nonoverlapping(from.add(group * inputs + 4 * step), bytes.as_mut_ptr(), count);
                to.add((4 * step + register) * V::BYTES + 4 * lane).cast::<[u8; 4]>().write(bytes);
            }
        }
    }
}
