//! From a grouped convolution to lines: which rows stay in scratch from one row of outputs to the next.

#![allow(unsafe_code)]

use std::ops::Range;

use super::GroupedShape;
use super::line::{self, Pixels, Sources};
use super::micro_kernel::{self, Tiles};
use crate::Isa;
use crate::depthwise::layout::Block;
use crate::depthwise::line::Columns;
use crate::depthwise::schedule::line_columns;
use crate::depthwise::store::Place;
use crate::depthwise::vector::Vector;
use crate::depthwise::window::Geometry;
use crate::sink::Sink;

/// Everything that the blocks of one call share.
pub(super) struct Job<'a> {
    pub geometry: Geometry,
    pub shape: GroupedShape,
    pub sources: Sources,
    /// i8 weights whose sum is one weight less its zero point.
    pub parts: usize,
    pub input: &'a [u8],
    pub zero_point: u8,
    /// Outputs a line.
    pub outputs: usize,
    pub sink: Sink<'a>,
}

/// What a block needs besides the job.
pub(super) struct BlockArgs<'a> {
    pub block: Block,
    /// Its packed weights.
    pub weights: &'a [u8],
    /// See [`Sources::offsets`].
    pub offsets: &'a [u32],
    /// Its constants for the epilogue.
    pub constants: *const u8,
    /// Lines of this thread: one for each row of the window.
    pub lines: &'a mut [Line],
    /// Bytes of a line.
    pub line_bytes: usize,
    /// Scratch of this thread for the lines.
    pub scratch: *mut u8,
    /// For the lines of a row of outputs: one a row of the window and part of the weights.
    pub rows: &'a mut [*const u8],
}

/// Which row of the input a line holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Empty,
    Padding,
    /// Depth and height.
    Row(usize, usize),
}

/// Computes a block of channels of some rows of outputs of one image at one depth.
pub(super) type RowsKernel = unsafe fn(job: &Job<'_>, args: &mut BlockArgs<'_>, at: [usize; 2], rows: Range<usize>);

/// The body of every [`RowsKernel`].
///
/// # Safety
/// As [`Vector`]'s; `args` hold what the block's width and the job ask for.
#[inline(always)]
unsafe fn rows<V: Vector, const COLUMNS: usize, const STEPS: usize>(
    job: &Job<'_>,
    args: &mut BlockArgs<'_>,
    [image, z]: [usize; 2],
    rows: Range<usize>,
) {
    let Geometry { window, input, output, .. } = job.geometry;
    let (inputs, channels) = (job.shape.groups * job.shape.inputs, job.shape.groups * job.shape.outputs);
    let pixels = Pixels {
        shape: job.shape,
        width: input[2],
        zero_point: job.zero_point,
        block: args.block,
        sources: job.sources,
        offsets: args.offsets,
    };
    let [depth, height, _] = window.kernel;
    let mut x = 0;
    while x < output[2] {
        let outputs = job.outputs.min(output[2] - x);
        let columns = Columns {
            start: (x * window.stride[2]) as isize - window.padding[2] as isize,
            count: line_columns(&window, outputs),
        };
        args.lines.fill(Line::Empty);
        for y in rows.clone() {
            for (kz, ky) in (0..depth).flat_map(|kz| (0..height).map(move |ky| (kz, ky))) {
                // Rows of consecutive outputs overlap: a row keeps its line while the window slides over it.
                let place = if window.dilation[1] == 1 { (y * window.stride[1] + ky) % height } else { ky };
                let place = kz * height + place;
                let wanted = match (job.geometry.position(0, z, kz), job.geometry.position(1, y, ky)) {
                    (Some(z), Some(y)) => Line::Row(z, y),
                    _ => Line::Padding,
                };
                let line = args.scratch.wrapping_add(place * args.line_bytes);
                if args.lines[place] != wanted {
                    args.lines[place] = wanted;
                    let row = match wanted {
                        Line::Row(z, y) => {
                            let first = ((image * input[0] + z) * input[1] + y) * input[2] * inputs;
                            Some(job.input.as_ptr().wrapping_add(first))
                        }
                        _ => None,
                    };
                    // SAFETY: the row is inside the input, whose sizes were checked; the line was sized for the columns.
                    unsafe { line::fill::<V, STEPS>(line, row, columns, &pixels) };
                }
                for part in 0..job.parts {
                    args.rows[(part * depth + kz) * height + ky] = line;
                }
            }
            let tiles = Tiles {
                lines: &*args.rows,
                weights: args.weights.as_ptr(),
                steps: job.sources.steps(),
                registers: job.sources.registers(),
                taps: window.kernel[2],
                dilation: window.dilation[2],
                stride: window.stride[2],
                pixel: channels,
                place: Place { sink: &job.sink, constants: args.constants, count: args.block.count },
            };
            let at = (((image * output[0] + z) * output[1] + y) * output[2] + x) * channels + args.block.start;
            // SAFETY: the lines are filled, and the outputs are inside the output, whose sizes were checked.
            unsafe { micro_kernel::row::<V, COLUMNS, STEPS>(tiles, outputs, at) };
        }
        x += outputs;
    }
}

/// One instruction set's registers and kernels.
pub(super) struct Path {
    /// Bytes of its registers, and the kernels for each.
    pub widths: &'static [Width],
    /// Weights are i16 rather than i8.
    pub widened: bool,
}

/// The width of a register in bytes, and what chooses its kernel for the sources.
type Width = (usize, fn(Sources) -> RowsKernel);

impl Path {
    /// The path of `isa`, or none for the scalar one and for instruction sets without vector kernels.
    pub fn of(isa: Isa) -> Option<&'static Path> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&x86::AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(&x86::AVX_VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Amx => Some(&x86::AVX512_VNNI),
            _ => None,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::depthwise::avx2::{Vnni, Widening, Ymm};
    use crate::depthwise::avx512::{VnniMasked, Zmm};

    /// Declares a function that chooses a kernel of one register width, which computes `$columns` outputs at once.
    macro_rules! rows_kernels {
        ($name:ident, $vector:ty, $columns:literal, $features:literal) => {
            fn $name(sources: Sources) -> RowsKernel {
                #[target_feature(enable = $features)]
                unsafe fn kernel<const STEPS: usize>(
                    job: &Job<'_>,
                    args: &mut BlockArgs<'_>,
                    at: [usize; 2],
                    range: Range<usize>,
                ) {
                    // SAFETY: by the contract of the kernel; its features are the vector's.
                    unsafe { rows::<$vector, $columns, STEPS>(job, args, at, range) }
                }
                match sources {
                    Sources::Spread { steps: 1 } => kernel::<1>,
                    Sources::Spread { steps: 2 } => kernel::<2>,
                    Sources::Spread { steps: 4 } => kernel::<4>,
                    Sources::Spread { .. } => kernel::<8>,
                    Sources::Gathered { .. } => kernel::<0>,
                }
            }
        };
    }

    // With 16 registers, 4 columns times 2 registers of sums leave room for weights and sources; with 32, 7 columns do,
    // which divide the usual 7, 14, 28 and 56.
    rows_kernels!(avx2, Ymm<Widening>, 4, "avx2,fma");
    rows_kernels!(avx_vnni, Ymm<Vnni>, 4, "avx2,fma,avxvnni");
    rows_kernels!(avx512_half, Ymm<VnniMasked>, 7, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
    rows_kernels!(avx512, Zmm, 7, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

    pub(super) static AVX2: Path = Path { widths: &[(32, avx2)], widened: true };
    pub(super) static AVX_VNNI: Path = Path { widths: &[(32, avx_vnni)], widened: false };
    pub(super) static AVX512_VNNI: Path = Path { widths: &[(64, avx512), (32, avx512_half)], widened: false };
}
