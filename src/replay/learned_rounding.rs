//! Rounding of weights that keeps a layer's results on the calibration data.
//!
//! For an output channel with weights `w` and bias, `x` being what the layer takes in float (a window in each row, a
//! column of ones for the bias) and `q` the same in the quantized model, rounding minimizes `|q w' - x w|^2`:
//!
//! 1. without rounding the solution is `w* = (q^T q)^-1 q^T x w`: it makes good what the layers before did wrong;
//! 2. the columns are rounded one after the other, and the columns not yet rounded, the bias last, take over what each
//!    rounding does to the results. With `U` upper triangular and `U^T U = (q^T q)^-1`, rounding column `j` by `e` changes
//!    a later column `k` by `-e U[j][k] / U[j][j]` (Frantar et al., GPTQ, 2022; after Hassibi and Stork, Optimal Brain
//!    Surgeon, 1993). Columns with the largest inputs come first, while there are most to make good for them.
//!
//! Both steps fit the windows that there are, and late layers have few for their many columns. So something is added to the
//! diagonal of `q^T q`, which draws the first step to `w` and has the second make good for less; how much, each layer's own
//! data say: the first half is fitted, the second judges.
//!
//! That the second step works on `w*` and on the quantized model's inputs is what distinguishes it from GPTQ, where both
//! runs have the same inputs; compare Nagel et al., AdaRound, 2020, section 3.5.

use rayon::prelude::*;

use super::layer::Layer;
use super::solver::{Factor, Grams};
use super::{Pair, Runner};
use crate::error::Result;
use crate::ir::Tensor;
use crate::pass::prepare::Channel;

/// Windows that a layer's problem is made of, of all that its inputs have.
const ROWS: i64 = 24576;
/// Columns up to which a problem is solved; the factorization takes their third power of time.
const MOST_COLUMNS: i64 = 5120;
/// What can be added to the diagonal, in parts of its mean: for the solution, and for what makes good for rounding. With few
/// windows for many columns the solution would fit their noise, and give other inputs worse results than plain rounding;
/// with many it can be trusted. Which of these a layer takes, the second half of the data says of what the first half gave.
const DAMPING: [f64; 6] = [1e-3, 0.01, 0.1, 1.0, 10.0, 100.0];
/// In parts of the columns, what is needed for the sums, made in f32, to have a factor.
const LEAST_DAMPING: f64 = 2e-6;
/// Where the search for them begins, there being one minimum.
const FIRST_TARGET: usize = 3;
const FIRST_FACTOR: usize = 2;

/// A layer's weights, as rounding takes them.
struct Rows<'a> {
    /// Outputs x columns: as they are, and as they would be quantized.
    values: [&'a [f32]; 2],
    channels: Vec<Channel>,
    groups: usize,
    columns: usize,
}

impl Runner<'_> {
    /// The rounded weight and the new bias; rounding by sums where the layer is of another kind or too large.
    pub(super) fn learned(
        &self,
        layer: &Layer<'_>,
        weight: &Tensor,
        bias: Option<&[f32]>,
        inputs: &[Pair],
    ) -> Result<Option<(Tensor, Option<Vec<f32>>)>> {
        let by_sums = || Ok(layer.rounded_by_sums(weight)?.map(|weight| (weight, bias.map(<[f32]>::to_vec))));
        let (Some(grid), Some(window)) = (layer.grid(weight)?, layer.window(weight)) else { return by_sums() };
        let outputs = weight.shape()[0];
        let groups = window.as_ref().map_or(1, |window| window.groups);
        let columns = weight.shape()[1..].iter().product::<i64>();
        if columns > MOST_COLUMNS || columns == 0 || outputs % groups != 0 {
            return by_sums();
        }
        let rows = ROWS / inputs.len().max(1) as i64;
        let mut halves: Option<[Grams; 2]> = None;
        for pair in inputs {
            let float = self.solver.windows(&pair.float, window.as_ref(), rows)?;
            let quantized = self.solver.windows(&pair.quantized, window.as_ref(), rows)?;
            let [one, other] = self.solver.grams(&float, &quantized)?;
            halves = Some(match halves {
                None => [one, other],
                Some(sums) => [self.solver.sum(&sums[0], &one)?, self.solver.sum(&sums[1], &other)?],
            });
        }
        let Some(halves) = halves else { return by_sums() };
        let values = weight.to_f32_vec()?;
        let (columns, outputs, groups) = (columns as usize, outputs as usize, groups as usize);
        let with_bias: Vec<f32> = values
            .chunks(columns)
            .enumerate()
            .flat_map(|(output, row)| row.iter().copied().chain([bias.map_or(0.0, |bias| bias[output])]))
            .collect();
        let per_group = outputs / groups;
        let with_bias = Tensor::from_slice(&with_bias, &[groups as i64, per_group as i64, columns as i64 + 1])?;
        let channels: Vec<Channel> = (0..outputs).map(|output| grid.channel(output)).collect();
        let quantized = self.solver.quantize_weight(weight, &grid)?.to_f32_vec()?;
        let rows = Rows { values: [&values, &quantized], channels, groups, columns };
        let rounded = self.rounded(&rows, &with_bias, &halves)?;
        let bias = rounded.chunks(columns + 1).map(|row| row[columns]).collect();
        let weight_values: Vec<f32> = rounded
            .chunks(columns + 1)
            .zip(values.chunks(columns))
            .zip(&rows.channels)
            .flat_map(|((row, were), channel)| {
                // The ends of the range keep their place: an observer that sees the row again finds the same range.
                row.iter().zip(were).map(|(&is, &was)| if channel.is_end(was) { was } else { is })
            })
            .collect();
        Ok(Some((Tensor::from_slice(&weight_values, &weight.shape())?, Some(bias))))
    }

    /// What the weights and biases `weight`, groups x outputs x (columns + 1), become.
    fn rounded(&self, rows: &Rows<'_>, weight: &Tensor, halves: &[Grams; 2]) -> Result<Vec<f32>> {
        let (given, other) = (&halves[0], &halves[1]);
        let from = DAMPING.partition_point(|&damping| damping < LEAST_DAMPING * rows.columns as f64);
        let (target, solution) = lowest(from, FIRST_TARGET, |damping| {
            let solution = self.solver.target(given, weight, damping)?;
            Ok((self.solver.loss(other, weight, &solution)?, solution))
        })?;
        let solution = solution.to_vec()?;
        let (factor, ()) = lowest(from, FIRST_FACTOR, |damping| {
            let rounded = rows.round(&solution, &self.solver.factor(given, damping)?);
            Ok((self.solver.loss(other, weight, &Tensor::from_slice(&rounded, &weight.shape())?)?, ()))
        })?;
        let all = self.solver.sum(&halves[0], &halves[1])?;
        let solution = self.solver.target(&all, weight, target)?.to_vec()?;
        Ok(rows.round(&solution, &self.solver.factor(&all, factor)?))
    }
}

/// The damping with the least loss, on the way down from the `first` one, and what was made with it; none before `from`.
fn lowest<T>(from: usize, first: usize, make: impl Fn(f64) -> Result<(f64, T)>) -> Result<(f64, T)> {
    let (mut least, mut made) = make(DAMPING[first])?;
    let mut at = first;
    let up = first + 1..DAMPING.len();
    for way in [up.collect::<Vec<_>>(), (from..first).rev().collect()] {
        for next in way {
            let (loss, other) = make(DAMPING[next])?;
            if loss.is_nan() || loss >= least {
                break;
            }
            (at, least, made) = (next, loss, other);
        }
        if at != first {
            break;
        }
    }
    Ok((DAMPING[at], made))
}

impl Rows<'_> {
    fn round(&self, target: &[f32], factor: &Factor) -> Vec<f32> {
        let outputs = self.channels.len();
        let (columns, per_group, size) = (self.columns, outputs / self.groups, self.columns + 1);
        (0..outputs)
            .into_par_iter()
            .flat_map_iter(|output| {
                let group = output / per_group;
                let values = &factor.values[group * size * size..(group + 1) * size * size];
                let order = &factor.order[group * columns..(group + 1) * columns];
                let target = &target[output * size..(output + 1) * size];
                let row = self.values.map(|values| &values[output * columns..(output + 1) * columns]);
                round_row(row, target, order, values, self.channels[output])
            })
            .collect()
    }
}

/// Rounds `target`, a row's solution and its bias. The weights at the end of the range become what quantizing makes of them:
/// what they lose, up to half a step, is made good for by the others.
fn round_row(
    [row, quantized]: [&[f32]; 2],
    target: &[f32],
    order: &[usize],
    factor: &[f32],
    channel: Channel,
) -> Vec<f32> {
    let columns = row.len();
    let size = columns + 1;
    let mut left: Vec<f32> = order.iter().map(|column| target[*column]).chain([target[columns]]).collect();
    let mut rounded = vec![0.0; size];
    for (position, &column) in order.iter().enumerate() {
        rounded[column] = if channel.is_end(row[column]) {
            quantized[column]
        } else {
            channel.nearest(left[position].clamp(-channel.largest(), channel.largest()))
        };
        let of_row = &factor[position * size..(position + 1) * size];
        let error = (left[position] - rounded[column]) / of_row[position];
        std::iter::zip(&mut left[position + 1..], &of_row[position + 1..]).for_each(|(w, u)| *w -= error * u);
    }
    rounded[columns] = left[columns];
    rounded
}
