//! The largest byte of each window.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Pixels, Taps, Window, check};
use crate::Isa;
use crate::elementwise::simd::{Kernel, Simd, dispatch};

/// The largest value of each window of `x`, for the rows `rows` of the output.
///
/// `x` and `out` hold the tensors that `x_shape` and `out_shape` describe; `out` begins with the first of `rows`.
/// Padding never wins; a window that holds nothing but padding gives 0, the smallest value.
///
/// ```
/// use jitquant_kernels::{Isa, Pixels, Window, max_pool};
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
        let ([depth, height, width], columns) = (x_shape.size, out_shape.size[2]);
        let whole = window.whole(2, width, columns);
        for (k, row) in self.rows.enumerate() {
            let (image, oz, oy) = out_shape.place(row);
            let (zs, ys) = (window.taps(0, oz, depth), window.taps(1, oy, height));
            let out = &mut self.out[k * columns * out_shape.stride..];
            let pixel = |ox: usize| ox * out_shape.stride..ox * out_shape.stride + out_shape.channels;
            let mut taps = TapList::default();
            // Windows that are whole along the row have the same offsets from their first pixel: one list serves all.
            let listed = zs.count.saturating_mul(ys.count).saturating_mul(window.kernel[2]);
            let shared = listed <= LISTED && !whole.is_empty();
            if shared {
                let xs = window.taps(2, whole.start, width);
                taps.list(s, x, x_shape, image, [zs, ys, Taps { position: 0, ..xs }], &mut []);
                let step = window.stride[2] * x_shape.stride;
                let mut origin = xs.position * x_shape.stride;
                for ox in whole.clone() {
                    taps.max_pixel(s, &x[origin..], true, &mut out[pixel(ox)]);
                    origin += step;
                }
            }
            let edges = if shared { (0..whole.start).chain(whole.end..columns) } else { (0..0).chain(0..columns) };
            for ox in edges {
                let xs = window.taps(2, ox, width);
                let first_pass = taps.list(s, x, x_shape, image, [zs, ys, xs], &mut out[pixel(ox)]);
                taps.max_pixel(s, x, first_pass, &mut out[pixel(ox)]);
            }
        }
    }
}

/// Where the pixels of a window begin in the input.
struct TapList {
    offsets: [usize; LISTED],
    listed: usize,
    /// The largest offset ever listed.
    farthest: usize,
}

impl Default for TapList {
    fn default() -> Self {
        Self { offsets: [0; LISTED], listed: 0, farthest: 0 }
    }
}

impl TapList {
    fn push(&mut self, offset: usize) {
        self.offsets[self.listed] = offset;
        self.listed += 1;
        self.farthest = self.farthest.max(offset);
    }

    /// Lists the pixels of one window. Whenever the list is full it goes into `out`; the last part stays in the list.
    /// Whether that is the only part.
    #[inline(always)]
    fn list<S: Simd>(
        &mut self,
        s: S,
        x: &[u8],
        shape: Pixels,
        image: usize,
        [zs, ys, xs]: [Taps; 3],
        out: &mut [u8],
    ) -> bool {
        *self = Self::default();
        let mut only = true;
        for z in zs.positions() {
            for y in ys.positions() {
                for column in xs.positions() {
                    if self.listed == LISTED {
                        self.max_pixel(s, x, only, out);
                        (only, self.listed) = (false, 0);
                    }
                    self.push(shape.line(image, z, y) + column * shape.stride);
                }
            }
        }
        only
    }

    /// The largest byte of each channel over the listed pixels and, unless this is the first pass, what `out` holds.
    #[inline(always)]
    fn max_pixel<S: Simd>(&self, s: S, x: &[u8], first_pass: bool, out: &mut [u8]) {
        assert!(
            self.listed == 0 || (self.farthest < x.len() && out.len() <= x.len() - self.farthest),
            "input too short"
        );
        let offsets = &self.offsets[..self.listed];
        let full = out.len() - out.len() % S::BYTES;
        for first in (0..full).step_by(S::BYTES) {
            // SAFETY: by the assertion, and the block ends within `out`.
            unsafe { max_block(s, x, offsets, first, first_pass, &mut out[first..first + S::BYTES]) };
        }
        if full < out.len() {
            // SAFETY: as above.
            unsafe { max_block(s, x, offsets, full, first_pass, &mut out[full..]) };
        }
    }
}

/// The largest of the channels that begin at `first`, as many as `out` has.
///
/// # Safety
/// For each of `offsets`, `offset + first + out.len()` is at most `x.len()`.
#[inline(always)]
unsafe fn max_block<S: Simd>(s: S, x: &[u8], offsets: &[usize], first: usize, first_pass: bool, out: &mut [u8]) {
    let mut largest = if first_pass { s.splat_u8(0) } else { s.load_u8(out) };
    for offset in offsets {
        // SAFETY: the caller's promise. Checks here would cost more than the loads.
        let x = unsafe { x.get_unchecked(offset + first..offset + first + out.len()) };
        largest = s.max_u8(largest, s.load_u8(x));
    }
    s.store_u8(largest, out);
}
