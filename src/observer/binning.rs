//! Which bin of a histogram a value falls into, and how many values fall into each.
#![allow(unsafe_code)]

use crate::kernel::Isa;
use crate::kernel::multiversion;

/// `count` bins of equal width over a range. A bin holds its left edge; the last one its right edge as well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bins {
    min: f32,
    max: f32,
    count: usize,
    first_edge: f32,
    last_edge: f32,
}

impl Bins {
    /// Bins for the values from `min` to `max`, which must be finite and in this order.
    ///
    /// The edges of a range of a single value are set apart as `torch.histc` does: by 1 to each side, or to the
    /// neighbouring floats where 1 is too little to make a difference.
    pub fn new(min: f32, max: f32, count: usize) -> Self {
        debug_assert!(min.is_finite() && max.is_finite() && min <= max && count > 0);
        let (first_edge, last_edge) = if min < max {
            (min, max)
        } else {
            ((min - 1.0).min(min.next_down()).max(f32::MIN), (max + 1.0).max(max.next_up()).min(f32::MAX))
        };
        Self { min, max, count, first_edge, last_edge }
    }

    /// The bin of `value`, the nearest one if it is outside the range.
    pub fn bin_of(&self, value: f32) -> usize {
        if self.overflows() { self.wide_position(value) } else { self.position(value) as usize }
    }

    /// Adds the values of `x` to `counts`; `false`, and any counts, if one of them is NaN or outside the range.
    #[must_use]
    pub fn count_into(&self, isa: Isa, x: &[f32], counts: &mut BinCounts) -> bool {
        assert_eq!(counts.bins, self.count, "bins to count into");
        if !self.overflows() {
            return count_bins(isa, x, self, counts);
        }
        x.iter().all(|&value| {
            counts.tables[self.wide_position(value)] += 1;
            self.contains(value)
        })
    }

    /// Whether [`Bins::position`] overflows.
    fn overflows(&self) -> bool {
        !((self.last_edge - self.first_edge) * self.count as f32).is_finite()
    }

    #[inline(always)]
    fn contains(&self, value: f32) -> bool {
        value >= self.min && value <= self.max
    }

    /// The bin of `value`: `trunc((value - first_edge) * count / (last_edge - first_edge))` in f32, the formula of
    /// `torch.histc`. A value that is in no bin gets the first or the last.
    #[inline(always)]
    fn position(&self, value: f32) -> u32 {
        let last = self.count as f32 - 1.0;
        let position = (value - self.first_edge) * self.count as f32 / (self.last_edge - self.first_edge);
        // Written so that NaN becomes 0 and each line is one machine instruction.
        let position = if position > 0.0 { position } else { 0.0 };
        let position = if position < last { position } else { last };
        // SAFETY: `position` is no NaN and from 0 to `last`, which is less than Histogram::MAX_BINS, far below i32::MAX.
        unsafe { position.to_int_unchecked::<i32>() as u32 }
    }

    /// [`Bins::position`] in f64, for a range so wide that f32 overflows.
    fn wide_position(&self, value: f32) -> usize {
        let (first, last) = (f64::from(self.first_edge), f64::from(self.last_edge));
        let position = (f64::from(value) - first) * self.count as f64 / (last - first);
        (position as usize).min(self.count - 1)
    }
}

/// How many values are in each bin.
///
/// Neighbouring values are counted in different tables: values of one bin in a row (the zeros that a relu leaves)
/// would otherwise each wait for the sum before. For the same reason the counts of one bin must not be a multiple of
/// 4096 bytes apart, where a load takes an earlier store for its own until their whole addresses are compared.
pub struct BinCounts {
    tables: Vec<u32>,
    bins: usize,
}

impl BinCounts {
    const TABLES: usize = 4;

    /// Zero in each of `bins` bins.
    pub fn new(bins: usize) -> Self {
        Self { tables: vec![0; Self::TABLES * Self::distance(bins)], bins }
    }

    /// From one table to the next, in counts: `PAGE / TABLES` more than some whole pages.
    fn distance(bins: usize) -> usize {
        const PAGE: usize = 4096 / size_of::<u32>();
        bins.next_multiple_of(PAGE) + PAGE / Self::TABLES
    }

    /// Adds the number of values in each bin, over all `parts`, to `histogram`, which has one element a bin.
    pub fn add_to(parts: &[Self], histogram: &mut [f32]) {
        let distance = Self::distance(histogram.len());
        let tables: Vec<&[u32]> = parts.iter().flat_map(|part| part.tables.chunks_exact(distance)).collect();
        for (bin, count) in histogram.iter_mut().enumerate() {
            *count += tables.iter().map(|table| u64::from(table[bin])).sum::<u64>() as f32;
        }
    }
}

multiversion! {
    fn count_bins(x: &[f32], bins: &Bins, counts: &mut BinCounts) -> bool = count_in_steps;
}

/// Values whose bins are computed, several in an instruction, before they are counted one by one.
const STEP: usize = 256;

#[inline(always)]
fn count_in_steps(x: &[f32], bins: &Bins, counts: &mut BinCounts) -> bool {
    let distance = BinCounts::distance(counts.bins);
    let (first, rest) = counts.tables.split_at_mut(distance);
    let (second, rest) = rest.split_at_mut(distance);
    let (third, fourth) = rest.split_at_mut(distance);

    let (steps, rest) = x.as_chunks::<STEP>();
    let mut positions = [0u32; STEP];
    for step in steps {
        let mut outside = 0;
        for (position, &value) in positions.iter_mut().zip(step) {
            *position = bins.position(value);
            outside |= u32::from(!bins.contains(value));
        }
        if outside != 0 {
            return false;
        }
        for quad in positions.as_chunks::<{ BinCounts::TABLES }>().0 {
            // SAFETY: a position is less than the number of bins, and no table is shorter.
            unsafe {
                *first.get_unchecked_mut(quad[0] as usize) += 1;
                *second.get_unchecked_mut(quad[1] as usize) += 1;
                *third.get_unchecked_mut(quad[2] as usize) += 1;
                *fourth.get_unchecked_mut(quad[3] as usize) += 1;
            }
        }
    }
    rest.iter().all(|&value| {
        first[bins.position(value) as usize] += 1;
        bins.contains(value)
    })
}
