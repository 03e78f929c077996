//! Which bin of a histogram a value falls into, and how many values fall into each.

use super::multiversion::multiversion;
use crate::kernel::Isa;

/// `count` bins of equal width between two edges. A bin holds its left edge; the last one its right edge as well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bins {
    min: f32,
    max: f32,
    count: usize,
}

impl Bins {
    /// Bins from `min` to `max`, which must be finite and in this order.
    ///
    /// A range of a single value is widened as `torch.histc` does: by 1 to each side, or to the neighbouring floats
    /// where 1 is too little to make a difference.
    pub fn new(min: f32, max: f32, count: usize) -> Self {
        debug_assert!(min.is_finite() && max.is_finite() && min <= max && count > 0);
        if min < max {
            return Self { min, max, count };
        }
        let min = (min - 1.0).min(min.next_down()).max(f32::MIN);
        let max = (max + 1.0).max(max.next_up()).min(f32::MAX);
        Self { min, max, count }
    }

    /// How many values of `x` are in each bin. Every value must lie between the edges.
    pub fn counts(&self, x: &[f32]) -> BinCounts {
        let mut counts = BinCounts::new(self.count);
        self.count_into(Isa::current(), x, &mut counts);
        counts
    }

    /// Adds the values of `x`, every one of which must lie between the edges, to `counts`.
    pub fn count_into(&self, isa: Isa, x: &[f32], counts: &mut BinCounts) {
        let width = self.max - self.min;
        if (width * self.count as f32).is_finite() {
            bin_counts(isa, x, *self, width, counts);
        } else {
            x.iter().for_each(|&value| counts.tables[self.wide_position(value)] += 1);
        }
    }

    /// The bin of `value`: `trunc((value - min) * count / width)` in f32, the formula of `torch.histc`.
    #[inline(always)]
    fn position(&self, width: f32, value: f32) -> u32 {
        let position = (value - self.min) * self.count as f32 / width;
        (position as i32 as u32).min(self.count as u32 - 1)
    }

    /// [`Bins::position`] in f64, for a range so wide that f32 overflows.
    fn wide_position(&self, value: f32) -> usize {
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let position = (f64::from(value) - min) * self.count as f64 / (max - min);
        (position as usize).min(self.count - 1)
    }
}

/// How many values are in each bin.
///
/// Neighbouring values are counted in different tables: values of one bin in a row (the zeros that a relu leaves)
/// would otherwise each wait for the sum before.
pub struct BinCounts {
    tables: Vec<u32>,
    /// Length of a table: the number of bins rounded up to a power of two, so that a mask replaces the bounds check.
    stride: usize,
}

impl BinCounts {
    const TABLES: usize = 4;

    /// Zero in each of `bins` bins.
    pub fn new(bins: usize) -> Self {
        let stride = bins.next_power_of_two();
        Self { tables: vec![0; Self::TABLES * stride], stride }
    }

    /// Adds the number of values in each bin to `histogram`, which has one element a bin.
    pub fn add_to(&self, histogram: &mut [f32]) {
        for (bin, count) in histogram.iter_mut().enumerate() {
            let values: u64 = self.tables[bin..].iter().step_by(self.stride).map(|&values| u64::from(values)).sum();
            *count += values as f32;
        }
    }
}

multiversion! {
    fn bin_counts(x: &[f32], bins: Bins, width: f32, counts: &mut BinCounts) = count_in_steps;
}

#[inline(always)]
fn count_in_steps(x: &[f32], bins: Bins, width: f32, counts: &mut BinCounts) {
    const STEP: usize = 256;
    let mask = counts.stride - 1;
    let (even, odd) = counts.tables.split_at_mut(2 * counts.stride);
    let (first, second) = even.split_at_mut(counts.stride);
    let (third, fourth) = odd.split_at_mut(counts.stride);
    let tables = [first, second, third, fourth].map(|table| &mut table[..=mask]);
    let [first, second, third, fourth] = tables;

    let (steps, rest) = x.as_chunks::<STEP>();
    let mut positions = [0u32; STEP];
    for step in steps {
        for (position, &value) in positions.iter_mut().zip(step) {
            *position = bins.position(width, value);
        }
        for quad in positions.as_chunks::<4>().0 {
            first[quad[0] as usize & mask] += 1;
            second[quad[1] as usize & mask] += 1;
            third[quad[2] as usize & mask] += 1;
            fourth[quad[3] as usize & mask] += 1;
        }
    }
    for &value in rest {
        first[bins.position(width, value) as usize & mask] += 1;
    }
}
