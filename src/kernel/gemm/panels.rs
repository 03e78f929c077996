//! A weight in the order in which the micro-kernels read it.

use super::vector::STRIP;
use crate::{Error, Result};

/// Bytes of a group: four weights of each channel of a strip.
pub(crate) const GROUP: usize = 4 * STRIP;

/// Groups behind the last strip, which are zero: a kernel may read sixteen groups from any one on.
const GROUPS_BEHIND: usize = 15;

/// The longest sum of products that cannot overflow an i32: a product of differences from zero points is at most
/// `255 * 255`, with weights' zero points of 0 `255 * 128`.
fn longest_sum(has_zero_points: bool) -> usize {
    i32::MAX as usize / if has_zero_points { 255 * 255 } else { 255 * 128 }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Group([i8; GROUP]);

impl Group {
    /// What is left when no two neighbours are larger together than [`LARGEST_PAIR`], and what is taken away; none if nothing is.
    fn split(&self) -> Option<(Self, Self)> {
        let (mut rest, mut taken) = (*self, Self([0; GROUP]));
        for (pair, taken) in rest.0.chunks_exact_mut(2).zip(taken.0.chunks_exact_mut(2)) {
            let [a, b] = [i32::from(pair[0]), i32::from(pair[1])];
            let too_much = match a + b {
                sum if a > 0 && b > 0 => (sum - LARGEST_PAIR).max(0),
                sum if a < 0 && b < 0 => (sum + LARGEST_PAIR).min(0),
                _ => 0,
            };
            // It is not more than the larger one, since that is at least half of the sum.
            let larger = usize::from(b.abs() > a.abs());
            taken[larger] = too_much as i8;
            pair[larger] -= too_much as i8;
        }
        (taken.0 != [0; GROUP]).then_some((rest, taken))
    }
}

/// An i8 matrix `[channels, segments * length]`, packed for dot products of four bytes.
///
/// Channels are taken in **strips** of 16. Of each strip, the rows are cut into **segments** (one of a matrix product; one
/// for each run of bytes that is contiguous in the input of a convolution), each segment into **groups** of four
/// columns. A group is 64 bytes: four weights of channel 0, four of channel 1, and so on; what a strip or a segment lacks
/// is zero. All groups of a strip follow one another, so a micro-kernel reads each strip as one stream.
///
/// ```text
///  strip 0                                   strip 1
/// ┌──────────────┬──────────────┬─────────┐ ┌───
/// │ c0 k0k1k2k3  │ c0 k4k5k6k7  │   ...   │ │ c16 ...
/// │ c1 k0k1k2k3  │ c1 k4k5k6k7  │         │ │ c17 ...
/// │ ...          │ ...          │         │ │
/// │ c15 k0k1k2k3 │ c15 k4k5k6k7 │         │ │
/// └──────────────┴──────────────┴─────────┘ └───
///   group 0        group 1
/// ```
pub(crate) struct Panels {
    channels: usize,
    segments: usize,
    length: usize,
    data: Vec<Group>,
    /// `sum(w) - columns * zero_point` of each channel, for whole strips: what the activations' zero point multiplies.
    sums: Vec<i32>,
    /// The weights' zero points, for whole strips; empty where all are 0.
    zero_points: Vec<i32>,
    /// What was taken away from `data`, if anything was: see [`split`](Self::split).
    excess: Option<Excess>,
}

/// Groups that are added to a strip's own.
struct Excess {
    /// Where each strip's begin, and where the last one's end.
    first: Vec<usize>,
    /// The segments and groups of which they are a part.
    places: Vec<[usize; 2]>,
    weights: Vec<Group>,
}

/// The largest sum of two weights whose products with bytes do not exceed 16 bits: `255 * 128 <= i16::MAX`.
const LARGEST_PAIR: i32 = 128;

impl Panels {
    /// Packs `weight`, row-major, of `channels` rows of `segments * length` columns. `zero_points` has one entry, one a
    /// channel, or none.
    ///
    /// # Errors
    /// Where a length does not fit, a zero point is not an i8, or a row is so long that a sum could overflow.
    pub fn new(weight: &[i8], channels: usize, segments: usize, length: usize, zero_points: &[i32]) -> Result<Self> {
        let columns = segments * length;
        if weight.len() != channels * columns {
            let found = weight.len();
            return Err(Error::Invalid(format!("a weight of {channels} x {columns} has {found} elements")));
        }
        let longest = longest_sum(zero_points.iter().any(|zero| *zero != 0));
        if columns > longest {
            return Err(Error::Invalid(format!(
                "a sum of {columns} products could overflow 32 bits; at most {longest} are exact"
            )));
        }
        if zero_points.len() > 1 && zero_points.len() != channels {
            return Err(Error::Invalid(format!("{} zero points for {channels} channels", zero_points.len())));
        }
        if let Some(bad) = zero_points.iter().find(|zero| i8::try_from(**zero).is_err()) {
            return Err(Error::Invalid(format!("a weight's zero point is {bad}; of an i8 weight it is -128 to 127")));
        }
        let strips = channels.div_ceil(STRIP);
        let groups = length.div_ceil(4);
        let mut data = vec![Group([0; GROUP]); strips * segments * groups + GROUPS_BEHIND];
        let mut sums = vec![0; strips * STRIP];
        let mut zeros = match zero_points.iter().any(|zero| *zero != 0) {
            true => vec![0; strips * STRIP],
            false => Vec::new(),
        };
        for channel in 0..channels {
            let row = &weight[channel * columns..][..columns];
            let (strip, lane) = (channel / STRIP, channel % STRIP);
            for segment in 0..segments {
                for (group, bytes) in row[segment * length..][..length].chunks(4).enumerate() {
                    let Group(packed) = &mut data[(strip * segments + segment) * groups + group];
                    packed[4 * lane..][..bytes.len()].copy_from_slice(bytes);
                }
            }
            let zero =
                if zero_points.len() == 1 { zero_points[0] } else { zero_points.get(channel).copied().unwrap_or(0) };
            sums[channel] = row.iter().map(|w| i32::from(*w)).sum::<i32>() - columns as i32 * zero;
            if let Some(place) = zeros.get_mut(channel) {
                *place = zero;
            }
        }
        Ok(Self { channels, segments, length, data, sums, zero_points: zeros, excess: None })
    }

    /// Makes the products of each two columns, (0, 1), (2, 3) and so on, with any two bytes fit 16 bits: of two weights of
    /// one sign that are too large together, what is too much goes into a group of its own, the excess, which is multiplied
    /// apart. Where that would be more than a third of all groups, nothing is done.
    ///
    /// Weights rarely are that large: where a channel's range is its largest weight, most of the others are far below.
    pub fn split(mut self) -> Self {
        let (a_segment, groups) = (self.groups(), self.segments * self.groups());
        let all = self.strips() * groups;
        let too_large = self.data.iter().filter(|group| group.split().is_some()).count();
        if all == 0 || 3 * too_large > all {
            return self;
        }
        let mut excess = Excess { first: vec![0], places: Vec::new(), weights: Vec::new() };
        for strip in self.data[..all].chunks_exact_mut(groups) {
            for (index, group) in strip.iter_mut().enumerate() {
                if let Some((rest, taken)) = group.split() {
                    *group = rest;
                    excess.places.push([index / a_segment, index % a_segment]);
                    excess.weights.push(taken);
                }
            }
            excess.first.push(excess.places.len());
        }
        self.excess = Some(excess);
        self
    }

    /// Whether [`split`](Self::split) did it.
    pub fn is_split(&self) -> bool {
        self.excess.is_some()
    }

    /// The groups that are added to a strip's own: segment, group, and the weights.
    #[inline(always)]
    pub fn excess(&self, strip: usize) -> impl Iterator<Item = ([usize; 2], &[i8; GROUP])> {
        let range = self.excess.as_ref().map_or(0..0, |excess| excess.first[strip]..excess.first[strip + 1]);
        range.filter_map(|index| {
            let excess = self.excess.as_ref()?;
            Some((excess.places[index], &excess.weights[index].0))
        })
    }

    /// The matrix again, row-major, into `weight`.
    pub fn unpack(&self, weight: &mut [i8]) {
        let columns = self.columns();
        let groups = self.groups();
        for channel in 0..self.channels {
            let row = &mut weight[channel * columns..][..columns];
            let (strip, lane) = (channel / STRIP, channel % STRIP);
            for segment in 0..self.segments {
                for (group, bytes) in row[segment * self.length..][..self.length].chunks_mut(4).enumerate() {
                    let Group(packed) = &self.data[(strip * self.segments + segment) * groups + group];
                    bytes.copy_from_slice(&packed[4 * lane..][..bytes.len()]);
                }
            }
        }
        for strip in 0..self.strips() {
            for ([segment, group], taken) in self.excess(strip) {
                for lane in 0..STRIP.min(self.channels - strip * STRIP) {
                    for column in 4 * group..self.length.min(4 * group + 4) {
                        let row = (strip * STRIP + lane) * columns;
                        weight[row + segment * self.length + column] += taken[4 * lane + column % 4];
                    }
                }
            }
        }
    }

    /// Output channels: rows of the matrix.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Products in a sum: columns of the matrix.
    pub fn columns(&self) -> usize {
        self.segments * self.length
    }

    /// Columns of a segment.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Groups of a segment, the last one possibly not full.
    pub fn groups(&self) -> usize {
        self.length.div_ceil(4)
    }

    pub fn strips(&self) -> usize {
        self.channels.div_ceil(STRIP)
    }

    /// Bytes from one strip to the next.
    pub fn strip_bytes(&self) -> usize {
        self.segments * self.groups() * GROUP
    }

    /// The first group of the first strip.
    pub fn as_ptr(&self) -> *const i8 {
        self.data.as_ptr().cast()
    }

    /// See the field.
    pub fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Whether a channel's zero point is not 0. A convolution's groups differ in this.
    pub fn has_zero_points(&self) -> bool {
        !self.zero_points.is_empty()
    }

    /// See the field.
    pub fn zero_points(&self) -> &[i32] {
        &self.zero_points
    }
}
