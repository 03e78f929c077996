//! What becomes of a tile's accumulators: the epilogues of [`Output`](crate::kernel::Output), in vectors.

use super::tile::{Operands, Rows, each_row};
use super::vector::{Limits, STRIP, Task, Vector};
use crate::kernel::sink::Sink;
use crate::kernel::{Dequantize, Requantize};

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

    /// The epilogue of most layers, which has a path from registers of its own. For weights without zero points only.
    #[inline(always)]
    pub fn plain(&self) -> Option<Plain<'a>> {
        match self.sink {
            Sink::U8(to, form) if form.residual.is_none() && form.table.is_none() => Some(Plain { to, form }),
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

/// # Safety
/// As `tile`'s; all the strips' channels exist.
#[inline(always)]
pub(crate) unsafe fn finish_plain<V: Vector, const ROWS: usize, const STRIPS: usize>(
    v: V,
    plain: Plain<'_>,
    sums: &[[V::I32; STRIPS]; ROWS],
    rows: Rows,
    strip: usize,
) {
    let limits = limits(&plain.form);
    let mut scale = [v.splat_f32(0.0); STRIPS];
    let mut bias = scale;
    // SAFETY: by the contract.
    unsafe {
        for s in 0..STRIPS {
            let channel = (strip + s) * STRIP;
            scale[s] = per_channel(v, plain.form.scale, channel, STRIP);
            bias[s] = per_channel(v, plain.form.bias, channel, STRIP);
        }
    }
    // A quad is four vectors, of one row, two rows or four; of a row that does not exist, the last one's, not stored.
    const { assert!(STRIPS < 8) };
    macro_rules! value {
        ($row:expr, $s:expr) => {
            v.mul_add(v.to_f32(sums[if $row < ROWS { $row } else { ROWS - 1 }][$s]), scale[$s], bias[$s])
        };
    }
    let place =
        |row: usize, s: usize| plain.to.wrapping_add(rows.output + row * rows.output_step + (strip + s) * STRIP);
    macro_rules! four_rows {
        ($row:expr, $s:expr) => {{
            let x = [value!($row, $s), value!($row + 1, $s), value!($row + 2, $s), value!($row + 3, $s)];
            let to = [place($row, $s), place($row + 1, $s), place($row + 2, $s), place($row + 3, $s)];
            // SAFETY: by the contract; as many runs as there are rows left.
            unsafe { v.store_requantized::<1>(x, &limits, to, (ROWS - $row).min(4)) };
        }};
    }
    macro_rules! two_rows {
        ($row:expr, $s:expr) => {{
            let x = [value!($row, $s), value!($row, $s + 1), value!($row + 1, $s), value!($row + 1, $s + 1)];
            let (this, next) = (place($row, $s), place($row + 1, $s));
            // SAFETY: as above.
            unsafe { v.store_requantized::<2>(x, &limits, [this, next, next, next], (ROWS - $row).min(2)) };
        }};
    }
    macro_rules! one_row {
        ($row:expr, $s:expr) => {{
            let x = [value!($row, $s), value!($row, $s + 1), value!($row, $s + 2), value!($row, $s + 3)];
            // SAFETY: as above.
            unsafe { v.store_requantized::<4>(x, &limits, [place($row, $s); 4], 1) };
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
    for row in 0..rows.count {
        // SAFETY: the row's segments are readable.
        let row_sum = if panels.has_zero_points() { unsafe { sum_of::<V>(operands, rows, row) } } else { 0 };
        for s in 0..strips {
            let channel = (strip + s) * STRIP;
            if channel >= panels.channels() {
                return;
            }
            let valid = (panels.channels() - channel).min(STRIP);
            let at = rows.output + row * rows.output_step + channel;
            // SAFETY: `valid` channels exist at `channel`, and `at` is theirs in the output.
            unsafe {
                let mut sum = v.load(sums.add((row * strips + s) * STRIP), STRIP);
                if panels.has_zero_points() {
                    let zeros = v.load(panels.zero_points().as_ptr().add(channel), STRIP);
                    sum = v.add(sum, v.mul(zeros, v.splat(-row_sum)));
                }
                match &finish.sink {
                    Sink::I32(to) => v.store(sum, to.add(at), valid),
                    Sink::F32(to, form) => {
                        let (sum, scale) = match finish.activation_scale {
                            None => (sum, None),
                            Some(ActivationScale::Tensor(scale)) => (sum, Some(scale)),
                            Some(ActivationScale::Rows { scale, zero_point }) => {
                                let zero = v.splat(-i32::from(zero_point[rows.index + row]));
                                let sums = v.load(panels.sums().as_ptr().add(channel), STRIP);
                                (v.add(sum, v.mul(zero, sums)), Some(scale[rows.index + row]))
                            }
                        };
                        let value = dequantize(v, form, sum, scale, channel, valid);
                        v.store_f32(value, to.add(at), valid);
                    }
                    Sink::U8(to, form) => {
                        let byte = requantize(v, form, sum, channel, valid, at);
                        v.store_bytes(byte, to.add(at), valid);
                        if let Some(table) = form.table {
                            for i in 0..valid {
                                let place = to.add(at + i);
                                *place = table[*place as usize];
                            }
                        }
                    }
                }
            }
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

/// As [`Dequantize::apply`]; the activation's own scale is multiplied to the channels' first.
#[inline(always)]
unsafe fn dequantize<V: Vector>(
    v: V,
    form: &Dequantize<'_>,
    sum: V::I32,
    activation_scale: Option<f32>,
    channel: usize,
    valid: usize,
) -> V::F32 {
    // SAFETY: `valid` channels exist at `channel`.
    unsafe {
        let mut scale = per_channel(v, form.scale, channel, valid);
        if let Some(activation_scale) = activation_scale {
            scale = v.mul_add(scale, v.splat_f32(activation_scale), v.splat_f32(-0.0));
        }
        let bias = per_channel(v, form.bias, channel, valid);
        let value = v.mul_add(v.to_f32(sum), scale, bias);
        v.min_f32(v.max_f32(value, v.splat_f32(form.min)), v.splat_f32(form.max))
    }
}

/// As [`Requantize::apply`], without the table.
#[inline(always)]
unsafe fn requantize<V: Vector>(
    v: V,
    form: &Requantize<'_>,
    sum: V::I32,
    channel: usize,
    valid: usize,
    at: usize,
) -> V::I32 {
    let limits = limits(form);
    // SAFETY: `valid` channels exist at `channel`, and as many elements of the residual at `at`.
    unsafe {
        let scale = per_channel(v, form.scale, channel, valid);
        let bias = per_channel(v, form.bias, channel, valid);
        let mut value = v.mul_add(v.to_f32(sum), scale, bias);
        if let Some(residual) = form.residual {
            let zero = v.splat(-i32::from(residual.zero_point));
            let added = v.add(v.load_bytes(residual.data.as_ptr().add(at), valid), zero);
            value = v.mul_add(v.to_f32(added), v.splat_f32(residual.scale), value);
        }
        let value = v.min_f32(v.max_f32(value, v.splat_f32(limits.low())), v.splat_f32(limits.high()));
        v.add(v.round(value), v.splat(i32::from(form.zero_point)))
    }
}
