//! TorchScript IR seen from Rust: modules, graphs, blocks, nodes, values, types.
//!
//! [`Module`] and [`Graph`] are handles on libtorch's objects; [`Block`], [`Node`] and [`Value`] borrow their graph.
//! [`pattern`] finds what a pass looks for, and [`Graph::rewrite`] replaces it.
//! See `docs/ir.md` and `examples/custom_pass.rs`.

mod block;
pub(crate) mod ffi;
mod graph;
mod ivalue;
mod module;
mod module_clone;
mod node;
mod operators;
pub mod pattern;
mod rewrite;
mod stretch;
mod tensor;
mod types;
mod value;

pub use block::Block;
pub use graph::{GeneralPass, Graph};
pub use ivalue::{IValue, OtherValue};
pub(crate) use module::first_line;
pub use module::{AttributeInfo, ExtraFile, FloatChanges, Module, join_path};
pub use node::{Argument, Node, Schema, SourceRange};
pub use operators::Operator;
pub(crate) use stretch::{Held, Stretch, last_uses};
pub use tensor::{DType, Element, Tensor};
pub use types::Type;
pub use value::{Use, Value};

/// The method that is quantized.
pub(crate) const FORWARD: &str = "forward";

/// The snippets of `docs/ir.md`.
#[cfg(doctest)]
#[doc = include_str!("../../docs/ir.md")]
struct Guide;
