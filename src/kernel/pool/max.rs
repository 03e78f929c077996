//! The largest byte of each window.

use std::ops::Range;

use super::{Pixels, Window, check};
use crate::kernel::Isa;
use crate::kernel::elementwise::simd::{Kernel, Simd, dispatch};

/// The largest value of each window of `x`, for the rows `rows` of the output.
///
/// `x` and `out` hold the tensors that `x_shape` and `out_shape` describe; `out` begins with the first of `rows`.
/// Padding never wins; a window that holds nothing but padding gives 0, the smallest value.
///
/// ```
/// use jitquant::kernel::{Isa, Pixels, Window, max_pool};
/// let (input, window) = (Pixels::dense(1, [1, 1, 4], 1), Window::d1(2, 2, 0));
/// let output = input.resized(window.output(input.size));
/// let mut out = [0; 2];
/// max_pool(Isa::current(), &[3, 9, 4, 1], input, window, output, 0..1, &mut out);
/// assert_eq!(out, [9, 4]);
/// ```
///
/// # Panics
/// If `out_shape` is not what `window` makes of `x_shape`, or a slice is too short.
pub fn max_pool(
    isa: Isa,
    x: &[u8],
    x_shape: Pixels,
    window: Window,
    out_shape: Pixels,
    rows: Range<usize>,
    out: &mut [u8],
) {
    check(x_shape, x.len(), out_shape, &rows, out.len());
    assert_eq!(out_shape.size, window.output(x_shape.size), "size of the output");
    dispatch(isa, MaxPool { x, x_shape, window, out_shape, rows, out });
}

struct MaxPool<'a> {
    x: &'a [u8],
    x_shape: Pixels,
    window: Window,
    out_shape: Pixels,
    rows: Range<usize>,
    out: &'a mut [u8],
}

/// Taps whose offsets are listed at a time; a larger window takes several passes over its output pixel.
const LISTED: usize = 64;

impl Kernel for MaxPool<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, x_shape, window, out_shape, .. } = self;
        let [depth, height, width] = x_shape.size;
        let mut out_start = 0;
        for row in self.rows {
            let (image, oz, oy) = out_shape.place(row);
            let (zs, ys) = (window.taps(0, oz, depth), window.taps(1, oy, height));
            let mut offsets = [0; LISTED];
            // The list holds all taps of a window with this many along the row: most windows share it.
            let mut listed_for = usize::MAX;
            let mut listed = 0;
            for ox in 0..out_shape.size[2] {
                let xs = window.taps(2, ox, width);
                let origin = xs.position * x_shape.stride;
                let out = &mut self.out[out_start..out_start + x_shape.channels];
                out_start += out_shape.stride;
                if xs.count == listed_for {
                    max_pixel(s, &x[origin..], &offsets[..listed], true, out);
                    continue;
                }
                (listed, listed_for) = (0, xs.count);
                let mut first_pass = true;
                for z in zs.positions() {
                    for y in ys.positions() {
                        for k in 0..xs.count {
                            if listed == LISTED {
                                max_pixel(s, &x[origin..], &offsets, first_pass, out);
                                (first_pass, listed, listed_for) = (false, 0, usize::MAX);
                            }
                            offsets[listed] = x_shape.line(image, z, y) + k * xs.step * x_shape.stride;
                            listed += 1;
                        }
                    }
                }
                max_pixel(s, &x[origin..], &offsets[..listed], first_pass, out);
            }
        }
    }
}

/// The largest byte of each channel over the pixels at `offsets` and, unless this is the first pass, what `out` holds.
#[inline(always)]
fn max_pixel<S: Simd>(s: S, x: &[u8], offsets: &[usize], first_pass: bool, out: &mut [u8]) {
    let mut channel = 0;
    let mut blocks = out.chunks_exact_mut(S::BYTES);
    for out in blocks.by_ref() {
        let mut largest = if first_pass { s.splat_u8(0) } else { s.load_u8(out) };
        for offset in offsets {
            let first = offset + channel;
            largest = s.max_u8(largest, s.load_u8(&x[first..first + S::BYTES]));
        }
        s.store_u8(largest, out);
        channel += S::BYTES;
    }
    let out = blocks.into_remainder();
    if !out.is_empty() {
        let mut largest = if first_pass { s.splat_u8(0) } else { s.load_u8(out) };
        for offset in offsets {
            let first = offset + channel;
            largest = s.max_u8(largest, s.load_u8(&x[first..first + out.len()]));
        }
        s.store_u8(largest, out);
    }
}
