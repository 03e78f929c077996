//! Tensors on the way that training matches.

use std::convert::Infallible;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::ir::{Graph, Node, Value};
use crate::pass::layer_of;

/// Which tensors on the way a model is trained to give as before, beside its outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Targets {
    /// None.
    #[default]
    Outputs,
    /// The sums of two tensors: what the blocks of a residual network give.
    Sums,
    /// The results of the submodules at these paths.
    Paths(Vec<String>),
}

/// `outputs`, `sums`, or paths with commas between them.
impl FromStr for Targets {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "outputs" => Self::Outputs,
            "sums" => Self::Sums,
            paths => Self::Paths(paths.split(',').map(|path| path.trim().to_owned()).collect()),
        })
    }
}

impl Targets {
    /// The values that they are in a flat graph.
    ///
    /// # Errors
    /// Where there are none, or not all.
    pub(super) fn values<'g>(&self, graph: &'g Graph) -> Result<Vec<Value<'g>>> {
        match self {
            Self::Outputs => Ok(Vec::new()),
            Self::Sums => {
                let sums: Vec<_> = graph.nodes().filter(|node| is_sum(*node)).map(|node| node.outputs()[0]).collect();
                match sums.is_empty() {
                    true => Err(Error::invalid("the model has no sums of two tensors to train towards")),
                    false => Ok(sums),
                }
            }
            Self::Paths(paths) => paths.iter().map(|path| result_of(graph, path)).collect(),
        }
    }
}

fn is_sum(node: Node<'_>) -> bool {
    let is_computed = |value: Value<'_>| value.type_of().is_tensor() && !value.is_constant();
    matches!(node.kind(), "aten::add" | "aten::add_") && node.inputs().into_iter().take(2).all(is_computed)
}

/// The last tensor that the submodule at `path` computes.
fn result_of<'g>(graph: &'g Graph, path: &str) -> Result<Value<'g>> {
    let is_within = |node: &Node<'_>| {
        let scope = node.scope().unwrap_or_default();
        scope.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let computed = |node: &Node<'_>| {
        !matches!(node.kind(), "prim::Constant" | "prim::GetAttr" | "prim::CallMethod")
            && node.outputs().first().is_some_and(|output| output.type_of().is_tensor())
    };
    let last = graph.nodes().filter(|node| !path.is_empty() && is_within(node) && computed(node)).last();
    last.map(|node| node.outputs()[0]).ok_or_else(|| {
        let mut paths: Vec<String> =
            graph.nodes().filter_map(|node| layer_of(node, "")).map(|layer| layer.path).collect();
        paths.retain(|path| !path.is_empty());
        paths.dedup();
        Error::invalid(format!(
            "no submodule at '{path}' computes a tensor to train towards; the layers are at {}",
            paths.join(", ")
        ))
    })
}
