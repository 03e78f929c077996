//! Why a layer stays in float: what is known of it before anything is quantized.

use super::QuantType;
use super::prepare::{has_constant_weights, projects};
use crate::ir::{IValue, Node, Value};

/// Why `node`, a layer of that name in reports, is never quantized in that way, where it is not.
pub(crate) fn why_unquantized(node: Node<'_>, operator: &str, quant_type: QuantType) -> Option<&'static str> {
    let of_constant = || takes_constant(node);
    match (operator, quant_type) {
        ("matmul" | "linear", _) if is_product(node) && of_constant() => {
            Some("a product with a constant that is no matrix on the right is no linear layer")
        }
        ("einsum", _) if of_constant() => Some("this einsum is no linear layer: INT8 has no form of it"),
        ("einsum", _) => Some("a product of two activations: INT8 has no form of einsum"),
        ("matmul" | "attention", QuantType::Static) => {
            Some("a product of two activations stays in float unless asked for (`attention`, --attention)")
        }
        ("matmul" | "attention", QuantType::Dynamic) => {
            Some("a product of two activations has no dynamic INT8 form in libtorch")
        }
        ("transformer_layer" | "attention_layer", _) => Some(
            "PyTorch's fast path on nested tensors; traced without (torch.backends.mha.set_fastpath_enabled(False)) it is quantized",
        ),
        ("embedding" | "embedding_bag", _) => Some("embeddings are quantized by weight-only quantization alone"),
        ("rnn", _) => Some("libtorch has no INT8 kernel for torch.nn.RNN (for LSTM and GRU it has)"),
        ("lstm", _) if projects(node) => Some("libtorch has no INT8 kernel for an LSTM with projections (proj_size)"),
        ("lstm" | "gru" | "lstm_cell" | "gru_cell" | "rnn_cell", _) if !has_constant_weights(node) => {
            Some("its weights are computed when the model runs")
        }
        ("bilinear", _) => Some("libtorch has no INT8 kernel for bilinear layers"),
        ("convolution", _) => Some("the number of its dimensions, or its geometry, is computed when the model runs"),
        (name, QuantType::Dynamic) if name.contains("conv") => {
            Some("convolutions have no dynamic INT8 form in libtorch")
        }
        _ if super::layers::is_unlisted(node) => Some("libtorch has no INT8 kernel for this operator"),
        _ => None,
    }
}

/// Whether it multiplies matrices whatever they are.
fn is_product(node: Node<'_>) -> bool {
    matches!(node.kind(), "aten::matmul" | "aten::bmm" | "aten::mm" | "aten::mv" | "aten::baddbmm" | "aten::addmm")
}

/// Whether one of the tensors that it takes, in lists or not, is a constant.
fn takes_constant(node: Node<'_>) -> bool {
    let is_tensor = |value: Value<'_>| matches!(value.constant(), Some(IValue::Tensor(_)));
    node.inputs().into_iter().any(|input| match input.node().kind() {
        "prim::ListConstruct" => input.node().inputs().into_iter().any(is_tensor),
        _ => is_tensor(input),
    })
}
