//! Each operator on libtorch's quantized tensors becomes its native one.

use std::collections::{HashMap, HashSet};

use super::call::{Bytes, operator};
use super::operators::Rule;
use super::weights::Weights;
use crate::error::Result;
use crate::ir::{Block, Graph, Node, Value};

/// What became of a node.
pub(super) enum Outcome<'g> {
    /// Its output, quantized, is these bytes.
    Bytes(Bytes<'g>),
    /// Its outputs, quantized, are these.
    Many(Vec<Bytes<'g>>),
    /// Its output, not quantized, is this value.
    Plain(Value<'g>),
    /// It stays.
    Kept,
}

/// The values that are known in native form, while a graph is rewritten.
pub(super) struct Converter<'a, 'g, 'm> {
    pub weights: &'a mut Weights<'m>,
    native: HashMap<Value<'g>, Bytes<'g>>,
    replaced: Vec<Node<'g>>,
    /// Layers with a weight that became native.
    pub layers: usize,
}

/// Rewrites a graph; how many layers with weights became native.
///
/// Nothing is taken away before all is decided. What still asks for a quantized tensor then gets one, made of the bytes.
pub(super) fn convert(graph: &Graph, weights: &mut Weights<'_>) -> Result<usize> {
    let mut converter = Converter { weights, native: HashMap::new(), replaced: Vec::new(), layers: 0 };
    converter.block(graph.block())?;
    converter.hand_back()?;
    Ok(converter.layers)
}

impl<'g> Converter<'_, 'g, '_> {
    fn block(&mut self, block: Block<'g>) -> Result<()> {
        for node in block.nodes() {
            for inner in node.blocks() {
                self.block(inner)?;
            }
            let Some(rule) = Rule::of(node) else { continue };
            let outputs = node.outputs();
            let results = match rule.apply(self, node)? {
                Outcome::Kept => continue,
                Outcome::Plain(value) => {
                    outputs[0].replace_all_uses_with(value)?;
                    Vec::new()
                }
                Outcome::Bytes(bytes) => vec![bytes],
                Outcome::Many(all) => all,
            };
            self.native.extend(std::iter::zip(outputs, results));
            self.replaced.push(node);
        }
        Ok(())
    }

    /// The native form of a value, where it is known.
    pub fn known(&self, value: Value<'g>) -> Option<Bytes<'g>> {
        self.native.get(&value).copied()
    }

    /// The native form of `value`, which a quantized operator takes, so that it is a quantized tensor of one scale: where it
    /// comes from something that has no native form, it is taken apart.
    pub fn bytes(&mut self, value: Value<'g>) -> Result<Option<Bytes<'g>>> {
        if let Some(known) = self.known(value) {
            return Ok(Some(known));
        }
        let node = value.node();
        // An argument has no node of its own to come after.
        let next = match node.kind() {
            "prim::Param" => node.owning_block().and_then(|block| block.nodes().next()),
            _ => Some(node.next()),
        };
        let Some(next) = next else { return Ok(None) };
        let part = |kind: &str| operator(next, kind, &[value]);
        let bytes = Bytes {
            bytes: part("aten::int_repr")?,
            scale: part("aten::q_scale")?,
            zero_point: part("aten::q_zero_point")?,
        };
        self.native.insert(value, bytes);
        Ok(Some(bytes))
    }

    /// Gives quantized tensors to what stays and takes them, and destroys what was replaced.
    fn hand_back(&mut self) -> Result<()> {
        let replaced: HashSet<_> = self.replaced.iter().copied().collect();
        for node in &self.replaced {
            for output in node.outputs() {
                let is_taken = output.uses().into_iter().any(|place| !replaced.contains(&place.user));
                if let Some(known) = self.known(output).filter(|_| is_taken) {
                    let inputs = [known.bytes, known.scale, known.zero_point];
                    let made = operator(*node, "aten::_make_per_tensor_quantized_tensor", &inputs)?;
                    output.replace_all_uses_with(made)?;
                }
            }
        }
        for node in self.replaced.drain(..).rev() {
            if node.outputs().into_iter().all(|output| !output.is_used()) {
                node.destroy()?;
            }
        }
        Ok(())
    }
}
