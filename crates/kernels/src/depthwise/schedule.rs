//! From a convolution to lines: which rows and columns, which block, which thread.

#![allow(unsafe_code)]

use std::ops::Range;

use super::layout::Block;
use super::line::{self, Columns, Filling, Source};
use super::micro_kernel::{self, Tiles};
use super::store::{Place, constants_bytes};
use super::vector::Vector;
use super::window::{Geometry, Window};
use crate::Parallel;
use crate::geometry::elements;
use crate::sink::Sink;
use crate::{Error, Result};

/// How the rows of a window are laid into quads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Rows of outputs computed together from one line: 2 where that needs no more quads than 1.
    pub rows: usize,
    /// Quads in a column of a line.
    pub quads: usize,
    /// i8 weights whose sum is one weight less its zero point: 1, or up to 3 where the difference leaves i8's range.
    /// Each takes all the window's rows once more.
    pub parts: usize,
}

impl Plan {
    pub fn new(window: &Window, parts: usize) -> Self {
        let rows = window.kernel[0] * window.kernel[1] * parts;
        let quads = rows.div_ceil(4);
        let shared = rows + window.stride[1];
        let pair = window.kernel[0] == 1 && parts == 1 && window.dilation[1] == 1 && shared.div_ceil(4) == quads;
        Self { rows: if pair { 2 } else { 1 }, quads, parts }
    }

    /// The part, kernel depth and kernel row that tap `tap` of quad `quad` is for row `row` of outputs, if any.
    pub fn tap(&self, window: &Window, row: usize, quad: usize, tap: usize) -> Option<(usize, usize, usize)> {
        let at = 4 * quad + tap;
        if self.rows == 2 {
            return at.checked_sub(row * window.stride[1]).filter(|&y| y < window.kernel[1]).map(|y| (0, 0, y));
        }
        let rows = window.kernel[0] * window.kernel[1];
        (at < rows * self.parts).then(|| (at / rows, at % rows / window.kernel[1], at % rows % window.kernel[1]))
    }
}

/// Bytes of a line that stay in the first-level cache beside the weights and the output.
const LINE_BYTES: usize = 24 << 10;

/// Columns of a line that hold `outputs` outputs.
pub(crate) fn line_columns(window: &Window, outputs: usize) -> usize {
    (outputs - 1) * window.stride[2] + (window.kernel[2] - 1) * window.dilation[2] + 1
}

/// Outputs a line: as many of the row's `outputs` as keep the line within [`LINE_BYTES`] at `column_bytes`, evenly, and
/// at least 8.
pub(crate) fn line_outputs(window: &Window, outputs: usize, column_bytes: usize) -> usize {
    let columns = (LINE_BYTES / column_bytes).saturating_sub((window.kernel[2] - 1) * window.dilation[2] + 1);
    let most = (columns / window.stride[2] + 1).max(8);
    outputs.div_ceil(outputs.div_ceil(most))
}

/// The bytes of a line of so many columns, where `lines` of them are no more than a thread may ask for.
///
/// # Errors
/// Where they are: nearly all of a line lies between the taps.
pub(crate) fn check_lines(window: &Window, lines: usize, columns: usize, column_bytes: usize) -> Result<usize> {
    match elements([lines, columns, column_bytes]) {
        Some(bytes) if bytes <= MOST_LINE_BYTES => Ok(columns * column_bytes),
        _ => Err(Error(format!("{window:?} would need more than {MOST_LINE_BYTES} bytes for each thread"))),
    }
}

/// See [`check_lines`]. Usual lines have some kilobytes.
const MOST_LINE_BYTES: usize = 256 << 20;

/// Everything that the blocks of one call share.
pub(crate) struct Job<'a> {
    pub geometry: Geometry,
    pub plan: Plan,
    pub input: &'a [u8],
    pub zero_point: u8,
    /// Output channels for each input channel.
    pub multiplier: usize,
    /// Output channels.
    pub channels: usize,
    /// Outputs a line: see [`line_outputs`].
    pub outputs: usize,
    pub sink: Sink<'a>,
}

/// What a block needs besides the job.
pub(crate) struct BlockArgs<'a> {
    pub block: Block,
    /// Its packed weights.
    pub weights: &'a [u8],
    /// See [`super::store::write_constants`].
    pub constants: *const u8,
    /// Scratch of this thread for a line.
    pub line: *mut u8,
}

/// Computes a block of channels of some rows of outputs (pairs of rows where the plan says so) of one image at one depth.
pub(crate) type RowKernel = unsafe fn(job: &Job<'_>, args: &BlockArgs<'_>, at: [usize; 2], rows: Range<usize>);

/// The body of every [`RowKernel`]. `TAPS` and `QUADS` are the kernel columns and quads, or both 0 for any.
///
/// # Safety
/// As [`Vector`]'s; `args` hold what the block's width and the job's plan ask for.
#[inline(always)]
pub(crate) unsafe fn rows<V: Vector, const TAPS: usize, const QUADS: usize>(
    job: &Job<'_>,
    args: &BlockArgs<'_>,
    [image, z]: [usize; 2],
    rows: Range<usize>,
) {
    let Geometry { window, output, .. } = job.geometry;
    let source = Source {
        pixel: job.channels / job.multiplier,
        multiplier: job.multiplier,
        width: job.geometry.input[2],
        zero_point: job.zero_point,
        block: args.block,
    };
    let place = Place { sink: &job.sink, constants: args.constants, count: args.block.count };
    let tiles = Tiles {
        line: args.line,
        weights: args.weights.as_ptr(),
        quads: job.plan.quads,
        taps: window.kernel[2],
        dilation: window.dilation[2],
        stride: window.stride[2],
        weight_rows: job.plan.rows,
        pixel: job.channels,
        row: output[2] * job.channels,
        place,
    };
    let bytes = if QUADS > 0 && job.multiplier == 1 { place.plain_bytes::<V>() } else { None };
    let zeros = [job.zero_point; 64];
    for y in rows.map(|row| row * job.plan.rows) {
        let pair = job.plan.rows == 2 && y + 1 < output[1];
        let first = ((image * output[0] + z) * output[1] + y) * output[2] * job.channels + args.block.start;
        for x in (0..output[2]).step_by(job.outputs) {
            let outputs = job.outputs.min(output[2] - x);
            let columns = Columns {
                start: (x * window.stride[2]) as isize - window.padding[2] as isize,
                count: line_columns(&window, outputs),
            };
            let at = first + x * job.channels;
            // SAFETY: each row points into the input, whose sizes were checked; the line was sized for these columns;
            // the outputs are inside the output, whose sizes were checked.
            unsafe {
                if let Some(bytes) = bytes {
                    let mut rows = [[None; 4]; QUADS];
                    for (quad, rows) in rows.iter_mut().enumerate() {
                        *rows = job.quad_rows(args.block, quad, [image, z, y]);
                    }
                    let filling = Filling::new(args.line, rows, columns, &source, &zeros);
                    if pair {
                        micro_kernel::filled_line::<V, 2, TAPS, QUADS>(tiles, bytes, filling, &source, outputs, at);
                    } else {
                        micro_kernel::filled_line::<V, 1, TAPS, QUADS>(tiles, bytes, filling, &source, outputs, at);
                    }
                    continue;
                }
                for quad in 0..job.plan.quads {
                    let rows = job.quad_rows(args.block, quad, [image, z, y]);
                    line::fill::<V>(args.line, (quad, job.plan.quads), rows, columns, &source);
                }
                if pair {
                    micro_kernel::line::<V, 2, TAPS, QUADS>(tiles, outputs, at);
                } else {
                    micro_kernel::line::<V, 1, TAPS, QUADS>(tiles, outputs, at);
                }
            }
        }
    }
}

impl Job<'_> {
    /// The rows of quad `quad` for the outputs at `[image, depth, height]`, at the block's first input channel: none in
    /// the padding.
    #[inline(always)]
    fn quad_rows(&self, block: Block, quad: usize, [image, z, y]: [usize; 3]) -> [Option<*const u8>; 4] {
        let (window, input) = (&self.geometry.window, self.geometry.input);
        let pixel = self.channels / self.multiplier;
        let mut rows = [None; 4];
        for (tap, row) in rows.iter_mut().enumerate() {
            let tap = match self.plan.rows {
                // The rows that the second row of outputs adds are taps beyond the first one's window.
                2 => Some((0, 0, 4 * quad + tap)),
                _ => self.plan.tap(window, 0, quad, tap),
            };
            let Some((_, depth, height)) = tap else { continue };
            let Some(z) = self.geometry.position(0, z, depth) else { continue };
            let Some(y) = self.geometry.position(1, y, height) else { continue };
            let first = ((image * input[0] + z) * input[1] + y) * input[2] * pixel;
            *row = Some(self.input.as_ptr().wrapping_add(first + block.start / self.multiplier));
        }
        rows
    }
}

/// Cuts `items` into as many even ranges as there are threads and runs `body(task, range)` for each.
pub(crate) fn split(items: usize, threads: &dyn Parallel, body: &(dyn Fn(usize, Range<usize>) + Sync)) {
    let tasks = threads.threads().min(items);
    threads.run(tasks, &|task| {
        // Even ranges without the overflow of `items * task`.
        let begin = |task: usize| items / tasks * task + (items % tasks).min(task);
        body(task, begin(task)..begin(task + 1));
    });
}

/// Into how many strips of rows to cut each of `planes` planes of `rows` rows of `row_bytes` bytes: so many that a strip
/// stays in the second-level cache while one block of channels after the other reads it, and that every thread has a few.
pub(crate) fn strips(planes: usize, rows: usize, row_bytes: usize, threads: usize) -> usize {
    let fitting = rows.saturating_mul(row_bytes).div_ceil(STRIP_BYTES);
    let busy = if threads == 1 { 1 } else { (4 * threads).div_ceil(planes.max(1)) };
    fitting.max(busy).clamp(1, rows)
}

/// See [`strips`].
const STRIP_BYTES: usize = 256 << 10;

/// The rows of strip `strip` of `strips`.
pub(crate) fn strip(rows: usize, strips: usize, strip: usize) -> Range<usize> {
    let begin = |strip: usize| rows / strips * strip + (rows % strips).min(strip);
    begin(strip)..begin(strip + 1)
}

/// How the caller's scratch is divided: constants first, then a line a thread, each at a cache line.
#[derive(Clone, Copy)]
pub(crate) struct Scratch {
    pub blocks: usize,
    /// Bytes of a thread's part, a multiple of 64.
    pub line_bytes: usize,
}

/// Bytes between the constants of two blocks: those of the widest register.
pub(crate) const CONSTANTS: usize = constants_bytes(64);

impl Scratch {
    /// What `threads` threads need, at any alignment.
    pub fn len(&self, threads: usize) -> usize {
        63 + self.blocks * CONSTANTS + threads * self.line_bytes
    }

    /// The constants and the first thread's line.
    pub fn divide(&self, scratch: &mut [u8]) -> (*mut u8, *mut u8) {
        let constants = scratch.as_mut_ptr();
        let constants = constants.wrapping_add(constants.align_offset(64));
        (constants, constants.wrapping_add(self.blocks * CONSTANTS))
    }
}

/// Pointers into the scratch that tasks share; each task uses its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub *mut u8);

// SAFETY: tasks write disjoint parts, or none.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer, `bytes` further.
    pub fn at(&self, bytes: usize) -> *mut u8 {
        self.0.wrapping_add(bytes)
    }
}
