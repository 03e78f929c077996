//! The arithmetic of windows that slide over a tensor, and the largest numbers that are taken: convolutions and poolings check
//! theirs here once, where they enter, so that the sums and products of everything behind fit.

use crate::{Error, Result};

/// The largest number of taps, step, padding or channels: two of them multiplied, and three of those products added, fit 64 bits.
pub const MOST: usize = (1 << 30) - 1;

/// The largest size of an image along one dimension.
pub const LONGEST: usize = i32::MAX as usize;

/// The largest number of channels of a layer that has no weights (no inputs): nothing else bounds what is kept for each.
pub const MOST_EMPTY: usize = 1 << 16;

/// A window along one dimension, each number at most [`MOST`].
#[derive(Clone, Copy)]
pub struct Sliding {
    /// Taps.
    pub kernel: usize,
    /// Positions from one window to the next.
    pub stride: usize,
    /// Positions before the first one and behind the last, that no window's taps have values at.
    pub padding: usize,
    /// Positions from one tap to the next.
    pub dilation: usize,
}

impl Sliding {
    /// Whether it has taps and steps, and no number is too large.
    pub fn is_plausible(&self) -> bool {
        let Self { kernel, stride, padding, dilation } = *self;
        [kernel, stride, dilation].iter().all(|n| (1..=MOST).contains(n)) && padding <= MOST
    }

    /// Positions from the first tap to the last, both included.
    pub fn reach(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }

    /// How many windows begin within `size` positions and their padding, with `beyond` more behind it; `None` where none fits,
    /// or a number is implausible.
    pub fn windows(&self, size: usize, beyond: usize) -> Option<usize> {
        if !self.is_plausible() || size > LONGEST {
            return None;
        }
        let room = (size + 2 * self.padding + beyond).checked_sub(self.reach())?;
        Some(room / self.stride + 1).filter(|windows| *windows <= LONGEST)
    }

    /// The positions that the windows of a transposed convolution cover: `last * stride + reach + added - 2 * padding`; `None`
    /// where there are none, or a number is implausible.
    pub fn covered(&self, size: usize, added: usize) -> Option<usize> {
        if !self.is_plausible() || size > LONGEST || added > MOST {
            return None;
        }
        let last = size.checked_sub(1)?;
        let covered = (last * self.stride + self.reach() + added).checked_sub(2 * self.padding)?;
        (1..=LONGEST).contains(&covered).then_some(covered)
    }
}

/// The product of sizes, where a tensor can have so many elements.
pub fn elements(sizes: impl IntoIterator<Item = usize>) -> Option<usize> {
    let mut product = 1usize;
    let mut empty = false;
    for size in sizes {
        // Sizes beside a 0 have to fit as well: who multiplies them apart may not wrap.
        empty |= size == 0;
        product = product.checked_mul(size.max(1)).filter(|product| *product <= isize::MAX as usize)?;
    }
    Some(if empty { 0 } else { product })
}

/// [`elements`], or an error that names the tensor.
///
/// # Errors
/// Where no memory could hold so many.
pub fn count(what: &str, sizes: &[usize]) -> Result<usize> {
    elements(sizes.iter().copied())
        .ok_or_else(|| Error(format!("{what} of sizes {sizes:?} has more elements than memory can hold")))
}
