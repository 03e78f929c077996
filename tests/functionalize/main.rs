//! Writes in place, lists, dictionaries and state: the functional form computes what the model does, and so does INT8.

#![cfg(feature = "torch")]

mod generated;
mod models;
mod state;
mod written;
