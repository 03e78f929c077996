//! Grouped INT8 convolution for small groups, channels last.
//!
//! A dot product multiplies four input channels of one tap for one output channel, so a register's lanes are output
//! channels, and each lane needs its own group's inputs: a shuffle of the pixel's bytes, made once a pixel ([`line`]) and
//! kept for all the taps that read it ([`schedule`]).
//!
//! Registers, blocks of channels and epilogues are those of the depthwise kernels. Groups of 4, 8, 16 and 32 channels are
//! fast; others are right. Larger groups are better served by a matrix product a group.

#![allow(unsafe_code)]
// Other machines have the scalar path alone: what the vector kernels share lies idle there.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]

mod line;
mod micro_kernel;
mod schedule;

use line::Sources;
use schedule::{BlockArgs, Job, Line, Path, RowsKernel};

use super::depthwise::layout::{AlignedBytes, Block, Blocks, QuadLayout};
use super::depthwise::schedule::{CONSTANTS, Shared, check_lines, line_columns, line_outputs, split, strip, strips};
use super::depthwise::store;
use super::depthwise::window::{Geometry, Window};
use super::depthwise::{check_scratch, check_weights, part_of, parts, scalar};
use super::sink::{Sink, output_len};
use super::{Isa, Output, Parallel};
use crate::{Error, Result};

/// The sizes of a grouped convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupedShape {
    /// Groups of channels.
    pub groups: usize,
    /// Input channels of a group.
    pub inputs: usize,
    /// Output channels of a group.
    pub outputs: usize,
    /// Kernel, stride, padding, dilation.
    pub window: Window,
}

/// The weights of a grouped convolution, packed for one instruction set.
#[derive(Clone, Debug)]
pub struct PackedGrouped {
    isa: Isa,
    shape: GroupedShape,
    /// One an output channel.
    zero_points: Vec<i32>,
    weights: Weights,
}

#[derive(Clone, Debug)]
enum Weights {
    /// As they came, for the scalar path.
    Plain(Vec<i8>),
    Quads(Quads),
}

/// Weights in quads, block by block.
#[derive(Clone, Debug)]
struct Quads {
    sources: Sources,
    parts: usize,
    blocks: Blocks,
    kernels: Vec<RowsKernel>,
    /// Where each block's sources are gathered from; empty where they are not.
    gathered: Vec<Vec<u32>>,
    /// Each block's weights begin at a multiple of 64: quads in the order `[kernel column][part and row][step]`.
    packed: AlignedBytes,
    offsets: Vec<usize>,
    /// The sum of `w - zero_point` of each output channel.
    sums: Vec<i32>,
    widened: bool,
}

/// One of the weights of a channel: where it is packed, and which one it is.
struct Slot {
    /// The quad's first byte.
    quad: usize,
    /// Its place among the quad's taps.
    tap: usize,
    part: usize,
    /// The index into the channel's weights, `[input channel][depth][height][width]`.
    weight: usize,
}

impl PackedGrouped {
    /// Packs `weight`, laid out `[groups * outputs][inputs][depth][height][width]` (libtorch's), with one zero point for
    /// all or one an output channel, for `isa`.
    ///
    /// # Errors
    /// Where a size does not fit another, is zero or could overflow the accumulators; where a zero point is not an i8;
    /// where this machine lacks `isa`.
    pub fn new(isa: Isa, weight: &[i8], shape: GroupedShape, zero_points: &[i32]) -> Result<Self> {
        shape.window.check(shape.inputs)?;
        let channels = |each: usize| shape.groups.checked_mul(each).filter(|&n| n > 0 && n < 1 << 30);
        let (Some(_), Some(outputs)) = (channels(shape.inputs), channels(shape.outputs)) else {
            let GroupedShape { groups, inputs, outputs, .. } = shape;
            let message = format!("{groups} groups of {inputs} to {outputs} channels: 1 to 2^30 in all are accepted");
            return Err(Error(message));
        };
        let each = shape.inputs * shape.window.taps();
        let zero_points = check_weights(isa, weight, outputs.checked_mul(each), zero_points, outputs)?;
        let weights = match Path::of(isa) {
            None => Weights::Plain(weight.to_vec()),
            Some(path) => Weights::Quads(Quads::new(path, weight, &shape, &zero_points)),
        };
        Ok(Self { isa, shape, zero_points, weights })
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The sizes given to [`Self::new`].
    pub fn shape(&self) -> GroupedShape {
        self.shape
    }

    /// The weights given to [`Self::new`].
    pub fn unpack(&self) -> Vec<i8> {
        match &self.weights {
            Weights::Plain(weight) => weight.clone(),
            Weights::Quads(quads) => quads.unpack(&self.shape, &self.zero_points),
        }
    }

    /// Output sizes for an input of `spatial`, both `[depth, height, width]`.
    ///
    /// # Errors
    /// Where the padded input is smaller than the window.
    pub fn output_spatial(&self, spatial: [usize; 3]) -> Result<[usize; 3]> {
        self.shape.window.output_spatial(spatial)
    }

    /// Bytes of scratch that [`Self::run`] needs for an input of `spatial` with as many threads.
    ///
    /// # Errors
    /// As [`Self::output_spatial`].
    pub fn scratch_len(&self, spatial: [usize; 3], threads: usize) -> Result<usize> {
        let output = self.output_spatial(spatial)?;
        Ok(match &self.weights {
            Weights::Plain(_) => 0,
            Weights::Quads(quads) => quads.scratch(&self.shape.window, output)?.len(threads),
        })
    }

    /// Convolves `batch` images, laid out `[batch][depth][height][width][groups * inputs]`; the padding holds
    /// `zero_point`. The output is laid out `[batch][depth][height][width][groups * outputs]`.
    ///
    /// # Errors
    /// Where a slice has not the size that the others ask for; nothing has been written then.
    #[expect(clippy::too_many_arguments)]
    pub fn run(
        &self,
        input: &[u8],
        batch: usize,
        spatial: [usize; 3],
        zero_point: u8,
        output: Output<'_>,
        scratch: &mut [u8],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let (inputs, outputs) = (self.shape.groups * self.shape.inputs, self.zero_points.len());
        let lens = ((input.len(), inputs), (output_len(&output), outputs));
        let geometry = Geometry::new(self.shape.window, batch, spatial, lens.0, lens.1)?;
        let sink = Sink::new(output, lens.1.0, outputs)?;
        match &self.weights {
            Weights::Plain(weight) => {
                let GroupedShape { inputs, outputs, .. } = self.shape;
                let weights = scalar::Weights { weight, zero_points: &self.zero_points, outputs, inputs };
                scalar::run(&geometry, &weights, input, zero_point, &sink, threads);
            }
            Weights::Quads(quads) => {
                let layout = quads.scratch(&self.shape.window, geometry.output)?;
                check_scratch(scratch, layout.len(threads.threads()))?;
                let job = Job {
                    geometry,
                    shape: self.shape,
                    sources: quads.sources,
                    parts: quads.parts,
                    input,
                    zero_point,
                    outputs: layout.outputs,
                    sink,
                };
                quads.run(&job, layout, scratch, threads);
            }
        }
        Ok(())
    }
}

/// How the caller's scratch is divided: constants first, then each thread's tables and lines, each at a cache line.
#[derive(Clone, Copy)]
struct Scratch {
    blocks: usize,
    /// Rows of the window.
    rows: usize,
    parts: usize,
    /// Outputs a line.
    outputs: usize,
    /// Bytes of a line.
    line_bytes: usize,
}

impl Scratch {
    /// Bytes of a thread's table of what the lines hold.
    fn lines_bytes(&self) -> usize {
        (self.rows * size_of::<Line>()).next_multiple_of(64)
    }

    /// Bytes of a thread's table of pointers to lines.
    fn rows_bytes(&self) -> usize {
        (self.rows * self.parts * size_of::<*const u8>()).next_multiple_of(64)
    }

    fn thread_bytes(&self) -> usize {
        self.lines_bytes() + self.rows_bytes() + self.rows * self.line_bytes
    }

    fn len(&self, threads: usize) -> usize {
        63 + self.blocks * CONSTANTS + threads * self.thread_bytes()
    }
}

impl Quads {
    fn new(path: &Path, weight: &[i8], shape: &GroupedShape, zero_points: &[i32]) -> Self {
        let each = shape.inputs * shape.window.taps();
        let difference = |n: usize, at: usize| i32::from(weight[n * each + at]) - zero_points[n];
        let sums = (0..zero_points.len()).map(|n| (0..each).map(|at| difference(n, at)).sum()).collect();
        let parts = (0..weight.len()).map(|at| parts(difference(at / each, at % each))).max().unwrap_or(1);

        let widths: Vec<usize> = path.widths.iter().map(|&(width, _)| width).collect();
        let blocks = Blocks::new(zero_points.len(), &widths);
        let sources = Sources::of(shape, &blocks.blocks);
        let kernel = |block: &Block| {
            let (_, choose) = path.widths.iter().find(|(width, _)| *width == block.width).expect("one of the widths");
            choose(sources)
        };
        let kernels = blocks.blocks.iter().map(kernel).collect();
        let gathered = blocks.blocks.iter().map(|&block| sources.offsets(shape, block)).collect();
        let window = shape.window;
        let quads = window.kernel[2] * parts * window.kernel[0] * window.kernel[1] * sources.steps();
        let mut offsets = vec![0];
        for block in &blocks.blocks {
            let layout = QuadLayout { width: block.width, widened: path.widened };
            offsets.push(offsets[offsets.len() - 1] + quads * layout.quad_bytes());
        }
        let mut packed = AlignedBytes::zeroed(offsets[offsets.len() - 1]);
        let result = Self {
            sources,
            parts,
            blocks,
            kernels,
            gathered,
            packed: AlignedBytes::zeroed(0),
            offsets,
            sums,
            widened: path.widened,
        };
        for (index, block) in result.blocks.blocks.iter().enumerate() {
            let layout = result.layout(index);
            for channel in 0..block.count {
                result.each_weight(index, channel, shape, |slot| {
                    let quad = &mut packed.as_mut_slice()[slot.quad..slot.quad + layout.quad_bytes()];
                    let difference = difference(block.start + channel, slot.weight);
                    layout.put(quad, channel, slot.tap, part_of(difference, slot.part));
                });
            }
        }
        Self { packed, ..result }
    }

    fn layout(&self, block: usize) -> QuadLayout {
        QuadLayout { width: self.blocks.blocks[block].width, widened: self.widened }
    }

    /// Calls `body` for every weight of a channel of a block.
    fn each_weight(&self, block: usize, channel: usize, shape: &GroupedShape, mut body: impl FnMut(Slot)) {
        let (window, steps) = (&shape.window, self.sources.steps());
        let rows = window.kernel[0] * window.kernel[1];
        let bytes = self.layout(block).quad_bytes();
        for x in 0..window.kernel[2] {
            for row in 0..rows * self.parts {
                for step in 0..steps {
                    let quad = self.offsets[block] + ((x * rows * self.parts + row) * steps + step) * bytes;
                    for tap in 0..4 {
                        if let Some(input) = self.sources.input(shape, self.blocks.blocks[block], channel, step, tap) {
                            let weight = (input * rows + row % rows) * window.kernel[2] + x;
                            body(Slot { quad, tap, part: row / rows, weight });
                        }
                    }
                }
            }
        }
    }

    fn unpack(&self, shape: &GroupedShape, zero_points: &[i32]) -> Vec<i8> {
        let each = shape.inputs * shape.window.taps();
        let mut weight = vec![0i8; zero_points.len() * each];
        for (index, block) in self.blocks.blocks.iter().enumerate() {
            let layout = self.layout(index);
            for channel in 0..block.count {
                let n = block.start + channel;
                let mut differences = vec![0i32; each];
                self.each_weight(index, channel, shape, |slot| {
                    let quad = &self.packed.as_slice()[slot.quad..slot.quad + layout.quad_bytes()];
                    differences[slot.weight] += i32::from(layout.get(quad, channel, slot.tap));
                });
                for (at, difference) in differences.iter().enumerate() {
                    weight[n * each + at] = (difference + zero_points[n]) as i8;
                }
            }
        }
        weight
    }

    fn scratch(&self, window: &Window, output: [usize; 3]) -> Result<Scratch> {
        let widest = self.blocks.blocks.iter().map(|block| block.width).max().unwrap_or(0);
        let rows = window.kernel[0] * window.kernel[1];
        let column_bytes = self.sources.registers() * widest;
        let outputs = line_outputs(window, output[2], rows * column_bytes);
        let line_bytes = check_lines(window, rows, line_columns(window, outputs), column_bytes)?;
        Ok(Scratch { blocks: self.blocks.blocks.len(), rows, parts: self.parts, outputs, line_bytes })
    }

    fn run(&self, job: &Job<'_>, layout: Scratch, scratch: &mut [u8], threads: &dyn Parallel) {
        let constants = scratch.as_mut_ptr();
        let constants = constants.wrapping_add(constants.align_offset(64));
        for (index, &block) in self.blocks.blocks.iter().enumerate() {
            let sums = &self.sums[block.start..block.start + block.count];
            // SAFETY: the scratch was checked to hold the constants of every block.
            unsafe { store::write_constants(constants.add(index * CONSTANTS), block, sums, job.zero_point, &job.sink) };
        }
        let constants = Shared(constants);
        let [depth, height, _] = job.geometry.output;
        let units = self.blocks.units;
        let planes = job.geometry.batch * depth;
        // A strip reads a few rows more than it computes, so a single thread goes through a block's rows in one go.
        let strips = strips(planes * units, height, 0, threads.threads());
        split(planes * units * strips, threads, &|task, items| {
            let scratch = constants.at(layout.blocks * CONSTANTS + task * layout.thread_bytes());
            // SAFETY: the scratch was checked to hold each task's tables, at multiples of 64; only this task uses them,
            // and both are written before they become slices.
            let (lines, rows) = unsafe {
                let lines = scratch.cast::<Line>();
                let rows = scratch.add(layout.lines_bytes()).cast::<*const u8>();
                (0..layout.rows).for_each(|n| lines.add(n).write(Line::Empty));
                (0..layout.rows * layout.parts).for_each(|n| rows.add(n).write(std::ptr::null()));
                (
                    std::slice::from_raw_parts_mut(lines, layout.rows),
                    std::slice::from_raw_parts_mut(rows, layout.rows * layout.parts),
                )
            };
            for item in items {
                let (part, unit, plane) = (item % strips, item / strips % units, item / (strips * units));
                for index in self.blocks.unit(unit) {
                    let mut args = BlockArgs {
                        block: self.blocks.blocks[index],
                        weights: &self.packed.as_slice()[self.offsets[index]..self.offsets[index + 1]],
                        offsets: &self.gathered[index],
                        constants: constants.at(index * CONSTANTS),
                        lines: &mut *lines,
                        line_bytes: layout.line_bytes,
                        scratch: scratch.wrapping_add(layout.lines_bytes() + layout.rows_bytes()),
                        rows: &mut *rows,
                    };
                    // SAFETY: the kernel's instruction set was found when the weights were packed, for this width and
                    // these sources; the scratch was checked to hold the lines of each task.
                    unsafe {
                        self.kernels[index](job, &mut args, [plane / depth, plane % depth], strip(height, strips, part))
                    };
                }
            }
        });
    }
}
