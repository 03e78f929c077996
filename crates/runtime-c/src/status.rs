//! What a call says of itself: a status, and a message where it failed.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a function returns: `JQR_OK`, or why it did nothing.
pub type jqr_status = i32;

/// The call did what it should.
pub const JQR_OK: jqr_status = 0;
/// An argument is null, or the model does not take it, or a file is not what it should be: the message says which.
pub const JQR_ERROR: jqr_status = 1;
/// A mistake in this library. Please report it with the message.
pub const JQR_ERROR_INTERNAL: jqr_status = 2;

/// The version of this header's functions and structures. It grows when a program compiled against an older header
/// would no longer work.
pub const JQR_ABI_VERSION: u32 = 1;

/// What a call gives, or why not, in words.
pub(crate) type Outcome<T> = Result<T, String>;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// C's text ends at the first zero byte; messages may quote a file that has some.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Runs the body of a C function: errors and panics become a status, and their message [`jqr_last_error`].
pub(crate) fn enter(body: impl FnOnce() -> Outcome<()>) -> jqr_status {
    let (status, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return JQR_OK,
        Ok(Err(message)) => (JQR_ERROR, message),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            (JQR_ERROR_INTERNAL, format!("internal error in jitquant: {}", text.unwrap_or("panic")))
        }
    };
    // A thread that ends has no message any more; destructors of its variables still get the status.
    LAST_ERROR.try_with(|last| *last.borrow_mut() = c_text(&message)).ok();
    status
}

/// The message of the last call on this thread that failed; an empty text where none did. Never null.
///
/// The text belongs to the library and stays until the next call on this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn jqr_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The version of the library, e.g. `0.1.0`. Never null; never freed.
#[unsafe(no_mangle)]
pub extern "C" fn jqr_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The `JQR_ABI_VERSION` of the header that the library was built with. A program checks that it is its own.
#[unsafe(no_mangle)]
pub extern "C" fn jqr_abi_version() -> u32 {
    JQR_ABI_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: never null, and this thread makes no other call meanwhile.
        unsafe { std::ffi::CStr::from_ptr(jqr_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn panics_and_failures_become_a_status() {
        assert_eq!(enter(|| panic!("lost at {}", 7)), JQR_ERROR_INTERNAL);
        assert_eq!(message(), "internal error in jitquant: lost at 7");
        assert_eq!(enter(|| Err("a\0b".to_owned())), JQR_ERROR);
        assert_eq!(message(), "a\u{fffd}b");
        assert_eq!(enter(|| Ok(())), JQR_OK);
        assert_eq!(message(), "a\u{fffd}b", "a call that succeeds leaves the last message");
    }
}
