//! Ranges that observers found: the file that keeps them, the hash that tells which model they are of, the names of the
//! observed tensors, and the choice between ranges of one histogram.

pub(crate) mod choice;
mod file;
mod fingerprint;
mod watched;

pub(crate) use file::{Model, Recorded, State, key};
pub(crate) use fingerprint::{Fnv, fingerprint, fingerprint_of, unmangled};
pub(crate) use watched::{restore, watched, watched_in};
