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
//! That the second step works on `w*` and on the quantized model's inputs is what distinguishes it from GPTQ, where both
//! runs have the same inputs; compare Nagel et al., AdaRound, 2020, section 3.5.

use rayon::prelude::*;

use super::layer::Layer;
use super::solver::Problem;
use super::{Pair, Runner};
use crate::error::Result;
use crate::ir::Tensor;
use crate::pass::prepare::Channel;

/// Windows that a layer's problem is made of, for each column: enough that noise is not learned.
const ROWS_PER_COLUMN: i64 = 12;
/// And at least and at most so many.
const ROWS: std::ops::RangeInclusive<i64> = 8192..=24576;
/// Columns up to which a problem is solved; the factorization takes their third power of time.
const MOST_COLUMNS: i64 = 5120;
/// What is added to the diagonal, in parts of its mean.
const DAMPING: f64 = 0.01;

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
        let rows = (ROWS_PER_COLUMN * columns).clamp(*ROWS.start(), *ROWS.end()) / inputs.len().max(1) as i64;
        let mut grams = None;
        for pair in inputs {
            let float = self.solver.windows(&pair.float, window.as_ref(), rows)?;
            let quantized = self.solver.windows(&pair.quantized, window.as_ref(), rows)?;
            let batch = self.solver.grams(&float, &quantized)?;
            grams = Some(match grams {
                None => batch,
                Some(sum) => self.solver.sum(sum, &batch)?,
            });
        }
        let Some(grams) = grams else { return by_sums() };
        let values = weight.to_f32_vec()?;
        let (columns, outputs, groups) = (columns as usize, outputs as usize, groups as usize);
        let with_bias: Vec<f32> = values
            .chunks(columns)
            .enumerate()
            .flat_map(|(output, row)| row.iter().copied().chain([bias.map_or(0.0, |bias| bias[output])]))
            .collect();
        let per_group = outputs / groups;
        let with_bias = Tensor::from_slice(&with_bias, &[groups as i64, per_group as i64, columns as i64 + 1])?;
        let problem = self.solver.prepare(&grams, with_bias, DAMPING)?;
        let channels: Vec<Channel> = (0..outputs).map(|output| grid.channel(output)).collect();
        let quantized = self.solver.quantize_weight(weight, &grid)?.to_f32_vec()?;
        let (rounded, bias) = round([&values, &quantized], &problem, &channels, groups, columns);
        Ok(Some((Tensor::from_slice(&rounded, &weight.shape())?, Some(bias))))
    }
}

/// The rounded weights (outputs x columns) and the biases, of weights as they are and as they would be quantized.
fn round(
    values: [&[f32]; 2],
    problem: &Problem,
    channels: &[Channel],
    groups: usize,
    columns: usize,
) -> (Vec<f32>, Vec<f32>) {
    let outputs = channels.len();
    let (per_group, size) = (outputs / groups, columns + 1);
    let rows: Vec<(Vec<f32>, f32)> = (0..outputs)
        .into_par_iter()
        .map(|output| {
            let group = output / per_group;
            let factor = &problem.factor[group * size * size..(group + 1) * size * size];
            let order = &problem.order[group * columns..(group + 1) * columns];
            let target = &problem.target[output * size..(output + 1) * size];
            let row = values.map(|values| &values[output * columns..(output + 1) * columns]);
            round_row(row, target, order, factor, channels[output])
        })
        .collect();
    let bias = rows.iter().map(|(_, bias)| *bias).collect();
    (rows.into_iter().flat_map(|(row, _)| row).collect(), bias)
}

/// Rounds `target`, a row's solution and its bias. The weights at the end of the range keep their place: an observer that
/// sees the row again finds the same range. What they lose when they are quantized, up to half a step, is made good for by
/// the others.
fn round_row(
    [row, quantized]: [&[f32]; 2],
    target: &[f32],
    order: &[usize],
    factor: &[f32],
    channel: Channel,
) -> (Vec<f32>, f32) {
    let columns = row.len();
    let size = columns + 1;
    let mut left: Vec<f32> = order.iter().map(|column| target[*column]).chain([target[columns]]).collect();
    let mut rounded = vec![0.0; columns];
    for (position, &column) in order.iter().enumerate() {
        let is_end = row[column].abs() > channel.largest() - 0.5 * channel.step;
        let nearest = channel.nearest(left[position].clamp(-channel.largest(), channel.largest()));
        let becomes;
        (rounded[column], becomes) = if is_end { (row[column], quantized[column]) } else { (nearest, nearest) };
        let of_row = &factor[position * size..(position + 1) * size];
        let error = (left[position] - becomes) / of_row[position];
        std::iter::zip(&mut left[position + 1..], &of_row[position + 1..]).for_each(|(w, u)| *w -= error * u);
    }
    (rounded, left[columns])
}
