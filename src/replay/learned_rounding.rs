//! Rounding of weights that keeps a layer's results on the calibration data.
//!
//! For an output channel with weights `w` and bias, `x` being what the layer takes in float (a window in each row, a
//! column of ones for the bias) and `q` the same in the quantized model, rounding minimizes `|q w' - x w|^2`:
//!
//! 1. without rounding the solution is `w* = (q^T q)^-1 q^T x w`: it makes good what the layers before did wrong;
//! 2. the columns are rounded one after the other, and the columns not yet rounded, the bias last, take over what each
//!    rounding does to the results (Frantar et al., GPTQ, 2022; after Hassibi and Stork, Optimal Brain Surgeon, 1993).
//!    With the columns in reverse order and `L` lower triangular, `L L^T = q^T q`, the results change by
//!    `|L^T (w' - w*)|`, of which each row has one column more than the one behind it: what was rounded to `w'[k]` has column
//!    `i` aim at `w*[i] + sum_k L[k][i] (w*[k] - w'[k]) / L[i][i]`. Columns with the largest inputs come first, while there
//!    are most to make good for them.
//!
//! Both steps fit the windows that there are, and late layers have few for their many columns. So something is added to the
//! diagonal of `q^T q`, which draws the first step to `w` and has the second make good for less; how much, each layer's own
//! data say: the first half is fitted, the second judges.
//!
//! That the second step works on `w*` and on the quantized model's inputs is what distinguishes it from GPTQ, where both
//! runs have the same inputs; compare Nagel et al., AdaRound, 2020, section 3.5.

use std::rc::Rc;

use super::layer::Layer;
use super::solver::{Factor, Grams, Solver};
use super::windows::{Window, windows};
use super::{Pair, Runner};
use crate::engine::in_parts;
use crate::error::Result;
use crate::ir::Tensor;
use crate::kernel::Isa;
use crate::kernel::multiversion;
use crate::pass::prepare::Channel;

/// Windows that a layer's problem is made of, of all that its inputs have.
const ROWS: usize = 24576;
/// Windows of small batches are joined up to so many.
const ROWS_AT_ONCE: i64 = 4096;
/// Outputs of a group by which the damping is chosen.
const SEARCH_OUTPUTS: usize = 128;
/// What factors may take that are kept to be used again.
const MOST_BYTES_OF_FACTORS: usize = 128 << 20;
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
struct Rows {
    /// Outputs x columns: as they are, and as they would be quantized.
    values: [Vec<f32>; 2],
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
        let values = weight.to_f32_vec()?;
        let (columns, outputs, groups) = (columns as usize, outputs as usize, groups as usize);
        let with_bias: Vec<f32> = values
            .chunks(columns)
            .enumerate()
            .flat_map(|(output, row)| row.iter().copied().chain([bias.map_or(0.0, |bias| bias[output])]))
            .collect();
        let per_group = outputs / groups;
        let with_bias = Tensor::from_slice(&with_bias, &[groups as i64, per_group as i64, columns as i64 + 1])?;
        let Some(halves) = self.halves(inputs, window.as_ref(), &with_bias)? else { return by_sums() };
        let channels: Vec<Channel> = (0..outputs).map(|output| grid.channel(output)).collect();
        let quantized = self.solver.quantize_weight(weight, &grid)?.to_f32_vec()?;
        let rows = Rows { values: [values, quantized], channels, groups, columns };
        let rounded = self.rounded(&rows, &with_bias, halves)?;
        let bias = rounded.chunks(columns + 1).map(|row| row[columns]).collect();
        let weight_values: Vec<f32> = rounded
            .chunks(columns + 1)
            .zip(rows.values[0].chunks(columns))
            .zip(&rows.channels)
            .flat_map(|((row, were), channel)| {
                // The ends of the range keep their place: an observer that sees the row again finds the same range.
                row.iter().zip(were).map(|(&is, &was)| if channel.is_end(was) { was } else { is })
            })
            .collect();
        Ok(Some((Tensor::from_slice(&weight_values, &weight.shape())?, Some(bias))))
    }

    /// The matrices of the two halves of the data; `None` where there is none.
    fn halves(&self, inputs: &[Pair], window: Option<&Window>, weight: &Tensor) -> Result<Option<[Grams; 2]>> {
        let rows = ROWS / inputs.len().max(1);
        let mut sums: Option<[Grams; 2]> = None;
        // The float and the quantized windows of each half.
        let mut held: [[Vec<Tensor>; 2]; 2] = Default::default();
        let mut count = 0;
        for (number, pair) in inputs.iter().enumerate() {
            for (run, input) in [&pair.float, &pair.quantized].into_iter().enumerate() {
                let of_halves = windows(&Tensor::try_from(input.clone())?, window, rows)?;
                count += if run == 0 { of_halves.iter().map(|half| half.shape()[1]).sum() } else { 0 };
                std::iter::zip(&mut held, of_halves).for_each(|(half, windows)| half[run].push(windows));
            }
            if count < ROWS_AT_ONCE && number + 1 < inputs.len() {
                continue;
            }
            let [one, other] = held.each_ref().map(|[float, quantized]| self.solver.grams(float, quantized, weight));
            let found = [one?, other?];
            match &sums {
                None => sums = Some(found),
                Some(sums) => {
                    std::iter::zip(sums, &found).try_for_each(|(sum, found)| self.solver.add(sum, found))?;
                }
            }
            (held, count) = Default::default();
        }
        Ok(sums)
    }

    /// What the weights and biases `weight`, groups x outputs x (columns + 1), become.
    fn rounded(&self, rows: &Rows, weight: &Tensor, halves: [Grams; 2]) -> Result<Vec<f32>> {
        let solver = &self.solver;
        let order = solver.order(&halves)?;
        let [given, other] = halves.each_ref().map(|half| solver.turned(half, &order));
        let (given, other) = (given?, other?);
        drop(halves);
        let weight = solver.in_order(&solver.transposed(weight)?, &order)?;
        let places = order.columns()?;

        let from = DAMPING.partition_point(|&damping| damping < LEAST_DAMPING * rows.columns as f64);
        let every = (rows.channels.len() / rows.groups).div_ceil(SEARCH_OUTPUTS).max(1);
        let some = rows.of_some(every);
        let some_weight = solver.some(&weight, every)?;
        let [fitted, judge] = [solver.of_some(&given, every)?, solver.of_some(&other, every)?];
        let mut factors = Factors::new(solver, &fitted);
        let (target, solution) = lowest(from, FIRST_TARGET, |damping| {
            let solution = solver.target(&fitted, &some_weight, &*factors.of(damping)?)?;
            Ok((solver.loss(&judge, &solution)?, solution))
        })?;
        let (shape, solution) = (solution.shape(), solution.to_vec()?);
        let (factor, ()) = lowest(from, FIRST_FACTOR, |damping| {
            let rounded = some.round(&places, &solution, &*factors.of(damping)?)?;
            Ok((solver.loss(&judge, &Tensor::from_slice(&rounded, &shape)?)?, ()))
        })?;
        drop(factors);

        solver.add(&given, &other)?;
        let mut factors = Factors::new(solver, &given);
        let solution = solver.target(&given, &weight, &*factors.of(target)?)?.to_vec()?;
        let rounded = rows.round(&places, &solution, &*factors.of(factor)?)?;
        Ok(rows.out_of_order(&places, &rounded))
    }
}

/// Factors that were made, as far as they do not take much memory.
struct Factors<'a> {
    solver: &'a Solver,
    grams: &'a Grams,
    made: Vec<(f64, Rc<Factor>)>,
}

impl<'a> Factors<'a> {
    fn new(solver: &'a Solver, grams: &'a Grams) -> Self {
        Self { solver, grams, made: Vec::new() }
    }

    fn of(&mut self, damping: f64) -> Result<Rc<Factor>> {
        if let Some((_, factor)) = self.made.iter().find(|(known, _)| *known == damping) {
            return Ok(factor.clone());
        }
        let held: usize = self.made.iter().map(|(_, factor)| factor.nbytes()).sum();
        if held > MOST_BYTES_OF_FACTORS {
            self.made.clear();
        }
        let factor = Rc::new(self.solver.factor(self.grams, damping)?);
        self.made.push((damping, factor.clone()));
        Ok(factor)
    }
}

/// The damping with the least loss, on the way down from the `first` one, and what was made with it; none before `from`.
fn lowest<T>(from: usize, first: usize, mut make: impl FnMut(f64) -> Result<(f64, T)>) -> Result<(f64, T)> {
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

impl Rows {
    /// Those of every so many-th output of each group.
    fn of_some(&self, every: usize) -> Self {
        let per_group = self.channels.len() / self.groups;
        let outputs: Vec<usize> =
            (0..self.channels.len()).filter(|output| (output % per_group).is_multiple_of(every)).collect();
        let rows = |values: &Vec<f32>| outputs.iter().flat_map(|row| self.row(values, *row)).copied().collect();
        Self {
            values: self.values.each_ref().map(rows),
            channels: outputs.iter().map(|output| self.channels[*output]).collect(),
            ..*self
        }
    }

    fn row<'v>(&self, values: &'v [f32], output: usize) -> &'v [f32] {
        &values[output * self.columns..][..self.columns]
    }

    /// Rounds `target`, outputs x (columns + 1) in the order `places` of each group.
    fn round(&self, places: &[usize], target: &[f32], factor: &Factor) -> Result<Vec<f32>> {
        let (per_group, size) = (self.channels.len() / self.groups, self.columns + 1);
        let isa = Isa::current();
        let mut rounded = vec![0.0; self.channels.len() * size];
        factor.with_values(|lower| {
            in_parts(&mut rounded, size, size * size, &|first, part| {
                let mut from = first;
                let end = first + part.len() / size;
                while from < end {
                    let group = from / per_group;
                    let to = ((group + 1) * per_group).min(from + LANES).min(end);
                    let problem = Problem {
                        places: &places[group * size..(group + 1) * size],
                        lower: &lower[group * size * size..(group + 1) * size * size],
                        rows: self.values.each_ref().map(|values| &values[from * self.columns..to * self.columns]),
                        target: &target[from * size..to * size],
                        channels: &self.channels[from..to],
                    };
                    round_block(isa, &problem, &mut part[(from - first) * size..(to - first) * size]);
                    from = to;
                }
            });
        })?;
        Ok(rounded)
    }

    /// What lies in the order `places`, with each column in its own place and the bias last.
    fn out_of_order(&self, places: &[usize], rounded: &[f32]) -> Vec<f32> {
        let (per_group, size) = (self.channels.len() / self.groups, self.columns + 1);
        let mut found = vec![0.0; rounded.len()];
        for (output, (row, found)) in std::iter::zip(rounded.chunks(size), found.chunks_mut(size)).enumerate() {
            let places = &places[output / per_group * size..][..size];
            std::iter::zip(places, row).for_each(|(&place, &value)| found[place] = value);
        }
        found
    }
}

/// Outputs that are rounded at once.
const LANES: usize = 64;

/// Columns of which the errors are handed on together.
const BLOCK: usize = 16;

/// Up to [`LANES`] outputs of one group.
struct Problem<'a> {
    /// The column that lies at each place; the bias, which is the last one, at the first.
    places: &'a [usize],
    lower: &'a [f32],
    /// Outputs x columns: as they are, and as they would be quantized.
    rows: [&'a [f32]; 2],
    /// Outputs x (columns + 1): the solution, in order.
    target: &'a [f32],
    channels: &'a [Channel],
}

multiversion! {
    /// Rounds the outputs' solutions. The weights at the end of the range become what quantizing makes of them: what they lose, up
    /// to half a step, is made good for by the others.
    fn round_block(problem: &Problem<'_>, rounded: &mut [f32]) = round_lanes;
}

#[inline(always)]
fn round_lanes(problem: &Problem<'_>, rounded: &mut [f32]) {
    let size = problem.places.len();
    let columns = size - 1;
    let lanes = problem.channels.len();
    // What those rounded so far add to what each aims at, times its diagonal.
    let mut owed = vec![[0.0f32; LANES]; size];
    let mut end = size;
    while end > 1 {
        let first = end.saturating_sub(BLOCK).max(1);
        let mut errors = [[0.0f32; LANES]; BLOCK];
        for place in (first..end).rev() {
            let column = problem.places[place];
            let row = &problem.lower[place * size..=place * size + place];
            let error = &mut errors[place - first];
            for lane in 0..lanes {
                let channel = problem.channels[lane];
                let target = problem.target[lane * size + place];
                let [is, quantized] = problem.rows.map(|rows| rows[lane * columns + column]);
                let new = if channel.is_end(is) {
                    quantized
                } else {
                    let wanted = target + owed[place][lane] / row[place];
                    channel.nearest(wanted.clamp(-channel.largest(), channel.largest()))
                };
                rounded[lane * size + place] = new;
                error[lane] = target - new;
            }
            for (owed, factor) in std::iter::zip(&mut owed[first..place], &row[first..place]) {
                for lane in 0..LANES {
                    owed[lane] += factor * error[lane];
                }
            }
        }
        // The places before the block are visited once for all of it: they lie in a cache further away. Rows that a last,
        // smaller block lacks have errors of 0.
        let rows: [&[f32]; BLOCK] =
            std::array::from_fn(|row| &problem.lower[(first + row).min(end - 1) * size..][..first]);
        for (place, owed) in owed[..first].iter_mut().enumerate() {
            let factors = rows.map(|row| row[place]);
            for lane in 0..LANES {
                let mut sum = owed[lane];
                for row in (0..BLOCK).rev() {
                    sum += factors[row] * errors[row][lane];
                }
                owed[lane] = sum;
            }
        }
        end = first;
    }
    for lane in 0..lanes {
        rounded[lane * size] = problem.target[lane * size] + owed[0][lane] / problem.lower[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_column_loses_the_next_ones_and_the_bias_make_good_for() {
        // q has two columns, the same twice, and ones: q^T q, damped a little, factorized by hand for three values.
        let (a, b) = (4.0f32, 2.0f32);
        // In reverse order: ones, second, first. Gram [[3, b, b], [b, a, a], [b, a, a + 0.01]].
        let l00 = 3.0f32.sqrt();
        let (l10, l20) = (b / l00, b / l00);
        let l11 = (a - l10 * l10).sqrt();
        let l21 = (a - l20 * l10) / l11;
        let l22 = (a + 0.01 - l20 * l20 - l21 * l21).sqrt();
        let lower = [l00, 0.0, 0.0, l10, l11, 0.0, l20, l21, l22];
        let channel = Channel { step: 1.0, bounds: (-127.0, 127.0) };
        let problem = Problem {
            places: &[2, 1, 0],
            lower: &lower,
            rows: [&[0.4, 0.4], &[0.0, 0.0]],
            target: &[0.0, 0.4, 0.4],
            channels: &[channel],
        };
        let mut rounded = [0.0; 3];
        round_block(Isa::Scalar, &problem, &mut rounded);
        // The first one loses 0.4, which the second one takes over: 0.8 becomes 1. The bias takes the rest, 0.2 too much.
        assert_eq!(rounded[1..], [1.0, 0.0]);
        assert!((rounded[0] + 0.2 * b / 3.0).abs() < 1e-3, "{rounded:?}");
        for isa in Isa::available() {
            let mut same = [0.0; 3];
            round_block(isa, &problem, &mut same);
            assert_eq!(rounded, same);
        }
    }
}
