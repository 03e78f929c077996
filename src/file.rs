//! Writing files so that a failure leaves the old one as it was, and a kill leaves nothing.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Has `write` write a file, and puts it at `path` when it is whole. On failure the old file is as it was and nothing is
/// left beside it; where the system has files without a name (Linux), a process that is killed leaves nothing either.
///
/// A symbolic link is followed: the file that it leads to is replaced, and the link stays. The permissions of a file that
/// is replaced stay.
///
/// # Errors
/// Those of [`check_writable`], and those of `write`.
pub fn write_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = std::fs::canonicalize(path);
    let target = target.as_deref().unwrap_or(path);
    check_writable(path)?;
    let permissions = std::fs::metadata(target).ok().map(|existing| existing.permissions());
    let folder = folder_of(target);
    let unfinished = Unfinished::create(&folder, target).map_err(|e| Error::io(path, e))?;
    write(&unfinished.path())?;
    let finished = unfinished.keep(target, permissions);
    finished.map_err(|e| Error::io(path, e))
}

/// Writes all of a file's content at `part`, for [`write_atomically`]; errors name `path`.
///
/// # Errors
/// Where the disk is full, for one.
pub fn write_bytes(part: &Path, path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(part, content).map_err(|e| Error::io(path, e))
}

/// Whether a file could be written at `path`, told before work begins that ends with writing it.
///
/// # Errors
/// Where it is a folder or another thing than a file, its folder is missing, or nobody may write there.
pub fn check_writable(path: &Path) -> Result<()> {
    let target = std::fs::canonicalize(path);
    let target = target.as_deref().unwrap_or(path);
    match std::fs::symlink_metadata(target) {
        Ok(existing) if existing.is_dir() => return Err(Error::file(path, "is a folder, not a file to write")),
        // Renaming onto a device or a pipe would take it away.
        Ok(existing) if existing.is_symlink() => return Err(Error::file(path, "is a link that leads nowhere")),
        Ok(existing) if !existing.is_file() => return Err(Error::file(path, "exists and is not a regular file")),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(path, e)),
    }
    if path.file_name().is_none() {
        return Err(Error::file(path, "is not the name of a file to write"));
    }
    let folder = folder_of(target);
    if !folder.is_dir() {
        return Err(Error::file(path, format!("cannot be written: there is no folder {}", folder.display())));
    }
    // What permissions, quotas and read-only systems allow is known by trying.
    Unfinished::create(&folder, target)
        .map(drop)
        .map_err(|e| Error::file(path, format!("cannot be written: folder {}: {e}", folder.display())))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The name of a file as far as it fits into another one's.
fn short_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.chars().take(40).collect()
}

/// A file that is being written.
enum Unfinished {
    /// It has no name, and is gone when nobody has it open.
    #[cfg(target_os = "linux")]
    Nameless(std::fs::File),
    /// It lies beside its target, and is removed when it is dropped.
    Named(tempfile::NamedTempFile),
}

impl Unfinished {
    fn create(folder: &Path, target: &Path) -> std::io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            // File systems without such files refuse in several ways.
            if let Ok(file) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) {
                let nameless = Self::Nameless(file.into());
                // It is reached by its number, which takes /proc.
                if nameless.path().exists() {
                    return Ok(nameless);
                }
            }
        }
        let prefix = format!(".{}.", short_name(target));
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        builder.tempfile_in(folder).map(Self::Named)
    }

    /// A path at which it can be opened.
    fn path(&self) -> PathBuf {
        match self {
            #[cfg(target_os = "linux")]
            Self::Nameless(file) => {
                use std::os::fd::AsRawFd;
                PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
            }
            Self::Named(file) => file.path().to_owned(),
        }
    }

    /// Puts it at `target`.
    fn keep(self, target: &Path, permissions: Option<std::fs::Permissions>) -> std::io::Result<()> {
        let file = match &self {
            #[cfg(target_os = "linux")]
            Self::Nameless(file) => file,
            Self::Named(file) => file.as_file(),
        };
        file.sync_all()?;
        if let Some(permissions) = permissions {
            file.set_permissions(permissions)?;
        }
        match self {
            Self::Named(file) => file.persist(target).map(drop).map_err(|e| e.error),
            #[cfg(target_os = "linux")]
            Self::Nameless(_) => {
                let link = |name: &Path| {
                    use rustix::fs::{AtFlags, CWD, linkat};
                    linkat(CWD, self.path(), CWD, name, AtFlags::SYMLINK_FOLLOW)
                };
                match link(target) {
                    Ok(()) => return Ok(()),
                    Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                // A link does not replace a file: it is given a name for the moment, and that one is renamed.
                let folder = folder_of(target);
                for attempt in 0..100 {
                    let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
                    let process = std::process::id();
                    let name = folder.join(format!(".{}.{process}-{time}-{attempt}.part", short_name(target)));
                    match link(&name) {
                        Ok(()) => {
                            return std::fs::rename(&name, target).inspect_err(|_| {
                                std::fs::remove_file(&name).ok();
                            });
                        }
                        Err(rustix::io::Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(std::io::ErrorKind::AlreadyExists.into())
            }
        }
    }
}

/// Waits until no other process changes the file at `path`, which need not be there; until it is dropped, others wait.
///
/// The folder itself is locked where the system lets folders be locked; elsewhere a file of our own in it is.
pub(crate) struct Turn {
    _locked: std::fs::File,
}

impl Turn {
    pub fn take(path: &Path) -> Result<Self> {
        let target = std::fs::canonicalize(path);
        let folder = folder_of(target.as_deref().unwrap_or(path));
        let opened = std::fs::File::open(&folder).map_err(|e| Error::io(path, e))?;
        if opened.lock().is_ok() {
            return Ok(Self { _locked: opened });
        }
        let lock = folder.join(".jitquant-lock");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            // Never through a link: it may lead to anything.
            options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        }
        let opened = options.open(&lock).map_err(|e| Error::io(&lock, e))?;
        opened.lock().map_err(|e| Error::io(&lock, e))?;
        Ok(Self { _locked: opened })
    }
}

/// Reads a text file of at most `most` bytes.
///
/// # Errors
/// Where it is no regular file (a pipe or a device may have no end), is longer, or is no text.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    use std::io::Read;
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > most {
        return Err(Error::file(path, format!("longer than the {most} bytes that such a file can have")));
    }
    String::from_utf8(bytes).map_err(|_| Error::file(path, "not a text file (UTF-8)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) -> Result<()> {
        write_atomically(path, |part| std::fs::write(part, text).map_err(|e| Error::io(part, e)))
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_made_and_replaced_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for text in ["one", "two", "three"] {
            write(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let failed = write_atomically(&path, |part| {
            std::fs::write(part, "half").unwrap();
            Err(Error::invalid("no more"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_stay() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("link"));
        write(&path, "one").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        write(&link, "two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn long_names_work() {
        let folder = tempfile::tempdir().unwrap();
        let name = "n".repeat(250);
        let path = folder.path().join(&name);
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        let _turn = Turn::take(&path).unwrap();
        assert_eq!(names(folder.path()), [name]);
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let folder = tempfile::tempdir().unwrap();
        for (path, why) in
            [("none/a", "no folder"), ("", "is a folder"), ("..", "is a folder"), ("none/..", "not the name")]
        {
            let refusal = write(&folder.path().join(path), "").unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal}");
        }
        assert!(write(Path::new("/dev/null"), "").unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn a_pipe_is_not_read_for_ever() {
        assert!(read_text(Path::new("/dev/zero"), 10).unwrap_err().to_string().contains("not a regular file"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, "0123456789").unwrap();
        assert_eq!(read_text(&path, 10).unwrap(), "0123456789");
        assert!(read_text(&path, 9).unwrap_err().to_string().contains("longer"));
    }
}
