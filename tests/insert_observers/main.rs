//! Our `InsertObservers` against libtorch's own, on many shapes of modules.
//!
//! [`compare::Case::check`] says what is compared.

#![cfg(feature = "torch")]

mod canonical;
mod compare;
mod models;
mod random_models;
// tests/passes uses more of it.
#[allow(dead_code)]
mod same;

mod differences;
mod files;
mod layers;
mod structure;
