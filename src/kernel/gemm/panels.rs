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
}

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
        Ok(Self { channels, segments, length, data, sums, zero_points: zeros })
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
