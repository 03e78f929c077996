//! A weight in the order in which the micro-kernels read it.

use super::vector::STRIP;
use crate::geometry::{MOST_EMPTY, count};
use crate::{Error, Result};

/// Bytes of a group: four weights of each channel of a strip.
pub(crate) const GROUP: usize = 4 * STRIP;

/// Groups that a kernel may read from any one on: behind the last strip they are zero.
pub(crate) const READABLE_GROUPS: usize = 16;

/// The longest sum of products that cannot overflow an i32: a product of differences from zero points is at most
/// `255 * 255`, with weights' zero points of 0 `255 * 128`.
fn longest_sum(has_zero_points: bool) -> usize {
    i32::MAX as usize / if has_zero_points { 255 * 255 } else { 255 * 128 }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Group([i8; GROUP]);

impl Group {
    /// Whether the products of any two neighbouring columns with any two bytes have sums of 16 bits.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn is_small(&self) -> bool {
        self.0.chunks_exact(2).all(|pair| {
            let [a, b] = [i32::from(pair[0]), i32::from(pair[1])];
            a.max(0) + b.max(0) <= LARGEST_PAIR && a.min(0) + b.min(0) >= -LARGEST_PAIR
        })
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
    /// The order of each strip's groups, if it is another: see [`sort`](Self::sort).
    order: Option<Order>,
}

/// Where each strip's groups belong, in the order in which they lie.
struct Order {
    /// Segment and group of each.
    places: Vec<[u16; 2]>,
    /// How many of each strip are small; they come first.
    small: Vec<usize>,
}

/// The largest sum of two weights of one sign whose products with bytes fit 16 bits: `255 * 128 <= i16::MAX`.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
const LARGEST_PAIR: i32 = 128;

impl Panels {
    /// Packs `weight`, row-major, of `channels` rows of `segments * length` columns. `zero_points` has one entry, one a
    /// channel, or none.
    ///
    /// # Errors
    /// Where a length does not fit, a zero point is not an i8, or a row is so long that a sum could overflow.
    pub fn new(weight: &[i8], channels: usize, segments: usize, length: usize, zero_points: &[i32]) -> Result<Self> {
        let columns = count("a row of a weight", &[segments, length])?;
        let (found, wanted) = (weight.len(), count("a weight", &[channels, columns])?);
        if found != wanted {
            return Err(Error(format!("a weight of {channels} x {columns} has {found} elements")));
        }
        // Without elements the weight would not bound the channels.
        if wanted == 0 && channels > MOST_EMPTY {
            return Err(Error(format!("{channels} channels and no weights; at most {MOST_EMPTY} are accepted")));
        }
        let longest = longest_sum(zero_points.iter().any(|zero| *zero != 0));
        if columns > longest {
            return Err(Error(format!(
                "a sum of {columns} products could overflow 32 bits; at most {longest} are exact"
            )));
        }
        if zero_points.len() > 1 && zero_points.len() != channels {
            return Err(Error(format!("{} zero points for {channels} channels", zero_points.len())));
        }
        if let Some(bad) = zero_points.iter().find(|zero| i8::try_from(**zero).is_err()) {
            return Err(Error(format!("a weight's zero point is {bad}; of an i8 weight it is -128 to 127")));
        }
        let strips = channels.div_ceil(STRIP);
        let groups = length.div_ceil(4);
        let mut data = vec![Group([0; GROUP]); strips * segments * groups + READABLE_GROUPS - 1];
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
        Ok(Self { channels, segments, length, data, sums, zero_points: zeros, order: None })
    }

    /// Puts the **small** groups of each strip first: those of which any two products of neighbouring columns, (0, 1) and (2,
    /// 3), have a sum of 16 bits. After them come the others, and at last the groups that end a segment and are not full.
    ///
    /// Weights rarely are large: where a channel's range is its largest weight, most of the others are far below. Nothing is done
    /// where less than an eighth of the groups are small, where there are more segments than 16 bits can count, and for weights with
    /// zero points: those are activations, mostly, packed for one product.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn sort(mut self) -> Self {
        let groups = self.groups();
        let all = self.strips() * self.segments * groups;
        if all == 0 || self.segments.max(groups) > usize::from(u16::MAX) || self.has_zero_points() {
            return self;
        }
        let is_whole = |group: usize| 4 * (group + 1) <= self.length;
        let mut order = Order { places: Vec::with_capacity(all), small: Vec::with_capacity(self.strips()) };
        let mut data = Vec::with_capacity(self.data.len());
        for strip in self.data[..all].chunks_exact(self.segments * groups) {
            let (whole, ends): (Vec<_>, Vec<_>) = (0..strip.len()).partition(|index| is_whole(index % groups));
            let (small, large): (Vec<_>, Vec<_>) = whole.into_iter().partition(|index| strip[*index].is_small());
            order.small.push(small.len());
            for index in small.into_iter().chain(large).chain(ends) {
                data.push(strip[index]);
                order.places.push([(index / groups) as u16, (index % groups) as u16]);
            }
        }
        if 8 * order.small.iter().sum::<usize>() < all {
            return self;
        }
        data.extend_from_slice(&self.data[all..]);
        (self.data, self.order) = (data, Some(order));
        self
    }

    /// Whether [`sort`](Self::sort) did it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn is_sorted(&self) -> bool {
        self.order.is_some()
    }

    /// The segments and groups where a sorted strip's groups belong: the small ones, the other whole ones, and those that
    /// end a segment and are not full.
    #[inline(always)]
    pub fn places(&self, strip: usize) -> [&[[u16; 2]]; 3] {
        let Some(order) = &self.order else { return [&[]; 3] };
        let groups = self.segments * self.groups();
        let ends = if self.length.is_multiple_of(4) { 0 } else { self.segments };
        let places = &order.places[strip * groups..][..groups];
        let (small, rest) = places.split_at(order.small[strip]);
        let (large, ends) = rest.split_at(rest.len() - ends);
        [small, large, ends]
    }

    /// The matrix again, row-major, into `weight`.
    pub fn unpack(&self, weight: &mut [i8]) {
        let columns = self.columns();
        let groups = self.segments * self.groups();
        for (index, Group(packed)) in self.data[..self.strips() * groups].iter().enumerate() {
            let (strip, position) = (index / groups, index % groups);
            let [segment, group] = match &self.order {
                Some(order) => order.places[index].map(usize::from),
                None => [position / self.groups(), position % self.groups()],
            };
            let first = segment * self.length + 4 * group;
            let count = (self.length - 4 * group).min(4);
            for (lane, bytes) in packed.chunks_exact(4).enumerate().take(self.channels - strip * STRIP) {
                let row = &mut weight[(strip * STRIP + lane) * columns..][..columns];
                row[first..][..count].copy_from_slice(&bytes[..count]);
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
