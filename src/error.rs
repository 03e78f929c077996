//! The one error type of the library.

#[cfg(feature = "torch")]
use std::path::Path;
use std::path::PathBuf;

/// What went wrong, where, and (where it helps) what would be accepted.
///
/// The text of an error is complete: it holds that of its causes, which `source()` therefore does not repeat.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused a call; the message is libtorch's, without its C++ backtrace.
    #[error("{0}")]
    Torch(String),
    /// The process has a libtorch of another version than the library was built for.
    #[error("{0}")]
    Host(String),
    /// A file could not be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause that the system gives.
        cause: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what would be accepted.
        message: String,
    },
    /// An argument, a configuration or a graph does not fit what was asked.
    #[error("{0}")]
    Invalid(String),
    /// Whoever watches the call ([`watch::watched`](crate::watch::watched)) ended it.
    #[error("cancelled")]
    Cancelled,
    /// An error with a note on what was being done.
    #[error("{context}: {cause}")]
    Context {
        /// What was being done.
        context: String,
        /// Why it failed.
        cause: Box<Error>,
    },
}

/// The result of a fallible call of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(feature = "torch")]
impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// Whether the call was ended by who watched it.
    pub(crate) fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Context { cause, .. } => cause.is_cancelled(),
            _ => false,
        }
    }

    pub(crate) fn io(path: &Path, cause: std::io::Error) -> Self {
        // The bare cause: some libraries add a path of their own to it.
        let cause = cause.raw_os_error().map_or(cause, std::io::Error::from_raw_os_error);
        Self::Io { path: path.to_owned(), cause }
    }

    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), message: message.into() }
    }
}

/// A message that holds text of a file or of a command line, which may be of any length: its first lines, and of each line
/// what fits into two.
#[cfg(feature = "torch")]
pub fn brief(text: &str) -> String {
    const LINES: usize = 40;
    const COLUMNS: usize = 400;
    let shorten = |line: &str| match line.char_indices().nth(COLUMNS) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line.to_owned(),
    };
    let mut lines: Vec<String> = text.lines().take(LINES).map(shorten).collect();
    if text.lines().nth(LINES).is_some() {
        lines.push("…".to_owned());
    }
    lines.join("\n")
}

/// Runs what C++ called: a panic becomes an error, since nothing may unwind into C++.
#[cfg(feature = "torch")]
pub(crate) fn no_panic<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::Invalid(format!("internal error: {}", text.unwrap_or("panic"))))
    })
}

/// Adds what was being done to an error.
#[cfg(feature = "torch")]
pub(crate) trait Context<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

#[cfg(feature = "torch")]
impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Context { context: context(), cause: Box::new(e.into()) })
    }
}

#[cfg(feature = "torch")]
impl From<jitquant_runtime::Error> for Error {
    fn from(error: jitquant_runtime::Error) -> Self {
        Self::Invalid(error.0)
    }
}

impl From<crate::kernel::Error> for Error {
    fn from(error: crate::kernel::Error) -> Self {
        Self::Invalid(error.0)
    }
}

#[cfg(feature = "torch")]
impl From<cxx::Exception> for Error {
    fn from(exception: cxx::Exception) -> Self {
        Self::Torch(readable(exception.what().trim()))
    }
}

/// Bytes of a message of libtorch's that are shown at most; some hold whole graphs.
#[cfg(feature = "torch")]
const LONGEST: usize = 1500;

/// What libtorch says, for people: an interpreter's traceback becomes the place where it ends, and what is long is cut.
#[cfg(feature = "torch")]
fn readable(text: &str) -> String {
    let interpreted = text.split_once("The following operation failed in the TorchScript interpreter.");
    let shown = match interpreted {
        Some((_, traceback)) => without_traceback(traceback),
        None => text.strip_prefix("Schema not found for node. File a bug report.").map_or_else(
            || text.to_owned(),
            |rest| {
                let node = rest.split("within the graph:").next().unwrap_or_default().trim().replace("Node: ", "");
                format!("libtorch has no operator that takes the arguments of {node}")
            },
        ),
    };
    match shown.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} … ({} more bytes)", shown[..end].trim_end(), shown.len() - end),
        None => shown,
    }
}

/// What was raised, and where: the innermost place of the original code, or of the code in the file, and its line.
#[cfg(feature = "torch")]
fn without_traceback(traceback: &str) -> String {
    let is_place = |line: &str| line.starts_with("  File \"") && line.contains("\", line ");
    let (mut place, mut code, mut before) = (None, None, "");
    let mut raised: Vec<&str> = Vec::new();
    let mut in_traceback = true;
    for line in traceback.lines() {
        if line.starts_with("Traceback of TorchScript") {
            (in_traceback, place, code) = (true, None, None);
        } else if is_place(line) {
            (in_traceback, place, code) = (true, Some(line.trim()), None);
        } else if in_traceback && line.contains("<--- HERE") {
            code = Some(before.trim());
        } else if in_traceback && line.split_once(": ").is_some_and(|(kind, _)| is_exception(kind)) {
            in_traceback = false;
            raised = vec![line];
        } else if !in_traceback {
            raised.push(line);
        }
        before = line;
    }
    let message = raised.join("\n");
    let message = message.trim();
    let message = message.strip_prefix("RuntimeError: ").unwrap_or(message);
    let message = if message.is_empty() { traceback.trim() } else { message };
    let place = place.and_then(file_and_line);
    match (place, code.filter(|code| !code.is_empty() && code.len() < 200)) {
        (Some(place), Some(code)) => format!("{message} (at {place}: `{code}`)"),
        (Some(place), None) => format!("{message} (at {place})"),
        (None, _) => message.to_owned(),
    }
}

/// `RuntimeError`, `torch.jit.Error`, `builtins.ValueError`.
#[cfg(feature = "torch")]
fn is_exception(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| c.is_alphanumeric() || "._".contains(c))
        && !name.starts_with(char::is_numeric)
}

/// `model.py:12, in forward` of `File "/home/me/model.py", line 12, in forward`.
#[cfg(feature = "torch")]
fn file_and_line(place: &str) -> Option<String> {
    let (file, rest) = place.strip_prefix("File \"")?.split_once("\", line ")?;
    Some(format!("{}:{rest}", file.rsplit('/').next().unwrap_or(file)))
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use super::*;

    #[test]
    fn a_traceback_becomes_the_place_where_it_ends() {
        let text = "The following operation failed in the TorchScript interpreter.
Traceback of TorchScript, serialized code (most recent call last):
  File \"code/__torch__/net.py\", line 30, in forward
    return torch.view(x, [7])
           ~~~~~~~~~~ <--- HERE

Traceback of TorchScript, original code (most recent call last):
  File \"/home/me/net.py\", line 12, in forward
    return self.inner(x)
           ~~~~~~~~~~ <--- HERE
  File \"/home/me/inner.py\", line 4, in forward
    return x.view(7)
           ~~~~~~ <--- HERE
RuntimeError: shape '[7]' is invalid for input of size 1";
        assert_eq!(
            readable(text),
            "shape '[7]' is invalid for input of size 1 (at inner.py:4, in forward: `return x.view(7)`)"
        );
    }

    #[test]
    fn a_message_with_a_whole_graph_is_cut() {
        let graph = "graph(%x : Tensor):\n  return (%x)\n".repeat(5000);
        let text = format!(
            "Schema not found for node. File a bug report.\nNode: %y : Tensor = aten::foo(%x)\n\nInput types:Tensor\nwithin \
             the graph:\n{graph}"
        );
        let shown = readable(&text);
        assert!(shown.contains("aten::foo") && !shown.contains("graph("), "{shown}");
        assert!(readable(&graph).len() < 1600);
        assert_eq!(readable("bad argument"), "bad argument");
    }
}
