//! Files that a command is about to write: whether it can, and whether another run is at it already.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Refuses to write over a file that the command reads, and what could not be written when all work is done. `overwrite`:
/// whether the user asked for it, where there is an option for that.
///
/// # Errors
/// Says which option names the file as well, or why nothing can be written there.
pub fn check_output(output: &Path, reads: &[(&str, &Path)], overwrite: Option<bool>) -> Result<()> {
    let target = std::fs::canonicalize(output).ok();
    for (what, path) in reads {
        let same = target.is_some() && std::fs::canonicalize(path).ok() == target;
        let or_else = match overwrite {
            Some(true) => continue,
            Some(false) => ", or say --overwrite-input to have it replaced",
            None => "",
        };
        if same {
            bail!("{} is {what} as well: choose another name{or_else}", output.display());
        }
    }
    Ok(jitquant::check_writable(output)?)
}

/// Holds a path for this process as long as it lives; nothing of it is left in any folder.
pub struct Claim {
    #[cfg(target_os = "linux")]
    _socket: Option<std::os::unix::net::UnixListener>,
}

impl Claim {
    /// # Errors
    /// Where another process holds it.
    pub fn take(path: &Path) -> Result<Self> {
        #[cfg(target_os = "linux")]
        {
            use std::hash::{Hash, Hasher};
            use std::os::linux::net::SocketAddrExt;
            use std::os::unix::net::{SocketAddr, UnixListener};
            let whole = absolute(path);
            let mut hasher = std::hash::DefaultHasher::new();
            whole.hash(&mut hasher);
            // A name that the system forgets with the process.
            let address = SocketAddr::from_abstract_name(format!("jitquant-{:016x}", hasher.finish()))?;
            match UnixListener::bind_addr(&address) {
                Ok(socket) => Ok(Self { _socket: Some(socket) }),
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => bail!(
                    "{}: another run is writing it: wait until it has ended, or choose another -o",
                    path.display()
                ),
                // A system without such names: the last one wins, as files are renamed when they are whole.
                Err(_) => Ok(Self { _socket: None }),
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = path;
            Ok(Self {})
        }
    }
}

#[cfg(target_os = "linux")]
fn absolute(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (std::fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_not_written_over_unless_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.pt");
        std::fs::write(&path, "float").unwrap();
        let link = folder.path().join("link.pt");
        std::os::unix::fs::symlink("net.pt", &link).unwrap();
        let reads = [("the float model", path.as_path())];
        for output in [&path, &link] {
            let refusal = check_output(output, &reads, Some(false)).unwrap_err().to_string();
            assert!(refusal.contains("the float model") && refusal.contains("--overwrite-input"), "{refusal}");
            check_output(output, &reads, Some(true)).unwrap();
        }
        check_output(&folder.path().join("other.pt"), &reads, None).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_path_is_held_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.pt");
        let first = Claim::take(&path).unwrap();
        assert!(Claim::take(&path).is_err_and(|e| e.to_string().contains("another run")));
        drop(first);
        Claim::take(&path).unwrap();
    }
}
