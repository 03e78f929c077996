//! The windows that a layer sees of what it takes: some of them, each a row of its least squares problem.

use crate::engine::in_parts;
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use crate::kernel::geometry::Sliding;

/// How the window of a two-dimensional convolution moves over its input.
pub(super) struct Window {
    pub kernel: [i64; 2],
    pub dilation: [i64; 2],
    pub padding: [i64; 2],
    pub stride: [i64; 2],
    pub groups: i64,
}

/// About `rows` of the windows in `x` (samples x channels x height x width), spread evenly over the samples and places; without a
/// window, rows of a linear layer's input. Each half of them is a tensor groups x rows x (columns + 1), the last column ones.
///
/// # Errors
/// Where `x` has other dimensions than the window is for.
pub(super) fn windows(x: &Tensor, window: Option<&Window>, rows: usize) -> Result<[Tensor; 2]> {
    let shape: Vec<usize> = x.shape().into_iter().map(|size| size as usize).collect();
    let rows = rows.max(1);
    match (window, &shape[..]) {
        (None, [outer @ .., columns]) => {
            let count = outer.iter().product::<usize>();
            let places: Vec<usize> = (0..count).step_by((count / rows).max(1)).collect();
            in_halves(x, 1, *columns, &places, |x, &place, _, row| {
                row.copy_from_slice(&x[place * columns..][..*columns]);
            })
        }
        (Some(window), &[samples, channels, height, width]) => {
            let geometry = Geometry::of(window, [channels, height, width])?;
            let count = geometry.results[0] * geometry.results[1];
            let step = (count / (rows / samples.max(1)).max(1)).max(1);
            let of_sample =
                |sample: usize| ((sample * 7 % step)..count).step_by(step).map(move |place| (sample, place));
            let places: Vec<(usize, usize)> = (0..samples).flat_map(of_sample).collect();
            in_halves(x, geometry.groups, geometry.columns(), &places, |x, &(sample, place), group, row| {
                geometry.read(x, sample, place, group, row);
            })
        }
        _ => Err(Error::invalid(format!("a layer that takes a tensor of {shape:?}"))),
    }
}

/// Both halves of the rows at `places`, each read by `read(elements, place, group, row)`.
fn in_halves<P: Sync>(
    x: &Tensor,
    groups: usize,
    columns: usize,
    places: &[P],
    read: impl Fn(&[f32], &P, usize, &mut [f32]) + Sync,
) -> Result<[Tensor; 2]> {
    let (first, second) = places.split_at(places.len().div_ceil(2));
    let half = |places: &[P]| {
        let (rows, width) = (places.len(), columns + 1);
        let memory = Tensor::filled(groups * rows * width * size_of::<f32>(), |bytes| {
            x.with_f32(|x| {
                in_parts(bytemuck::cast_slice_mut(bytes), width, width, &|first, part: &mut [f32]| {
                    for (at, row) in (first..).zip(part.chunks_mut(width)) {
                        read(x, &places[at % rows], at / rows, &mut row[..columns]);
                        row[columns] = 1.0;
                    }
                });
            })
        })?;
        let [groups, rows, width] = [groups, rows, width].map(|size| size as i64);
        memory.view_as(DType::F32, &[groups, rows, width], &[rows * width, width, 1], 0)
    };
    Ok([half(first)?, half(second)?])
}

/// The sizes of a convolution.
struct Geometry {
    groups: usize,
    /// Channels of a group.
    channels: usize,
    size: [usize; 2],
    results: [usize; 2],
    axes: [Sliding; 2],
}

impl Geometry {
    fn of(window: &Window, [channels, height, width]: [usize; 3]) -> Result<Self> {
        let refuse = || Error::invalid("a convolution whose window does not fit its input");
        let size = [height, width];
        let axis = |axis: usize| -> Option<(Sliding, usize)> {
            let of = |pair: [i64; 2]| usize::try_from(pair[axis]).ok();
            let sliding = Sliding {
                kernel: of(window.kernel)?,
                stride: of(window.stride)?,
                padding: of(window.padding)?,
                dilation: of(window.dilation)?,
            };
            Some((sliding, sliding.windows(size[axis], 0)?))
        };
        let (down, across) = (axis(0).ok_or_else(refuse)?, axis(1).ok_or_else(refuse)?);
        let groups = usize::try_from(window.groups).ok().filter(|groups| *groups > 0).ok_or_else(refuse)?;
        let (axes, results) = ([down.0, across.0], [down.1, across.1]);
        Ok(Self { groups, channels: channels / groups, size, results, axes })
    }

    fn columns(&self) -> usize {
        self.channels * self.axes[0].kernel * self.axes[1].kernel
    }

    /// Writes what the window at `place` of the results takes of a group's channels; 0 where it lies in the padding.
    fn read(&self, x: &[f32], sample: usize, place: usize, group: usize, row: &mut [f32]) {
        let from = [place / self.results[1] * self.axes[0].stride, place % self.results[1] * self.axes[1].stride];
        let at = |axis: usize, step: usize| {
            let at = from[axis] + step * self.axes[axis].dilation;
            at.checked_sub(self.axes[axis].padding).filter(|at| *at < self.size[axis])
        };
        let mut values = row.iter_mut();
        for channel in 0..self.channels {
            let plane = (sample * self.groups + group) * self.channels + channel;
            for down in 0..self.axes[0].kernel {
                let line = at(0, down).map(|y| (plane * self.size[0] + y) * self.size[1]);
                for (across, value) in (0..self.axes[1].kernel).zip(&mut values) {
                    *value = line.zip(at(1, across)).map_or(0.0, |(line, x_at)| x[line + x_at]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tensor: &Tensor, group: usize, row: usize) -> Vec<f32> {
        let shape = tensor.shape();
        let (rows, columns) = (shape[1] as usize, shape[2] as usize);
        tensor.to_f32_vec().unwrap()[(group * rows + row) * columns..][..columns].to_vec()
    }

    #[test]
    fn windows_hold_what_a_convolution_takes() {
        // Two channels of 3 x 4 in two groups, a window of 2 x 2 dilated across, padded by one below and above.
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        let x = Tensor::from_slice(&values, &[1, 2, 3, 4]).unwrap();
        let window = Window { kernel: [2, 2], dilation: [1, 2], padding: [1, 0], stride: [2, 1], groups: 2 };
        let [first, second] = windows(&x, Some(&window), 100).unwrap();
        // Two rows of two places.
        assert_eq!((first.shape(), second.shape()), (vec![2, 2, 5], vec![2, 2, 5]));
        assert_eq!(row(&first, 0, 0), [0.0, 0.0, 0.0, 2.0, 1.0]);
        assert_eq!(row(&first, 1, 1), [0.0, 0.0, 13.0, 15.0, 1.0]);
        assert_eq!(row(&second, 0, 1), [5.0, 7.0, 9.0, 11.0, 1.0]);
    }

    #[test]
    fn rows_of_a_linear_layer_are_taken_evenly() {
        let values: Vec<f32> = (0..40).map(|value| value as f32).collect();
        let x = Tensor::from_slice(&values, &[2, 10, 2]).unwrap();
        let [first, second] = windows(&x, None, 4).unwrap();
        assert_eq!((first.shape(), second.shape()), (vec![1, 2, 3], vec![1, 2, 3]));
        assert_eq!(row(&second, 0, 1), [30.0, 31.0, 1.0]);
    }

    #[test]
    fn a_window_larger_than_its_input_is_refused() {
        let x = Tensor::from_slice(&[0.0f32; 4], &[1, 1, 2, 2]).unwrap();
        let window = Window { kernel: [3, 3], dilation: [1, 1], padding: [0, 0], stride: [1, 1], groups: 1 };
        assert!(windows(&x, Some(&window), 10).is_err());
    }
}
