//! AMX: products of tiles of 16 rows by 16 channels by 64 columns, `tdpbusd` on tile registers.
//!
//! A packed strip is a column of weight tiles already: sixteen groups of four columns and sixteen channels each. An activation
//! tile is up to sixteen rows as they lie in memory. Four tiles hold sums, of two blocks of rows by two strips or of one block
//! by four, so that four or five tiles are loaded for four products. The epilogues are those of AVX-512.
//!
//! Rust's intrinsics for AMX are not stable, so its instructions are written in assembly. The compiler itself never uses tile
//! registers: what one statement leaves in them is there for the next.

use std::arch::asm;
use std::arch::x86_64::{_mm512_maskz_loadu_epi8, _mm512_store_si512};
use std::mem::MaybeUninit;

use super::avx512::Avx512Vnni;
use super::drive::{Lines, Part};
use super::finish::{MOST_ROWS, PlainStrips, finish_tile};
use super::panels::{GROUP, READABLE_GROUPS};
use super::tile::{Operands, Rows, initial};
use super::vector::{STRIP, Vector};
use crate::Isa;

/// The most rows of a block: rows of a tile register.
pub(super) const ROWS: usize = 16;

/// Bytes of a tile register's row.
const WIDTH: usize = 64;

/// The most groups that one product takes: rows of a weight tile.
const GROUPS: usize = 16;

// A weight tile may begin at any group; epilogues have room for the rows of a tile.
const _: () = assert!(GROUPS <= READABLE_GROUPS && ROWS <= MOST_ROWS);

/// Proof that the machine has AMX with 8-bit products, and AVX-512 VNNI beside it, and that the process may use it.
#[derive(Clone, Copy)]
pub(crate) struct Amx {
    vector: Avx512Vnni,
}

impl Amx {
    pub fn new() -> Option<Self> {
        if !Isa::Amx.is_available() {
            return None;
        }
        Some(Self { vector: Avx512Vnni::new()? })
    }

    /// The vectors for all that is not a product of tiles.
    pub fn vector(self) -> Avx512Vnni {
        self.vector
    }

    /// Whether tiles are faster than vectors: a product of tiles takes as long for one row and one group as for sixteen, and
    /// its sums go through memory.
    pub(super) fn suits(self, lines: &Lines, operands: &Operands<'_>) -> bool {
        lines.length >= 3 && operands.panels.groups() >= 6
    }

    /// Computes a part of a product.
    pub(super) fn run(self, part: &Part<'_>) {
        // SAFETY: the machine has the features.
        unsafe { with_features(self.vector, part) }
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn with_features(v: Avx512Vnni, part: &Part<'_>) {
    let [begin, end] = part.blocks;
    let mut tiles = Tiles::new(part.operands);
    let width = if end - begin == 1 { 4 } else { 2 };
    let resident = part.resident().next_multiple_of(2);
    for start in (begin..end).step_by(resident) {
        let stop = (start + resident).min(end);
        let mut strip = part.strips[0];
        while strip < part.strips[1] {
            let strips = width.min(part.strips[1] - strip);
            let mut first = [Line([0; STRIP]); 4];
            for (s, line) in first.iter_mut().enumerate().take(strips) {
                // SAFETY: the strip exists, and a line holds a vector.
                unsafe { v.store(initial(v, part.operands, strip + s), line.0.as_mut_ptr(), STRIP) };
            }
            let mut blocks = part.cut.starting_at(start);
            for block in (start..stop).step_by(2) {
                let this = blocks.next();
                // SAFETY: by the contract of `drive::product`; parts have distinct blocks or strips.
                unsafe {
                    if block + 1 < stop {
                        let rows = [this, blocks.next()];
                        match strips {
                            1 => tiles.product::<2, 1>(v, part, rows, strip, &first),
                            _ => tiles.product::<2, 2>(v, part, rows, strip, &first),
                        }
                    } else {
                        match strips {
                            1 => tiles.product::<1, 1>(v, part, [this; 2], strip, &first),
                            2 => tiles.product::<1, 2>(v, part, [this; 2], strip, &first),
                            3 => tiles.product::<1, 3>(v, part, [this; 2], strip, &first),
                            _ => tiles.product::<1, 4>(v, part, [this; 2], strip, &first),
                        }
                    }
                }
            }
            strip += strips;
        }
    }
}

/// Sixteen accumulators: a row of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i32; STRIP]);

/// What `ldtilecfg` reads: the sizes of the eight tiles.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Tiles 0 to 3 are sums, see [`sum_tile`]; 4 and 5 the blocks' activations; 6 and 7 weights.
    fn new(rows: [usize; 2], groups: usize) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for tile in 0..8 {
            config.row_bytes[tile] = if matches!(tile, 4 | 5) { 4 * groups as u16 } else { WIDTH as u16 };
            config.rows[tile] = if tile < 6 { rows[tile % 2] as u8 } else { groups as u8 };
        }
        config
    }
}

/// The tile of the sums of a block and a strip, of so many blocks: of two, one has the even tiles.
const fn sum_tile(blocks: usize, block: usize, strip: usize) -> usize {
    match blocks {
        2 => 2 * strip + block,
        _ => [0, 2, 1, 3][strip],
    }
}

/// An instruction on the tile of a number that is constant after inlining.
macro_rules! on_tile {
    ($tile:expr, $before:literal, $after:literal, $($operands:tt)*) => {
        match $tile {
            0 => asm!(concat!($before, "tmm0", $after), $($operands)*),
            1 => asm!(concat!($before, "tmm1", $after), $($operands)*),
            2 => asm!(concat!($before, "tmm2", $after), $($operands)*),
            3 => asm!(concat!($before, "tmm3", $after), $($operands)*),
            4 => asm!(concat!($before, "tmm4", $after), $($operands)*),
            5 => asm!(concat!($before, "tmm5", $after), $($operands)*),
            6 => asm!(concat!($before, "tmm6", $after), $($operands)*),
            _ => asm!(concat!($before, "tmm7", $after), $($operands)*),
        }
    };
}

/// Loads a tile whose rows are `step` bytes apart.
///
/// # Safety
/// The rows that the tile is configured for are readable, and the machine has AMX, configured.
#[inline(always)]
unsafe fn load<T>(tile: usize, from: *const T, step: usize) {
    // SAFETY: by the contract.
    unsafe {
        on_tile!(tile, "tileloadd ", ", [{from} + {step} * 1]",
            from = in(reg) from, step = in(reg) step, options(readonly, nostack, preserves_flags));
    }
}

/// Stores a tile, likewise.
///
/// # Safety
/// As [`load`]; the rows are writable.
#[inline(always)]
unsafe fn store<T>(tile: usize, to: *mut T, step: usize) {
    // SAFETY: by the contract.
    unsafe {
        on_tile!(tile, "tilestored [{to} + {step} * 1], ", "",
            to = in(reg) to, step = in(reg) step, options(nostack, preserves_flags));
    }
}

/// Adds the products of an activation tile and a weight tile to a tile of sums.
macro_rules! dot {
    ($sum:literal, $activations:literal, $weights:literal) => {
        asm!(
            concat!("tdpbusd tmm", $sum, ", tmm", $activations, ", tmm", $weights),
            options(nomem, nostack, preserves_flags)
        )
    };
}

/// Adds the products of as many columns as the tiles are configured for, of `BLOCKS` blocks by `STRIPS` strips.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn multiply<const BLOCKS: usize, const STRIPS: usize>(
    from: [*const u8; 2],
    steps: [usize; 2],
    weights: *const i8,
    strip_bytes: usize,
) {
    // SAFETY: by the contract.
    unsafe {
        load(4, from[0], steps[0]);
        load(6, weights, GROUP);
        dot!(0, 4, 6);
        if STRIPS > 1 {
            load(7, weights.add(strip_bytes), GROUP);
            dot!(2, 4, 7);
        }
        if BLOCKS == 2 {
            load(5, from[1], steps[1]);
            dot!(1, 5, 6);
            if STRIPS > 1 {
                dot!(3, 5, 7);
            }
        }
        if STRIPS > 2 {
            load(6, weights.add(2 * strip_bytes), GROUP);
            dot!(1, 4, 6);
        }
        if STRIPS > 3 {
            load(7, weights.add(3 * strip_bytes), GROUP);
            dot!(3, 4, 7);
        }
    }
}

/// The tile registers, as they are set up for a product.
struct Tiles {
    /// The rows of each block that they are configured for; none before the first product.
    rows: [usize; 2],
    /// Groups that a product of tiles takes, at most [`GROUPS`].
    groups: usize,
    /// Products of a segment that read the activations where they lie.
    whole: usize,
    /// The columns that are left then.
    tail: usize,
    /// Where the blocks' last columns are copied to, with zeros behind them.
    tails: [Tail; 2],
}

/// An activation tile in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tail([[u8; WIDTH]; ROWS]);

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a `Tiles` is made only where the machine has AMX, and nobody else uses the registers meanwhile.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}

impl Tiles {
    fn new(operands: &Operands<'_>) -> Self {
        let (length, groups) = (operands.panels.length(), operands.panels.groups());
        let groups_a_product = groups.div_ceil(groups.div_ceil(GROUPS));
        // Where there is slack, the bytes that a segment's last group lacks can be read.
        let readable = if operands.slack { 4 * groups } else { length };
        let whole = readable / (4 * groups_a_product);
        let tail = length.saturating_sub(4 * groups_a_product * whole);
        Self { rows: [0; 2], groups: groups_a_product, whole, tail, tails: [Tail([[0; WIDTH]; ROWS]); 2] }
    }

    /// Sets the tiles up for blocks of so many rows.
    #[inline(always)]
    fn configure(&mut self, rows: [usize; 2]) {
        if self.rows != rows {
            self.rows = rows;
            let config = Config::new(rows, self.groups);
            // SAFETY: the machine has AMX, and the sizes are within those of its tiles.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(readonly, nostack, preserves_flags)) }
        }
    }

    /// Computes `BLOCKS` blocks, one or two, by `STRIPS` strips from `strip` on, whose sums begin with `first`. Of one block,
    /// `blocks` has it twice.
    ///
    /// # Safety
    /// As `tile`'s; the machine has AVX-512.
    #[inline(always)]
    unsafe fn product<const BLOCKS: usize, const STRIPS: usize>(
        &mut self,
        v: Avx512Vnni,
        part: &Part<'_>,
        blocks: [Rows; 2],
        strip: usize,
        first: &[Line; 4],
    ) {
        const { assert!(BLOCKS == 1 && STRIPS <= 4 || BLOCKS == 2 && STRIPS <= 2) };
        let Part { operands, finish, .. } = part;
        let strip_bytes = operands.panels.strip_bytes();
        self.configure(blocks.map(|rows| rows.count));
        // SAFETY: the rows' segments are readable by the contract, and so is a tile of weights from any group on.
        unsafe {
            for block in 0..BLOCKS {
                for s in 0..STRIPS {
                    load(sum_tile(BLOCKS, block, s), &raw const first[s], 0);
                }
            }
            let mut weights = operands.panels.as_ptr().add(strip * strip_bytes);
            let steps = blocks.map(|rows| rows.input_step);
            for segment in operands.segments {
                let mut from = blocks.map(|rows| rows.input.wrapping_add(*segment));
                for _ in 0..self.whole {
                    multiply::<BLOCKS, STRIPS>(from, steps, weights, strip_bytes);
                    from = from.map(|from| from.wrapping_add(4 * self.groups));
                    weights = weights.add(self.groups * GROUP);
                }
                if self.tail != 0 {
                    for block in 0..BLOCKS {
                        copy_columns(from[block], &blocks[block], self.tail, &mut self.tails[block]);
                    }
                    let tails = [0, 1].map(|block| self.tails[block].0.as_ptr().cast());
                    multiply::<BLOCKS, STRIPS>(tails, [WIDTH; 2], weights, strip_bytes);
                    weights = weights.add(self.tail.div_ceil(4) * GROUP);
                }
            }
            // Block after block, row after row, strip after strip.
            let mut room = MaybeUninit::<[Line; 4 * ROWS]>::uninit();
            let room: *mut Line = room.as_mut_ptr().cast();
            for block in 0..BLOCKS {
                for s in 0..STRIPS {
                    store(sum_tile(BLOCKS, block, s), room.add(block * ROWS * STRIPS + s), STRIPS * WIDTH);
                }
            }
            let plain = finish.plain(operands.panels, strip, STRIPS);
            let plain = plain.map(|plain| PlainStrips::<Avx512Vnni, STRIPS>::new(v, plain, strip));
            for (block, rows) in blocks.into_iter().enumerate().take(BLOCKS) {
                let sums = room.add(block * ROWS * STRIPS).cast();
                match &plain {
                    Some(plain) => plain.store_block(v, sums, rows),
                    None => finish_tile(v, operands, finish, sums, rows, strip, STRIPS),
                }
            }
        }
    }
}

/// Copies the first `columns` of a block's rows, at most [`WIDTH`] bytes.
///
/// # Safety
/// They are readable; the machine has AVX-512.
#[inline(always)]
unsafe fn copy_columns(from: *const u8, rows: &Rows, columns: usize, to: &mut Tail) {
    let mask = u64::MAX >> (WIDTH - columns);
    for (row, to) in to.0.iter_mut().enumerate().take(rows.count) {
        let from = from.wrapping_add(row * rows.input_step);
        // SAFETY: by the contract; bytes outside the mask are not touched.
        unsafe { _mm512_store_si512(to.as_mut_ptr().cast(), _mm512_maskz_loadu_epi8(mask, from.cast())) }
    }
}
