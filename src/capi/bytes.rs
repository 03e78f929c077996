//! Runs of bytes that the library makes.

use super::argument;
use super::handle::{self, Handle};
use super::status::{enter, jq_status};

/// Bytes. They do not change. Free them with `jq_bytes_free`.
pub struct jq_bytes {
    _opaque: (),
}

impl Handle for jq_bytes {
    const NAME: &'static str = "jq_bytes";
    type Object = Vec<u8>;
}

pub(super) fn issue(bytes: Vec<u8>) -> *mut jq_bytes {
    handle::issue(bytes)
}

/// Where the bytes lie, into `*data`, and how many there are, into `*len`; they belong to `bytes` and go with it. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_bytes_get(bytes: *const jq_bytes, data: *mut *const u8, len: *mut usize) -> jq_status {
    enter(|| {
        let (data, len) = (argument::room(data, "data")?, argument::room(len, "len")?);
        let bytes = handle::resolve(bytes, "bytes")?;
        // SAFETY: the caller's promise.
        unsafe {
            data.put(bytes.as_ptr());
            len.put(bytes.len());
        }
        Ok(())
    })
}

/// Frees the bytes. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_bytes_free(bytes: *mut jq_bytes) -> jq_status {
    enter(|| handle::release(bytes, "bytes"))
}
