//! Rewrites: what a pattern matched is replaced as one step, or nothing is changed.

use std::collections::HashSet;

use super::graph::Graph;
use super::node::{Node, Value};
use super::pattern::{Match, Pattern};
use crate::error::{Error, Result};

impl Graph {
    /// Replaces every match of `pattern` by what `rule` builds; how many were replaced.
    ///
    /// `rule` gets the node that computes the matched value and the match; it inserts new nodes before that node and
    /// returns the value to use from then on, or `None` to leave this match as it is. Matched nodes that nobody uses
    /// any more are destroyed. Nodes are looked at once, in the order of [`Graph::all_nodes`]; what `rule` inserts is
    /// not matched again.
    ///
    /// # Errors
    /// The error of `rule`, or that its value does not fit. What was replaced before stays replaced; what `rule` had
    /// inserted for the match that failed, or that it left as it is, is taken away again.
    ///
    /// ```
    /// use jitquant::ir::{Graph, pattern::{any, op}};
    /// let graph = Graph::parse(
    ///     "graph(%a : Tensor):
    ///        %s : Tensor = aten::sigmoid(%a)
    ///        %y : Tensor = aten::mul(%a, %s)
    ///        return (%y)",
    /// )?;
    /// let swish = any("x") * op("aten::sigmoid", [any("x")]);
    /// let fused = graph.rewrite(&swish, |at, found| Ok(Some(at.insert_operator("aten::silu", &[found.value("x")?])?)))?;
    /// assert_eq!(fused, 1);
    /// assert_eq!(graph.nodes().map(|node| node.kind()).collect::<Vec<_>>(), ["aten::silu"]);
    /// # Ok::<(), jitquant::Error>(())
    /// ```
    pub fn rewrite<'g>(
        &'g self,
        pattern: &Pattern,
        mut rule: impl FnMut(Node<'g>, &Match<'g>) -> Result<Option<Value<'g>>>,
    ) -> Result<usize> {
        let mut replaced = 0;
        for node in self.all_nodes() {
            for output in node.outputs() {
                if node.is_destroyed() {
                    break;
                }
                if let Ok(found) = pattern.matches(output) {
                    replaced += usize::from(found.replace(|at| rule(at, &found))?);
                }
            }
        }
        Ok(replaced)
    }
}

impl<'g> Match<'g> {
    /// Replaces the matched value by the one that `rule` returns, as [`Graph::rewrite`] does; whether it was replaced.
    ///
    /// # Errors
    /// As [`Graph::rewrite`]; nothing has changed then, as long as `rule` does no more than insert nodes.
    pub fn replace(&self, rule: impl FnOnce(Node<'g>) -> Result<Option<Value<'g>>>) -> Result<bool> {
        let (root, at) = (self.root(), self.root().node());
        let graph = root.graph();
        let known: HashSet<_> = graph.all_nodes().into_iter().collect();
        let outcome = rule(at).and_then(|value| value.map(|value| fitting(root, value)).transpose());
        let inserted: Vec<_> = graph.all_nodes().into_iter().filter(|node| !known.contains(node)).collect();
        let Ok(Some(value)) = outcome else {
            for node in inserted.into_iter().rev() {
                node.destroy()?;
            }
            return outcome.map(|_| false);
        };
        for node in inserted {
            node.copy_metadata(at)?;
        }
        root.replace_all_uses_with(value)?;
        for node in self.nodes() {
            if node.outputs().iter().all(|output| !output.is_used()) {
                node.destroy()?;
            }
        }
        Ok(true)
    }
}

/// `value`, where it can stand in the place of `root`.
fn fitting<'g>(root: Value<'g>, value: Value<'g>) -> Result<Value<'g>> {
    let (wanted, got) = (root.type_of(), value.type_of());
    if (wanted.is_tensor() && got.is_tensor()) || got.is_subtype_of(&wanted) {
        return Ok(value);
    }
    Err(Error::invalid(format!("{root:?} is a {wanted} and cannot be replaced by {value:?}, which is a {got}")))
}
