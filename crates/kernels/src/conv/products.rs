//! Convolutions as products of segments of the input: see [`phase`](super::phase).

use super::phase::{self, Phase, input_step, output_step};
use super::shape::{Call, ConvShape};
use crate::gemm::drive::{Lines, Path, product};
use crate::gemm::finish::Finish;
use crate::gemm::tile::Operands;
use crate::geometry::{count, elements};
use crate::sink::Sink;
use crate::{Error, Result};
use crate::{Isa, Output, Parallel, Serial};

/// A convolution's weight in panels, phase by phase and group by group.
pub(super) struct Products {
    path: Path,
    shape: ConvShape,
    phases: Vec<Phase>,
}

/// Where the sample's padded copy has its first element, and how large it is.
#[derive(Clone, Copy)]
struct Padded {
    /// Elements before the sample's own, in each dimension.
    before: [usize; 3],
    /// In all.
    size: [usize; 3],
}

/// Of offsets and copy: a cache line, so that a run of 64 channels lies in one.
const ALIGNMENT: usize = 64;

/// Bytes that may be read beyond the padded copy.
const SLACK: usize = 4;

/// How many pixels the padded copy may have for each one of input and output, and how many it may have anyway.
const MOST_PADDING: usize = 16;
const SMALL_COPY: usize = 1 << 16;

impl Products {
    /// Packs `weight`, whose lengths have been checked.
    pub fn new(isa: Isa, weight: &[i8], shape: ConvShape, zero_points: &[i32]) -> Result<Self> {
        let path = Path::new(isa);
        Ok(Self { path, shape, phases: Phase::all(path, &shape, weight, zero_points)? })
    }

    pub fn unpack_into(&self, weight: &mut [i8]) {
        for phase in &self.phases {
            phase.unpack(&self.shape, weight);
        }
    }

    /// Whether the input is multiplied where it lies.
    fn is_in_place(&self) -> bool {
        let segments_are_whole =
            self.phases.iter().flat_map(|phase| &phase.groups).all(|panels| panels.length() % 4 == 0);
        !self.shape.transposed && self.shape.padding == [0; 3] && (segments_are_whole || self.is_product())
    }

    /// Whether it is a matrix product of the pixels as they lie.
    fn is_product(&self) -> bool {
        let shape = &self.shape;
        !shape.transposed && shape.kernel == [1; 3] && shape.stride == [1; 3] && shape.padding == [0; 3]
    }

    /// The padded copy of a sample. Sizes were checked: they are below 2^31, and the shape's numbers below 2^30, of which at most
    /// two are multiplied.
    fn padded(&self, input: [usize; 3], output: [usize; 3]) -> Padded {
        let step = input_step(&self.shape);
        let mut padded = Padded { before: [0; 3], size: [1; 3] };
        for d in 0..3 {
            let mut end = input[d] as isize;
            for phase in &self.phases {
                let count = phase.count(&self.shape, output)[d];
                if count == 0 {
                    continue;
                }
                for tap in &phase.taps {
                    padded.before[d] = padded.before[d].max((-tap[d]).max(0) as usize);
                    // A row's segment holds all taps of the width, of which `taps` has the first.
                    let width = if d == 2 { self.segment_width() } else { 1 };
                    end = end.max(((count - 1) * step[d]) as isize + tap[d] + width as isize);
                }
            }
            padded.size[d] = padded.before[d] + end as usize;
        }
        padded
    }

    /// Pixels in a segment.
    fn segment_width(&self) -> usize {
        if phase::rows_are_segments(&self.shape) { self.shape.kernel[2] } else { 1 }
    }

    /// Segments of the phase that has the most.
    fn most_segments(&self) -> usize {
        self.phases.iter().map(|phase| phase.taps.len()).max().unwrap_or(0)
    }

    /// Bytes of scratch that [`run`](Self::run) needs, aligned or not.
    pub fn scratch_len(&self, batch: usize, spatial: [usize; 3], threads: &dyn Parallel) -> Result<usize> {
        let call = self.shape.call(batch, spatial)?;
        count("scratch", &[self.copies(batch, threads), self.copy_len(spatial, call.output)?])
    }

    /// How many samples are computed at once, each by one thread: 1 where the threads share a sample.
    fn copies(&self, batch: usize, threads: &dyn Parallel) -> usize {
        match threads.threads() {
            threads if threads > 1 && batch >= threads => threads,
            _ => 1,
        }
    }

    /// Bytes of scratch for one sample, aligned or not: the segments' offsets and its padded copy.
    ///
    /// # Errors
    /// Where the copy would be out of all proportion to input and output: nearly all of it is padding.
    fn copy_len(&self, spatial: [usize; 3], output: [usize; 3]) -> Result<usize> {
        let fixed = ALIGNMENT + self.offsets_len();
        if self.is_in_place() {
            return Ok(fixed);
        }
        let size = self.padded(spatial, output).size;
        let pixels = |size: [usize; 3]| elements(size).unwrap_or(usize::MAX);
        let most =
            pixels(spatial).saturating_add(pixels(output)).saturating_mul(MOST_PADDING).saturating_add(SMALL_COPY);
        let copy = elements(size).filter(|copy| *copy <= most).map(|copy| [copy, self.shape.input_channels]);
        match copy.and_then(elements).and_then(|copy| copy.checked_add(fixed + SLACK)) {
            Some(bytes) => Ok(bytes),
            None => Err(Error(format!(
                "a convolution of padding {:?} and dilation {:?} would need {size:?} pixels of memory for an input of \
                 {spatial:?} and an output of {output:?}",
                self.shape.padding, self.shape.dilation
            ))),
        }
    }

    /// Bytes of scratch for the segments' offsets.
    fn offsets_len(&self) -> usize {
        (self.most_segments() * size_of::<usize>()).next_multiple_of(ALIGNMENT)
    }

    /// See [`PackedConv::run`](super::PackedConv::run).
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
        let shape = &self.shape;
        let Call { output: output_spatial, sample, input_len, result, output_len } = shape.call(batch, spatial)?;
        if input.len() < input_len {
            let message = format!("the input has {} elements, {input_len} are needed", input.len());
            return Err(Error(message));
        }
        let copy_len = self.copy_len(spatial, output_spatial)?;
        let copies = self.copies(batch, threads);
        let scratch_len = count("scratch", &[copies, copy_len])?;
        if scratch.len() < scratch_len {
            let message = format!("{} bytes of scratch, {scratch_len} are needed", scratch.len());
            return Err(Error(message));
        }
        let sink = Sink::new(output, output_len, shape.output_channels)?;
        if output_len == 0 {
            return Ok(());
        }
        let finish = Finish { sink, activation_scale: None };
        let job = Job { conv: self, spatial, output: output_spatial, zero_point, finish };
        if self.is_product() && shape.groups == 1 {
            // SAFETY: lengths are checked; `batch` samples are one matrix.
            unsafe { job.matrix(input.as_ptr(), batch * spatial.iter().product::<usize>(), threads) };
            return Ok(());
        }
        let scratch = scratch.as_mut_ptr() as usize;
        let input = input.as_ptr() as usize;
        let run = |index: usize, copy: usize, threads: &dyn Parallel| {
            // SAFETY: lengths are checked; each copy of the scratch is used by one task, each sample computed once.
            unsafe {
                let scratch = (scratch as *mut u8).add(copy * copy_len);
                job.sample((input as *const u8).add(index * sample), index * result, scratch, threads);
            }
        };
        if copies == 1 {
            (0..batch).for_each(|index| run(index, 0, threads));
        } else {
            threads.run(copies, &|copy| {
                (batch * copy / copies..batch * (copy + 1) / copies).for_each(|index| run(index, copy, &Serial));
            });
        }
        Ok(())
    }
}

/// One call's arguments.
struct Job<'a> {
    conv: &'a Products,
    spatial: [usize; 3],
    output: [usize; 3],
    zero_point: u8,
    finish: Finish<'a>,
}

impl Job<'_> {
    /// Where each pixel is a row of a matrix.
    ///
    /// # Safety
    /// `rows` pixels are readable, and their outputs written by nobody else.
    unsafe fn matrix(&self, input: *const u8, rows: usize, threads: &dyn Parallel) {
        let shape = &self.conv.shape;
        let panels = &self.conv.phases[0].groups[0];
        let operands = Operands { panels, segments: &[0], slack: false, zero_point: self.zero_point };
        let lines = Lines::matrix(input, rows, shape.input_channels, shape.output_channels);
        // SAFETY: by the contract.
        unsafe { product(self.conv.path, &operands, &self.finish, &lines, threads) }
    }

    /// One sample, whose outputs begin at element `at`.
    ///
    /// # Safety
    /// The sample is readable, its outputs written by nobody else, and `scratch` has `copy_len` bytes.
    unsafe fn sample(&self, sample: *const u8, at: usize, scratch: *mut u8, threads: &dyn Parallel) {
        let conv = self.conv;
        let shape = &conv.shape;
        let channels = shape.input_channels;
        // SAFETY: by the contract: the offsets come first, aligned, then the copy.
        unsafe {
            let scratch = scratch.add(scratch.align_offset(ALIGNMENT));
            let offsets = std::slice::from_raw_parts_mut(scratch.cast::<usize>(), conv.most_segments());
            let in_place = conv.is_in_place();
            let padded = match in_place {
                true => Padded { before: [0; 3], size: self.spatial },
                false => conv.padded(self.spatial, self.output),
            };
            let input = match in_place {
                true => sample,
                false => {
                    let copy = scratch.add(conv.offsets_len());
                    self.pad(sample, padded, copy);
                    copy
                }
            };
            let (step, stride) = (output_step(shape), input_step(shape));
            let [_, height, width] = padded.size;
            let row = width * channels;
            for phase in &conv.phases {
                let count = phase.count(shape, self.output);
                let first = phase.first;
                for (group, panels) in phase.groups.iter().enumerate() {
                    for (offset, tap) in offsets.iter_mut().zip(&phase.taps) {
                        let at = |d: usize| (tap[d] + padded.before[d] as isize) as usize;
                        *offset = (at(0) * height + at(1)) * row + at(2) * channels + group * shape.group_inputs();
                    }
                    let outputs = shape.output_channels;
                    let line = self.output[2] * outputs;
                    let lines = Lines {
                        input,
                        length: count[2],
                        input_step: stride[2] * channels,
                        output_step: step[2] * outputs,
                        output: at
                            + (first[0] * self.output[1] + first[1]) * line
                            + first[2] * outputs
                            + group * shape.group_outputs(),
                        lines: [count[0], count[1]],
                        input_line: [stride[0] * height * row, stride[1] * row],
                        output_line: [step[0] * self.output[1] * line, step[1] * line],
                    };
                    let segments = &offsets[..phase.taps.len()];
                    let operands = Operands { panels, segments, slack: !in_place, zero_point: self.zero_point };
                    let finish = self.finish.of_group(group * shape.group_outputs(), shape.group_outputs());
                    product(conv.path, &operands, &finish, &lines, threads);
                }
            }
        }
    }

    /// Copies a sample into the middle of a larger one that is filled with the zero point.
    ///
    /// # Safety
    /// The sample is readable, and `copy` has room for the padded one and [`SLACK`] bytes.
    unsafe fn pad(&self, sample: *const u8, padded: Padded, copy: *mut u8) {
        let channels = self.conv.shape.input_channels;
        let [depth, height, width] = self.spatial;
        let [_, padded_height, padded_width] = padded.size;
        let [front, top, left] = padded.before;
        let end = padded.size.iter().product::<usize>() * channels + SLACK;
        let (zero, row) = (self.zero_point, width * channels);
        // Pixels without channels are as many as the sizes say, and nothing.
        let depth = if row == 0 { 0 } else { depth };
        let mut filled = 0;
        // SAFETY: by the contract; rows are copied in order, and what lies between them is filled.
        unsafe {
            for d in 0..depth {
                for h in 0..height {
                    let to = (((d + front) * padded_height + h + top) * padded_width + left) * channels;
                    copy.add(filled).write_bytes(zero, to - filled);
                    std::ptr::copy_nonoverlapping(sample.add((d * height + h) * row), copy.add(to), row);
                    filled = to + row;
                }
            }
            copy.add(filled).write_bytes(zero, end - filled);
        }
    }
}
