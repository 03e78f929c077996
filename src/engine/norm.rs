//! Normalizations and softmax.

use super::bridge::ffi::Affine;
use super::channels::scale;
use super::elementwise::{bound, qparams};
use super::threads::in_parts;
use crate::error::{Error, Result, no_panic};
use crate::kernel::geometry::count;
use crate::kernel::{self, BatchNorm, Channels, GroupNorm, Isa, LayerNorm, NormScratch};

/// A parameter that may be absent: empty then.
fn optional<'a>(values: &'a [f32], count: usize, name: &str) -> Result<Option<&'a [f32]>> {
    match values.len() {
        0 => Ok(None),
        found if found == count => Ok(Some(values)),
        found => Err(Error::invalid(format!("the {name} has {found} elements, {count} are needed"))),
    }
}

pub(super) fn softmax_u8(x: &[u8], x_scale: f64, columns: i64, to: Affine, out: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let step = scale(&Affine { scale: x_scale, zero_point: 0 }, "input")?;
        let (to, columns) = (qparams(&to, "output")?, columns as usize);
        in_parts(out, columns.max(1), 2 * columns, &|first, part| {
            kernel::softmax(Isa::current(), &x[first * columns..][..part.len()], step, columns, to, part);
        });
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)]
pub(super) fn layer_norm_u8(
    x: &[u8],
    from: Affine,
    columns: i64,
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    to: Affine,
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let (from, to, columns) = (qparams(&from, "input")?, qparams(&to, "output")?, columns as usize);
        let norm = LayerNorm {
            columns,
            weight: optional(weight, columns, "weight")?,
            bias: optional(bias, columns, "bias")?,
            eps,
        };
        in_parts(out, columns.max(1), 2 * columns, &|first, part| {
            kernel::layer_norm(Isa::current(), &x[first * columns..][..part.len()], from, norm, to, part);
        });
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)]
pub(super) fn group_norm_u8(
    x: &[u8],
    from: Affine,
    sizes: &[i64],
    groups: i64,
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    to: Affine,
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let (from, to) = (qparams(&from, "input")?, qparams(&to, "output")?);
        let [_, channels, spatial @ ..] = sizes else {
            return Err(Error::invalid(format!("sizes {sizes:?} have no channels")));
        };
        let channels = *channels as usize;
        let inner = count("an image", &spatial.iter().map(|size| *size as usize).collect::<Vec<_>>())?;
        let groups = usize::try_from(groups).ok().filter(|groups| *groups > 0 && channels.is_multiple_of(*groups));
        if x.is_empty() {
            return Ok(());
        }
        let groups =
            groups.ok_or_else(|| Error::invalid(format!("{channels} channels are not whole groups of that number")))?;
        let norm = GroupNorm {
            groups,
            weight: optional(weight, channels, "weight")?,
            bias: optional(bias, channels, "bias")?,
            eps,
        };
        // An image in order of channels is `channels` rows of `inner` values.
        let (layout, image) = (Channels { outer: 1, channels, inner }, channels * inner);
        in_parts(out, image.max(1), 2 * image, &|first, part| {
            let (mut affine, mut sums) = (vec![0.0; 2 * channels], vec![0; 2 * groups]);
            for (i, part) in part.chunks_mut(image.max(1)).enumerate() {
                let x = &x[(first + i) * image..][..part.len()];
                let scratch = NormScratch { affine: &mut affine, sums: &mut sums };
                kernel::group_norm(Isa::current(), x, layout, 1, from, norm, to, scratch, part);
            }
        });
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)]
pub(super) fn batch_norm_u8(
    x: &[u8],
    from: Affine,
    layout: &[i64],
    weight: &[f32],
    bias: &[f32],
    mean: &[f32],
    var: &[f32],
    eps: f64,
    to: Affine,
    min: i64,
    max: i64,
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let (from, to) = (qparams(&from, "input")?, qparams(&to, "output")?);
        let (min, max) = (bound(min, "minimum")?, bound(max, "maximum")?);
        let &[outer, channels, inner] = layout else {
            return Err(Error::invalid(format!("a layout of {} numbers", layout.len())));
        };
        let layout = Channels { outer: outer as usize, channels: channels as usize, inner: inner as usize };
        let relu = i32::from(min) == to.zero_point && max == 255;
        if mean.len() != layout.channels || var.len() != layout.channels {
            return Err(Error::invalid(format!(
                "{} means and {} variances for {channels} channels",
                mean.len(),
                var.len()
            )));
        }
        let norm = BatchNorm {
            mean,
            var,
            weight: optional(weight, layout.channels, "weight")?,
            bias: optional(bias, layout.channels, "bias")?,
            eps,
        };
        let mut affine = vec![0.0; 2 * layout.channels];
        let scratch = NormScratch { affine: &mut affine, sums: &mut [] };
        kernel::batch_norm(Isa::current(), x, layout, from, norm, relu, to, scratch, out);
        if !relu && (min, max) != (0, 255) {
            out.iter_mut().for_each(|byte| *byte = (*byte).max(min).min(max));
        }
        Ok(())
    })
}
