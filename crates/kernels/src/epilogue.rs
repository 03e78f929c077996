//! What becomes of an i32 accumulator: stored as it is, dequantized to f32, or requantized to u8.
//!
//! Matrix products and convolutions share these types, so that a new epilogue is written once. An accumulator is the
//! exact sum of `(x - zero_x) * (w - zero_w)`: the corrections for both zero points are made before the epilogue sees it.

/// Where the accumulators of a product go, and in which form.
///
/// A row is an output position (a row of a matrix, a pixel), a column an output channel. `N` is the number of channels,
/// over all groups.
#[derive(Debug)]
pub enum Output<'a> {
    /// The accumulators.
    I32(&'a mut [i32]),
    /// `y = clamp(sum * scale + bias, min, max)`, one fused multiply-add.
    F32(&'a mut [f32], Dequantize<'a>),
    /// See [`Requantize`].
    U8(&'a mut [u8], Requantize<'a>),
}

/// `y = clamp(sum * scale[n] + bias[n], min, max)` with a fused multiply-add; a NaN cannot come from finite arguments.
#[derive(Clone, Copy, Debug)]
pub struct Dequantize<'a> {
    /// Activation scale times weight scale: one, or one a channel (`N`).
    pub scale: &'a [f32],
    /// One a channel (`N`), or empty for none.
    pub bias: &'a [f32],
    /// `0.0` for relu, `f32::NEG_INFINITY` for no bound.
    pub min: f32,
    /// `f32::INFINITY` for no bound.
    pub max: f32,
}

/// `y = clamp(round_half_even(v) + zero_point, min, max)`, where `v = sum * scale[n] + bias[n]` (one fused multiply-add),
/// and, with a residual `r`, `v = (r - r.zero_point) * r.scale + v` (another one). With a `table`, `table[y]` is stored.
///
/// `v` saturates before it is rounded, so the result is defined for every finite argument.
#[derive(Clone, Copy, Debug)]
pub struct Requantize<'a> {
    /// Activation scale times weight scale, divided by the output's scale: one, or one a channel (`N`).
    pub scale: &'a [f32],
    /// Divided by the output's scale; one a channel (`N`), or empty for none.
    pub bias: &'a [f32],
    /// The output's zero point.
    pub zero_point: u8,
    /// The smallest result: the zero point for relu, else usually 0.
    pub min: u8,
    /// The largest result: six in quantized form for relu6, else usually 255.
    pub max: u8,
    /// A tensor to add before rounding.
    pub residual: Option<Residual<'a>>,
    /// A function of one byte, applied last.
    pub table: Option<&'a [u8; 256]>,
}

/// A u8 tensor of the output's shape, added to the product before it is rounded.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// The elements, laid out as the output.
    pub data: &'a [u8],
    /// Its scale divided by the output's.
    pub scale: f32,
    /// Its zero point.
    pub zero_point: u8,
}

impl Requantize<'_> {
    /// The result for one accumulator of channel `n`, `residual` being that element's byte: the specification that the
    /// vector code follows bit for bit.
    pub fn apply(&self, sum: i32, n: usize, residual: u8) -> u8 {
        let bias = self.bias.get(n).copied().unwrap_or(0.0);
        let mut v = (sum as f32).mul_add(pick(self.scale, n), bias);
        if let Some(r) = &self.residual {
            v = ((i32::from(residual) - i32::from(r.zero_point)) as f32).mul_add(r.scale, v);
        }
        let zero = i32::from(self.zero_point);
        let (low, high) = (i32::from(self.min) - zero, i32::from(self.max) - zero);
        let y = v.max(low as f32).min(high as f32).round_ties_even() as i32 + zero;
        match self.table {
            Some(table) => table[y as usize],
            None => y as u8,
        }
    }
}

impl Dequantize<'_> {
    /// The result for one accumulator of channel `n`: the specification of the vector code.
    pub fn apply(&self, sum: i32, n: usize) -> f32 {
        let bias = self.bias.get(n).copied().unwrap_or(0.0);
        (sum as f32).mul_add(pick(self.scale, n), bias).max(self.min).min(self.max)
    }
}

/// The scale of channel `n`: one for all, or one each.
fn pick(scale: &[f32], n: usize) -> f32 {
    if scale.len() == 1 { scale[0] } else { scale[n] }
}
