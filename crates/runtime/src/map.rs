//! Files mapped into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result, refuse};

/// Has `work` read the bytes of a file.
pub(crate) fn mapped<R>(path: &Path, work: impl FnOnce(&[u8]) -> Result<R>) -> Result<R> {
    let failed = |why: std::io::Error| Error(why.to_string());
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return refuse("not a file");
    }
    // SAFETY: we never write the mapping, and nobody keeps it beyond `work`. That no other process writes into the file
    // meanwhile is what `Model::open` asks of its caller in its documentation; `jitquant export` never does: it writes files
    // beside their target and renames them.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    work(&map)
}
