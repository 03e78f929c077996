//! `InsertObservers`.
