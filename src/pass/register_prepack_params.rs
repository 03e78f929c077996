//! `RegisterPrePackParams`.
