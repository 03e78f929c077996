//! Tensors as plain memory: element type, sizes, strides, address.

use std::ffi::c_void;

use super::argument;
use super::status::{Failure, Outcome};
use crate::ir::{DType, Tensor};

/// The type of a tensor's elements; the numbers are libtorch's `ScalarType`.
pub type jq_dtype = i32;

/// `uint8_t`
pub const JQ_U8: jq_dtype = 0;
/// `int8_t`
pub const JQ_I8: jq_dtype = 1;
/// `int16_t`
pub const JQ_I16: jq_dtype = 2;
/// `int32_t`
pub const JQ_I32: jq_dtype = 3;
/// `int64_t`
pub const JQ_I64: jq_dtype = 4;
/// IEEE 754 half precision
pub const JQ_F16: jq_dtype = 5;
/// `float`
pub const JQ_F32: jq_dtype = 6;
/// `double`
pub const JQ_F64: jq_dtype = 7;
/// A byte, 0 or 1
pub const JQ_BOOL: jq_dtype = 11;
/// bfloat16
pub const JQ_BF16: jq_dtype = 15;

/// A tensor in plain memory. It owns nothing.
#[repr(C)]
pub struct jq_buffer {
    /// The type of the elements.
    pub dtype: jq_dtype,
    /// How many dimensions there are; 0 for a single number.
    pub dims: usize,
    /// The size of each dimension; may be null where `dims` is 0.
    pub shape: *const i64,
    /// How many elements (not bytes) to go on for one step along each dimension, 0 or more. Null: row-major, without
    /// gaps.
    pub strides: *const i64,
    /// The first element, in the CPU's memory; may be null where a size is 0.
    pub data: *const c_void,
}

/// More dimensions than that are a mistake in the caller's structure.
const MAX_DIMS: usize = 64;

/// The type of elements that a caller may name.
fn element_type(dtype: jq_dtype, argument: &str) -> Outcome<DType> {
    let dtype_of_c = DType::from_code(dtype).filter(|d| !matches!(d, DType::QI8 | DType::QU8 | DType::QI32));
    dtype_of_c.ok_or_else(|| {
        Failure::argument(format!("'{argument}': {dtype} is no element type; take one of JQ_U8 to JQ_BF16"))
    })
}

/// The type and sizes of row-major memory, and how many bytes it has; `argument` is its name in the header.
///
/// # Safety
/// `shape` is null or points to `dims` numbers that stay and do not change for `'a`.
pub(super) unsafe fn dense_bytes<'a>(
    dtype: jq_dtype,
    dims: usize,
    shape: *const i64,
    argument: &str,
) -> Outcome<(DType, &'a [i64], usize)> {
    let dtype = element_type(dtype, argument)?;
    if dims > MAX_DIMS {
        return Err(Failure::argument(format!("'{argument}': {dims} dimensions; at most {MAX_DIMS} are accepted")));
    }
    // SAFETY: the caller's promise.
    let shape = unsafe { argument::items(shape, dims, &format!("{argument}.shape"))? };
    let bytes = count(shape).and_then(|count| count.checked_mul(dtype.size()));
    match bytes.filter(|bytes| *bytes <= isize::MAX as usize) {
        Some(bytes) => Ok((dtype, shape, bytes)),
        None => {
            Err(Failure::argument(format!("'{argument}': shape {shape:?} is negative or more than fits into memory")))
        }
    }
}

/// A tensor with a copy of the buffer's elements; `argument` is its name in the header.
///
/// # Safety
/// `shape`, `strides` and `data` are null or point to what the buffer's other fields say, and do not change during the
/// call.
pub(super) unsafe fn read(buffer: &jq_buffer, argument: &str) -> Outcome<Tensor> {
    let refuse = |what: String| Err(Failure::argument(format!("'{argument}': {what}")));
    let dtype = element_type(buffer.dtype, argument)?;
    if buffer.dims > MAX_DIMS {
        return refuse(format!("{} dimensions; at most {MAX_DIMS} are accepted", buffer.dims));
    }
    // SAFETY: the caller's promise.
    let shape = unsafe { argument::items(buffer.shape, buffer.dims, &format!("{argument}.shape"))? };
    let strides = match buffer.strides.is_null() {
        true => row_major(shape),
        // SAFETY: the caller's promise.
        false => unsafe { argument::items(buffer.strides, buffer.dims, &format!("{argument}.strides"))? }.to_vec(),
    };
    if shape.iter().chain(&strides).any(|size| *size < 0) {
        return refuse(format!("shape {shape:?}, strides {strides:?}: negative sizes and strides are not accepted"));
    }
    let (Some(count), Some(reach)) = (count(shape), reach(shape, &strides)) else {
        return refuse(format!("shape {shape:?}, strides {strides:?} reach further than memory does"));
    };
    let Some(bytes) = reach.max(count).checked_mul(dtype.size()).filter(|bytes| *bytes <= isize::MAX as usize) else {
        return refuse(format!("shape {shape:?} holds more than fits into memory"));
    };
    if count == 0 {
        return Ok(Tensor::from_bytes(dtype, shape, &[])?);
    }
    if buffer.data.is_null() {
        return refuse(format!("data is null, but shape {shape:?} has {count} elements"));
    }
    if is_row_major(shape, &strides) {
        // SAFETY: the caller's promise: the elements lie there, `bytes` in all.
        let elements = unsafe { std::slice::from_raw_parts(buffer.data.cast::<u8>(), bytes) };
        return Ok(Tensor::from_bytes(dtype, shape, elements)?);
    }
    // SAFETY: the caller's promise: the last element that the strides lead to is the last one in these bytes.
    let elements = unsafe { std::slice::from_raw_parts(buffer.data.cast::<u8>(), reach * dtype.size()) };
    let Some(gathered) = gather(elements, dtype.size(), shape, &strides, count) else {
        return refuse(format!("shape {shape:?} holds more than fits into memory"));
    };
    Ok(Tensor::from_bytes(dtype, shape, &gathered)?)
}

/// How many elements there are; `None` where that is no number.
fn count(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, size| count.checked_mul(usize::try_from(*size).ok()?))
}

/// One more than the greatest offset that the strides lead to.
fn reach(shape: &[i64], strides: &[i64]) -> Option<usize> {
    let last = shape.iter().zip(strides).try_fold(0usize, |last, (size, stride)| {
        last.checked_add(usize::try_from((*size - 1).max(0)).ok()?.checked_mul(usize::try_from(*stride).ok()?)?)
    })?;
    last.checked_add(1)
}

/// The strides of a row-major tensor without gaps.
fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim].saturating_mul(shape[dim].max(1));
    }
    strides
}

fn is_row_major(shape: &[i64], strides: &[i64]) -> bool {
    // A dimension of size 1 is never stepped along.
    shape.iter().zip(strides).zip(row_major(shape)).all(|((size, stride), dense)| *size == 1 || *stride == dense)
}

/// The elements in row-major order; `None` where there is no memory for them: with strides of 0, a few elements may stand
/// for any number.
fn gather(elements: &[u8], size: usize, shape: &[i64], strides: &[i64], count: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(count.checked_mul(size)?).ok()?;
    let mut position = vec![0i64; shape.len()];
    for _ in 0..count {
        let offset: i64 = position.iter().zip(strides).map(|(at, stride)| at * stride).sum();
        let begin = offset as usize * size;
        bytes.extend_from_slice(&elements[begin..begin + size]);
        for dim in (0..shape.len()).rev() {
            position[dim] += 1;
            if position[dim] < shape[dim] {
                break;
            }
            position[dim] = 0;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(shape: &[i64], strides: &[i64], data: &[f32]) -> Outcome<Vec<f32>> {
        let strides = if strides.is_empty() { std::ptr::null() } else { strides.as_ptr() };
        let data = data.as_ptr().cast();
        let buffer = jq_buffer { dtype: JQ_F32, dims: shape.len(), shape: shape.as_ptr(), strides, data };
        // SAFETY: the slices outlive the call, and the tests keep within them.
        Ok(unsafe { read(&buffer, "x")? }.to_vec::<f32>()?)
    }

    #[test]
    fn strides_lead_to_the_elements() {
        let data: Vec<f32> = (0..12).map(|v| v as f32).collect();
        assert_eq!(buffer(&[3, 4], &[], &data).unwrap(), data);
        assert_eq!(buffer(&[2, 2], &[4, 2], &data).unwrap(), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(buffer(&[4, 3], &[1, 4], &data).unwrap()[..4], [0.0, 4.0, 8.0, 1.0]);
        assert_eq!(buffer(&[2, 3], &[0, 1], &data).unwrap(), [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
        assert_eq!(buffer(&[], &[], &data).unwrap(), [0.0]);
        assert_eq!(buffer(&[0, 4], &[], &[]).unwrap(), Vec::<f32>::new());
        assert_eq!(buffer(&[1, 4], &[999, 1], &data).unwrap(), data[..4]);
    }

    #[test]
    fn what_reaches_too_far_is_refused() {
        assert!(buffer(&[-1], &[], &[]).is_err());
        assert!(buffer(&[2], &[-1], &[0.0]).is_err());
        assert!(buffer(&[i64::MAX, 4], &[], &[0.0]).is_err());
        assert!(buffer(&[2, 2], &[i64::MAX, 1], &[0.0]).is_err());
        assert!(buffer(&[i64::MAX / 8], &[0], &[0.0]).is_err());
    }
}
