//! Pooling.

use super::bridge::ffi::PoolWindow;
use super::elementwise::bound;
use super::threads::in_parts;
use crate::error::{Error, Result, no_panic};
use crate::kernel::{self, AveragePool, Isa, Pixels, Window};

/// An image of sizes `[batch, channels, ...]`.
pub(super) fn pixels(sizes: &[i64]) -> Result<Pixels> {
    let [batch, channels, spatial @ ..] = sizes else {
        return Err(Error::invalid(format!("sizes {sizes:?} are no image's: [batch, channels, ...] is accepted")));
    };
    let size = |value: i64| {
        usize::try_from(value).map_err(|_| Error::invalid(format!("sizes {sizes:?}: numbers from 0 on are accepted")))
    };
    let image = Pixels::dense(size(*batch)?, all(spatial, 1, "image")?, size(*channels)?);
    match image.is_plausible() {
        true => Ok(image),
        false => Err(Error::invalid(format!("an image of sizes {sizes:?} is larger than is accepted"))),
    }
}

/// Three numbers of the one to three that are given for the last dimensions.
fn all(given: &[i64], absent: usize, what: &str) -> Result<[usize; 3]> {
    if given.len() > 3 {
        return Err(Error::invalid(format!("{what}: {} numbers for at most 3 dimensions", given.len())));
    }
    let mut numbers = [absent; 3];
    for (to, number) in numbers[3 - given.len()..].iter_mut().zip(given) {
        *to = usize::try_from(*number)
            .map_err(|_| Error::invalid(format!("{what}: {number}; numbers from 0 on are accepted")))?;
    }
    Ok(numbers)
}

/// The window of a step, of the numbers that its operator takes.
pub(crate) fn step_window(
    kernel: &[i64],
    stride: &[i64],
    padding: &[i64],
    dilation: &[i64],
    ceil_mode: bool,
) -> Result<Window> {
    if !(1..=3).contains(&kernel.len()) {
        return Err(Error::invalid(format!("a window of {} dimensions", kernel.len())));
    }
    let stride = if stride.is_empty() { kernel } else { stride };
    window(PoolWindow { kernel, stride, padding, dilation, ceil_mode })
}

fn window(given: PoolWindow<'_>) -> Result<Window> {
    let dimensions = given.kernel.len();
    // One number may stand for all dimensions, as in torch.nn.functional.
    let spread = |numbers: &[i64], what: &str| match numbers.len() {
        1 => Ok(vec![numbers[0]; dimensions]),
        found if found == dimensions => Ok(numbers.to_vec()),
        found => Err(Error::invalid(format!("{what}: {found} numbers for {dimensions} dimensions"))),
    };
    let dilation = if given.dilation.is_empty() { &[1][..] } else { given.dilation };
    let window = Window {
        kernel: all(given.kernel, 1, "kernel")?,
        stride: all(&spread(given.stride, "stride")?, 1, "stride")?,
        padding: all(&spread(given.padding, "padding")?, 0, "padding")?,
        dilation: all(&spread(dilation, "dilation")?, 1, "dilation")?,
        ceil_mode: given.ceil_mode,
    };
    for axis in 0..3 {
        let (kernel, padding) = (window.kernel[axis], window.padding[axis]);
        if window.check().is_err() || padding > kernel / 2 {
            return Err(Error::invalid(format!(
                "a window of kernel {:?}, stride {:?}, padding {:?}, dilation {:?}; numbers from 1 to 2^30, and at most \
                 half a kernel of padding, are accepted",
                given.kernel, given.stride, given.padding, given.dilation
            )));
        }
    }
    Ok(window)
}

/// The sizes that `window` makes of an image, checked.
fn output(image: Pixels, window: &Window) -> Result<Pixels> {
    let output = image.resized(window.output(image.size));
    if output.size.contains(&0) {
        return Err(Error::invalid(format!("an image of sizes {:?} is smaller than the window", image.size)));
    }
    if !output.is_plausible() {
        return Err(Error::invalid(format!("a pooled image of sizes {:?} is larger than is accepted", output.size)));
    }
    Ok(output)
}

/// Taps of a window, or as many as can be counted.
fn taps(window: &Window) -> usize {
    window.kernel.iter().fold(1, |taps: usize, kernel| taps.saturating_mul(*kernel))
}

/// An image has the batch, the channels, and `dimensions` sizes.
fn check_rank(sizes: &[i64], dimensions: usize) -> Result<()> {
    match sizes.len() == dimensions + 2 && (1..=3).contains(&dimensions) {
        true => Ok(()),
        false => {
            Err(Error::invalid(format!("sizes {sizes:?} for {dimensions} spatial dimensions; 1 to 3 are accepted")))
        }
    }
}

pub(super) fn pool_sizes(sizes: &[i64], given: PoolWindow<'_>) -> Result<Vec<i64>> {
    no_panic(|| {
        let dimensions = given.kernel.len();
        check_rank(sizes, dimensions)?;
        let output = output(pixels(sizes)?, &window(given)?)?;
        Ok(output.size[3 - dimensions..].iter().map(|size| *size as i64).collect())
    })
}

pub(super) fn adaptive_sizes(sizes: &[i64], given: &[i64]) -> Result<Vec<i64>> {
    no_panic(|| {
        check_rank(sizes, given.len())?;
        let image = pixels(sizes)?;
        if image.size.contains(&0) {
            return Err(Error::invalid(format!("an image of sizes {:?} has no mean", image.size)));
        }
        pixels(&[&sizes[..2], given].concat())?;
        Ok(given.to_vec())
    })
}

/// Has the threads fill rows of `output`, each pixel of which costs `taps` looks at one.
pub(super) fn rows(
    output: Pixels,
    taps: usize,
    out: &mut [u8],
    work: impl Fn(std::ops::Range<usize>, &mut [u8]) + Sync,
) {
    let row = output.size[2] * output.channels;
    in_parts(out, row.max(1), row.saturating_mul(taps), &|first, part| {
        work(first..first + part.len() / row.max(1), part)
    });
}

pub(super) fn max_pool_u8(x: &[u8], sizes: &[i64], given: PoolWindow<'_>, out: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let (image, window) = (pixels(sizes)?, window(given)?);
        let output = output(image, &window)?;
        let taps = taps(&window);
        rows(output, taps, out, |rows, part| kernel::max_pool(Isa::current(), x, image, window, output, rows, part));
        Ok(())
    })
}

pub(super) fn avg_pool_u8(
    x: &[u8],
    sizes: &[i64],
    zero_point: i64,
    given: PoolWindow<'_>,
    count_include_pad: bool,
    divisor: i64,
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let (image, window, zero_point) = (pixels(sizes)?, window(given)?, bound(zero_point, "zero point")?);
        let output = output(image, &window)?;
        let divisor_override = usize::try_from(divisor).ok().filter(|divisor| *divisor > 0);
        let pool = AveragePool { window, count_include_pad, divisor_override };
        let taps = taps(&window);
        rows(output, taps, out, |rows, part| {
            kernel::avg_pool(Isa::current(), x, image, zero_point, pool, output, rows, part);
        });
        Ok(())
    })
}

pub(super) fn adaptive_avg_pool_u8(
    x: &[u8],
    sizes: &[i64],
    zero_point: i64,
    out_sizes: &[i64],
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let (image, output, zero_point) = (pixels(sizes)?, pixels(out_sizes)?, bound(zero_point, "zero point")?);
        if image.size.contains(&0) {
            return Err(Error::invalid(format!("an image of sizes {:?} has no mean", image.size)));
        }
        let pixels_of = |size: [usize; 3]| size.iter().product::<usize>();
        let taps = pixels_of(image.size).div_ceil(pixels_of(output.size).max(1));
        rows(output, taps, out, |rows, part| {
            kernel::adaptive_avg_pool(Isa::current(), x, image, zero_point, output, rows, part);
        });
        Ok(())
    })
}
