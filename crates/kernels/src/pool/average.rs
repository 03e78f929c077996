//! The mean of each window.

use std::ops::Range;

use super::{Pixels, Taps, Window, check};
use crate::Isa;
use crate::elementwise::simd::{Kernel, Simd, dispatch};

/// An average pooling: its window and what a sum is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct AveragePool {
    /// The window; its dilation must be 1.
    pub window: Window,
    /// Whether padding counts as pixels of value 0.
    pub count_include_pad: bool,
    /// What to divide by in place of the number of pixels.
    pub divisor_override: Option<usize>,
}

/// The mean of each window of `x`, for the rows `rows` of the output.
///
/// `clamp(round_half_even(sum of (q - zero_point) * (1 / divisor)) + zero_point)`, the sum exact, the rest in f32: the
/// arithmetic of libtorch's quantized `avg_pool` (of whole vectors of channels; the last `channels % 16` add the zero point
/// before the rounding there, which moves ties by one step where it is odd). The divisor is the number of pixels of the window: those inside the
/// input or, with `count_include_pad`, inside input and padding; a window with none gives the zero point. `out` begins with the first of `rows`.
///
/// # Panics
/// If `out_shape` is not what the window makes of `x_shape`, a slice is too short, or the window is dilated.
#[allow(clippy::too_many_arguments)]
pub fn avg_pool(
    isa: Isa,
    x: &[u8],
    x_shape: Pixels,
    zero_point: u8,
    pool: AveragePool,
    out_shape: Pixels,
    rows: Range<usize>,
    out: &mut [u8],
) {
    check(x_shape, x.len(), out_shape, &rows, out.len());
    assert_eq!(out_shape.size, pool.window.output(x_shape.size), "size of the output");
    assert_eq!(pool.window.dilation, [1; 3], "dilation of an average pooling");
    dispatch(isa, Average { x, x_shape, zero_point, boxes: pool, out_shape, rows, out });
}

/// The mean of each of `out_shape.size` boxes that cover `x`, for the rows `rows` of the output.
///
/// Box `o` of `n` along a dimension of `size` pixels is `floor(o * size / n)..ceil((o + 1) * size / n)`. The zero point
/// is added before the rounding, `clamp(round_half_even(sum of (q - zero_point) * (1 / pixels) + zero_point))`, which
/// decides ties otherwise than in [`avg_pool`] where the zero point is odd: libtorch has this difference.
///
/// # Panics
/// If a slice is too short.
pub fn adaptive_avg_pool(
    isa: Isa,
    x: &[u8],
    x_shape: Pixels,
    zero_point: u8,
    out_shape: Pixels,
    rows: Range<usize>,
    out: &mut [u8],
) {
    check(x_shape, x.len(), out_shape, &rows, out.len());
    dispatch(isa, Average { x, x_shape, zero_point, boxes: Adaptive(out_shape.size), out_shape, rows, out });
}

/// Where the boxes are that are averaged.
trait Boxes: Copy {
    /// The pixels of box `o` along `axis`, and its length as far as it counts for the divisor.
    fn pixels(self, axis: usize, o: usize, size: usize) -> (Taps, usize);
    /// The divisor of a box with so many `pixels` inside the input, `counted` with padding.
    fn divisor(self, pixels: usize, counted: usize) -> usize;
    /// Whether the zero point is added before the mean is rounded.
    const ZERO_POINT_FIRST: bool;
}

impl Boxes for AveragePool {
    const ZERO_POINT_FIRST: bool = false;

    #[inline(always)]
    fn pixels(self, axis: usize, o: usize, size: usize) -> (Taps, usize) {
        let start = o * self.window.stride[axis];
        let padded = size + 2 * self.window.padding[axis];
        (self.window.taps(axis, o, size), (start + self.window.kernel[axis]).min(padded) - start)
    }

    #[inline(always)]
    fn divisor(self, pixels: usize, counted: usize) -> usize {
        self.divisor_override.unwrap_or(if self.count_include_pad { counted } else { pixels })
    }
}

#[derive(Clone, Copy)]
struct Adaptive([usize; 3]);

impl Boxes for Adaptive {
    const ZERO_POINT_FIRST: bool = true;

    #[inline(always)]
    fn pixels(self, axis: usize, o: usize, size: usize) -> (Taps, usize) {
        let n = self.0[axis];
        let start = o * size / n;
        let count = ((o + 1) * size).div_ceil(n) - start;
        (Taps { position: start, count, step: 1 }, count)
    }

    #[inline(always)]
    fn divisor(self, pixels: usize, _counted: usize) -> usize {
        pixels
    }
}

struct Average<'a, B> {
    x: &'a [u8],
    x_shape: Pixels,
    zero_point: u8,
    boxes: B,
    out_shape: Pixels,
    rows: Range<usize>,
    out: &'a mut [u8],
}

impl<B: Boxes> Kernel for Average<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, x_shape, boxes, out_shape, .. } = self;
        let zero_point = i32::from(self.zero_point);
        let [depth, height, width] = x_shape.size;
        let mut out_start = 0;
        for row in self.rows {
            let (image, oz, oy) = out_shape.place(row);
            let ((zs, counted_z), (ys, counted_y)) = (boxes.pixels(0, oz, depth), boxes.pixels(1, oy, height));
            for ox in 0..out_shape.size[2] {
                let (xs, counted_x) = boxes.pixels(2, ox, width);
                let pixels = zs.count * ys.count * xs.count;
                let counted = counted_z.saturating_mul(counted_y).saturating_mul(counted_x);
                let divisor = boxes.divisor(pixels, counted);
                let mean = Mean {
                    origin: x_shape.line(image, zs.position, ys.position) + xs.position * x_shape.stride,
                    counts: [zs.count, ys.count, xs.count],
                    strides: [x_shape.line(0, 1, 0), x_shape.line(0, 0, 1), x_shape.stride],
                    offset: if pixels <= MOST_IN_A_LANE { -(pixels as i32 * zero_point) } else { 0 },
                    // A box with no pixels has the sum 0.
                    multiplier: 1.0 / divisor.max(1) as f32,
                    zero_point,
                    zero_point_first: B::ZERO_POINT_FIRST,
                };
                let out = &mut self.out[out_start..out_start + x_shape.channels];
                out_start += out_shape.stride;
                if pixels > MOST_IN_A_LANE {
                    mean.of_many(x, pixels, out);
                    continue;
                }
                let mut channel = 0;
                let mut blocks = out.chunks_exact_mut(S::BYTES);
                for out in blocks.by_ref() {
                    let block = mean.block(s, x, channel, S::BYTES);
                    s.store_u8(block, out);
                    channel += S::BYTES;
                }
                let out = blocks.into_remainder();
                if !out.is_empty() {
                    let block = mean.block(s, x, channel, out.len());
                    s.store_u8(block, out);
                }
            }
        }
    }
}

/// Pixels of which a lane of 32 bits holds the sum: none of them adds more than 255.
const MOST_IN_A_LANE: usize = (i32::MAX / 255) as usize;

/// One box: where it is in memory and how its sum becomes a value.
struct Mean {
    origin: usize,
    counts: [usize; 3],
    strides: [usize; 3],
    offset: i32,
    multiplier: f32,
    zero_point: i32,
    zero_point_first: bool,
}

impl Mean {
    /// The means of all channels of a box of more pixels than [`MOST_IN_A_LANE`].
    #[cold]
    fn of_many(&self, x: &[u8], pixels: usize, out: &mut [u8]) {
        let [depth, height, width] = self.counts;
        let [plane, row, pixel] = self.strides;
        let zero_point = f32::from(self.zero_point as u8);
        for (channel, out) in out.iter_mut().enumerate() {
            let mut sum = -(pixels as i64 * i64::from(self.zero_point));
            for (z, y) in (0..depth).flat_map(|z| (0..height).map(move |y| (z, y))) {
                let first = self.origin + z * plane + y * row + channel;
                let line = x[first..].iter().step_by(pixel).take(width);
                sum += line.map(|q| i64::from(*q)).sum::<i64>();
            }
            let mean = sum as f32 * self.multiplier;
            let rounded = match self.zero_point_first {
                true => (mean + zero_point).round_ties_even(),
                false => mean.round_ties_even() + zero_point,
            };
            *out = rounded as u8;
        }
    }

    /// The means of `len` channels, at most a block.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, x: &[u8], channel: usize, len: usize) -> S::U8 {
        let mut sum = [s.splat_i32(self.offset); 4];
        for z in 0..self.counts[0] {
            for y in 0..self.counts[1] {
                let mut first = self.origin + z * self.strides[0] + y * self.strides[1] + channel;
                for _ in 0..self.counts[2] {
                    let q = s.widen_u8(&x[first..first + len]);
                    for k in 0..4 {
                        sum[k] = s.add_i32(sum[k], q[k]);
                    }
                    first += self.strides[2];
                }
            }
        }
        let (before, after) = if self.zero_point_first { (self.zero_point, 0) } else { (0, self.zero_point) };
        let (multiplier, before) = (s.splat(self.multiplier), s.splat(before as f32));
        let mut t = s.to_f32x4(sum);
        for t in &mut t {
            *t = s.add(s.mul(*t, multiplier), before);
        }
        s.narrow_u8(s.round_x4(t), s.splat_i16(after as i16))
    }
}
