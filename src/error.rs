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
impl From<cxx::Exception> for Error {
    fn from(exception: cxx::Exception) -> Self {
        Self::Torch(exception.what().trim().to_owned())
    }
}
