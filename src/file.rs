//! Writing files so that a failure leaves the old one as it was.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Has `write` write a file beside `path`, then renames it to `path`. On failure the old file is as it was and nothing
/// is left beside it.
pub(crate) fn write_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if path.is_dir() {
        return Err(Error::file(path, "is a folder, not a file to write"));
    }
    let mut builder = tempfile::Builder::new();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!(".{name}.");
    builder.prefix(&prefix).suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(&folder).map_err(|e| Error::io(path, e))?;
    write(temporary.path())?;
    temporary.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    temporary.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}
