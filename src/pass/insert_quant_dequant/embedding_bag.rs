//! Embedding bags: the weight is packed with a scale for each row, and nothing else is quantized.

use super::observed::{Observer, is_placeholder};
use super::replace::insert;
use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Node, Value};
use crate::pass::source_of;

/// The operator that an observer asks for by its attribute `custom_op`: `embedding_bag_byte`, `embedding_bag_4bit`.
pub(super) fn operator(observer: &Module) -> Option<String> {
    let Ok(IValue::Str(name)) = observer.attribute("custom_op") else { return None };
    (is_placeholder(observer) && name.contains("embedding_bag_")).then_some(name)
}

/// The arguments of `quantized::embedding_bag_…_rowwise_offsets` after the packed weight.
enum Argument {
    /// Of the float operator's inputs.
    Input(usize),
    Constant(IValue),
}

/// A float form: its operator, how many inputs it has, what becomes of them, and which one is the padding index.
struct Form {
    kind: &'static str,
    inputs: usize,
    arguments: [Argument; 8],
}

/// `sparse` means sparse gradients in float and pruned weights in INT8, which there are none of.
fn forms() -> [Form; 2] {
    use Argument::{Constant, Input};
    let pruned = || Constant(IValue::Bool(false));
    let compressed_indices = || Constant(IValue::None);
    [
        // weight, indices, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights, include_last_offset, padding
        Form {
            kind: "aten::embedding_bag",
            inputs: 9,
            arguments: [Input(1), Input(2), Input(3), Input(4), pruned(), Input(6), compressed_indices(), Input(7)],
        },
        // callee, indices, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
        // include_last_offset, padding; the mode is a word, and sums are all that INT8 has.
        Form {
            kind: "prim::CallFunction",
            inputs: 12,
            arguments: [
                Input(1),
                Input(3),
                Input(6),
                Constant(IValue::Int(0)),
                pruned(),
                Input(9),
                compressed_indices(),
                Input(10),
            ],
        },
    ]
}

/// Why an embedding bag stays in float, where it does.
fn refusal(bag: Node<'_>, form: &Form) -> Option<&'static str> {
    let inputs = bag.inputs();
    if inputs.len() != form.inputs {
        return Some("it has another number of arguments than libtorch 2.9 to 2.15 give it");
    }
    let further = bag.outputs().into_iter().skip(1).any(Value::is_used);
    further.then_some("more than its first result is used")
}

/// Whether a bag of this form has a padding index, which INT8 has not.
fn has_padding(bag: Node<'_>) -> bool {
    let is_none =
        |value: &Value<'_>| matches!(value.constant(), Some(IValue::None)) || value.type_of().kind() == "NoneType";
    !bag.inputs().last().is_some_and(is_none)
}

/// Packs the weight that the observer watches, and puts the quantized operator in place of the embedding bags that take
/// it.
pub(super) fn quantize(observer: &Observer<'_>, operator: &str) -> Result<()> {
    let weight = observer.original()?;
    for place in observer.output().uses() {
        let bag = place.user;
        let Some(form) = forms().into_iter().find(|form| form.kind == bag.kind()) else { continue };
        if let Some(reason) = refusal(bag, &form) {
            tracing::warn!("an embedding bag ({}) stays in float: {reason}", source_of(bag));
            continue;
        }
        if has_padding(bag) {
            // In libtorch's words: programs look for them.
            return Err(Error::invalid(format!(
                "Expected aten::embedding_bag padding_idx input to be None ({}): it was to be quantized by {operator}, which \
                 has no padding; leave it out of the configuration",
                source_of(bag)
            )));
        }
        let mut prepack = vec![weight];
        if operator == "embedding_bag_4bit" {
            // No search for better parameters: its bins and ratio are not looked at.
            for constant in [IValue::Bool(false), IValue::Int(200), IValue::Double(f64::from(0.16f32))] {
                prepack.push(bag.insert_constant(constant)?);
            }
        }
        let mut arguments = vec![insert(bag, &format!("quantized::{operator}_prepack"), &prepack)?];
        for argument in form.arguments {
            arguments.push(match argument {
                Argument::Input(index) => bag.inputs()[index],
                Argument::Constant(value) => bag.insert_constant(value)?,
            });
        }
        let quantized = insert(bag, &format!("quantized::{operator}_rowwise_offsets"), &arguments)?;
        quantized.node().copy_metadata(bag)?;
        bag.outputs()[0].replace_all_uses_with(quantized)?;
        bag.destroy()?;
    }
    Ok(())
}
