//! Reading what a C caller gave, and storing where it said.

use std::ffi::{CStr, c_char};
use std::path::Path;

use super::status::{Failure, Outcome};

/// The text at `text`.
///
/// # Safety
/// `text` is null or points to a text that ends with a zero byte and stays for `'a`.
pub(super) unsafe fn text<'a>(text: *const c_char, argument: &str) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(Failure::argument(format!("'{argument}' is null; a text is expected")));
    }
    // SAFETY: not null, and the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::argument(format!("'{argument}' is not UTF-8: {}", text.to_string_lossy())))
}

/// The path at `path`: a text, or on Unix any bytes.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn path<'a>(path: *const c_char, argument: &str) -> Outcome<&'a Path> {
    #[cfg(unix)]
    if !path.is_null() {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: not null, and the caller's promise.
        let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
        return Ok(Path::new(std::ffi::OsStr::from_bytes(bytes)));
    }
    // SAFETY: the caller's promise.
    Ok(Path::new(unsafe { text(path, argument)? }))
}

/// The `len` items at `items`; null is allowed where there are none.
///
/// # Safety
/// `items` is null or points to `len` items that stay and do not change for `'a`.
pub(super) unsafe fn items<'a, T>(items: *const T, len: usize, argument: &str) -> Outcome<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if items.is_null() {
        return Err(Failure::argument(format!("'{argument}' is null, but {len} items are announced")));
    }
    if !items.is_aligned() || len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::argument(format!("'{argument}' is no array of {len} items")));
    }
    // SAFETY: aligned, not null, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(items, len) })
}

/// Refuses an out-pointer that is null, before anything is done.
pub(super) fn room<T>(out: *mut T, argument: &str) -> Outcome<Out<T>> {
    match out.is_null() || !out.is_aligned() {
        true => Err(Failure::argument(format!("'{argument}' is null: there is nowhere to store the result"))),
        false => Ok(Out(out)),
    }
}

/// Where a result goes.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Stores the result.
    ///
    /// # Safety
    /// The pointer that [`room`] took points to memory for a `T` that nothing else uses meanwhile.
    pub(super) unsafe fn put(self, value: T) {
        // SAFETY: not null, aligned, and the caller's promise. What was there is overwritten, not dropped: T is plain.
        unsafe { self.0.write(value) }
    }
}

/// The host's object at `object`, which libtorch's own types describe better than C can.
pub(super) fn host<T>(object: *const T, argument: &str, class: &str) -> Outcome<*const T> {
    match object.is_null() {
        true => Err(Failure::argument(format!("'{argument}' is null; the address of a {class} is expected"))),
        false => Ok(object),
    }
}

/// The item at `index` of a list of `len`.
pub(super) fn index(index: usize, len: usize, what: &str) -> Outcome<usize> {
    match index < len {
        true => Ok(index),
        false => Err(Failure::argument(format!("index {index}: there are {len} {what}"))),
    }
}
