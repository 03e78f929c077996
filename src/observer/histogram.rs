//! The histogram observer: counts over a range that grows with what it sees.

use super::binning::{BinCounts, Bins};
use super::error_search::least_error_range;
use super::parts::{ParallelFor, map_parts, serially};
use super::range::{NotFinite, min_max_in_parts};
use super::range_search::{entropy_range, percentile_range, squared_error_range};
use crate::kernel::Isa;

/// Into how many parts a bin is divided when its count moves to other bins (torch.ao's `upsample_rate`).
const PARTS: usize = 16;

/// A histogram observer's state, seen in the memory that holds it: `counts.len()` bins of equal width from `min` to
/// `max`, as torch.ao's `HistogramObserver` keeps them in its buffers `histogram`, `min_val` and `max_val`.
///
/// Counts are f32: whole numbers, exact up to 2^24, or sums of sixteenths of earlier counts once the range has grown.
///
/// ```
/// use jitquant::observer::{Histogram, UNSET};
/// let (mut min, mut max) = UNSET;
/// let mut counts = [0.0; 4];
/// let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
/// histogram.observe(&[0.0, 1.0, 1.5, 4.0])?;
/// assert_eq!((min, max, counts), (0.0, 4.0, [1.0, 2.0, 0.0, 1.0]));
/// # Ok::<(), jitquant::observer::NotFinite>(())
/// ```
#[derive(Debug)]
pub struct Histogram<'a> {
    counts: &'a mut [f32],
    min: &'a mut f32,
    max: &'a mut f32,
}

impl<'a> Histogram<'a> {
    /// The name of the search that is [`Histogram::range_with_room`].
    #[cfg(feature = "torch")]
    pub(crate) const WITH_ROOM: &'static str = "with-room";
    /// So many values show a tensor's range.
    pub(crate) const ENOUGH: f64 = 16_384.0;

    /// The number of bins of torch.ao's observer.
    pub const BINS: usize = 2048;
    /// The most bins that a histogram can have: up to here f32 can number them.
    pub const MAX_BINS: usize = 1 << 24;

    /// A view of the state in `counts`, `min` and `max`: zeros and [`UNSET`](super::UNSET) at first.
    ///
    /// # Panics
    /// If there are no bins, or more than [`Histogram::MAX_BINS`].
    pub fn new(counts: &'a mut [f32], min: &'a mut f32, max: &'a mut f32) -> Self {
        assert!((1..=Self::MAX_BINS).contains(&counts.len()), "a histogram of {} bins", counts.len());
        Self { counts, min, max }
    }

    /// Whether nothing was observed yet: whether `min` and `max` are not the ends of a finite range.
    pub fn is_unset(&self) -> bool {
        !(self.min.is_finite() && self.max.is_finite() && *self.min <= *self.max)
    }

    /// Takes `x` in: counts its values, after widening the range where `x` has values outside.
    ///
    /// `x` is read once where its values lie within the range, as they mostly do after the first batches, and twice
    /// otherwise. Where `x` has NaN or infinity, nothing changes.
    pub fn observe(&mut self, x: &[f32]) -> Result<(), NotFinite> {
        self.observe_in_parts(x, 1, &serially)
    }

    /// [`Histogram::observe`] on up to `threads` threads of the host.
    pub fn observe_in_parts(&mut self, x: &[f32], threads: usize, run: ParallelFor<'_>) -> Result<(), NotFinite> {
        let mut counts = self.count_within_range(x, threads, run);
        if counts.is_none() {
            let Some(batch) = min_max_in_parts(x, threads, run)? else { return Ok(()) };
            self.widen(batch);
            counts = self.count_within_range(x, threads, run);
        }
        BinCounts::add_to(&counts.expect("all values are within their own range"), self.counts);
        Ok(())
    }

    /// Takes in what `other` observed. The result is that of one observer that saw both, but for the rounding of
    /// values to bins: each is off by at most one bin's width.
    ///
    /// # Panics
    /// If the two have different numbers of bins.
    pub fn merge(&mut self, other: &Histogram<'_>) {
        assert_eq!(self.counts.len(), other.counts.len(), "bins of the histograms to merge");
        if other.is_unset() {
            return;
        }
        self.widen((*other.min, *other.max));
        let moved = rebin(other.counts, (*other.min, *other.max), (*self.min, *self.max));
        self.counts.iter_mut().zip(moved).for_each(|(count, other)| *count += other);
    }

    /// The part `(low, high)` of the range that is best quantized to 256 values: what lies outside is clipped, and
    /// the L2 error that clipping and rounding cause together is (nearly) least. `None` where nothing was observed.
    ///
    /// This is torch.ao's `_non_linear_param_search`. From the full range, it drops bins at the end where fewer values
    /// are lost, as long as the error does not grow. All is computed in f32 as there, save that the error is summed
    /// in f64, and that the bins' width is scaled by a power of two, so that a range below 1e-12 or above 1e12 does
    /// not underflow or overflow (torch.ao's search then goes astray). Where two errors differ by less than f32's
    /// rounding of the sum, the range may be another one than torch.ao's.
    pub fn best_range(&self) -> Option<(f32, f32)> {
        (!self.is_unset()).then(|| least_error_range(self.counts, *self.min, *self.max))
    }

    /// All that was seen, with up to 20 % more at each end where fewer than 16,384 values were seen: the largest of 16,384
    /// normal values is about that much larger than the largest of 512. An end at 0 stays there, as after a relu. `None`
    /// where nothing was observed.
    pub fn range_with_room(&self) -> Option<(f32, f32)> {
        const FEW: f64 = 512.0;
        const ROOM: f64 = 0.2;
        let seen: f64 = self.counts.iter().map(|count| f64::from(*count)).sum();
        let missing = (Self::ENOUGH / seen.max(FEW)).ln() / (Self::ENOUGH / FEW).ln();
        let factor = (1.0 + ROOM * missing.max(0.0)) as f32;
        (seen > 0.0).then_some((*self.min * factor, *self.max * factor))
    }

    /// The range that holds `percentile` percent of the values, as many left out at each end; `None` where nothing was
    /// observed.
    pub fn percentile_range(&self, percentile: f64) -> Option<(f32, f32)> {
        self.searched(|counts, min, max| percentile_range(counts, min, max, percentile))
    }

    /// The range with the least mean squared error of clipping and rounding to 256 values, by a search of all pairs of ends
    /// on a grid; `None` where nothing was observed.
    pub fn squared_error_range(&self) -> Option<(f32, f32)> {
        self.searched(squared_error_range)
    }

    /// The range whose quantized distribution is most like that of the values (least Kullback-Leibler divergence); `None`
    /// where nothing was observed.
    pub fn entropy_range(&self) -> Option<(f32, f32)> {
        self.searched(entropy_range)
    }

    fn searched(&self, search: impl FnOnce(&[f32], f32, f32) -> (f32, f32)) -> Option<(f32, f32)> {
        let (min, max) = (*self.min, *self.max);
        (!self.is_unset()).then(|| if min < max { search(self.counts, min, max) } else { (min, max) })
    }

    /// The counts of parts of `x`, or `None` where a value lies outside the range or is NaN, or nothing was observed yet.
    fn count_within_range(&self, x: &[f32], threads: usize, run: ParallelFor<'_>) -> Option<Vec<BinCounts>> {
        if self.is_unset() {
            return None;
        }
        let isa = Isa::current();
        let bins = Bins::new(*self.min, *self.max, self.counts.len());
        let count = |part: &[f32]| {
            let mut counts = BinCounts::new(self.counts.len());
            bins.count_into(isa, part, &mut counts).then_some(counts)
        };
        map_parts(x, threads, run, count).into_iter().collect()
    }

    /// Makes the range hold `(min, max)` as well and moves the counts into the bins of the new range.
    fn widen(&mut self, (min, max): (f32, f32)) {
        if self.is_unset() {
            self.counts.fill(0.0);
            (*self.min, *self.max) = (min, max);
            return;
        }
        let range = (min.min(*self.min), max.max(*self.max));
        let moved = rebin(self.counts, (*self.min, *self.max), range);
        self.counts.copy_from_slice(&moved);
        (*self.min, *self.max) = range;
    }
}

/// `counts` over the bins from `from.0` to `from.1`, counted over as many bins from `to.0` to `to.1`, a range that
/// contains the other.
///
/// A bin is divided into [`PARTS`] parts of equal count, and each part goes to the bin that holds its middle.
fn rebin(counts: &[f32], from: (f32, f32), to: (f32, f32)) -> Vec<f32> {
    if from == to {
        return counts.to_vec();
    }
    if from.0 == from.1 {
        let total = counts.iter().map(|&count| f64::from(count)).sum::<f64>() as f32;
        let mut moved = vec![0.0; counts.len()];
        moved[Bins::new(to.0, to.1, counts.len()).bin_of(from.0)] = total;
        return moved;
    }

    let (bins, parts) = (counts.len(), counts.len() * PARTS);
    let part_starts = Linspace::new(from, parts);
    let edges = Linspace::new(to, bins);
    let half_part = 0.5 * ((from.1 - from.0) / parts as f32);
    let mut moved = vec![0.0f32; bins];
    let mut bin = 0;
    for (index, count) in counts.iter().enumerate() {
        let part = count / PARTS as f32;
        for middle in (index * PARTS..(index + 1) * PARTS).map(|start| part_starts.at(start) + half_part) {
            while bin + 1 < bins && edges.at(bin + 1) <= middle {
                bin += 1;
            }
            moved[bin] += part;
        }
    }
    moved
}

/// The bounds of `parts` equal parts of a range, rounded as `torch.linspace(start, end, parts + 1)` rounds them: one
/// fused multiply-add from the nearer end.
struct Linspace {
    start: f64,
    end: f64,
    step: f64,
    parts: usize,
}

impl Linspace {
    fn new((start, end): (f32, f32), parts: usize) -> Self {
        let step = (end - start) / parts as f32;
        Self { start: start.into(), end: end.into(), step: step.into(), parts }
    }

    /// f64 holds the product of an f32 and an index exactly, so that only the sum is rounded.
    fn at(&self, index: usize) -> f32 {
        let bound = if index < self.parts.div_ceil(2) {
            self.start + self.step * index as f64
        } else {
            self.end - self.step * (self.parts - index) as f64
        };
        bound as f32
    }
}
