//! Steps that move or reinterpret: what they make of a layout, as libtorch does.

use crate::layout::{Format, Layout};
use crate::size::Size;
use crate::{Result, refuse};

/// A step that computes nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// Dimensions in another order.
    Permute(Vec<i64>),
    /// Two dimensions change places.
    Transpose(i64, i64),
    /// A part of a dimension: from, to, and every how many-th index.
    Slice {
        /// The dimension.
        axis: i64,
        /// The first index; counted from the end where negative.
        start: Size,
        /// The index behind the last; counted from the end where negative.
        end: Size,
        /// Indices from one to the next.
        step: i64,
    },
    /// One index of a dimension, which is gone.
    Select(i64, i64),
    /// Index `index` of a dimension of `count` indices, which is gone; refused for another size.
    Unbind {
        /// The dimension.
        axis: i64,
        /// Its size.
        count: i64,
        /// Which index.
        index: i64,
    },
    /// Part `index` of `parts` (of a dimension divided as `aten::chunk` does).
    Chunk {
        /// The dimension.
        axis: i64,
        /// How many parts.
        parts: i64,
        /// Which one.
        index: i64,
    },
    /// Part `index` of those of `size` indices each (of a dimension divided as `aten::split` does).
    Split {
        /// The dimension.
        axis: i64,
        /// Indices of a part.
        size: i64,
        /// Which part.
        index: i64,
    },
    /// Other sizes for the same elements; one may be -1. Copied where strides cannot say it.
    Reshape(Vec<Size>),
    /// As [`Reshape`](Self::Reshape), refused where strides cannot say it.
    Reinterpret(Vec<Size>),
    /// Dimensions from the first to the last of these become one.
    Flatten(i64, i64),
    /// A new dimension of size 1.
    Unsqueeze(i64),
    /// Dimensions of size 1 are gone: this one, or all.
    Squeeze(Option<i64>),
    /// Dimensions of size 1 are repeated; -1 keeps a size.
    Expand(Vec<Size>),
    /// Memory in this order, copied where it is not.
    Contiguous(Format),
}

/// What a view makes of a layout.
pub(crate) enum Seen {
    /// The same memory, from `offset` elements on.
    Same(Layout, usize),
    /// A copy in this order first, then its memory in this layout.
    Copied(Format, Layout),
}

impl View {
    /// The sizes that it is computed with.
    pub(crate) fn sizes(&self) -> Vec<&Size> {
        match self {
            Self::Slice { start, end, .. } => vec![start, end],
            Self::Reshape(sizes) | Self::Reinterpret(sizes) | Self::Expand(sizes) => sizes.iter().collect(),
            _ => Vec::new(),
        }
    }

    /// What it makes of `x`, with what `number` says of sizes.
    pub(crate) fn of(&self, x: &Layout, number: &dyn Fn(&Size) -> Result<i64>) -> Result<Seen> {
        let numbers = |sizes: &[Size]| sizes.iter().map(number).collect::<Result<Vec<_>>>();
        let same = |layout: Layout| Ok(Seen::Same(layout, 0));
        match self {
            Self::Permute(axes) => same(permuted(x, axes)?),
            Self::Transpose(a, b) => {
                let (a, b, mut layout) = (x.axis(*a)?, x.axis(*b)?, x.clone());
                layout.sizes.swap(a, b);
                layout.strides.swap(a, b);
                same(layout)
            }
            Self::Slice { axis, start, end, step } => {
                let axis = x.axis(*axis)?;
                let size = x.sizes[axis];
                let place = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(0, size);
                let start = place(number(start)?);
                part(x, axis, start, place(number(end)?).max(start), *step)
            }
            Self::Select(axis, index) => {
                let axis = x.axis(*axis)?;
                let index = if *index < 0 { *index + x.sizes[axis] } else { *index };
                let Seen::Same(mut layout, offset) = part(x, axis, index, index.saturating_add(1), 1)? else {
                    return refuse("a view");
                };
                layout.sizes.remove(axis);
                layout.strides.remove(axis);
                Ok(Seen::Same(layout, offset))
            }
            Self::Unbind { axis, count, index } => {
                let size = x.sizes[x.axis(*axis)?];
                match size == *count {
                    true => Self::Select(*axis, *index).of(x, number),
                    false => refuse(format!("{count} tensors of a dimension of size {size}")),
                }
            }
            Self::Chunk { axis, parts, index } => {
                let along = x.axis(*axis)?;
                if *parts < 1 {
                    return refuse(format!("{parts} chunks"));
                }
                split(x, along, x.sizes[along].saturating_add(parts - 1) / parts, *index)
            }
            Self::Split { axis, size, index } => split(x, x.axis(*axis)?, *size, *index),
            Self::Reshape(sizes) => {
                let sizes = resolved(x, numbers(sizes)?)?;
                Ok(match reshaped(x, &sizes) {
                    Some(layout) => Seen::Same(layout, 0),
                    None => Seen::Copied(Format::Contiguous, Layout::new(x.element, &sizes, Format::Contiguous)),
                })
            }
            Self::Reinterpret(sizes) => {
                let sizes = resolved(x, numbers(sizes)?)?;
                match reshaped(x, &sizes) {
                    Some(layout) => same(layout),
                    None => {
                        refuse(format!("sizes {sizes:?} for a tensor of {:?} and strides {:?}", x.sizes, x.strides))
                    }
                }
            }
            Self::Flatten(from, to) => {
                if x.rank() == 0 {
                    return refuse("a tensor without dimensions");
                }
                let (from, to) = (x.axis(*from)?, x.axis(*to)?);
                if from > to {
                    return refuse(format!("dimensions {from} to {to} as one"));
                }
                let one = x.sizes[from..=to].iter().product();
                let sizes = [&x.sizes[..from], &[one], &x.sizes[to + 1..]].concat();
                Self::Reshape(sizes.into_iter().map(Size::Known).collect()).of(x, number)
            }
            Self::Unsqueeze(axis) => {
                let mut layout = x.clone();
                let rank = x.rank() as i64 + 1;
                let at = if *axis < 0 { *axis + rank } else { *axis };
                if !(0..rank).contains(&at) {
                    return refuse(format!("a new dimension {axis} of a tensor of sizes {:?}", x.sizes));
                }
                let at = at as usize;
                let stride = if at < x.rank() { x.sizes[at] * x.strides[at] } else { 1 };
                layout.sizes.insert(at, 1);
                layout.strides.insert(at, stride);
                same(layout)
            }
            Self::Squeeze(axis) => {
                let only = axis.map(|axis| x.axis(axis)).transpose()?;
                let goes = |axis: usize| x.sizes[axis] == 1 && only.is_none_or(|only| only == axis);
                let kept: Vec<usize> = (0..x.rank()).filter(|axis| !goes(*axis)).collect();
                let pick = |numbers: &[i64]| kept.iter().map(|axis| numbers[*axis]).collect();
                same(Layout { element: x.element, sizes: pick(&x.sizes), strides: pick(&x.strides) })
            }
            Self::Expand(sizes) => same(expanded(x, &numbers(sizes)?)?),
            Self::Contiguous(format) => {
                if *format == Format::ChannelsLast && !matches!(x.rank(), 4 | 5) {
                    return refuse(format!("channels last of a tensor of sizes {:?}", x.sizes));
                }
                Ok(match x.is_contiguous(*format) {
                    true => Seen::Same(x.clone(), 0),
                    false => Seen::Copied(*format, Layout::new(x.element, &x.sizes, *format)),
                })
            }
        }
    }
}

fn permuted(x: &Layout, axes: &[i64]) -> Result<Layout> {
    let order = axes.iter().map(|axis| x.axis(*axis)).collect::<Result<Vec<_>>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if sorted != (0..x.rank()).collect::<Vec<_>>() {
        return refuse(format!("{axes:?} is no order of {} dimensions", x.rank()));
    }
    let pick = |numbers: &[i64]| order.iter().map(|axis| numbers[*axis]).collect();
    Ok(Layout { element: x.element, sizes: pick(&x.sizes), strides: pick(&x.strides) })
}

/// Indices `start..end` of a dimension, every `step`-th.
fn part(x: &Layout, axis: usize, start: i64, end: i64, step: i64) -> Result<Seen> {
    if step < 1 || start < 0 || start >= end || end > x.sizes[axis] {
        return refuse(format!("indices {start}..{end} by {step} of a dimension of size {}", x.sizes[axis]));
    }
    let mut layout = x.clone();
    layout.sizes[axis] = (end - start - 1) / step + 1;
    layout.strides[axis] = x.strides[axis].checked_mul(step).unwrap_or(i64::MAX);
    let offset = start as usize * x.strides[axis] as usize;
    Ok(Seen::Same(layout, offset))
}

/// Part `index` of those of `size` indices.
fn split(x: &Layout, axis: usize, size: i64, index: i64) -> Result<Seen> {
    if size < 1 || index < 0 {
        return refuse(format!("part {index} of {size} indices"));
    }
    let start = index.saturating_mul(size);
    part(x, axis, start, start.saturating_add(size).min(x.sizes[axis]), 1)
}

/// Sizes for the elements of `x`, one of which may be -1.
fn resolved(x: &Layout, mut sizes: Vec<i64>) -> Result<Vec<i64>> {
    let known = sizes.iter().filter(|size| **size != -1).try_fold(1i64, |all, size| all.checked_mul(*size));
    let (all, missing) = (x.len() as i64, sizes.iter().filter(|size| **size == -1).count());
    match known {
        Some(known) if missing == 0 && known == all => {}
        Some(known) if missing == 1 && known > 0 && all % known == 0 => {
            sizes.iter_mut().filter(|size| **size == -1).for_each(|size| *size = all / known);
        }
        _ => return refuse(format!("sizes {sizes:?} for a tensor of {:?}", x.sizes)),
    }
    match sizes.iter().all(|size| *size > 0) {
        true => Ok(sizes),
        false => refuse(format!("sizes {sizes:?}")),
    }
}

/// The strides with which the memory of `x` is a tensor of `sizes`, where there are such: libtorch's rule.
pub(crate) fn reshaped(x: &Layout, sizes: &[i64]) -> Option<Layout> {
    let mut strides = vec![1; sizes.len()];
    let mut next = sizes.len();
    let mut base = *x.strides.last().unwrap_or(&1);
    let (mut elements, mut seen) = (1i64, 1i64);
    for axis in (0..x.rank()).rev() {
        elements *= x.sizes[axis];
        let ends = axis == 0 || (x.sizes[axis - 1] != 1 && x.strides[axis - 1] != elements.saturating_mul(base));
        if !ends {
            continue;
        }
        while next > 0 && (seen < elements || sizes[next - 1] == 1) {
            strides[next - 1] = seen.saturating_mul(base);
            seen *= sizes[next - 1];
            next -= 1;
        }
        if seen != elements {
            return None;
        }
        if axis > 0 {
            base = x.strides[axis - 1];
            (elements, seen) = (1, 1);
        }
    }
    (next == 0).then(|| Layout { element: x.element, sizes: sizes.to_vec(), strides })
}

/// `x` with dimensions of size 1 repeated, new ones in front.
pub(crate) fn expanded(x: &Layout, sizes: &[i64]) -> Result<Layout> {
    let wrong = || refuse(format!("a tensor of sizes {:?} expanded to {sizes:?}", x.sizes));
    let Some(new) = sizes.len().checked_sub(x.rank()) else { return wrong() };
    let mut layout = Layout { element: x.element, sizes: sizes.to_vec(), strides: vec![0; sizes.len()] };
    for axis in 0..x.rank() {
        let (size, stride) = (x.sizes[axis], x.strides[axis]);
        match sizes[new + axis] {
            -1 => (layout.sizes[new + axis], layout.strides[new + axis]) = (size, stride),
            wanted if wanted == size => layout.strides[new + axis] = stride,
            _ if size == 1 => {}
            _ => return wrong(),
        }
    }
    match layout.sizes.iter().all(|size| *size > 0) {
        true => Ok(layout),
        false => wrong(),
    }
}
