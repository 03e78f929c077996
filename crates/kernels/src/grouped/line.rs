//! The lines of a grouped convolution: rows of the input, each lane holding four input channels of its output channel's
//! group.
//!
//! A *source* is a register of such lanes. Where groups have 4, 8, 16 or 32 channels in and as many out, groups and
//! 128-bit lanes divide each other, and shuffles within lanes make the sources, which neighbouring output registers
//! share; other groups are gathered, a source for each output register.

#![allow(unsafe_code)]

use super::GroupedShape;
use crate::depthwise::layout::{Block, block_order};
use crate::depthwise::line::Columns;
use crate::depthwise::vector::Vector;

/// How the sources of a line are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    /// By shuffles; with `steps` dot products a tap: 1, 2, 4 or 8.
    Spread { steps: usize },
    /// Four bytes at a time; with `steps` dot products a tap. They go to the four output channels of a 128-bit lane at
    /// once where `shared`, which then belong to one group.
    Gathered { steps: usize, shared: bool },
}

impl Sources {
    /// The form for groups of `shape`, in blocks of `blocks`.
    pub fn of(shape: &GroupedShape, blocks: &[Block]) -> Self {
        let steps = shape.inputs.div_ceil(4);
        let even = shape.inputs == shape.outputs && matches!(shape.inputs, 4 | 8 | 16 | 32);
        let whole = blocks.iter().all(|block| block.count == block.width && block.start % shape.inputs.max(16) == 0);
        let shared = shape.outputs.is_multiple_of(4) && blocks.iter().all(|block| block.start.is_multiple_of(4));
        if even && whole { Sources::Spread { steps } } else { Sources::Gathered { steps, shared } }
    }

    /// Dot products a tap.
    pub fn steps(self) -> usize {
        match self {
            Sources::Spread { steps } | Sources::Gathered { steps, .. } => steps,
        }
    }

    /// Registers of a pixel in a line.
    pub fn registers(self) -> usize {
        match self {
            Sources::Spread { steps } => steps.max(4),
            Sources::Gathered { steps, .. } => 4 * steps,
        }
    }

    /// The input channel of its group that byte `tap` of step `step` holds for channel `channel` of a block, or none where
    /// that byte is not the step's to multiply.
    pub fn input(self, shape: &GroupedShape, block: Block, channel: usize, step: usize, tap: usize) -> Option<usize> {
        let own = 4 * step..(4 * step + 4).min(shape.inputs);
        match self {
            // A group of 32 spans two lanes: first the channels of the lane's own half, then those of the other.
            Sources::Spread { steps: 8 } => Some(4 * (step % 4) + 16 * ((channel / 16 + step / 4) % 2) + tap),
            Sources::Spread { .. } => Some(4 * step + tap),
            Sources::Gathered { .. } => {
                let group = (block.start + channel) / shape.outputs;
                let input = (gathered_from(shape, group, step) + tap).checked_sub(group * shape.inputs);
                input.filter(|input| own.contains(input))
            }
        }
    }

    /// Where in a pixel [`Sources::Gathered`] finds its sources: in the order of the line's bytes.
    pub fn offsets(self, shape: &GroupedShape, block: Block) -> Vec<u32> {
        let Sources::Gathered { steps, shared } = self else { return Vec::new() };
        let mut offsets = vec![0; steps * block.width];
        for step in 0..steps {
            for channel in 0..block.count {
                let (register, lane) = block_order(channel);
                let group = (block.start + channel) / shape.outputs;
                offsets[step * block.width + register * block.width / 4 + lane] =
                    gathered_from(shape, group, step) as u32;
            }
        }
        if shared { offsets.into_iter().step_by(4).collect() } else { offsets }
    }
}

/// The first of the four input channels that are read for a step of a group: the step's own, or earlier ones at the end
/// of a pixel, so that nothing beyond it is read.
fn gathered_from(shape: &GroupedShape, group: usize, step: usize) -> usize {
    (group * shape.inputs + 4 * step).min((shape.groups * shape.inputs).saturating_sub(4))
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
pub(super) struct Pixels<'a> {
    pub shape: GroupedShape,
    /// Pixels in a row.
    pub width: usize,
    pub zero_point: u8,
    pub block: Block,
    pub sources: Sources,
    /// See [`Sources::offsets`].
    pub offsets: &'a [u32],
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
    pixels: &Pixels<'_>,
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
                gather(to, from, pixels);
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
unsafe fn gather(to: *mut u8, from: *const u8, pixels: &Pixels<'_>) {
    let inputs = pixels.shape.groups * pixels.shape.inputs;
    // SAFETY: each offset is at least 4 bytes before the pixel's end, or 0 where a pixel is shorter, which is copied
    // first; the line holds as many lanes as there are offsets, or four times as many.
    unsafe {
        let mut short = [0u8; 4];
        let from = if inputs < 4 {
            std::ptr::copy_nonoverlapping(from, short.as_mut_ptr(), inputs);
            short.as_ptr()
        } else {
            from
        };
        if let Sources::Gathered { shared: true, .. } = pixels.sources {
            for (n, &offset) in pixels.offsets.iter().enumerate() {
                let lane = from.add(offset as usize).cast::<u32>().read_unaligned();
                to.add(16 * n).cast::<[u32; 4]>().write_unaligned([lane; 4]);
            }
        } else {
            for (n, &offset) in pixels.offsets.iter().enumerate() {
                let lane = from.add(offset as usize).cast::<u32>().read_unaligned();
                to.add(4 * n).cast::<u32>().write_unaligned(lane);
            }
        }
    }
}
