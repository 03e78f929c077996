//! What a call says of itself: a status, and a message where it failed.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Error;

/// What a function returns: `JQ_OK`, or why it did nothing.
pub type jq_status = i32;

/// The call did what it should.
pub const JQ_OK: jq_status = 0;
/// An argument is null where it may not be, or does not fit: the message says which and what would be accepted.
pub const JQ_ERROR_ARGUMENT: jq_status = 1;
/// A handle is none of this library, is freed already, or is one on something else.
pub const JQ_ERROR_HANDLE: jq_status = 2;
/// A file could not be read or written.
pub const JQ_ERROR_IO: jq_status = 3;
/// A file is not what it should be.
pub const JQ_ERROR_FILE: jq_status = 4;
/// libtorch refused; the message is libtorch's.
pub const JQ_ERROR_TORCH: jq_status = 5;
/// The progress callback or `jq_quantizer_cancel` ended the call.
pub const JQ_ERROR_CANCELLED: jq_status = 6;
/// A mistake in this library. Please report it with the message.
pub const JQ_ERROR_INTERNAL: jq_status = 7;
/// The process has a libtorch of another version than the library was built for: nothing of the library works.
pub const JQ_ERROR_VERSION: jq_status = 8;
/// The call was made from a callback of a call that works on graphs: it would wait for that one for ever.
pub const JQ_ERROR_BUSY: jq_status = 9;

/// The version of this header's functions and structures. It grows when a program compiled against an older header
/// would no longer work.
pub const JQ_ABI_VERSION: u32 = 1;

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    status: jq_status,
    message: String,
}

pub(super) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(super) fn argument(message: impl Into<String>) -> Self {
        Self { status: JQ_ERROR_ARGUMENT, message: message.into() }
    }

    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self { status: JQ_ERROR_BUSY, message: message.into() }
    }

    pub(super) fn cancelled() -> Self {
        Self { status: JQ_ERROR_CANCELLED, message: "cancelled".into() }
    }

    /// Leaves the call that [`enter`] runs with this failure, from a place that has no way to return one.
    pub(super) fn leave(self) -> ! {
        std::panic::resume_unwind(Box::new(self))
    }

    pub(super) fn handle(message: impl Into<String>) -> Self {
        Self { status: JQ_ERROR_HANDLE, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        fn status(error: &Error) -> jq_status {
            match error {
                Error::Torch(_) => JQ_ERROR_TORCH,
                Error::Host(_) => JQ_ERROR_VERSION,
                Error::Io { .. } => JQ_ERROR_IO,
                Error::File { .. } => JQ_ERROR_FILE,
                Error::Invalid(_) => JQ_ERROR_ARGUMENT,
                Error::Cancelled => JQ_ERROR_CANCELLED,
                Error::Context { cause, .. } => status(cause),
            }
        }
        Self { status: status(&error), message: error.to_string() }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// C's text ends at the first zero byte; messages may quote file content that has some.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Runs the body of a C function: errors and panics become a status, and their message [`jq_last_error`].
pub(super) fn enter(body: impl FnOnce() -> Outcome<()>) -> jq_status {
    let checked = || crate::init().map_err(Failure::from).and_then(|()| body());
    let failure = match catch_unwind(AssertUnwindSafe(checked)) {
        Ok(Ok(())) => return JQ_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => panic.downcast().map(|failure| *failure).unwrap_or_else(|panic| Failure {
            status: JQ_ERROR_INTERNAL,
            message: format!("internal error in jitquant: {}", panic_text(panic.as_ref())),
        }),
    };
    // A thread that ends has no message any more; destructors of its variables still get the status.
    LAST_ERROR.try_with(|last| *last.borrow_mut() = c_text(&failure.message)).ok();
    failure.status
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic")
}

/// The message of the last call on this thread that failed; an empty text where none did, and where the thread is ending
/// (in destructors of its thread_local variables). Never null.
///
/// The text belongs to the library and stays until the next call on this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn jq_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The version of the library, e.g. `0.1.0`. Never null; never freed.
#[unsafe(no_mangle)]
pub extern "C" fn jq_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The `JQ_ABI_VERSION` of the header that the library was built with. A program checks that it is its own.
#[unsafe(no_mangle)]
pub extern "C" fn jq_abi_version() -> u32 {
    JQ_ABI_VERSION
}

/// The version of the libtorch that the library was built for, e.g. `2.13.0`. Never null; never freed.
#[unsafe(no_mangle)]
pub extern "C" fn jq_torch_version() -> *const c_char {
    static VERSION: std::sync::LazyLock<CString> = std::sync::LazyLock::new(|| c_text(&crate::torch_version()));
    VERSION.as_ptr()
}

/// Registers the library's operators with libtorch, where loading the library has not done so; later calls do nothing.
///
/// Call it where the program links the library and would otherwise use none of its functions before it loads a model
/// that holds `jitquant::` operators. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn jq_init() -> jq_status {
    // `enter` does it for every function.
    enter(|| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: never null, and this thread makes no other call meanwhile.
        unsafe { std::ffi::CStr::from_ptr(jq_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn panics_and_failures_become_a_status() {
        assert_eq!(enter(|| panic!("lost at {}", 7)), JQ_ERROR_INTERNAL);
        assert_eq!(message(), "internal error in jitquant: lost at 7");
        assert_eq!(enter(|| Failure::cancelled().leave()), JQ_ERROR_CANCELLED);
        assert_eq!(enter(|| Err(Error::invalid("a\0b").into())), JQ_ERROR_ARGUMENT);
        assert_eq!(message(), "a\u{fffd}b");
        assert_eq!(enter(|| Ok(())), JQ_OK);
        assert_eq!(message(), "a\u{fffd}b", "a call that succeeds leaves the last message");
    }
}
