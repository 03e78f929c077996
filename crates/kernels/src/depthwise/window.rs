//! The window that a convolution slides over its input: sizes, steps, and what it makes of the spatial sizes.

use crate::geometry::{Sliding, elements};
use crate::{Error, Result};

/// Kernel size, stride, padding and dilation, each as `[depth, height, width]`.
///
/// A 2-d convolution has depth 1 (stride 1, padding 0, dilation 1), a 1-d convolution depth and height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Taps along each axis, at least 1.
    pub kernel: [usize; 3],
    /// Input positions from one output to the next, at least 1.
    pub stride: [usize; 3],
    /// Positions added before the first and after the last one. They hold the input's zero point.
    pub padding: [usize; 3],
    /// Input positions from one tap to the next, at least 1.
    pub dilation: [usize; 3],
}

/// More taps than this could overflow an i32: each adds at most `255 * 255`.
const MOST_TAPS: usize = (i32::MAX / (255 * 255)) as usize;

impl Window {
    /// A 2-d window: no depth.
    pub const fn plane(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2]) -> Self {
        Self {
            kernel: [1, kernel[0], kernel[1]],
            stride: [1, stride[0], stride[1]],
            padding: [0, padding[0], padding[1]],
            dilation: [1, dilation[0], dilation[1]],
        }
    }

    /// How many taps it has.
    pub const fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.kernel[2]
    }

    /// `floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1` along each axis.
    ///
    /// # Errors
    /// Where the padded input is smaller than the window.
    pub fn output_spatial(&self, spatial: [usize; 3]) -> Result<[usize; 3]> {
        let mut out = [0; 3];
        for axis in 0..3 {
            let windows = self.sliding(axis).windows(spatial[axis], 0);
            out[axis] = windows.ok_or_else(|| Error(format!("{self:?} does not fit an input of {spatial:?}")))?;
        }
        Ok(out)
    }

    fn sliding(&self, axis: usize) -> Sliding {
        let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
        Sliding { kernel, stride, padding: self.padding[axis], dilation: self.dilation[axis] }
    }

    /// Refuses windows without taps, without steps, and so large that sums of `inputs` channels could overflow an i32.
    pub(crate) fn check(&self, inputs: usize) -> Result<()> {
        let plausible = (0..3).all(|axis| self.sliding(axis).is_plausible());
        let terms = elements(self.kernel.into_iter().chain([inputs]));
        if !plausible || terms.is_none_or(|terms| terms == 0 || terms > MOST_TAPS) {
            let message = format!(
                "{self:?} with {inputs} input channels: sizes and steps of 1 and more are accepted, and at most {MOST_TAPS} products a sum"
            );
            return Err(Error(message));
        }
        Ok(())
    }
}

/// Where a window stands: one convolution's sizes, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub window: Window,
    pub batch: usize,
    /// Input sizes, `[depth, height, width]`.
    pub input: [usize; 3],
    /// Output sizes, `[depth, height, width]`.
    pub output: [usize; 3],
}

impl Geometry {
    /// Checks that `input` bytes are `batch` images of `spatial` with `channels`, and `output` elements what comes out.
    pub fn new(
        window: Window,
        batch: usize,
        spatial: [usize; 3],
        (input, inputs): (usize, usize),
        (output, outputs): (usize, usize),
    ) -> Result<Self> {
        let sizes = window.output_spatial(spatial)?;
        let count = |spatial: [usize; 3], channels: usize| elements(spatial.into_iter().chain([batch, channels]));
        for (name, len, spatial, channels) in [("input", input, spatial, inputs), ("output", output, sizes, outputs)] {
            if count(spatial, channels) != Some(len) {
                let message = format!("{name} has {len} elements, not {batch} x {spatial:?} x {channels}");
                return Err(Error(message));
            }
        }
        Ok(Self { window, batch, input: spatial, output: sizes })
    }

    /// The input position along `axis` that tap `tap` of output `out` reads, or none in the padding.
    #[inline(always)]
    pub fn position(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        let window = &self.window;
        (out * window.stride[axis] + tap * window.dilation[axis])
            .checked_sub(window.padding[axis])
            .filter(|&position| position < self.input[axis])
    }
}
