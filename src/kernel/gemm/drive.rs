//! Blocking: in which order tiles are computed, and how they are shared out to threads.

use super::finish::Finish;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar::Scalar;
use super::tile::{Operands, Rows, strips, tile};
use super::vector::{Task, Vector};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::kernel::{Isa, Parallel};

/// The instruction set that a weight was packed for.
#[derive(Clone, Copy)]
pub(crate) enum Path {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx512::Avx512Vnni),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(neon::NeonDotprod),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(neon::NeonI8mm),
}

impl Path {
    /// The path of `isa`, or the scalar one where the machine does not have it.
    pub fn new(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        let path = match isa {
            Isa::Avx2 => avx2::Avx2::new().map(Self::Avx2),
            Isa::AvxVnni => avx2::AvxVnni::new().map(Self::AvxVnni),
            Isa::Avx512Vnni => avx512::Avx512Vnni::new().map(Self::Avx512Vnni),
            _ => None,
        };
        #[cfg(target_arch = "aarch64")]
        let path = match isa {
            Isa::NeonDotprod => neon::NeonDotprod::new().map(Self::NeonDotprod),
            Isa::NeonI8mm => neon::NeonI8mm::new().map(Self::NeonI8mm),
            _ => None,
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let path = {
            let _ = isa;
            None
        };
        path.unwrap_or(Self::Scalar(Scalar))
    }

    /// Runs `work` with the path's instructions.
    pub fn run(self, work: impl Task) {
        match self {
            Self::Scalar(v) => v.run(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(v) => v.run(work),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(v) => v.run(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(v) => v.run(work),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(v) => v.run(work),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(v) => v.run(work),
        }
    }

    /// The instruction set.
    pub fn isa(self) -> Isa {
        match self {
            Self::Scalar(_) => Isa::Scalar,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => Isa::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => Isa::Avx512Vnni,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(_) => Isa::NeonDotprod,
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(_) => Isa::NeonI8mm,
        }
    }

    /// The most rows of a tile.
    pub fn rows(self) -> usize {
        match self {
            Self::Scalar(_) => Scalar::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => avx2::Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => avx2::AvxVnni::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => avx512::Avx512Vnni::ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(_) => neon::NeonDotprod::ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(_) => neon::NeonI8mm::ROWS,
        }
    }
}

/// Lines of equally spaced rows: the rows of a matrix (one line), or the lines of an image. Lines are cut into blocks of
/// nearly equal size, so that no tile is nearly empty.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    /// The first row of the first line.
    pub input: *const u8,
    /// Rows in a line.
    pub length: usize,
    /// Bytes of input from one row to the next.
    pub input_step: usize,
    /// Elements of output from one row to the next.
    pub output_step: usize,
    /// The first row's element in the output.
    pub output: usize,
    /// Lines, inner and outer: `[outer, inner]`.
    pub lines: [usize; 2],
    /// Bytes of input from one outer or inner line to the next.
    pub input_line: [usize; 2],
    /// Elements of output from one outer or inner line to the next.
    pub output_line: [usize; 2],
}

// SAFETY: a description; who reads or writes through the pointer answers for it.
unsafe impl Sync for Lines {}
// SAFETY: as above.
unsafe impl Send for Lines {}

impl Lines {
    /// The rows of a matrix: `rows` rows of `input_step` bytes and `output_step` outputs.
    pub fn matrix(input: *const u8, rows: usize, input_step: usize, output_step: usize) -> Self {
        Self {
            input,
            length: rows,
            input_step,
            output_step,
            output: 0,
            lines: [1, 1],
            input_line: [0, 0],
            output_line: [0, 0],
        }
    }

    fn blocks_per_line(&self, most: usize) -> usize {
        self.length.div_ceil(most)
    }

    fn blocks(&self, most: usize) -> usize {
        self.lines[0] * self.lines[1] * self.blocks_per_line(most)
    }

    fn block(&self, index: usize, most: usize) -> Rows {
        let parts = self.blocks_per_line(most);
        let (line, part) = (index / parts, index % parts);
        let (outer, inner) = (line / self.lines[1], line % self.lines[1]);
        let (from, to) = (self.length * part / parts, self.length * (part + 1) / parts);
        let input = outer * self.input_line[0] + inner * self.input_line[1] + from * self.input_step;
        let output = outer * self.output_line[0] + inner * self.output_line[1] + from * self.output_step;
        Rows {
            input: self.input.wrapping_add(input),
            input_step: self.input_step,
            output: self.output + output,
            output_step: self.output_step,
            count: to - from,
            index: line * self.length + from,
        }
    }
}

/// Input bytes of the blocks that are computed for one group of strips before the next: they should stay in the L2 cache
/// while the weights pass by.
const RESIDENT: usize = 256 << 10;

/// Products that are worth a thread of their own: waking one takes some microseconds.
const PRODUCTS_A_TASK: usize = 1 << 20;

/// Computes `lines` of a product, on the caller's threads.
///
/// # Safety
/// All segments of all rows are readable, and all outputs, within the sink, are distinct and written by nobody else.
pub(crate) unsafe fn product(
    path: Path,
    operands: &Operands<'_>,
    finish: &Finish<'_>,
    lines: &Lines,
    threads: &dyn Parallel,
) {
    let panels = operands.panels;
    let most = path.rows();
    let blocks = lines.blocks(most);
    if blocks == 0 || panels.strips() == 0 {
        return;
    }
    let products = lines.lines[0] * lines.lines[1] * lines.length * panels.channels() * panels.columns();
    let [by_rows, by_strips] = shares(threads, products, blocks, panels.strips(), lines, operands);
    let task = |index: usize| {
        let (i, j) = (index / by_strips, index % by_strips);
        path.run(Part {
            operands,
            finish,
            lines,
            blocks: [blocks * i / by_rows, blocks * (i + 1) / by_rows],
            strips: [panels.strips() * j / by_strips, panels.strips() * (j + 1) / by_strips],
        });
    };
    match by_rows * by_strips {
        1 => task(0),
        tasks => threads.run(tasks, &task),
    }
}

/// Into how many parts rows and strips are shared: what is larger, input or weight, is divided first, so that threads read
/// little twice.
fn shares(
    threads: &dyn Parallel,
    products: usize,
    blocks: usize,
    strips: usize,
    lines: &Lines,
    operands: &Operands<'_>,
) -> [usize; 2] {
    if products < 2 * PRODUCTS_A_TASK {
        return [1, 1];
    }
    let tasks = threads.threads().min(products / PRODUCTS_A_TASK).max(1);
    let input = lines.lines[0] * lines.lines[1] * lines.length * lines.input_step;
    let weight = strips * operands.panels.strip_bytes();
    if input >= weight || strips < tasks {
        let by_rows = tasks.min(blocks);
        [by_rows, (tasks / by_rows).min(strips)]
    } else {
        [1, tasks]
    }
}

/// A task: blocks `blocks[0]..blocks[1]` of strips `strips[0]..strips[1]`.
struct Part<'a> {
    operands: &'a Operands<'a>,
    finish: &'a Finish<'a>,
    lines: &'a Lines,
    blocks: [usize; 2],
    strips: [usize; 2],
}

impl Task for Part<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let [first, end] = self.blocks;
        let largest = self.lines.length.div_ceil(self.lines.blocks_per_line(V::ROWS));
        let block_bytes = largest * self.lines.input_step.max(self.operands.panels.length());
        let resident = (RESIDENT / block_bytes.max(1)).max(1);
        let width = strips::<V>(largest);
        for start in (first..end).step_by(resident) {
            let stop = (start + resident).min(end);
            let mut strip = self.strips[0];
            while strip < self.strips[1] {
                let count = width.min(self.strips[1] - strip);
                for block in start..stop {
                    let rows = self.lines.block(block, V::ROWS);
                    // SAFETY: by the contract of `product`; tasks have distinct blocks or strips.
                    unsafe { tile(v, self.operands, self.finish, rows, strip, count) };
                }
                strip += count;
            }
        }
    }
}
