//! Tensors as C has them.

use std::ffi::{c_char, c_void};

use jitquant_kernels::geometry::elements;
use jitquant_runtime::{Element, TensorRef, Values, ValuesMut};

use crate::status::Outcome;

/// What a tensor's elements are.
pub type jqr_element = i32;
/// Bytes.
pub const JQR_U8: jqr_element = 0;
/// Floats of 32 bits.
pub const JQR_F32: jqr_element = 1;

/// A tensor: its values lie in the order of the indices, the last one runs fastest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct jqr_tensor {
    /// What its elements are.
    pub element: jqr_element,
    /// How many dimensions it has.
    pub rank: usize,
    /// As many sizes, outermost first; may be null where `rank` is 0.
    pub sizes: *const i64,
    /// As many elements as the sizes say.
    pub data: *const c_void,
}

/// Memory for a result.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct jqr_memory {
    /// What its elements are.
    pub element: jqr_element,
    /// How many there is room for: as many as the result has.
    pub count: usize,
    /// The elements.
    pub data: *mut c_void,
}

/// What a model takes or gives.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct jqr_description {
    /// Its name.
    pub name: *const c_char,
    /// Name, type and sizes for people, e.g. `x: float32 [batch, 3, height, width]`.
    pub text: *const c_char,
    /// What its elements are.
    pub element: jqr_element,
    /// How many dimensions it has; 0 where that is not known before a call.
    pub rank: usize,
    /// As many sizes, each -1 where a call decides; null where they are not known before one.
    pub sizes: *const i64,
}

/// The number of an element type; files have no inputs and outputs of truth values, which have none.
pub(crate) fn number_of(element: Element) -> jqr_element {
    match element {
        Element::U8 => JQR_U8,
        Element::F32 => JQR_F32,
        Element::Bool => -1,
    }
}

/// Checks that a pointer is one on elements of `size` bytes.
fn check<T>(what: &str, data: *const T, size: usize) -> Outcome<()> {
    match (data.is_null(), data.addr().is_multiple_of(size)) {
        (true, _) => Err(format!("{what} is null")),
        (_, false) => Err(format!("{what} is not aligned to {size} bytes")),
        _ => Ok(()),
    }
}

/// `len` elements at `data`.
///
/// # Safety
/// The caller of the C function says that they are there, and that nobody writes them until it returns.
unsafe fn slice<'a, T>(what: &str, data: *const c_void, len: usize) -> Outcome<&'a [T]> {
    check(what, data, size_of::<T>())?;
    // SAFETY: not null and aligned, as was checked; the rest is the contract.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

impl jqr_tensor {
    /// The tensor, borrowed.
    ///
    /// # Safety
    /// What the header says of the structure holds, and nobody writes into it while it is borrowed.
    pub(crate) unsafe fn view<'a>(&self, what: &str) -> Outcome<TensorRef<'a>> {
        let sizes: &[i64] = match self.rank {
            0 => &[],
            1..=64 => {
                // SAFETY: the contract of this function.
                unsafe { slice(&format!("{what}'s sizes"), self.sizes.cast(), self.rank)? }
            }
            rank => return Err(format!("{what} has {rank} dimensions")),
        };
        let known: Option<Vec<usize>> = sizes.iter().map(|size| usize::try_from(*size).ok()).collect();
        let len = known.and_then(elements).filter(|len| *len <= isize::MAX as usize / size_of::<f32>());
        let len = len.ok_or_else(|| format!("{what} has sizes {sizes:?}"))?;
        // SAFETY: the contract of this function, and the sizes fit an address space.
        let values = unsafe {
            match self.element {
                JQR_U8 => Values::U8(slice(what, self.data, len)?),
                JQR_F32 => Values::F32(slice(what, self.data, len)?),
                other => {
                    return Err(format!("{what} has elements of type {other}; 0 (bytes) and 1 (floats) are known"));
                }
            }
        };
        Ok(TensorRef { sizes, values })
    }
}

impl jqr_memory {
    /// The memory, borrowed to be written.
    ///
    /// # Safety
    /// What the header says of the structure holds, and nobody else uses it while it is borrowed.
    pub(crate) unsafe fn lend<'a>(&self, what: &str) -> Outcome<ValuesMut<'a>> {
        if self.count > isize::MAX as usize / size_of::<f32>() {
            return Err(format!("{what} has room for {} elements", self.count));
        }
        let check = |size: usize| check(what, self.data.cast_const(), size);
        match self.element {
            JQR_U8 => {
                check(1)?;
                // SAFETY: not null; the rest is the contract. Bytes are elements whatever they are.
                Ok(ValuesMut::U8(unsafe { std::slice::from_raw_parts_mut(self.data.cast(), self.count) }))
            }
            JQR_F32 => {
                check(size_of::<f32>())?;
                // SAFETY: not null and aligned; the rest is the contract. Any bits are floats.
                Ok(ValuesMut::F32(unsafe { std::slice::from_raw_parts_mut(self.data.cast(), self.count) }))
            }
            other => Err(format!("{what} has elements of type {other}; 0 (bytes) and 1 (floats) are known")),
        }
    }
}

/// `count` structures at `start`.
///
/// # Safety
/// The caller of the C function says that they are there, and that nobody writes them until it returns.
pub(crate) unsafe fn all<'a, T>(what: &str, start: *const T, count: usize) -> Outcome<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    check(what, start, align_of::<T>())?;
    if count > isize::MAX as usize / size_of::<T>() {
        return Err(format!("{count} {what}"));
    }
    // SAFETY: not null and aligned, as was checked; the rest is the contract.
    Ok(unsafe { std::slice::from_raw_parts(start, count) })
}
