//! The error of every kernel.

/// An argument does not fit: which, and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// The result of a kernel that checks its arguments.
pub type Result<T, E = Error> = std::result::Result<T, E>;
