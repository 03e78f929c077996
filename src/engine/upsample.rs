//! Upsampling.

use super::bridge::ffi::Resizing;
use super::pool::{pixels, rows};
use crate::error::{Error, Result, no_panic};
use crate::kernel::{self, Isa, Upsampling};

pub(super) fn upsample_sizes(sizes: &[i64], given: &[i64], factors: &[f64]) -> Result<Vec<i64>> {
    no_panic(|| {
        let dimensions = sizes.len();
        let fits = |count: usize| count == 0 || count == dimensions;
        if !(1..=3).contains(&dimensions)
            || !fits(given.len())
            || !fits(factors.len())
            || given.len() + factors.len() == 0
        {
            return Err(Error::invalid(format!(
                "{} output sizes and {} scale factors; one of them or both, for 1 to 3 spatial dimensions, are accepted",
                given.len(),
                factors.len()
            )));
        }
        let resized: Vec<i64> = match given {
            // As libtorch: rounded towards zero. A float becomes the nearest integer that there is, NaN becomes 0.
            [] => sizes.iter().zip(factors).map(|(size, factor)| (*size as f64 * factor) as i64).collect(),
            given => given.to_vec(),
        };
        let accepted = |sizes: &[i64]| sizes.iter().all(|size| (1..=i64::from(i32::MAX)).contains(size));
        if !accepted(sizes) || !accepted(&resized) {
            return Err(Error::invalid(format!(
                "an image of sizes {sizes:?} cannot become one of {resized:?}; sizes from 1 to 2^31 - 1 are accepted"
            )));
        }
        Ok(resized)
    })
}

pub(super) fn upsample_u8(
    x: &[u8],
    sizes: &[i64],
    form: Resizing<'_>,
    out_sizes: &[i64],
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let (image, output) = (pixels(sizes)?, pixels(out_sizes)?);
        if image.size.contains(&0) || output.size.contains(&0) {
            let (from, to) = (image.size, output.size);
            return Err(Error::invalid(format!(
                "an image of sizes {from:?} cannot become one of {to:?}; sizes from 1 on are accepted"
            )));
        }
        let mode = match (form.bilinear, form.align_corners) {
            (false, _) => Upsampling::Nearest,
            (true, false) => Upsampling::Bilinear,
            (true, true) => Upsampling::BilinearAlignCorners,
        };
        // Factors are given for the last dimensions, sizes for three.
        let factor = |axis: usize| (axis + form.factors.len()).checked_sub(3).map(|index| form.factors[index]);
        let step = [0, 1, 2].map(|axis| mode.step(image.size[axis], output.size[axis], factor(axis)));
        let taps = if form.bilinear { 4 } else { 1 };
        rows(output, taps, out, |rows, part| {
            kernel::upsample(Isa::current(), x, image, mode, step, output, rows, part)
        });
        Ok(())
    })
}
