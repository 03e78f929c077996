//! Depthwise INT8 convolution, channels last: each output channel sees one input channel.
//!
//! Four rows of the window are interleaved so that one 32-bit lane holds four taps of one channel, which is what an 8-bit
//! dot product consumes; two rows of outputs read the same interleaved line, and neighbouring outputs the same columns of
//! it. Dot products are exact on every instruction set.
//!
//! - [`window`]: the sizes; [`layout`]: blocks of channels and packed weights; [`scalar`]: the specification
//! - [`vector`]: what an instruction set provides; `avx2`, `avx512`: those that do; [`path`]: the kernels compiled for them
//! - [`line`]: interleaving; [`micro_kernel`]: dot products; [`store`]: epilogues; [`schedule`]: which row, block, thread

#![allow(unsafe_code)]
// Other machines have the scalar path alone: what the vector kernels share lies idle there.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod layout;
pub(super) mod line;
pub(super) mod micro_kernel;
mod path;
pub(super) mod scalar;
pub(super) mod schedule;
pub(super) mod store;
pub(super) mod vector;
pub(super) mod window;

use layout::{AlignedBytes, Block, Blocks, QuadLayout};
use path::Path;
use schedule::{BlockArgs, CONSTANTS, Job, Plan, RowKernel, Scratch, Shared};
use window::Geometry;
pub use window::Window;

use super::sink::{Sink, output_len};
use super::{Isa, Output, Parallel};
use crate::{Error, Result};

/// The sizes of a depthwise convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseShape {
    /// Input channels, one a group.
    pub channels: usize,
    /// Output channels for each input channel; output channel `n` reads input channel `n / multiplier`.
    pub multiplier: usize,
    /// Kernel, stride, padding, dilation.
    pub window: Window,
}

/// The weights of a depthwise convolution, packed for one instruction set.
///
/// ```
/// use jitquant_kernels::{DepthwiseShape, Isa, Output, PackedDepthwise, Serial, ConvWindow as Window};
///
/// let window = Window::plane([3, 3], [1, 1], [1, 1], [1, 1]);
/// let shape = DepthwiseShape { channels: 2, multiplier: 1, window };
/// let packed = PackedDepthwise::new(Isa::current(), &[1; 2 * 9], shape, &[0])?;
/// let input = [1u8; 4 * 4 * 2]; // 4 x 4 pixels of 2 channels, zero point 0
/// let mut scratch = vec![0; packed.scratch_len([1, 4, 4], 1)?];
/// let mut sums = [0; 4 * 4 * 2];
/// packed.run(&input, 1, [1, 4, 4], 0, Output::I32(&mut sums), &mut scratch, &Serial)?;
/// assert_eq!(sums[..4], [4, 4, 6, 6]);
/// # Ok::<(), jitquant_kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PackedDepthwise {
    isa: Isa,
    shape: DepthwiseShape,
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
    plan: Plan,
    blocks: Blocks,
    kernels: Vec<RowKernel>,
    /// Each block's weights begin at a multiple of 64: quads in the order `[kernel column][quad][row of outputs]`.
    packed: AlignedBytes,
    offsets: Vec<usize>,
    /// The sum of `w - zero_point` of each output channel.
    sums: Vec<i32>,
    widened: bool,
}

impl PackedDepthwise {
    /// Packs `weight`, laid out `[channels * multiplier][1][depth][height][width]` (libtorch's), with one zero point for
    /// all or one an output channel, for `isa`.
    ///
    /// # Errors
    /// Where a size does not fit another, is zero or could overflow the accumulators; where a zero point is not an i8;
    /// where this machine lacks `isa`.
    pub fn new(isa: Isa, weight: &[i8], shape: DepthwiseShape, zero_points: &[i32]) -> Result<Self> {
        shape.window.check(1)?;
        let outputs = shape.channels.checked_mul(shape.multiplier).filter(|&n| n > 0 && n < 1 << 30);
        let Some(outputs) = outputs else {
            let message = format!("{} channels times {}: 1 to 2^30 are accepted", shape.channels, shape.multiplier);
            return Err(Error(message));
        };
        let zero_points = check_weights(isa, weight, outputs.checked_mul(shape.window.taps()), zero_points, outputs)?;
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
    pub fn shape(&self) -> DepthwiseShape {
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
            Weights::Quads(quads) => quads.scratch(&self.shape.window, output)?.0.len(threads),
        })
    }

    /// Convolves `batch` images, laid out `[batch][depth][height][width][channels]`; the padding holds `zero_point`. The
    /// output is laid out `[batch][depth][height][width][channels * multiplier]`.
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
        let outputs = self.zero_points.len();
        let lens = ((input.len(), self.shape.channels), (output_len(&output), outputs));
        let geometry = Geometry::new(self.shape.window, batch, spatial, lens.0, lens.1)?;
        let sink = Sink::new(output, lens.1.0, outputs)?;
        match &self.weights {
            Weights::Plain(weight) => {
                let zero_points = &self.zero_points;
                let weights = scalar::Weights { weight, zero_points, outputs: self.shape.multiplier, inputs: 1 };
                scalar::run(&geometry, &weights, input, zero_point, &sink, threads);
            }
            Weights::Quads(quads) => {
                let (layout, line_outputs) = quads.scratch(&self.shape.window, geometry.output)?;
                check_scratch(scratch, layout.len(threads.threads()))?;
                let job = Job {
                    geometry,
                    plan: quads.plan,
                    input,
                    zero_point,
                    multiplier: self.shape.multiplier,
                    channels: outputs,
                    outputs: line_outputs,
                    sink,
                };
                quads.run(&job, layout, scratch, threads);
            }
        }
        Ok(())
    }
}

impl Quads {
    fn new(path: &Path, weight: &[i8], shape: &DepthwiseShape, zero_points: &[i32]) -> Self {
        let window = &shape.window;
        let taps = window.taps();
        let difference = |n: usize, tap: usize| i32::from(weight[n * taps + tap]) - zero_points[n];
        let sums = (0..zero_points.len()).map(|n| (0..taps).map(|tap| difference(n, tap)).sum()).collect();
        let parts = (0..weight.len()).map(|at| parts(difference(at / taps, at % taps))).max().unwrap_or(1);
        let plan = Plan::new(window, parts);

        let widths: Vec<usize> = path.widths.iter().map(|&(width, _)| width).collect();
        let blocks = Blocks::new(zero_points.len(), &widths);
        let kernel = |block: &Block| {
            let (_, choose) = path.widths.iter().find(|(width, _)| *width == block.width).expect("one of the widths");
            choose(window.kernel[2], plan.quads)
        };
        let kernels = blocks.blocks.iter().map(kernel).collect();
        let layout = |block: &Block| QuadLayout { width: block.width, widened: path.widened };
        let quads = window.kernel[2] * plan.quads * plan.rows;
        let mut offsets = vec![0];
        for block in &blocks.blocks {
            offsets.push(offsets[offsets.len() - 1] + quads * layout(block).quad_bytes());
        }
        let mut packed = AlignedBytes::zeroed(offsets[offsets.len() - 1]);
        let mut result =
            Self { plan, blocks, kernels, packed: AlignedBytes::zeroed(0), offsets, sums, widened: path.widened };
        for (index, block) in result.blocks.blocks.iter().enumerate() {
            result.each_weight(index, window, |at, tap, (part, weight_tap)| {
                let quad = &mut packed.as_mut_slice()[at..at + layout(block).quad_bytes()];
                for channel in 0..block.count {
                    let difference = difference(block.start + channel, weight_tap);
                    layout(block).put(quad, channel, tap, part_of(difference, part));
                }
            });
        }
        result.packed = packed;
        result
    }

    /// Calls `body(quad's first byte, tap of the quad, (part, tap of the window))` for every weight of a channel of a
    /// block.
    fn each_weight(&self, block: usize, window: &Window, mut body: impl FnMut(usize, usize, (usize, usize))) {
        let Plan { rows, quads, .. } = self.plan;
        let width = self.blocks.blocks[block].width;
        let bytes = QuadLayout { width, widened: self.widened }.quad_bytes();
        for x in 0..window.kernel[2] {
            for (quad, row) in (0..quads).flat_map(|quad| (0..rows).map(move |row| (quad, row))) {
                let at = self.offsets[block] + ((x * quads + quad) * rows + row) * bytes;
                for tap in 0..4 {
                    if let Some((part, z, y)) = self.plan.tap(window, row, quad, tap) {
                        body(at, tap, (part, (z * window.kernel[1] + y) * window.kernel[2] + x));
                    }
                }
            }
        }
    }

    fn unpack(&self, shape: &DepthwiseShape, zero_points: &[i32]) -> Vec<i8> {
        let taps = shape.window.taps();
        let mut weight = vec![0i8; zero_points.len() * taps];
        for (index, block) in self.blocks.blocks.iter().enumerate() {
            let layout = QuadLayout { width: block.width, widened: self.widened };
            for channel in 0..block.count {
                let n = block.start + channel;
                let mut differences = vec![[0i32; 3]; taps];
                self.each_weight(index, &shape.window, |at, tap, (part, weight_tap)| {
                    let quad = &self.packed.as_slice()[at..at + layout.quad_bytes()];
                    differences[weight_tap][part] = i32::from(layout.get(quad, channel, tap));
                });
                for (tap, parts) in differences.iter().enumerate() {
                    weight[n * taps + tap] = (parts.iter().sum::<i32>() + zero_points[n]) as i8;
                }
            }
        }
        weight
    }

    /// The scratch's layout and the outputs a line.
    fn scratch(&self, window: &Window, output: [usize; 3]) -> Result<(Scratch, usize)> {
        let widest = self.blocks.blocks.iter().map(|block| block.width).max().unwrap_or(0);
        let column_bytes = self.plan.quads * 4 * widest;
        let outputs = schedule::line_outputs(window, output[2], column_bytes);
        let line_bytes = schedule::check_lines(window, 1, schedule::line_columns(window, outputs), column_bytes)?;
        Ok((Scratch { blocks: self.blocks.blocks.len(), line_bytes }, outputs))
    }

    fn run(&self, job: &Job<'_>, layout: Scratch, scratch: &mut [u8], threads: &dyn Parallel) {
        let (constants, lines) = layout.divide(scratch);
        for (index, &block) in self.blocks.blocks.iter().enumerate() {
            let sums = &self.sums[block.start..block.start + block.count];
            // SAFETY: the scratch was checked to hold the constants of every block.
            unsafe { store::write_constants(constants.add(index * CONSTANTS), block, sums, job.zero_point, &job.sink) };
        }
        let (constants, lines) = (Shared(constants), Shared(lines));
        let [depth, height, _] = job.geometry.output;
        let rows = height.div_ceil(job.plan.rows);
        let (planes, units) = (job.geometry.batch * depth, self.blocks.units);
        let row_bytes = job.geometry.input[2] * job.channels * job.geometry.window.stride[1] * job.plan.rows;
        let strips = schedule::strips(planes * units, rows, row_bytes, threads.threads());
        schedule::split(planes * strips * units, threads, &|task, items| {
            for item in items {
                let (unit, strip, plane) = (item % units, item / units % strips, item / (units * strips));
                for index in self.blocks.unit(unit) {
                    let args = BlockArgs {
                        block: self.blocks.blocks[index],
                        weights: &self.packed.as_slice()[self.offsets[index]..self.offsets[index + 1]],
                        constants: constants.at(index * CONSTANTS),
                        line: lines.at(task * layout.line_bytes),
                    };
                    // SAFETY: the kernel's instruction set was found when the weights were packed, for this width and
                    // plan; the scratch was checked to hold a line for each task.
                    unsafe {
                        self.kernels[index](
                            job,
                            &args,
                            [plane / depth, plane % depth],
                            schedule::strip(rows, strips, strip),
                        )
                    };
                }
            }
        });
    }
}

/// How many i8 sum up to `difference`: a weight less its zero point, -255 to 255.
pub(super) fn parts(difference: i32) -> usize {
    (1..3)
        .find(|&parts| (0..parts).map(|part| i32::from(part_of(difference, part))).sum::<i32>() == difference)
        .unwrap_or(3)
}

/// The `part`-th of the i8 that sum up to `difference`: as large as possible, then the rest.
pub(super) fn part_of(difference: i32, part: usize) -> i8 {
    let (mut rest, mut this) = (difference, 0);
    for _ in 0..=part {
        this = rest.clamp(-128, 127);
        rest -= this;
    }
    this as i8
}

/// What both packed forms check; the zero points, one an output channel.
pub(super) fn check_weights(
    isa: Isa,
    weight: &[i8],
    expected: Option<usize>,
    zero_points: &[i32],
    outputs: usize,
) -> Result<Vec<i32>> {
    if !isa.is_available() {
        return Err(Error(format!("this machine does not have {}", isa.name())));
    }
    if Some(weight.len()) != expected {
        let expected = expected.map_or("more than fit in memory".into(), |expected| expected.to_string());
        return Err(Error(format!("{} weights, not {expected}", weight.len())));
    }
    if let Some(bad) = zero_points.iter().find(|&&zero| i8::try_from(zero).is_err()) {
        return Err(Error(format!("a weight's zero point is {bad}: -128 to 127 are accepted")));
    }
    match zero_points {
        [zero] => Ok(vec![*zero; outputs]),
        all if all.len() == outputs => Ok(all.to_vec()),
        all => Err(Error(format!("{} zero points: 1 or {outputs} are accepted", all.len()))),
    }
}

pub(super) fn check_scratch(scratch: &[u8], needed: usize) -> Result<()> {
    if scratch.len() < needed {
        return Err(Error(format!("{} bytes of scratch, {needed} are needed", scratch.len())));
    }
    Ok(())
}
