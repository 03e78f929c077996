//! Lists of texts.

use std::ffi::{CString, c_char};

use super::argument;
use super::handle::{self, Handle};
use super::status::{Outcome, c_text, enter, jq_status};

/// A list of texts. Free it with `jq_strings_free`.
pub struct jq_strings {
    _opaque: (),
}

impl Handle for jq_strings {
    const NAME: &'static str = "jq_strings";
    type Object = Vec<CString>;
}

pub(super) fn issue(texts: impl IntoIterator<Item = String>) -> *mut jq_strings {
    handle::issue(texts.into_iter().map(|text| c_text(&text)).collect())
}

/// How many texts there are, into `*count`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_strings_count(strings: *const jq_strings, count: *mut usize) -> jq_status {
    enter(|| {
        let count = argument::room(count, "count")?;
        let strings = handle::resolve(strings, "strings")?;
        // SAFETY: the caller's promise.
        unsafe { count.put(strings.len()) };
        Ok(())
    })
}

/// Text `index`, into `*text`; it belongs to the list and goes with it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_strings_get(
    strings: *const jq_strings,
    index: usize,
    text: *mut *const c_char,
) -> jq_status {
    enter(|| {
        let text = argument::room(text, "text")?;
        let strings = handle::resolve(strings, "strings")?;
        let index = argument::index(index, strings.len(), "texts")?;
        // SAFETY: the caller's promise.
        unsafe { text.put(strings[index].as_ptr()) };
        Ok(())
    })
}

/// Frees the list and its texts. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_strings_free(strings: *mut jq_strings) -> jq_status {
    enter(|| -> Outcome<()> { handle::release(strings, "strings") })
}
