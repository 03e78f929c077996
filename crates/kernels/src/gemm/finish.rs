//! What becomes of a tile's accumulators: the epilogues of [`Output`](crate::Output), in vectors.

use super::panels::Panels;
use super::tile::{Operands, Rows, each_row};
use super::vector::{Limits, STRIP, Task, Vector};
use crate::sink::Sink;
use crate::{Dequantize, Requantize};

/// An activation's scale, where it is not part of the channels' scales. Only for an output in f32.
#[derive(Clone, Copy)]
pub(crate) enum ActivationScale<'a> {
    /// Of the whole tensor.
    Tensor(f32),
    /// Of each row, with the row's zero point; the operands' zero point is 0 then.
    Rows { scale: &'a [f32], zero_point: &'a [u8] },
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    pub sink: Sink<'a>,
    pub activation_scale: Option<ActivationScale<'a>>,
}

/// A requantization with nothing but scale, bias, zero point and clamp.
#[derive(Clone, Copy)]
pub(crate) struct Plain<'a> {
    to: *mut u8,
    form: Requantize<'a>,
}

impl<'a> Finish<'a> {
    /// The epilogue of `count` channels from `first` on, which have outputs from their own first channel on.
    pub fn of_group(&self, first: usize, count: usize) -> Self {
        let part = |values: &'a [f32]| if values.len() > 1 { &values[first..][..count] } else { values };
        let sink = match self.sink {
            Sink::I32(to) => Sink::I32(to),
            Sink::F32(to, form) => Sink::F32(to, Dequantize { scale: part(form.scale), bias: part(form.bias), ..form }),
            Sink::U8(to, form) => Sink::U8(to, Requantize { scale: part(form.scale), bias: part(form.bias), ..form }),
        };
        Self { sink, ..*self }
    }

    /// The epilogue of most layers, which has a path from registers of its own, for `strips` strips from `strip` on: all their
    /// channels exist, and weights have no zero points.
    #[inline(always)]
    pub fn plain(&self, panels: &Panels, strip: usize, strips: usize) -> Option<Plain<'a>> {
        match self.sink {
            Sink::U8(to, form)
                if form.residual.is_none()
                    && form.table.is_none()
                    && (strip + strips) * STRIP <= panels.channels()
                    && !panels.has_zero_points() =>
            {
                Some(Plain { to, form })
            }
            _ => None,
        }
    }
}

/// `values[n]` for the channels of a strip, or the one value for all, or zero.
#[inline(always)]
unsafe fn per_channel<V: Vector>(v: V, values: &[f32], channel: usize, valid: usize) -> V::F32 {
    match values.len() {
        0 => v.splat_f32(0.0),
        1 => v.splat_f32(values[0]),
        // SAFETY: checked by the sink: one value a channel, and `channel + valid` channels exist.
        _ => unsafe { v.load_f32(values.as_ptr().add(channel), valid) },
    }
}

/// A plain requantization's constants for a few strips, in registers.
pub(crate) struct PlainStrips<V: Vector, const STRIPS: usize> {
    /// Channel 0 of the first strip, of output element 0.
    to: *mut u8,
    limits: Limits,
    scale: [V::F32; STRIPS],
    bias: [V::F32; STRIPS],
}

impl<V: Vector, const STRIPS: usize> PlainStrips<V, STRIPS> {
    /// Those from strip `strip` on.
    ///
    /// # Safety
    /// All the strips' channels exist.
    #[inline(always)]
    pub unsafe fn new(v: V, plain: Plain<'_>, strip: usize) -> Self {
        let mut scale = [v.splat_f32(0.0); STRIPS];
        let mut bias = scale;
        for s in 0..STRIPS {
            let channel = (strip + s) * STRIP;
            // SAFETY: by the contract.
            unsafe {
                scale[s] = per_channel(v, plain.form.scale, channel, STRIP);
                bias[s] = per_channel(v, plain.form.bias, channel, STRIP);
            }
        }
        Self { to: plain.to.wrapping_add(strip * STRIP), limits: limits(&plain.form), scale, bias }
    }

    /// Stores `ROWS` rows of sums.
    ///
    /// # Safety
    /// As `tile`'s.
    #[inline(always)]
    pub unsafe fn store<const ROWS: usize>(&self, v: V, sums: &[[V::I32; STRIPS]; ROWS], rows: Rows) {
        // A quad is four vectors, of one row, two rows or four; of a row that does not exist, the last one's, not stored.
        const { assert!(STRIPS < 8) };
        macro_rules! value {
            ($row:expr, $s:expr) => {
                v.mul_add(v.to_f32(sums[if $row < ROWS { $row } else { ROWS - 1 }][$s]), self.scale[$s], self.bias[$s])
            };
        }
        let place = |row: usize, s: usize| {
            self.to.wrapping_add(rows.output).wrapping_add(row.wrapping_mul(rows.output_step)).wrapping_add(s * STRIP)
        };
        macro_rules! four_rows {
            ($row:expr, $s:expr) => {{
                let x = [value!($row, $s), value!($row + 1, $s), value!($row + 2, $s), value!($row + 3, $s)];
                let to = [place($row, $s), place($row + 1, $s), place($row + 2, $s), place($row + 3, $s)];
                // SAFETY: by the contract; as many runs as there are rows left.
                unsafe { v.store_requantized::<1>(x, &self.limits, to, (ROWS - $row).min(4)) };
            }};
        }
        macro_rules! two_rows {
            ($row:expr, $s:expr) => {{
                let x = [value!($row, $s), value!($row, $s + 1), value!($row + 1, $s), value!($row + 1, $s + 1)];
                let (this, next) = (place($row, $s), place($row + 1, $s));
                // SAFETY: as above.
                unsafe { v.store_requantized::<2>(x, &self.limits, [this, next, next, next], (ROWS - $row).min(2)) };
            }};
        }
        macro_rules! one_row {
            ($row:expr, $s:expr) => {{
                let x = [value!($row, $s), value!($row, $s + 1), value!($row, $s + 2), value!($row, $s + 3)];
                // SAFETY: as above.
                unsafe { v.store_requantized::<4>(x, &self.limits, [place($row, $s); 4], 1) };
            }};
        }
        each_row!(row < ROWS => {
            if STRIPS >= 4 {
                one_row!(row, 0);
            }
            if STRIPS & 2 != 0 && row.is_multiple_of(2) {
                two_rows!(row, STRIPS - STRIPS % 4);
            }
            if STRIPS & 1 != 0 && row.is_multiple_of(4) {
                four_rows!(row, STRIPS - 1);
            }
        });
    }
}

#[cfg(target_arch = "x86_64")]
impl<V: Vector, const STRIPS: usize> PlainStrips<V, STRIPS> {
    /// Stores `rows.count` rows, whose sums lie at `sums`, row after row.
    ///
    /// # Safety
    /// As `tile`'s.
    #[inline(always)]
    pub unsafe fn store_block(&self, v: V, sums: *const i32, rows: Rows) {
        // SAFETY: by the contract.
        unsafe {
            let whole = rows.count / 4 * 4;
            for row in (0..whole).step_by(4) {
                self.store_from::<4>(v, sums, rows, row);
            }
            for row in whole..rows.count {
                self.store_from::<1>(v, sums, rows, row);
            }
        }
    }

    /// Stores `ROWS` rows from `first` on, likewise.
    #[inline(always)]
    unsafe fn store_from<const ROWS: usize>(&self, v: V, sums: *const i32, rows: Rows, first: usize) {
        let mut loaded = [[v.splat(0); STRIPS]; ROWS];
        // SAFETY: by the contract of `store_block`.
        unsafe {
            for row in 0..ROWS {
                for s in 0..STRIPS {
                    loaded[row][s] = v.load(sums.add(((first + row) * STRIPS + s) * STRIP), STRIP);
                }
            }
            self.store(v, &loaded, Rows { output: rows.output + first * rows.output_step, ..rows });
        }
    }
}

/// The bounds that every requantized value gets.
#[inline(always)]
fn limits(form: &Requantize<'_>) -> Limits {
    Limits { zero_point: form.zero_point, min: form.min, max: form.max }
}

/// Any epilogue: the accumulators go through memory, so that this code exists once and not once a shape of tile.
///
/// # Safety
/// As `tile`'s.
#[inline(always)]
pub(crate) unsafe fn finish_spilled<V: Vector, const ROWS: usize, const STRIPS: usize>(
    v: V,
    operands: &Operands<'_>,
    finish: &Finish<'_>,
    sums: &[[V::I32; STRIPS]; ROWS],
    rows: Rows,
    strip: usize,
) {
    // Each vector is 16 i32 in memory, in the order of its lanes.
    const { assert!(size_of::<V::I32>() == STRIP * size_of::<i32>()) };
    let spilled = *sums;
    v.run(FinishTile { operands, finish, sums: (&raw const spilled).cast(), rows, strip, strips: STRIPS });
}

/// [`finish_tile`] in a function of its own.
struct FinishTile<'a> {
    operands: &'a Operands<'a>,
    finish: &'a Finish<'a>,
    sums: *const i32,
    rows: Rows,
    strip: usize,
    strips: usize,
}

impl Task for FinishTile<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        // SAFETY: only made by `finish_spilled`, whose contract is this one's; the room is contiguous.
        unsafe { finish_tile(v, self.operands, self.finish, self.sums, self.rows, self.strip, self.strips) }
    }
}

/// Finishes `rows.count` rows of `strips` strips, whose accumulators lie at `sums`, row after row.
///
/// # Safety
/// As `tile`'s.
#[inline(always)]
pub(crate) unsafe fn finish_tile<V: Vector>(
    v: V,
    operands: &Operands<'_>,
    finish: &Finish<'_>,
    sums: *const i32,
    rows: Rows,
    strip: usize,
    strips: usize,
) {
    let panels = operands.panels;
    let mut row_sums = [0; MOST_ROWS];
    if panels.has_zero_points() {
        for (row, sum) in row_sums.iter_mut().enumerate().take(rows.count) {
            // SAFETY: the row's segments are readable.
            *sum = unsafe { sum_of::<V>(operands, rows, row) };
        }
    }
    for s in 0..strips {
        let channel = (strip + s) * STRIP;
        if channel >= panels.channels() {
            return;
        }
        // SAFETY: by the contract; each row has `strips` strips of accumulators.
        unsafe {
            let sums = Accumulators { panels, from: sums.add(s * STRIP), step: strips * STRIP, row_sums: &row_sums };
            finish_strip(v, finish, &sums, rows, channel);
        }
    }
}

/// The most rows of a tile.
pub(super) const MOST_ROWS: usize = 16;

/// A strip's accumulators in memory.
struct Accumulators<'a> {
    panels: &'a Panels,
    /// Those of the first row.
    from: *const i32,
    /// Accumulators from one row to the next.
    step: usize,
    /// The sums of the rows' activations, where weights have zero points.
    row_sums: &'a [i32; MOST_ROWS],
}

impl Accumulators<'_> {
    /// A row's accumulators, corrected for the weights' zero points.
    #[inline(always)]
    unsafe fn load<V: Vector>(&self, v: V, row: usize, channel: usize) -> V::I32 {
        // SAFETY: the row has a strip of accumulators, and the panels have zero points for whole strips.
        unsafe {
            let sum = v.load(self.from.add(row * self.step), STRIP);
            if !self.panels.has_zero_points() {
                return sum;
            }
            let zeros = v.load(self.panels.zero_points().as_ptr().add(channel), STRIP);
            v.add(sum, v.mul(zeros, v.splat(-self.row_sums[row])))
        }
    }
}

/// Finishes the rows of one strip: its constants stay in registers.
///
/// # Safety
/// As `tile`'s; a channel `channel` exists.
#[inline(always)]
unsafe fn finish_strip<V: Vector>(v: V, finish: &Finish<'_>, sums: &Accumulators<'_>, rows: Rows, channel: usize) {
    let valid = (sums.panels.channels() - channel).min(STRIP);
    let first = rows.output + channel;
    // SAFETY: `valid` channels exist at `channel`, and the rows' outputs are theirs.
    unsafe {
        match finish.sink {
            Sink::I32(to) => {
                for row in 0..rows.count {
                    v.store(sums.load(v, row, channel), to.add(first + row * rows.output_step), valid);
                }
            }
            Sink::F32(to, form) => {
                let bias = per_channel(v, form.bias, channel, valid);
                let scale = per_channel(v, form.scale, channel, valid);
                let (min, max) = (v.splat_f32(form.min), v.splat_f32(form.max));
                let whole = match finish.activation_scale {
                    Some(ActivationScale::Tensor(by)) => scaled(v, scale, by),
                    _ => scale,
                };
                for row in 0..rows.count {
                    let mut sum = sums.load(v, row, channel);
                    let mut scale = whole;
                    if let Some(ActivationScale::Rows { scale: by, zero_point }) = finish.activation_scale {
                        let zero = v.splat(-i32::from(zero_point[rows.index + row]));
                        sum = v.add(sum, v.mul(zero, v.load(sums.panels.sums().as_ptr().add(channel), STRIP)));
                        scale = scaled(v, whole, by[rows.index + row]);
                    }
                    let value = v.mul_add(v.to_f32(sum), scale, bias);
                    let value = v.min_f32(v.max_f32(value, min), max);
                    v.store_f32(value, to.add(first + row * rows.output_step), valid);
                }
            }
            Sink::U8(to, form) => {
                let limits = limits(&form);
                let strip = ByteStrip {
                    scale: per_channel(v, form.scale, channel, valid),
                    bias: per_channel(v, form.bias, channel, valid),
                    residual: form.residual.map(|residual| residual.data.as_ptr().wrapping_add(first)),
                    residual_scale: v.splat_f32(form.residual.map_or(0.0, |residual| residual.scale)),
                    residual_zero: v.splat(-form.residual.map_or(0, |residual| i32::from(residual.zero_point))),
                };
                if valid == STRIP {
                    for row in (0..rows.count).step_by(4) {
                        let four = [row, row + 1, row + 2, row + 3].map(|row| row.min(rows.count - 1));
                        let [a, b, c, d] = four;
                        let x = [
                            strip.value(v, sums, rows, a, channel, STRIP),
                            strip.value(v, sums, rows, b, channel, STRIP),
                            strip.value(v, sums, rows, c, channel, STRIP),
                            strip.value(v, sums, rows, d, channel, STRIP),
                        ];
                        let to = four.map(|row| to.wrapping_add(first + row * rows.output_step));
                        v.store_requantized::<1>(x, &limits, to, (rows.count - row).min(4));
                    }
                } else {
                    let (low, high) = (v.splat_f32(limits.low()), v.splat_f32(limits.high()));
                    for row in 0..rows.count {
                        let value = strip.value(v, sums, rows, row, channel, valid);
                        let rounded = v.round(v.min_f32(v.max_f32(value, low), high));
                        let byte = v.add(rounded, v.splat(i32::from(form.zero_point)));
                        v.store_bytes(byte, to.add(first + row * rows.output_step), valid);
                    }
                }
                if let Some(table) = form.table {
                    for row in 0..rows.count {
                        for i in 0..valid {
                            let place = to.add(first + row * rows.output_step + i);
                            *place = table[*place as usize];
                        }
                    }
                }
            }
        }
    }
}

/// Channels' scales times the activations' own.
#[inline(always)]
fn scaled<V: Vector>(v: V, scale: V::F32, by: f32) -> V::F32 {
    v.mul_add(scale, v.splat_f32(by), v.splat_f32(-0.0))
}

/// A requantization's constants for one strip.
struct ByteStrip<V: Vector> {
    scale: V::F32,
    bias: V::F32,
    /// The residual's element of the first row.
    residual: Option<*const u8>,
    residual_scale: V::F32,
    residual_zero: V::I32,
}

impl<V: Vector> ByteStrip<V> {
    /// A row's values before they are rounded: as [`Requantize::apply`].
    ///
    /// # Safety
    /// The row has accumulators and, where there is a residual, `valid` elements of it.
    #[inline(always)]
    unsafe fn value(
        &self,
        v: V,
        sums: &Accumulators<'_>,
        rows: Rows,
        row: usize,
        channel: usize,
        valid: usize,
    ) -> V::F32 {
        // SAFETY: by the contract.
        unsafe {
            let value = v.mul_add(v.to_f32(sums.load(v, row, channel)), self.scale, self.bias);
            let Some(residual) = self.residual else { return value };
            let bytes = v.load_bytes(residual.add(row * rows.output_step), valid);
            v.mul_add(v.to_f32(v.add(bytes, self.residual_zero)), self.residual_scale, value)
        }
    }
}

/// The sum of a row's activations, each less the vector's offset.
#[inline(always)]
unsafe fn sum_of<V: Vector>(operands: &Operands<'_>, rows: Rows, row: usize) -> i32 {
    let mut sum = -V::OFFSET * operands.panels.columns() as i32;
    for segment in operands.segments {
        let from = rows.input.wrapping_add(row * rows.input_step + segment);
        for i in 0..operands.panels.length() {
            // SAFETY: the caller's segment.
            sum += i32::from(unsafe { *from.add(i) });
        }
    }
    sum
}
