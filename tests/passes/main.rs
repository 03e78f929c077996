//! Our passes against libtorch's own, stage by stage and end to end.
#![cfg(feature = "torch")]

#[allow(dead_code)]
#[path = "../insert_observers/canonical.rs"]
mod canonical;
#[allow(dead_code)]
#[path = "../insert_observers/compare.rs"]
mod compare;
#[allow(dead_code)]
#[path = "../insert_observers/models.rs"]
mod models;

mod dedup_module_uses;
mod differences;
mod fold_conv_batch_norm;
mod on_device;
mod operators;
#[path = "../insert_observers/same.rs"]
mod same;
mod symbols;
