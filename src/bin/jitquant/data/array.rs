//! A batch of samples in memory.

use std::fmt;

use anyhow::{Result, bail};

/// The type of one element, as a model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    F32,
    F64,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        })
    }
}

/// The elements of an array, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum ArrayData {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I16(Vec<i16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bool(Vec<bool>),
}

impl ArrayData {
    /// The number of elements.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::Bool(v) => v.len(),
        }
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F64(_) => ElementType::F64,
            Self::I64(_) => ElementType::I64,
            Self::I32(_) => ElementType::I32,
            Self::I16(_) => ElementType::I16,
            Self::I8(_) => ElementType::I8,
            Self::U8(_) => ElementType::U8,
            Self::Bool(_) => ElementType::Bool,
        }
    }

    /// Appends the elements of `other`.
    ///
    /// # Errors
    /// If the element types differ.
    pub fn append(&mut self, other: ArrayData) -> Result<()> {
        match (self, other) {
            (Self::F32(a), Self::F32(mut b)) => a.append(&mut b),
            (Self::F64(a), Self::F64(mut b)) => a.append(&mut b),
            (Self::I64(a), Self::I64(mut b)) => a.append(&mut b),
            (Self::I32(a), Self::I32(mut b)) => a.append(&mut b),
            (Self::I16(a), Self::I16(mut b)) => a.append(&mut b),
            (Self::I8(a), Self::I8(mut b)) => a.append(&mut b),
            (Self::U8(a), Self::U8(mut b)) => a.append(&mut b),
            (Self::Bool(a), Self::Bool(mut b)) => a.append(&mut b),
            (a, b) => bail!("cannot append {} elements to {} elements", b.element_type(), a.element_type()),
        }
        Ok(())
    }

    /// float64 elements rounded to float32, the type of nearly every model's parameters; others as they are.
    pub fn with_float64_as_float32(self) -> Self {
        match self {
            Self::F64(v) => Self::F32(v.into_iter().map(|x| x as f32).collect()),
            other => other,
        }
    }

    /// Flat position and value of the first NaN or infinity. `None` for integers and booleans.
    pub fn first_non_finite(&self) -> Option<(usize, f64)> {
        match self {
            Self::F32(v) => v.iter().position(|x| !x.is_finite()).map(|i| (i, f64::from(v[i]))),
            Self::F64(v) => v.iter().position(|x| !x.is_finite()).map(|i| (i, v[i])),
            _ => None,
        }
    }
}

/// Some samples of one input of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The name in the data, or the model's argument name after [`Dataset::bind`](super::Dataset::bind).
    pub name: String,
    /// The shape; the first dimension counts the samples.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: ArrayData,
}

impl Array {
    /// Refuses NaN and infinity, which no observer can turn into a scale.
    /// `first_sample` is the number that the first sample of this array has for the user.
    ///
    /// # Errors
    /// Names the array, the sample and the position inside the sample of the first value that is not finite.
    pub fn check_finite(&self, first_sample: usize) -> Result<()> {
        let Some((flat, value)) = self.data.first_non_finite() else { return Ok(()) };
        let sample_shape = self.shape.get(1..).unwrap_or_default();
        let sample_len = sample_shape.iter().product::<usize>().max(1);
        let sample = first_sample + flat / sample_len;
        bail!(
            "array `{}` holds {} in sample {sample}, at position {:?} of that sample (flat index {} of the array): \
             a range that is not finite cannot be quantized; repair or remove the sample",
            self.name,
            if value.is_nan() { "NaN".to_owned() } else { value.to_string() },
            unravel(flat % sample_len, sample_shape),
            first_sample * sample_len + flat,
        )
    }
}

/// The index in each dimension of the element at `flat` of a row-major array of this shape.
fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &dim) in index.iter_mut().zip(shape).rev() {
        *i = flat % dim;
        flat /= dim;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_located_by_sample_and_position() {
        let mut data = vec![0.0f32; 4 * 2 * 3];
        data[2 * 6 + 5] = f32::NAN;
        let array = Array { name: "x".into(), shape: vec![4, 2, 3], data: ArrayData::F32(data) };
        let message = array.check_finite(100).unwrap_err().to_string();
        assert!(
            message.starts_with("array `x` holds NaN in sample 102, at position [1, 2] of that sample (flat index 617"),
            "{message}"
        );
    }

    #[test]
    fn an_infinity_in_a_vector_of_scalars_is_located() {
        let array = Array { name: "y".into(), shape: vec![3], data: ArrayData::F64(vec![1.0, 2.0, f64::NEG_INFINITY]) };
        let message = array.check_finite(0).unwrap_err().to_string();
        assert!(message.starts_with("array `y` holds -inf in sample 2, at position []"), "{message}");
    }

    #[test]
    fn finite_floats_and_integers_pass() {
        let largest = Array { name: "x".into(), shape: vec![2], data: ArrayData::F32(vec![f32::MAX, f32::MIN]) };
        largest.check_finite(0).unwrap();
        Array { name: "i".into(), shape: vec![1], data: ArrayData::I64(vec![i64::MIN]) }.check_finite(0).unwrap();
    }

    #[test]
    fn append_refuses_another_element_type() {
        let mut data = ArrayData::F32(vec![1.0]);
        data.append(ArrayData::F32(vec![2.0])).unwrap();
        assert_eq!(data, ArrayData::F32(vec![1.0, 2.0]));
        let message = data.append(ArrayData::I64(vec![1])).unwrap_err().to_string();
        assert_eq!(message, "cannot append int64 elements to float32 elements");
    }
}
