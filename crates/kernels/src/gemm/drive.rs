//! Blocking: in which order tiles are computed, and how they are shared out to threads.

use super::finish::Finish;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::panels::Panels;
use super::scalar::Scalar;
use super::tile::{Operands, Rows, strips, tile};
use super::vector::{Task, Vector};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::Result;
use crate::{Isa, Parallel};

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
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Amx),
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
            Isa::Amx => amx::Amx::new().map(Self::Amx),
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
            #[cfg(target_arch = "x86_64")]
            Self::Amx(v) => v.vector().run(work),
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
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => Isa::Amx,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(_) => Isa::NeonDotprod,
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(_) => Isa::NeonI8mm,
        }
    }

    /// A weight in the form that the path is fastest with; see [`Panels::new`].
    ///
    /// # Errors
    /// As [`Panels::new`].
    pub fn pack(
        self,
        weight: &[i8],
        channels: usize,
        segments: usize,
        length: usize,
        zero_points: &[i32],
    ) -> Result<Panels> {
        let panels = Panels::new(weight, channels, segments, length, zero_points)?;
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Ok(panels.sort()),
            _ => Ok(panels),
        }
    }

    /// The path that is fastest for a product: this one, or AVX-512 where tiles do not pay.
    fn suited_to(self, lines: &Lines, operands: &Operands<'_>) -> Self {
        let _ = (lines, operands);
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(v) if !v.suits(lines, operands) => Self::Avx512Vnni(v.vector()),
            _ => self,
        }
    }

    /// The most rows of a block of a product.
    fn rows(self) -> usize {
        match self {
            Self::Scalar(_) => Scalar::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => avx2::Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => avx2::AvxVnni::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => avx512::Avx512Vnni::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => amx::ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(_) => neon::NeonDotprod::ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(_) => neon::NeonI8mm::ROWS,
        }
    }

    /// Computes a part of a product, whose blocks have [`rows`](Self::rows).
    fn compute(self, part: Part<'_>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(v) => v.run(&part),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(v) if part.operands.panels.is_sorted() => v.sorted().run(part),
            _ => self.run(part),
        }
    }
}

/// Lines of equally spaced rows: the rows of a matrix (one line), or the lines of an image. Lines are cut into blocks of
/// rows.
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
}

/// [`Lines`], cut into blocks of at most so many rows. A line's blocks are of nearly equal size, the larger ones first, so that
/// no tile is nearly empty.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    lines: &'a Lines,
    per_line: usize,
    /// Rows of a smaller block.
    size: usize,
    /// How many blocks of a line have one row more.
    larger: usize,
}

impl<'a> Blocks<'a> {
    fn new(lines: &'a Lines, most: usize) -> Self {
        let per_line = lines.length.div_ceil(most);
        let (size, larger) = (lines.length / per_line.max(1), lines.length % per_line.max(1));
        Self { lines, per_line, size, larger }
    }

    fn count(&self) -> usize {
        self.lines.lines[0] * self.lines.lines[1] * self.per_line
    }

    /// Rows of the largest one.
    pub fn largest(&self) -> usize {
        self.size + usize::from(self.larger > 0)
    }

    /// The blocks from number `index` on, without end.
    #[inline(always)]
    pub fn starting_at(&self, index: usize) -> BlocksFrom<'a> {
        let (line, part) = (index / self.per_line, index % self.per_line);
        let (outer, inner) = (line / self.lines.lines[1], line % self.lines.lines[1]);
        BlocksFrom { blocks: *self, part, inner, outer }
    }
}

/// Blocks one after another: dividing for each would cost as much as the epilogue of a small tile.
pub(super) struct BlocksFrom<'a> {
    blocks: Blocks<'a>,
    part: usize,
    inner: usize,
    outer: usize,
}

impl BlocksFrom<'_> {
    #[inline(always)]
    pub fn next(&mut self) -> Rows {
        let Blocks { lines, per_line, size, larger } = self.blocks;
        let from = self.part * size + self.part.min(larger);
        let count = size + usize::from(self.part < larger);
        let (outer, inner) = (self.outer, self.inner);
        let input = outer * lines.input_line[0] + inner * lines.input_line[1] + from * lines.input_step;
        let output = outer * lines.output_line[0] + inner * lines.output_line[1] + from * lines.output_step;
        self.part += 1;
        if self.part == per_line {
            (self.part, self.inner) = (0, inner + 1);
            if self.inner == lines.lines[1] {
                (self.inner, self.outer) = (0, outer + 1);
            }
        }
        Rows {
            input: lines.input.wrapping_add(input),
            input_step: lines.input_step,
            output: lines.output + output,
            output_step: lines.output_step,
            count,
            index: (outer * lines.lines[1] + inner) * lines.length + from,
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
    let path = path.suited_to(lines, operands);
    let cut = Blocks::new(lines, path.rows());
    let blocks = cut.count();
    if blocks == 0 || panels.strips() == 0 {
        return;
    }
    let rows = lines.lines[0] * lines.lines[1] * lines.length;
    let products = rows.saturating_mul(panels.channels()).saturating_mul(panels.columns());
    let [by_rows, by_strips] = shares(threads, products, blocks, panels.strips(), lines, operands);
    let task = |index: usize| {
        let (i, j) = (index / by_strips, index % by_strips);
        path.compute(Part {
            operands,
            finish,
            cut,
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
pub(super) struct Part<'a> {
    pub operands: &'a Operands<'a>,
    pub finish: &'a Finish<'a>,
    pub cut: Blocks<'a>,
    pub blocks: [usize; 2],
    pub strips: [usize; 2],
}

impl Part<'_> {
    /// How many blocks are computed for one group of strips before the next.
    pub fn resident(&self) -> usize {
        let block_bytes = self.cut.largest() * self.cut.lines.input_step.max(self.operands.panels.length());
        (RESIDENT / block_bytes.max(1)).max(1)
    }
}

impl Task for Part<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let [first, end] = self.blocks;
        let resident = self.resident();
        let width = strips::<V>(self.cut.largest());
        for start in (first..end).step_by(resident) {
            let stop = (start + resident).min(end);
            let mut strip = self.strips[0];
            while strip < self.strips[1] {
                let count = width.min(self.strips[1] - strip);
                let mut blocks = self.cut.starting_at(start);
                for _ in start..stop {
                    // SAFETY: by the contract of `product`; tasks have distinct blocks or strips.
                    unsafe { tile(v, self.operands, self.finish, blocks.next(), strip, count) };
                }
                strip += count;
            }
        }
    }
}
