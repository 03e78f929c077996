//! Pooling.

use jitquant_kernels::{AveragePool, Isa, Parallel, Pixels, Window};

use super::Kernel;
use super::elements::expect;
use crate::layout::{Element, Format, Layout};
use crate::parts::in_parts;
use crate::plan::{Placed, Planner};
use crate::view::View;
use crate::{Result, refuse};

/// Which pooling.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Max(Window),
    /// With the zero point.
    Average(AveragePool, u8),
    /// Means of as many boxes as the output has pixels, with the zero point.
    Adaptive(u8),
}

/// A pooling for known sizes.
pub(crate) struct Call {
    form: Form,
    image: Pixels,
    output: Pixels,
}

/// Plans the pooling of windows.
pub(super) fn plan(planner: &mut Planner<'_>, form: Form, dimensions: usize, x: &Placed) -> Result<Placed> {
    let image = image(&x.layout, dimensions)?;
    let window = match form {
        Form::Max(window) => window,
        Form::Average(pool, _) => pool.window,
        Form::Adaptive(_) => return refuse("a pooling without a window"),
    };
    window.check()?;
    let output = image.resized(window.output(image.size));
    finish(planner, form, image, output, dimensions, x)
}

/// Plans means that give an image of `sizes`.
pub(super) fn adaptive(planner: &mut Planner<'_>, sizes: &[i64], zero_point: u8, x: &Placed) -> Result<Placed> {
    let image = image(&x.layout, sizes.len())?;
    let mut size = [1; 3];
    for (to, given) in size[3 - sizes.len()..].iter_mut().zip(sizes) {
        *to = usize::try_from(*given).unwrap_or(0);
    }
    finish(planner, Form::Adaptive(zero_point), image, image.resized(size), sizes.len(), x)
}

/// Plans the mean over `axes`, which are all dimensions but the first two.
pub(super) fn mean(planner: &mut Planner<'_>, axes: &[i64], keep: bool, zero_point: u8, x: &Placed) -> Result<Placed> {
    let sizes = &x.layout.sizes;
    let rank = sizes.len() as i64;
    let mut named: Vec<i64> = axes.iter().map(|axis| if *axis < 0 { axis + rank } else { *axis }).collect();
    named.sort_unstable();
    if !named.iter().copied().eq(2..rank) || sizes.contains(&0) {
        return refuse(format!("the mean over dimensions {axes:?} of a tensor of sizes {sizes:?}"));
    }
    let dimensions = named.len();
    let kernel = image(&x.layout, dimensions)?.size;
    let window = Window { kernel, stride: kernel, padding: [0; 3], dilation: [1; 3], ceil_mode: false };
    let pool = AveragePool { window, count_include_pad: false, divisor_override: None };
    let result = plan(planner, Form::Average(pool, zero_point), dimensions, x)?;
    if keep {
        return Ok(result);
    }
    let flat = View::Flatten(1, -1).of(&result.layout, &|size| planner.number(size))?;
    planner.view(result, flat)
}

/// `[batch, channels, ...]` as an image.
fn image(x: &Layout, dimensions: usize) -> Result<Pixels> {
    if !(1..=3).contains(&dimensions) || x.rank() != dimensions + 2 {
        return refuse(format!("a tensor of sizes {:?} for {dimensions} spatial dimensions", x.sizes));
    }
    let mut size = [1; 3];
    for (to, given) in size[3 - dimensions..].iter_mut().zip(&x.sizes[2..]) {
        *to = *given as usize;
    }
    Ok(Pixels::dense(x.sizes[0] as usize, size, x.sizes[1] as usize))
}

fn finish(
    planner: &mut Planner<'_>,
    form: Form,
    image: Pixels,
    output: Pixels,
    dimensions: usize,
    x: &Placed,
) -> Result<Placed> {
    expect(x, Element::U8)?;
    if output.size.contains(&0) || !output.is_plausible() || !image.is_plausible() {
        return refuse(format!("an image of sizes {:?} pooled to {:?}", image.size, output.size));
    }
    let x = planner.dense(x, Format::ChannelsLast)?;
    let mut sizes = x.layout.sizes[..2].to_vec();
    sizes.extend(output.size[3 - dimensions..].iter().map(|size| *size as i64));
    let out = planner.result(Layout::new(Element::U8, &sizes, Format::ChannelsLast))?;
    planner.push(Kernel::Pool(Call { form, image, output }), &[&x], &out, 0);
    Ok(out)
}

impl Call {
    pub fn name(&self) -> &'static str {
        match self.form {
            Form::Max(_) => "max_pool",
            Form::Average(..) => "avg_pool",
            Form::Adaptive(_) => "adaptive_avg_pool",
        }
    }

    /// Pixels of the input for one of the output.
    fn taps(&self) -> usize {
        let all = |sizes: [usize; 3]| sizes.iter().fold(1, |taps: usize, size| taps.saturating_mul(*size));
        match self.form {
            Form::Max(window) => all(window.kernel),
            Form::Average(pool, _) => all(pool.window.kernel),
            Form::Adaptive(_) => all(self.image.size).div_ceil(all(self.output.size)),
        }
    }

    pub fn run(&self, isa: Isa, x: &[u8], out: &mut [u8], threads: &dyn Parallel) {
        let (image, output) = (self.image, self.output);
        let row = output.size[2] * output.channels;
        in_parts(threads, out, row, row.saturating_mul(self.taps()), &|first, part| {
            let rows = first..first + part.len() / row;
            match self.form {
                Form::Max(window) => jitquant_kernels::max_pool(isa, x, image, window, output, rows, part),
                Form::Average(pool, zero_point) => {
                    jitquant_kernels::avg_pool(isa, x, image, zero_point, pool, output, rows, part);
                }
                Form::Adaptive(zero_point) => {
                    jitquant_kernels::adaptive_avg_pool(isa, x, image, zero_point, output, rows, part);
                }
            }
        });
    }
}
