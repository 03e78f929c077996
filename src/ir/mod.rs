//! TorchScript IR seen from Rust: modules, graphs, blocks, nodes, values, types.
//!
//! [`Module`] and [`Graph`] are handles on libtorch's objects; [`Block`], [`Node`] and [`Value`] borrow their graph.
//! [`pattern`] finds what a pass looks for, and [`Graph::rewrite`] replaces it.
//! See `docs/ir.md` and `examples/custom_pass.rs`.

pub(crate) mod ffi;
mod graph;
mod ivalue;
mod module;
mod module_clone;
mod node;
pub mod pattern;
mod rewrite;
mod tensor;
mod types;

pub use graph::{GeneralPass, Graph};
pub use ivalue::{IValue, OtherValue};
pub use module::{AttributeInfo, ExtraFile, Module, join_path};
pub use node::{Argument, Block, Node, Schema, SourceRange, Use, Value};
pub use tensor::{DType, Element, Tensor};
pub use types::Type;

/// The snippets of `docs/ir.md`.
#[cfg(doctest)]
#[doc = include_str!("../../docs/ir.md")]
struct Guide;
