//! Tensors as the bridge passes them: handles on `at::Tensor`.

use std::ffi::c_void;

use cxx::UniquePtr;

use super::ffi::bridge as ffi;
use crate::error::{Error, Result};

/// The element type of a [`Tensor`]; the numbers are libtorch's `ScalarType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[repr(i32)]
#[non_exhaustive]
pub enum DType {
    U8 = 0,
    I8 = 1,
    I16 = 2,
    I32 = 3,
    I64 = 4,
    F16 = 5,
    F32 = 6,
    F64 = 7,
    Bool = 11,
    QI8 = 12,
    QU8 = 13,
    QI32 = 14,
    BF16 = 15,
}

impl DType {
    const ALL: [DType; 13] = {
        use DType::*;
        [U8, I8, I16, I32, I64, F16, F32, F64, Bool, QI8, QU8, QI32, BF16]
    };

    /// The type with libtorch's number `code`, where it is one of those above.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as i32 == code)
    }

    /// Whether it is one of the plain floating-point types.
    pub fn is_floating(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// Bytes that one element takes.
    pub fn size(self) -> usize {
        use DType::*;
        match self {
            U8 | I8 | Bool | QI8 | QU8 => 1,
            I16 | F16 | BF16 => 2,
            I32 | F32 | QI32 => 4,
            I64 | F64 => 8,
        }
    }
}

/// A Rust type that tensors hold.
pub trait Element: bytemuck::Pod {
    /// The tensor's element type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
element!(u8 => U8, i8 => I8, i16 => I16, i32 => I32, i64 => I64, f32 => F32, f64 => F64);

/// A handle on an `at::Tensor`; clones share the data.
pub struct Tensor(pub(crate) UniquePtr<ffi::Tensor>);

// SAFETY: at::Tensor is a reference-counted handle with an atomic count; libtorch passes tensors between threads.
unsafe impl Send for Tensor {}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        Self(ffi::tensor_handle(&self.0))
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is_defined() {
            true => write!(f, "Tensor({:?}, {:?})", self.dtype(), self.shape()),
            false => write!(f, "Tensor(undefined)"),
        }
    }
}

impl Tensor {
    /// A contiguous tensor of `shape` with a copy of `values` in row-major order.
    ///
    /// # Errors
    /// Where `shape` does not hold exactly `values.len()` elements.
    pub fn from_slice<T: Element>(values: &[T], shape: &[i64]) -> Result<Self> {
        Self::from_bytes(T::DTYPE, shape, bytemuck::cast_slice(values))
    }

    /// A contiguous tensor of `shape` with a copy of `bytes`, the elements in row-major order and native-endian.
    ///
    /// # Errors
    /// Where the number of bytes does not fit the shape, or `dtype` is a quantized one.
    pub fn from_bytes(dtype: DType, shape: &[i64], bytes: &[u8]) -> Result<Self> {
        if matches!(dtype, DType::QI8 | DType::QU8 | DType::QI32) {
            return Err(Error::invalid(format!("a {dtype:?} tensor is not made from plain bytes")));
        }
        Ok(Self(ffi::tensor_from_bytes(dtype as i32, shape, bytes)?))
    }

    /// `len` bytes that `fill` writes, in a tensor of one dimension.
    ///
    /// # Errors
    /// Where memory is short, and those of `fill`.
    pub(crate) fn filled(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        let tensor = Self(ffi::tensor_zeros(len)?);
        if len > 0 {
            // SAFETY: libtorch has just made `len` bytes there and set them to zero; no other handle on them exists yet.
            fill(unsafe { std::slice::from_raw_parts_mut(tensor.data().cast_mut().cast(), len) })?;
        }
        Ok(tensor)
    }

    /// A tensor on this one's memory; sizes, strides and the offset count elements of `dtype`. That it lies inside is the
    /// caller's to see to: libtorch makes memory that is too small larger.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn view_as(&self, dtype: DType, sizes: &[i64], strides: &[i64], offset: i64) -> Result<Self> {
        Ok(Self(ffi::tensor_on_memory(&self.0, dtype as i32, sizes, strides, offset)?))
    }

    /// Whether there is a tensor behind the handle (libtorch has undefined ones).
    pub fn is_defined(&self) -> bool {
        ffi::tensor_defined(&self.0)
    }

    /// The element type, `None` for the rarer ones that [`DType`] does not name.
    pub fn dtype(&self) -> Option<DType> {
        DType::from_code(ffi::tensor_dtype(&self.0))
    }

    /// The size of each dimension; empty for a nested tensor, which has none.
    pub fn shape(&self) -> Vec<i64> {
        ffi::tensor_shape(&self.0)
    }

    /// Bytes that the elements take; 0 where they do not lie in memory one by one (sparse and nested tensors).
    pub fn nbytes(&self) -> usize {
        ffi::tensor_bytes_len(&self.0)
    }

    /// Whether the elements are quantized (`quint8`, `qint8`, `qint32`).
    pub fn is_quantized(&self) -> bool {
        ffi::tensor_is_quantized(&self.0)
    }

    /// Whether the data is in the CPU's memory.
    pub fn is_cpu(&self) -> bool {
        ffi::tensor_is_cpu(&self.0)
    }

    /// The elements in row-major order; of a quantized tensor its integers.
    ///
    /// # Errors
    /// Where the elements are of another type than `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let plain = match self.dtype() {
            Some(DType::QU8) => Some(DType::U8),
            Some(DType::QI8) => Some(DType::I8),
            Some(DType::QI32) => Some(DType::I32),
            other => other,
        };
        if plain != Some(T::DTYPE) {
            return Err(Error::invalid(format!("{self:?} does not hold {:?}", T::DTYPE)));
        }
        self.read()
    }

    /// The elements' bytes in row-major order; of a quantized tensor its integers'.
    pub(crate) fn raw_bytes(&self) -> Result<Vec<u8>> {
        self.read()
    }

    /// What lies in memory, copied once. `T` is of the elements' size, or a byte.
    fn read<T: bytemuck::Pod>(&self) -> Result<Vec<T>> {
        let plain = ffi::tensor_plain(&self.0)?;
        let mut values = vec![T::zeroed(); ffi::tensor_bytes_len(&plain) / size_of::<T>()];
        ffi::tensor_read(&plain, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The elements as f32 in row-major order, dequantized or converted where they are of another type.
    ///
    /// # Errors
    /// Where libtorch cannot convert them.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Self(ffi::tensor_to_f32(&self.0)?).to_vec()
    }

    /// Calls `with` on the elements as f32 in row-major order, without a copy where they lie so. Nothing may write into the
    /// tensor meanwhile.
    ///
    /// # Errors
    /// Where libtorch cannot convert them.
    pub(crate) fn with_f32<R>(&self, with: impl FnOnce(&[f32]) -> R) -> Result<R> {
        Ok(with(ffi::tensor_floats(&*ffi::tensor_to_f32(&self.0)?)?))
    }

    /// A handle on the host's `at::Tensor`.
    ///
    /// # Safety
    /// `tensor` points to a live `at::Tensor` of the libtorch that this library is loaded into.
    pub(crate) unsafe fn from_host(tensor: *const c_void) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { ffi::tensor_from_address(tensor as usize) })
    }

    /// Makes the host's `at::Tensor` a handle on this tensor.
    ///
    /// # Safety
    /// As for [`Tensor::from_host`], and nothing else uses the host's handle meanwhile.
    pub(crate) unsafe fn store_to_host(&self, tensor: *mut c_void) {
        // SAFETY: the caller's promise.
        unsafe { ffi::tensor_store(&self.0, tensor as usize) }
    }

    /// A tensor on the CPU whose elements lie one after the other in row-major order: itself where it is one. Of a
    /// quantized tensor the integers.
    ///
    /// # Errors
    /// Where it is sparse, nested or undefined.
    pub(crate) fn plain(&self) -> Result<Self> {
        Ok(Self(ffi::tensor_plain(&self.0)?))
    }

    /// Where the elements lie; they stay there while a handle on the tensor lives.
    pub(crate) fn data(&self) -> *const c_void {
        ffi::tensor_data(&self.0) as *const c_void
    }

    /// Whether both have the same shape and the same elements.
    ///
    /// # Errors
    /// Where libtorch cannot compare them.
    pub fn equal(&self, other: &Tensor) -> Result<bool> {
        Ok(ffi::tensor_equal(&self.0, &other.0)?)
    }

    /// Tells its memory from that of others while it lives: views have that of their base. `None` without memory.
    pub(crate) fn storage(&self) -> Option<usize> {
        Some(ffi::tensor_storage(&self.0)).filter(|address| *address != 0)
    }

    /// A tensor with data of its own.
    ///
    /// # Errors
    /// Where memory is short.
    pub fn deep_clone(&self) -> Result<Self> {
        Ok(Self(ffi::tensor_copy(&self.0)?))
    }
}

#[cfg(feature = "tch")]
impl From<&tch::Tensor> for Tensor {
    /// Shares the data.
    fn from(tensor: &tch::Tensor) -> Self {
        // SAFETY: tch's pointer is an at::Tensor* that lives while `tensor` is borrowed; the handle is copied here.
        Self(unsafe { ffi::tensor_from_address(tensor.as_ptr() as usize) })
    }
}

#[cfg(feature = "tch")]
impl From<&Tensor> for tch::Tensor {
    /// Shares the data.
    fn from(tensor: &Tensor) -> Self {
        // SAFETY: the address is that of a live at::Tensor, which clone_from_ptr copies.
        unsafe { tch::Tensor::clone_from_ptr(ffi::tensor_address(&tensor.0) as *mut _) }
    }
}
