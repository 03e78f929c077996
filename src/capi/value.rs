//! Values: what goes into a model and what comes out of it.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::argument;
use super::buffer::{self, jq_buffer};
use super::handle::{self, Handle};
use super::status::{Failure, Outcome, c_text, enter, jq_status};
use crate::ir::{DType, IValue, Tensor};

/// A TorchScript value: a tensor, a number, a text, a tuple, a list, … It does not change. Free it with `jq_value_free`.
pub struct jq_value {
    _opaque: (),
}

impl Handle for jq_value {
    const NAME: &'static str = "jq_value";
    type Object = SharedValue;
}

/// What a value is.
pub type jq_kind = i32;

/// `None`
pub const JQ_NONE: jq_kind = 0;
/// A tensor: `jq_value_buffer`
pub const JQ_TENSOR: jq_kind = 1;
/// An integer: `jq_value_int`
pub const JQ_INT: jq_kind = 2;
/// A floating-point number: `jq_value_double`
pub const JQ_DOUBLE: jq_kind = 3;
/// A truth value: `jq_value_int` gives 0 or 1
pub const JQ_TRUTH: jq_kind = 4;
/// A text, or a device: `jq_value_text`
pub const JQ_TEXT: jq_kind = 5;
/// A tuple: `jq_value_item`
pub const JQ_TUPLE: jq_kind = 6;
/// A list: `jq_value_item`
pub const JQ_LIST: jq_kind = 7;
/// A dictionary: `jq_value_item`; keys and values take turns
pub const JQ_DICT: jq_kind = 8;
/// Anything else; `jq_value_to_torch` hands it to the host
pub const JQ_OTHER: jq_kind = 9;

/// A value that threads share.
pub(super) struct SharedValue {
    value: Mutex<IValue>,
    elements: OnceLock<Elements>,
    text: OnceLock<CString>,
}

/// A tensor's elements, row-major in the CPU's memory.
struct Elements {
    dtype: DType,
    shape: Vec<i64>,
    tensor: Mutex<Tensor>,
    /// Where `tensor`'s elements lie.
    data: usize,
}

// SAFETY: an IValue holds counted pointers (the counts are atomic) and plain data; it is only reached through the mutex,
// and calls work on clones of it.
unsafe impl Send for SharedValue {}
// SAFETY: as above.
unsafe impl Sync for SharedValue {}

impl SharedValue {
    fn get(&self) -> IValue {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn items(&self) -> Outcome<Vec<IValue>> {
        match self.get() {
            IValue::Tuple(items) | IValue::List { items, .. } => Ok(items),
            IValue::Dict { items, .. } => Ok(items.into_iter().flat_map(|(key, value)| [key, value]).collect()),
            other => Err(wrong_kind("a tuple, a list or a dictionary", &other)),
        }
    }

    fn elements(&self) -> Outcome<&Elements> {
        if let Some(elements) = self.elements.get() {
            return Ok(elements);
        }
        let value = self.get();
        let Some(tensor) = value.as_tensor() else { return Err(wrong_kind("a tensor", &value)) };
        let plain = tensor.plain()?;
        let Some(dtype) = plain.dtype() else {
            return Err(Failure::argument(format!("the elements of {tensor:?} are of a type that C has not")));
        };
        let (shape, data) = (plain.shape(), plain.data() as usize);
        Ok(self.elements.get_or_init(|| Elements { dtype, shape, tensor: Mutex::new(plain), data }))
    }
}

impl Elements {
    fn buffer(&self) -> jq_buffer {
        // The tensor keeps its elements where they are.
        let _ = &self.tensor;
        jq_buffer {
            dtype: self.dtype as i32,
            dims: self.shape.len(),
            shape: self.shape.as_ptr(),
            strides: std::ptr::null(),
            data: self.data as *const c_void,
        }
    }
}

fn wrong_kind(wanted: &str, value: &IValue) -> Failure {
    Failure::argument(format!("the value is a {}, not {wanted}", value.kind()))
}

pub(super) fn issue(value: IValue) -> *mut jq_value {
    handle::issue(SharedValue { value: Mutex::new(value), elements: OnceLock::new(), text: OnceLock::new() })
}

pub(super) fn resolve_all(values: &[*const jq_value], argument: &str) -> Outcome<Vec<IValue>> {
    let value = |(i, value): (usize, &*const jq_value)| Ok(handle::resolve(*value, &format!("{argument}[{i}]"))?.get());
    values.iter().enumerate().map(value).collect()
}

/// A tensor with a copy of the buffer's elements, into `*value`. `buffer` is not null. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_from_buffer(buffer: *const jq_buffer, value: *mut *mut jq_value) -> jq_status {
    enter(|| {
        let room = argument::room(value, "value")?;
        if buffer.is_null() {
            return Err(Failure::argument("'buffer' is null; a jq_buffer is expected"));
        }
        // SAFETY: the caller's promise.
        let [buffer] = (unsafe { argument::items(buffer, 1, "buffer")? }) else { unreachable!("one was asked for") };
        // SAFETY: the caller's promise.
        let tensor = unsafe { buffer::read(buffer, "buffer")? };
        // SAFETY: the caller's promise.
        unsafe { room.put(issue(IValue::Tensor(tensor))) };
        Ok(())
    })
}

/// The tensor of the host's `at::Tensor` at `tensor`, into `*value`; the elements are shared, not copied.
///
/// `tensor` is not null and the address of an `at::Tensor` of the libtorch that the library was built for; it may go
/// after the call. Any thread, as long as no other one changes the host's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_from_tensor(tensor: *const c_void, value: *mut *mut jq_value) -> jq_status {
    enter(|| {
        let room = argument::room(value, "value")?;
        let host = argument::host(tensor, "tensor", "at::Tensor")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(issue(IValue::Tensor(Tensor::from_host(host)))) };
        Ok(())
    })
}

/// The value of the host's `c10::IValue` at `ivalue`, into `*value`: tensors and modules are shared, lists and
/// dictionaries copied. The rest is as for `jq_value_from_tensor`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_from_torch(ivalue: *const c_void, value: *mut *mut jq_value) -> jq_status {
    enter(|| {
        let room = argument::room(value, "value")?;
        let host = argument::host(ivalue, "ivalue", "c10::IValue")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(issue(IValue::from_host(host)?)) };
        Ok(())
    })
}

/// Sets the host's `c10::IValue` at `ivalue` to the value. `ivalue` is not null and is as for `jq_value_from_torch`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_to_torch(value: *const jq_value, ivalue: *mut c_void) -> jq_status {
    enter(|| {
        let value = handle::resolve(value, "value")?.get();
        let host = argument::host(ivalue.cast_const(), "ivalue", "c10::IValue")?;
        // SAFETY: the caller's promise.
        unsafe { value.store_to_host(host.cast_mut())? };
        Ok(())
    })
}

/// Makes the host's `at::Tensor` at `tensor` a handle on the tensor of a `JQ_TENSOR`; the elements are shared. `tensor`
/// is not null and is as for `jq_value_from_tensor`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_to_tensor(value: *const jq_value, tensor: *mut c_void) -> jq_status {
    enter(|| {
        let value = handle::resolve(value, "value")?.get();
        let host = argument::host(tensor.cast_const(), "tensor", "at::Tensor")?;
        let found = value.as_tensor().ok_or_else(|| wrong_kind("a tensor", &value))?;
        // SAFETY: the caller's promise.
        unsafe { found.store_to_host(host.cast_mut()) };
        Ok(())
    })
}

/// An integer, into `*value`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_from_int(number: i64, value: *mut *mut jq_value) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { store(value, IValue::Int(number)) })
}

/// A floating-point number, into `*value`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_from_double(number: f64, value: *mut *mut jq_value) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { store(value, IValue::Double(number)) })
}

/// A truth value, false where `truth` is 0, into `*value`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_from_truth(truth: i32, value: *mut *mut jq_value) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { store(value, IValue::Bool(truth != 0)) })
}

/// A text, into `*value`. `text` is not null. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_from_text(text: *const c_char, value: *mut *mut jq_value) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { store(value, IValue::Str(argument::text(text, "text")?.to_owned())) })
}

/// `None`, into `*value`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_none(value: *mut *mut jq_value) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { store(value, IValue::None) })
}

/// A tuple of the `count` values at `items`, into `*value`. The items keep their own handles. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_tuple(
    items: *const *const jq_value,
    count: usize,
    value: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        // SAFETY: the caller's promise.
        let items = resolve_all(unsafe { argument::items(items, count, "items")? }, "items")?;
        // SAFETY: the caller's promise.
        unsafe { store(value, IValue::Tuple(items)) }
    })
}

/// A list of the `count` values at `items`, into `*value`. `element` is the type of its elements as TorchScript writes
/// it, e.g. `Tensor` or `int`. The items keep their own handles. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_list(
    element: *const c_char,
    items: *const *const jq_value,
    count: usize,
    value: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        // SAFETY: the caller's promise.
        let element = unsafe { argument::text(element, "element")? }.to_owned();
        // SAFETY: the caller's promise.
        let items = resolve_all(unsafe { argument::items(items, count, "items")? }, "items")?;
        let list = IValue::List { element, items };
        list.to_raw()?;
        // SAFETY: the caller's promise.
        unsafe { store(value, list) }
    })
}

/// A dictionary into `*value`: the `count` keys at `keys`, each with the value at the same place of `items`. `key` and `item`
/// are their types as TorchScript writes them, e.g. `str` and `Tensor`. No key may be there twice. Keys and items keep their
/// own handles. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_dict(
    key: *const c_char,
    item: *const c_char,
    keys: *const *const jq_value,
    items: *const *const jq_value,
    count: usize,
    value: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        // SAFETY: the caller's promise.
        let (key, item) = unsafe { (argument::text(key, "key")?, argument::text(item, "item")?) };
        // SAFETY: the caller's promise.
        let keys = resolve_all(unsafe { argument::items(keys, count, "keys")? }, "keys")?;
        // SAFETY: the caller's promise.
        let items = resolve_all(unsafe { argument::items(items, count, "items")? }, "items")?;
        let dict =
            IValue::Dict { key: key.to_owned(), value: item.to_owned(), items: keys.into_iter().zip(items).collect() };
        if let IValue::Dict { items, .. } = IValue::from_raw(dict.to_raw()?)?
            && items.len() != count
        {
            return Err(Failure::argument(format!("'keys': {count} keys, of which {} are different", items.len())));
        }
        // SAFETY: the caller's promise.
        unsafe { store(value, dict) }
    })
}

/// Stores a handle on `made`.
///
/// # Safety
/// As for [`argument::Out::put`].
unsafe fn store(value: *mut *mut jq_value, made: IValue) -> Outcome<()> {
    let room = argument::room(value, "value")?;
    // SAFETY: the caller's promise.
    unsafe { room.put(issue(made)) };
    Ok(())
}

/// What the value is, into `*kind`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_kind(value: *const jq_value, kind: *mut jq_kind) -> jq_status {
    enter(|| {
        let room = argument::room(kind, "kind")?;
        let kind = match handle::resolve(value, "value")?.get() {
            IValue::None => JQ_NONE,
            IValue::Tensor(_) => JQ_TENSOR,
            IValue::Int(_) => JQ_INT,
            IValue::Double(_) => JQ_DOUBLE,
            IValue::Bool(_) => JQ_TRUTH,
            IValue::Str(_) | IValue::Device(_) => JQ_TEXT,
            IValue::Tuple(_) => JQ_TUPLE,
            IValue::List { .. } => JQ_LIST,
            IValue::Dict { .. } => JQ_DICT,
            IValue::Module(_) | IValue::Other(_) => JQ_OTHER,
        };
        // SAFETY: the caller's promise.
        unsafe { room.put(kind) };
        Ok(())
    })
}

/// A tensor's elements, into `*buffer`: row-major, without gaps; of a quantized tensor the integers. The shape and the
/// elements belong to the value and go with it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_buffer(value: *const jq_value, buffer: *mut jq_buffer) -> jq_status {
    enter(|| {
        let room = argument::room(buffer, "buffer")?;
        let value = handle::resolve(value, "value")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(value.elements()?.buffer()) };
        Ok(())
    })
}

/// The number of a `JQ_INT`, or 0 or 1 for a `JQ_TRUTH`, into `*number`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_int(value: *const jq_value, number: *mut i64) -> jq_status {
    enter(|| {
        let room = argument::room(number, "number")?;
        let number = match handle::resolve(value, "value")?.get() {
            IValue::Int(number) => number,
            IValue::Bool(truth) => truth.into(),
            other => return Err(wrong_kind("an integer", &other)),
        };
        // SAFETY: the caller's promise.
        unsafe { room.put(number) };
        Ok(())
    })
}

/// The number of a `JQ_DOUBLE` or a `JQ_INT`, into `*number`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_double(value: *const jq_value, number: *mut f64) -> jq_status {
    enter(|| {
        let room = argument::room(number, "number")?;
        let value = handle::resolve(value, "value")?.get();
        let number = value.as_number().ok_or_else(|| wrong_kind("a number", &value))?;
        // SAFETY: the caller's promise.
        unsafe { room.put(number) };
        Ok(())
    })
}

/// The text of a `JQ_TEXT`, into `*text`; it belongs to the value and goes with it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_text(value: *const jq_value, text: *mut *const c_char) -> jq_status {
    enter(|| {
        let room = argument::room(text, "text")?;
        let value = handle::resolve(value, "value")?;
        let found = match value.get() {
            IValue::Str(found) | IValue::Device(found) => found,
            other => return Err(wrong_kind("a text", &other)),
        };
        // SAFETY: the caller's promise.
        unsafe { room.put(value.text.get_or_init(|| c_text(&found)).as_ptr()) };
        Ok(())
    })
}

/// How many items a tuple, a list or a dictionary has, into `*count`; a dictionary has two for each entry. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_item_count(value: *const jq_value, count: *mut usize) -> jq_status {
    enter(|| {
        let room = argument::room(count, "count")?;
        let value = handle::resolve(value, "value")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(value.items()?.len()) };
        Ok(())
    })
}

/// Item `index`, into `*item`, a value of its own, to be freed with `jq_value_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_item(value: *const jq_value, index: usize, item: *mut *mut jq_value) -> jq_status {
    enter(|| {
        let room = argument::room(item, "item")?;
        let mut items = handle::resolve(value, "value")?.items()?;
        let index = argument::index(index, items.len(), "items")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(issue(items.swap_remove(index))) };
        Ok(())
    })
}

/// Frees the value, and what its buffer and its text point to. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_value_free(value: *mut jq_value) -> jq_status {
    enter(|| handle::release(value, "value"))
}
