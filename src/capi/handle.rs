//! Handles: numbers dressed as pointers, looked up in one table.
//!
//! A handle is never read as an address. What it stands for is shared with the calls that use it, so freeing a handle
//! while another thread is inside a call with it is harmless.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use super::status::{Failure, Outcome};

/// What an opaque type of the header stands for.
pub(super) trait Handle {
    /// Its name in the header.
    const NAME: &'static str;
    /// What is behind it.
    type Object: Send + Sync + 'static;
}

struct Entry {
    name: &'static str,
    object: Arc<dyn Any + Send + Sync>,
}

#[derive(Default)]
struct Table {
    issued: usize,
    entries: HashMap<usize, Entry>,
}

static TABLE: LazyLock<RwLock<Table>> = LazyLock::new(RwLock::default);

/// Handles look like addresses of page 0xff…: nothing is mapped there, should a program read one.
const FIRST: usize = usize::MAX << 56;
/// Numbers are this far apart, so that a handle that was moved by a few bytes is none.
const STRIDE: usize = 16;

/// A new handle on `object`.
pub(super) fn issue<H: Handle>(object: H::Object) -> *mut H {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    table.issued += 1;
    let number = FIRST + table.issued * STRIDE;
    table.entries.insert(number, Entry { name: H::NAME, object: Arc::new(object) });
    std::ptr::without_provenance_mut(number)
}

/// What `handle` stands for; `argument` is its name in the header.
pub(super) fn resolve<H: Handle>(handle: *const H, argument: &str) -> Outcome<Arc<H::Object>> {
    if handle.is_null() {
        return Err(Failure::argument(format!("'{argument}' is null; a {} is expected", H::NAME)));
    }
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let Some(entry) = table.entries.get(&handle.addr()) else {
        return Err(Failure::handle(format!("'{argument}' is no {} of jitquant, or one that was freed", H::NAME)));
    };
    let wrong = || Failure::handle(format!("'{argument}' is a {}, not a {}", entry.name, H::NAME));
    entry.object.clone().downcast().map_err(|_| wrong())
}

/// Takes `handle` out of the table; what it stands for goes when the last call that uses it returns. Null is allowed.
pub(super) fn release<H: Handle>(handle: *mut H, argument: &str) -> Outcome<()> {
    if handle.is_null() {
        return Ok(());
    }
    resolve(handle.cast_const(), argument)?;
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let entry = table.entries.remove(&handle.addr());
    // What it stands for may take long to free, or free handles itself.
    drop(table);
    drop(entry);
    Ok(())
}
