//! Preparation by data flow: what a flat, folded module computes, and what is left in it.

#![cfg(feature = "torch")]

mod flatten;
mod fold_batch_norm;
mod fold_padding;
mod models;
mod pipeline;
