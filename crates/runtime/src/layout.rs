//! Sizes and strides of a tensor, with libtorch's rules for the order of memory.

use jitquant_kernels::geometry::elements;

use crate::{Result, refuse};

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Element {
    /// Bytes of a quantized tensor.
    U8,
    /// Floats.
    F32,
    /// Truth values: a byte that is 0 or 1.
    #[serde(skip)]
    Bool,
}

impl Element {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::Bool => 1,
            Self::F32 => 4,
        }
    }
}

/// The order of dimensions in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The last dimension is the innermost.
    Contiguous,
    /// Of `[batch, channels, ...]`, channels are the innermost.
    ChannelsLast,
}

/// A tensor's element type, sizes, and strides in elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The type of its elements.
    pub element: Element,
    /// Sizes, outermost first.
    pub sizes: Vec<i64>,
    /// Elements from one index to the next along each dimension.
    pub strides: Vec<i64>,
}

impl Layout {
    /// A tensor without gaps, in this order. [`Format::ChannelsLast`] wants at least a batch and channels.
    pub fn new(element: Element, sizes: &[i64], format: Format) -> Self {
        let rank = sizes.len();
        let order: Vec<usize> = match format {
            Format::ChannelsLast if rank >= 2 => std::iter::once(0).chain(2..rank).chain([1]).collect(),
            _ => (0..rank).collect(),
        };
        let mut strides = vec![1; rank];
        let mut stride = 1i64;
        for axis in order.into_iter().rev() {
            strides[axis] = stride;
            stride = stride.saturating_mul(sizes[axis].max(1));
        }
        Self { element, sizes: sizes.to_vec(), strides }
    }

    /// How many dimensions there are.
    pub fn rank(&self) -> usize {
        self.sizes.len()
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.sizes.iter().map(|size| *size as usize).product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sizes.contains(&0)
    }

    /// Elements of memory from the first to the last, both included.
    pub fn span(&self) -> usize {
        match self.is_empty() {
            true => 0,
            false => 1 + self.dims().map(|(size, stride)| (size - 1) * stride).sum::<usize>(),
        }
    }

    /// Sizes with strides.
    pub fn dims(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + '_ {
        self.sizes.iter().zip(&self.strides).map(|(size, stride)| (*size as usize, *stride as usize))
    }

    /// Checks that a tensor of these sizes can be: that there are as many strides, nothing is negative, no dimension is empty,
    /// and memory could hold it.
    ///
    /// # Errors
    /// What is not so.
    pub fn check(&self) -> Result<()> {
        let fits = |numbers: &[i64], from: i64| numbers.iter().all(|n| (from..=i64::from(i32::MAX)).contains(n));
        let plausible = self.sizes.len() == self.strides.len() && fits(&self.sizes, 1) && fits(&self.strides, 0);
        let reach = self.dims().try_fold(1usize, |sum, (size, stride)| {
            sum.checked_add(size.saturating_sub(1).checked_mul(stride)?).filter(|sum| *sum < isize::MAX as usize / 8)
        });
        match plausible && reach.is_some() && elements(self.dims().map(|(size, _)| size)).is_some() {
            true => Ok(()),
            false => refuse(format!("a tensor of sizes {:?} and strides {:?}", self.sizes, self.strides)),
        }
    }

    /// Whether its memory is in this order without gaps; strides of dimensions of size 1 do not matter.
    pub fn is_contiguous(&self, format: Format) -> bool {
        let dense = Self::new(self.element, &self.sizes, format);
        self.is_like(&dense)
    }

    /// Whether each element lies where `other` has it.
    pub fn is_like(&self, other: &Self) -> bool {
        self.sizes == other.sizes
            && self.sizes.iter().zip(self.strides.iter().zip(&other.strides)).all(|(size, (a, b))| *size <= 1 || a == b)
    }

    /// Whether its memory has no gaps, in whatever order.
    pub fn is_dense(&self) -> bool {
        let mut dims: Vec<_> = self.dims().filter(|(size, _)| *size != 1).collect();
        dims.sort_by_key(|(_, stride)| *stride);
        let mut expected = 1;
        dims.into_iter().all(|(size, stride)| {
            let fits = stride == expected;
            expected *= size;
            fits
        })
    }

    /// libtorch's `suggest_memory_format`: the order that the strides are like.
    pub fn format(&self) -> Format {
        let order: &[usize] = match self.rank() {
            4 => &[1, 3, 2, 0],
            5 => &[1, 4, 3, 2, 0],
            _ => return Format::Contiguous,
        };
        let mut least = 0;
        for axis in order {
            let (size, stride) = (self.sizes[*axis], self.strides[*axis]);
            let is_ambiguous = *axis == 0 && least == self.strides[1];
            if size == 0 || stride < least || is_ambiguous || self.strides[1] == 0 {
                return Format::Contiguous;
            }
            least = stride.saturating_mul(size.max(1));
        }
        Format::ChannelsLast
    }

    /// The axis that `axis` means, which may count from the end.
    ///
    /// # Errors
    /// Where there is none.
    pub fn axis(&self, axis: i64) -> Result<usize> {
        let rank = self.rank() as i64;
        let found = if axis < 0 { axis + rank } else { axis };
        match (0..rank).contains(&found) {
            true => Ok(found as usize),
            false => refuse(format!("dimension {axis} of a tensor of sizes {:?}", self.sizes)),
        }
    }

    /// A tensor of `sizes` without gaps whose dimensions lie in memory in the order that they have here, as libtorch's
    /// element-wise operators give it; contiguous where the sizes are others or a dimension is repeated.
    pub(crate) fn like(&self, element: Element, sizes: &[i64]) -> Self {
        let contiguous = Self::new(element, sizes, Format::Contiguous);
        let repeats = self.dims().any(|(size, stride)| size != 1 && stride == 0);
        if self.sizes != sizes || repeats {
            return contiguous;
        }
        let mut axes: Vec<usize> = (0..self.rank()).filter(|axis| sizes[*axis] != 1).collect();
        axes.sort_by_key(|axis| std::cmp::Reverse(self.strides[*axis]));
        let mut layout = contiguous;
        let mut stride = 1;
        for axis in axes.into_iter().rev() {
            layout.strides[axis] = stride;
            stride *= sizes[axis];
        }
        layout
    }

    /// Its dimensions from the outermost in the memory of `order`, as (size, own stride), neighbours merged where they lie
    /// behind one another, dimensions of size 1 left out.
    pub(crate) fn merged_in(&self, order: &Layout) -> Vec<(usize, usize)> {
        let mut axes: Vec<usize> = (0..self.rank()).filter(|axis| self.sizes[*axis] != 1).collect();
        axes.sort_by_key(|axis| std::cmp::Reverse(order.strides[*axis]));
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for axis in axes {
            let (size, stride) = (self.sizes[axis] as usize, self.strides[axis] as usize);
            match merged.last_mut() {
                Some((outer, above)) if *above == stride * size => (*outer, *above) = (*outer * size, stride),
                _ => merged.push((size, stride)),
            }
        }
        merged
    }
}
