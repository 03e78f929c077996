//! What `cpp/plugin.cpp` offers and calls.

use super::{record_range, register_passes_from_environment, run_graph_pass};

#[cxx::bridge(namespace = "jitquant")]
pub(super) mod ffi {
    extern "Rust" {
        fn run_graph_pass(graph: SharedPtr<Graph>, pass: u32);
        fn register_passes_from_environment();
        fn record_range(x: &[f32], graph: i64, value: &str);
    }

    unsafe extern "C++" {
        include!("plugin.h");

        type Graph = crate::ir::ffi::bridge::Graph;

        fn pass_register(before_fusion: bool, pass: u32) -> Result<u32>;
        fn pass_clear(before_fusion: bool, registered: u32) -> Result<()>;
    }
}
