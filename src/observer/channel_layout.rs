//! Where the channels of a contiguous tensor lie.

/// A contiguous tensor seen as `outer x channels x inner`: element `(o, c, i)` is at `(o * channels + c) * inner + i`.
///
/// ```
/// use jitquant::observer::ChannelLayout;
/// // The output channels of a convolution's weight, and the channels of an NCHW activation.
/// assert_eq!(ChannelLayout::of(&[64, 3, 7, 7], 0), Some(ChannelLayout { outer: 1, channels: 64, inner: 147 }));
/// assert_eq!(ChannelLayout::of(&[8, 64, 56, 56], 1), Some(ChannelLayout { outer: 8, channels: 64, inner: 3136 }));
/// assert_eq!(ChannelLayout::of(&[8, 64], -1), Some(ChannelLayout { outer: 8, channels: 64, inner: 1 }));
/// assert_eq!(ChannelLayout::of(&[8, 64], 2), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelLayout {
    /// Product of the sizes before the channel axis.
    pub outer: usize,
    /// Size of the channel axis.
    pub channels: usize,
    /// Product of the sizes after the channel axis: the distance between two channels, in elements.
    pub inner: usize,
}

impl ChannelLayout {
    /// The layout of a contiguous tensor of `sizes` whose channels are axis `axis`; a negative axis counts from the end.
    ///
    /// `None` where the tensor has no such axis, a size is negative, or the sizes' product overflows.
    pub fn of(sizes: &[i64], axis: i64) -> Option<Self> {
        let rank = i64::try_from(sizes.len()).ok()?;
        let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
        let channels = usize::try_from(*sizes.get(axis)?).ok()?;
        let product = |sizes: &[i64]| {
            sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?))
        };
        let (outer, inner) = (product(&sizes[..axis])?, product(&sizes[axis + 1..])?);
        outer.checked_mul(channels)?.checked_mul(inner)?;
        Some(Self { outer, channels, inner })
    }

    /// Number of elements of the tensor.
    pub fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
