//! Tensors as who runs a model has them: sizes, and values in the order of the indices.

use jitquant_kernels::geometry::elements;

use crate::layout::Element;
use crate::{Error, Result, refuse};

/// A tensor's values, lent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values<'a> {
    /// Bytes.
    U8(&'a [u8]),
    /// Floats.
    F32(&'a [f32]),
}

impl<'a> Values<'a> {
    /// Their type.
    pub fn element(&self) -> Element {
        match self {
            Self::U8(_) => Element::U8,
            Self::F32(_) => Element::F32,
        }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        match self {
            Self::U8(values) => values,
            Self::F32(values) => bytemuck::cast_slice(values),
        }
    }

    fn len(&self) -> usize {
        self.bytes().len() / self.element().size()
    }
}

/// A tensor that a model is given: the last index runs fastest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorRef<'a> {
    /// Its sizes, outermost first.
    pub sizes: &'a [i64],
    /// Its values, as many as the sizes say.
    pub values: Values<'a>,
}

impl<'a> TensorRef<'a> {
    /// A tensor of floats.
    pub fn floats(values: &'a [f32], sizes: &'a [i64]) -> Self {
        Self { sizes, values: Values::F32(values) }
    }

    /// A tensor of bytes.
    pub fn bytes(values: &'a [u8], sizes: &'a [i64]) -> Self {
        Self { sizes, values: Values::U8(values) }
    }

    /// Checks that there are as many values as the sizes say.
    pub(crate) fn check(&self) -> Result<()> {
        let sizes: Option<Vec<usize>> = self.sizes.iter().map(|size| usize::try_from(*size).ok()).collect();
        match sizes.and_then(elements) {
            Some(len) if len == self.values.len() => Ok(()),
            _ => refuse(format!("{} values for sizes {:?}", self.values.len(), self.sizes)),
        }
    }
}

/// A tensor's memory, lent to be written.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// For bytes.
    U8(&'a mut [u8]),
    /// For floats.
    F32(&'a mut [f32]),
}

impl ValuesMut<'_> {
    /// The type of its values.
    pub fn element(&self) -> Element {
        match self {
            Self::U8(_) => Element::U8,
            Self::F32(_) => Element::F32,
        }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::U8(values) => values,
            Self::F32(values) => bytemuck::cast_slice_mut(values),
        }
    }
}

/// A tensor's values.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedValues {
    /// Bytes.
    U8(Vec<u8>),
    /// Floats.
    F32(Vec<f32>),
}

/// A result's memory; a size that a file leads to may be larger than the system has.
fn zeros<T: Clone>(zero: T, len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| Error(format!("no memory for a result of {len} values")))?;
    values.resize(len, zero);
    Ok(values)
}

/// A tensor that a model gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its sizes, outermost first.
    pub sizes: Vec<i64>,
    /// Its values: the last index runs fastest.
    pub values: OwnedValues,
}

impl Tensor {
    pub(crate) fn zeros(element: Element, sizes: &[i64], len: usize) -> Result<Self> {
        let values = match element {
            Element::U8 => OwnedValues::U8(zeros(0, len)?),
            Element::F32 => OwnedValues::F32(zeros(0.0, len)?),
            Element::Bool => return refuse("a result of truth values"),
        };
        Ok(Self { sizes: sizes.to_vec(), values })
    }

    /// Its values where they are floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.values {
            OwnedValues::F32(values) => Some(values),
            OwnedValues::U8(_) => None,
        }
    }

    /// The tensor, lent.
    pub fn view(&self) -> TensorRef<'_> {
        let values = match &self.values {
            OwnedValues::U8(values) => Values::U8(values),
            OwnedValues::F32(values) => Values::F32(values),
        };
        TensorRef { sizes: &self.sizes, values }
    }

    pub(crate) fn values_mut(&mut self) -> ValuesMut<'_> {
        match &mut self.values {
            OwnedValues::U8(values) => ValuesMut::U8(values),
            OwnedValues::F32(values) => ValuesMut::F32(values),
        }
    }
}
