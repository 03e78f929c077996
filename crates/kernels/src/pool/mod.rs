//! Max and average pooling of u8 tensors in NDHWC order, 1 to 3 spatial dimensions.
//!
//! The output keeps the qparams of the input. Work is given by output rows, so that a caller can share it between
//! threads.

mod average;
mod max;

pub use average::{AveragePool, adaptive_avg_pool, avg_pool};
pub use max::max_pool;

use std::ops::Range;

use super::geometry::{LONGEST, Sliding, elements};
use crate::{Error, Result};

/// Kernel size, stride, padding and dilation of a pooling, for depth, height and width.
///
/// ```
/// use jitquant_kernels::Window;
/// let window = Window::d2([3, 3], [2, 2], [1, 1]);
/// assert_eq!(window.output([1, 112, 112]), [1, 56, 56]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Window {
    /// Taps along each dimension.
    pub kernel: [usize; 3],
    /// Pixels from one window to the next.
    pub stride: [usize; 3],
    /// Pixels before the first and after the last.
    pub padding: [usize; 3],
    /// Pixels from one tap to the next.
    pub dilation: [usize; 3],
    /// Whether a last window that reaches beyond the padding counts, as long as it begins inside.
    pub ceil_mode: bool,
}

impl Window {
    /// A window over width only.
    pub const fn d1(kernel: usize, stride: usize, padding: usize) -> Self {
        Self::d3([1, 1, kernel], [1, 1, stride], [0, 0, padding])
    }

    /// A window over height and width.
    pub const fn d2(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Self {
        Self::d3([1, kernel[0], kernel[1]], [1, stride[0], stride[1]], [0, padding[0], padding[1]])
    }

    /// A window over depth, height and width.
    pub const fn d3(kernel: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> Self {
        Self { kernel, stride, padding, dilation: [1; 3], ceil_mode: false }
    }

    /// Checks that there are taps and steps, and that no number is so large that what follows from it would not fit.
    ///
    /// # Errors
    /// Where that is not so.
    pub fn check(&self) -> Result<()> {
        match (0..3).all(|axis| self.sliding(axis).is_plausible()) {
            true => Ok(()),
            false => Err(Error(format!(
                "{self:?}: kernels, strides and dilations from 1 to 2^30 - 1, and padding below 2^30, are accepted"
            ))),
        }
    }

    /// The output's size for an input's size, as PyTorch's `pooling_output_shape`; 0 where no window fits.
    ///
    /// # Panics
    /// If the kernel, stride or dilation is 0, or a number is above 2^30 (an input's size: 2^31).
    pub fn output(&self, input: [usize; 3]) -> [usize; 3] {
        assert!(self.check().is_ok(), "an empty window, or an implausible one: {self:?}");
        assert!(input.iter().all(|size| *size <= LONGEST), "an image of sizes {input:?}");
        std::array::from_fn(|axis| {
            let (stride, padding) = (self.stride[axis], self.padding[axis]);
            let beyond = if self.ceil_mode { stride - 1 } else { 0 };
            let fitting = self.sliding(axis).windows(input[axis], beyond).unwrap_or(0);
            // A window must not begin in the padding after the input.
            let begins_behind = self.ceil_mode && fitting > 0 && (fitting - 1) * stride >= input[axis] + padding;
            if begins_behind { fitting - 1 } else { fitting }
        })
    }

    /// The window along `axis`.
    fn sliding(&self, axis: usize) -> Sliding {
        let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
        Sliding { kernel, stride, padding: self.padding[axis], dilation: self.dilation[axis] }
    }

    /// The taps of window `o` along `axis` that are inside the input.
    fn taps(&self, axis: usize, o: usize, size: usize) -> Taps {
        let (dilation, padding) = (self.dilation[axis], self.padding[axis]);
        let start = o * self.stride[axis];
        let first = padding.saturating_sub(start).div_ceil(dilation);
        let end = (size + padding).saturating_sub(start).div_ceil(dilation).min(self.kernel[axis]);
        let count = end.saturating_sub(first);
        let position = if count == 0 { 0 } else { start + first * dilation - padding };
        Taps { position, count, step: dilation }
    }

    /// The windows along `axis`, of `windows`, whose taps are all inside the input.
    fn whole(&self, axis: usize, size: usize, windows: usize) -> Range<usize> {
        let (stride, padding) = (self.stride[axis], self.padding[axis]);
        let reach = self.sliding(axis).reach();
        let end = (size + padding).checked_sub(reach).map_or(0, |room| room / stride + 1).min(windows);
        padding.div_ceil(stride).min(end)..end
    }
}

/// Positions along one dimension: `position`, `position + step` and so on, `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taps {
    position: usize,
    count: usize,
    step: usize,
}

impl Taps {
    fn positions(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |k| self.position + k * self.step)
    }
}

/// A tensor in NDHWC order as pooling and upsampling see it: sizes in pixels, and how far apart pixels are.
///
/// A stride above `channels` leaves gaps: the tensor may be a slice of channels of a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Images.
    pub batch: usize,
    /// Depth, height and width of an image; 1 for a dimension that is not there.
    pub size: [usize; 3],
    /// Bytes of a pixel.
    pub channels: usize,
    /// Bytes from one pixel to the next, at least `channels`.
    pub stride: usize,
}

impl Pixels {
    /// A tensor without gaps.
    pub const fn dense(batch: usize, size: [usize; 3], channels: usize) -> Self {
        Self { batch, size, channels, stride: channels }
    }

    /// The tensor of `size` with the other dimensions of `self`, without gaps.
    pub const fn resized(&self, size: [usize; 3]) -> Self {
        Self::dense(self.batch, size, self.channels)
    }

    /// Whether memory could hold it, and no size is above 2^31.
    pub fn is_plausible(&self) -> bool {
        let [depth, height, width] = self.size;
        self.size.iter().all(|size| *size <= LONGEST)
            && elements([self.batch, depth, height, width, self.stride.max(1)]).is_some()
    }

    /// Rows of `size[2]` pixels.
    ///
    /// # Panics
    /// Where builds check sums for overflow, if there are more than a `usize` can count.
    pub const fn rows(&self) -> usize {
        self.batch * self.size[0] * self.size[1]
    }

    /// Bytes from the first of `rows` rows to the end of the last pixel.
    pub const fn bytes(&self, rows: usize) -> usize {
        let pixels = rows * self.size[2];
        if pixels == 0 { 0 } else { (pixels - 1) * self.stride + self.channels }
    }

    /// Where pixel (`z`, `y`, 0) of an image begins.
    pub(super) fn line(&self, image: usize, z: usize, y: usize) -> usize {
        ((image * self.size[0] + z) * self.size[1] + y) * self.size[2] * self.stride
    }

    /// The image, depth and height that row `row` belongs to.
    pub(super) fn place(&self, row: usize) -> (usize, usize, usize) {
        let [depth, height, _] = self.size;
        (row / (depth * height), row / height % depth, row % height)
    }

    pub(super) fn check(&self, rows: &Range<usize>, data: usize, what: &str) {
        assert!(self.stride >= self.channels, "{what}: pixels of {} bytes overlap", self.channels);
        assert!(self.is_plausible(), "{what}: {self:?} is larger than memory");
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "{what}: has no rows {rows:?}");
        let bytes = self.bytes(rows.len());
        assert!(data >= bytes, "{what}: {data} bytes where {bytes} are needed");
    }
}

/// Checks the tensors of a pooling from `x` to `out`.
fn check(x: Pixels, x_bytes: usize, out: Pixels, rows: &Range<usize>, out_bytes: usize) {
    x.check(&(0..x.rows()), x_bytes, "input");
    out.check(rows, out_bytes, "output");
    assert_eq!((x.batch, x.channels), (out.batch, out.channels), "batch and channels of input and output");
}
