//! A convolution as products of segments of the input with packed weights.
//!
//! An output at position `o` is a sum over taps. Of an ordinary convolution, tap `k` reads the input at
//! `o * stride - padding + k * dilation`: one **phase**, whose outputs step through the input by the stride.
//!
//! Of a transposed one, tap `k` reads the input at `(o + padding - k * dilation) / stride` where that is a whole number.
//! Outputs fall into `stride` phases by their remainder `r`: for `o = q * stride + r` the taps that count are the same for
//! every `q`, and tap `k` reads input `q + (r + padding - k * dilation) / stride`: each phase is an ordinary convolution of
//! stride 1 with some of the taps.

use super::shape::ConvShape;
use crate::Result;
use crate::gemm::drive::Path;
use crate::gemm::panels::Panels;

/// Outputs that differ by multiples of `step`, and what they read.
pub(super) struct Phase {
    /// The first output of each dimension.
    pub first: [usize; 3],
    /// Where each segment begins, relative to where an output's step through the input is.
    pub taps: Vec<[isize; 3]>,
    /// Weights a group of channels.
    pub groups: Vec<Panels>,
    /// The kernel taps of which the segments consist, in order: for unpacking.
    pub sources: Vec<[usize; 3]>,
}

/// Outputs from one of a phase to the next.
pub(super) fn output_step(shape: &ConvShape) -> [usize; 3] {
    if shape.transposed { shape.stride } else { [1; 3] }
}

/// Inputs from one output of a phase to the next.
pub(super) fn input_step(shape: &ConvShape) -> [usize; 3] {
    if shape.transposed { [1; 3] } else { shape.stride }
}

/// Whether the taps of a kernel's row are one segment: they are neighbours in the input, and no other group's channels lie
/// between them.
pub(super) fn rows_are_segments(shape: &ConvShape) -> bool {
    !shape.transposed && shape.groups == 1 && (shape.dilation[2] == 1 || shape.kernel[2] == 1)
}

impl Phase {
    /// All phases of a convolution, with their weights packed.
    pub fn all(path: Path, shape: &ConvShape, weight: &[i8], zero_points: &[i32]) -> Result<Vec<Self>> {
        let [d, h, w] = output_step(shape);
        let mut phases = Vec::new();
        for first in positions([d, h, w]) {
            phases.push(Self::new(path, shape, weight, zero_points, first)?);
        }
        Ok(phases)
    }

    fn new(path: Path, shape: &ConvShape, weight: &[i8], zero_points: &[i32], first: [usize; 3]) -> Result<Self> {
        let sources: Vec<_> = positions(shape.kernel).filter(|tap| offset(shape, first, *tap).is_some()).collect();
        let per_segment = if rows_are_segments(shape) { shape.kernel[2] } else { 1 };
        let taps = sources.iter().step_by(per_segment).filter_map(|tap| offset(shape, first, *tap)).collect();
        let (inputs, outputs) = (shape.group_inputs(), shape.group_outputs());
        let mut groups = Vec::with_capacity(shape.groups);
        for group in 0..shape.groups {
            let mut rows = Vec::with_capacity(outputs * sources.len() * inputs);
            for output in 0..outputs {
                for tap in &sources {
                    rows.extend((0..inputs).map(|input| weight[index(shape, group, output, input, *tap)]));
                }
            }
            let zero_points = match zero_points.len() {
                0 | 1 => zero_points,
                _ => &zero_points[group * outputs..][..outputs],
            };
            groups.push(path.pack(&rows, outputs, sources.len() / per_segment, per_segment * inputs, zero_points)?);
        }
        Ok(Self { first, taps, groups, sources })
    }

    /// Writes this phase's part of the weight.
    pub fn unpack(&self, shape: &ConvShape, weight: &mut [i8]) {
        let (inputs, outputs) = (shape.group_inputs(), shape.group_outputs());
        let mut rows = vec![0; outputs * self.sources.len() * inputs];
        for (group, panels) in self.groups.iter().enumerate() {
            panels.unpack(&mut rows);
            let mut rows = rows.iter();
            for output in 0..outputs {
                for tap in &self.sources {
                    for input in 0..inputs {
                        weight[index(shape, group, output, input, *tap)] = *rows.next().unwrap_or(&0);
                    }
                }
            }
        }
    }

    /// How many outputs of each dimension it has, of `output` in all.
    pub fn count(&self, shape: &ConvShape, output: [usize; 3]) -> [usize; 3] {
        let step = output_step(shape);
        std::array::from_fn(|d| output[d].saturating_sub(self.first[d]).div_ceil(step[d]))
    }
}

/// All positions of a grid, the last dimension first.
fn positions(size: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..size[0]).flat_map(move |d| (0..size[1]).flat_map(move |h| (0..size[2]).map(move |w| [d, h, w])))
}

/// Where tap `tap` reads, relative to the step of outputs that begin at `first`; `None` where it reads nothing for them.
fn offset(shape: &ConvShape, first: [usize; 3], tap: [usize; 3]) -> Option<[isize; 3]> {
    let mut found = [0; 3];
    for d in 0..3 {
        let (padding, reach) = (shape.padding[d] as isize, (tap[d] * shape.dilation[d]) as isize);
        if shape.transposed {
            let stride = shape.stride[d] as isize;
            let scaled = first[d] as isize + padding - reach;
            if scaled.rem_euclid(stride) != 0 {
                return None;
            }
            found[d] = scaled.div_euclid(stride);
        } else {
            found[d] = reach - padding;
        }
    }
    Some(found)
}

/// The place of a weight in libtorch's order: `[out, in / groups, d, h, w]`, transposed `[in, out / groups, d, h, w]`.
fn index(shape: &ConvShape, group: usize, output: usize, input: usize, tap: [usize; 3]) -> usize {
    let [d, h, w] = tap;
    let (inputs, outputs) = (shape.group_inputs(), shape.group_outputs());
    let (row, column, columns) = if shape.transposed {
        (group * inputs + input, output, outputs)
    } else {
        (group * outputs + output, input, inputs)
    };
    (((row * columns + column) * shape.kernel[0] + d) * shape.kernel[1] + h) * shape.kernel[2] + w
}
