//! What decompositions write, as the operators that people and quantization know.

use super::call::{first_name, given};
use super::graph::{Builder, names, tensor};
use super::schema::{self, Argument};
use crate::error::{Error, Result};
use crate::ir::{IValue, Value};

/// Writes a node in its usual form where it has one; whether it had.
///
/// # Errors
/// What libtorch says.
pub(super) fn translate<'p>(
    builder: &mut Builder<'_, 'p>,
    node: &'p schema::Node,
    name: &str,
    overload: &str,
) -> Result<bool> {
    match (name, overload) {
        // Without gradients they give their argument.
        ("detach" | "detach_" | "alias" | "lift" | "lift_fresh", "default") => {
            let value = builder.tensor_of(node, "self")?;
            builder.bind(first_name(node)?, value)?;
        }
        ("_to_copy" | "lift_fresh_copy", "default") => copy(builder, node)?,
        // Integer operators lay their results out in another order than float ones, and views ask for one.
        ("view", "default") if !builder.writes_in_place() => {
            let size = given(node, "size").ok_or_else(|| Error::invalid("argument 'size' is missing"))?;
            let inputs = [builder.tensor_of(node, "self")?, builder.argument(size, "List[int]")?];
            let value = builder.emit_one("aten::reshape", &inputs, "Tensor")?;
            builder.bind(first_name(node)?, value)?;
        }
        ("bmm", "default") => return product_with_matrix(builder, node),
        _ => return Form::of(name).map_or(Ok(false), |form| form.write(builder, node)),
    }
    Ok(true)
}

/// How an operator of a decomposition is written: by which operator, and from which arguments.
struct Form {
    kind: &'static str,
    /// Arguments in order: those of the node by their names, or constants.
    arguments: &'static [From],
    /// Whether only the first result is computed; the others have to be unused.
    first_only: bool,
}

/// Where an argument comes from.
enum From {
    /// The node's argument of that name and type.
    Argument(&'static str, &'static str),
    Bool(bool),
    None,
}

use From::{Argument as Arg, Bool};

const FORMS: &[(&str, Form)] = &[
    (
        "_native_batch_norm_legit_no_training",
        Form {
            kind: "aten::batch_norm",
            arguments: &[
                Arg("input", "Tensor"),
                Arg("weight", "Optional[Tensor]"),
                Arg("bias", "Optional[Tensor]"),
                Arg("running_mean", "Tensor"),
                Arg("running_var", "Tensor"),
                Bool(false),
                Arg("momentum", "float"),
                Arg("eps", "float"),
                Bool(false),
            ],
            first_only: true,
        },
    ),
    (
        "native_layer_norm",
        Form {
            kind: "aten::layer_norm",
            arguments: &[
                Arg("input", "Tensor"),
                Arg("normalized_shape", "List[int]"),
                Arg("weight", "Optional[Tensor]"),
                Arg("bias", "Optional[Tensor]"),
                Arg("eps", "float"),
                Bool(false),
            ],
            first_only: true,
        },
    ),
    (
        "max_pool2d_with_indices",
        Form {
            kind: "aten::max_pool2d",
            arguments: &[
                Arg("self", "Tensor"),
                Arg("kernel_size", "List[int]"),
                Arg("stride", "List[int]"),
                Arg("padding", "List[int]"),
                Arg("dilation", "List[int]"),
                Arg("ceil_mode", "bool"),
            ],
            first_only: true,
        },
    ),
    (
        "native_group_norm",
        Form {
            kind: "aten::group_norm",
            arguments: &[
                Arg("input", "Tensor"),
                Arg("group", "int"),
                Arg("weight", "Optional[Tensor]"),
                Arg("bias", "Optional[Tensor]"),
                Arg("eps", "float"),
                Bool(false),
            ],
            first_only: true,
        },
    ),
    (
        "convolution",
        Form {
            kind: "aten::_convolution",
            arguments: &[
                Arg("input", "Tensor"),
                Arg("weight", "Tensor"),
                Arg("bias", "Optional[Tensor]"),
                Arg("stride", "List[int]"),
                Arg("padding", "List[int]"),
                Arg("dilation", "List[int]"),
                Arg("transposed", "bool"),
                Arg("output_padding", "List[int]"),
                Arg("groups", "int"),
                Bool(false),
                Bool(false),
                Bool(false),
                Bool(false),
            ],
            first_only: true,
        },
    ),
    (
        "_unsafe_view",
        Form { kind: "aten::reshape", arguments: &[Arg("self", "Tensor"), Arg("size", "List[int]")], first_only: true },
    ),
    (
        "_scaled_dot_product_flash_attention_for_cpu",
        Form {
            kind: "aten::scaled_dot_product_attention",
            arguments: &[
                Arg("query", "Tensor"),
                Arg("key", "Tensor"),
                Arg("value", "Tensor"),
                Arg("attn_mask", "Optional[Tensor]"),
                Arg("dropout_p", "float"),
                Arg("is_causal", "bool"),
                Arg("scale", "Optional[float]"),
                Bool(false),
            ],
            first_only: true,
        },
    ),
    ("_softmax", Form { kind: "aten::softmax", arguments: SOFTMAX, first_only: true }),
    ("_log_softmax", Form { kind: "aten::log_softmax", arguments: SOFTMAX, first_only: true }),
];

const SOFTMAX: &[From] = &[Arg("self", "Tensor"), Arg("dim", "int"), From::None];

impl Form {
    fn of(name: &str) -> Option<&'static Self> {
        FORMS.iter().find(|(known, _)| *known == name).map(|(_, form)| form)
    }

    fn write<'p>(&self, builder: &mut Builder<'_, 'p>, node: &'p schema::Node) -> Result<bool> {
        let names = names(&node.outputs)?;
        let (Some(Some(result)), others) = (names.first(), names.get(1..).unwrap_or_default()) else {
            return Ok(false);
        };
        let is_used = |name: &str| builder.is_used(name);
        if self.first_only && others.iter().flatten().any(|name| is_used(name)) {
            return Ok(false);
        }
        let inputs = self.arguments.iter().map(|from| from.value(builder, node)).collect::<Result<Vec<_>>>()?;
        let value = builder.emit_one(self.kind, &inputs, "Tensor")?;
        builder.bind(result, value)?;
        Ok(true)
    }
}

impl From {
    fn value<'g>(&self, builder: &Builder<'g, '_>, node: &schema::Node) -> Result<Value<'g>> {
        match self {
            Arg(name, ty) => match given(node, name) {
                Some(argument) => builder.argument(argument, ty),
                None => builder.default_argument(node, name),
            },
            Bool(value) => builder.constant(*value),
            Self::None => builder.constant(IValue::None),
        }
    }
}

/// Writes a batched product whose second operand is one matrix, repeated for the batch, as `matmul` with that matrix: this is
/// how decompositions spell a linear layer on three dimensions. Whether it was one.
fn product_with_matrix<'p>(builder: &mut Builder<'_, 'p>, node: &'p schema::Node) -> Result<bool> {
    // Names are those of the outermost graph.
    if !tensor(node).and_then(|name| builder.maker(name)).is_some_and(|maker| std::ptr::eq(maker, node)) {
        return Ok(false);
    }
    let name_of = |argument: Option<&'p Argument>| match argument {
        Some(Argument::AsTensor(named)) => Some(named.name.as_str()),
        _ => None,
    };
    let source = |name: &str, target: &str| {
        let made = builder.maker(name)?;
        (made.target == target).then(|| name_of(given(made, "self")))?
    };
    let repeated = name_of(given(node, "mat2"));
    let expanded = repeated.and_then(|name| source(name, "torch.ops.aten.view.default"));
    let matrix = expanded.and_then(|name| source(name, "torch.ops.aten.expand.default"));
    let sizes = |name: Option<&str>| -> Option<Vec<Option<i64>>> {
        Some(
            builder
                .program
                .graph_module
                .graph
                .tensor_values
                .get(name?)?
                .sizes
                .iter()
                .map(schema::Size::known)
                .collect(),
        )
    };
    let (Some(name), Some(shape), Some(all)) = (matrix, sizes(matrix), sizes(repeated)) else { return Ok(false) };
    let is_same = shape.len() == 2 && all.len() == 3 && all[1..] == shape[..] && !shape.contains(&None);
    if !is_same || sizes(expanded).is_none_or(|between| between != all) {
        return Ok(false);
    }
    let inputs = [builder.tensor_of(node, "self")?, builder.value(name)?];
    let value = builder.emit_one("aten::matmul", &inputs, "Tensor")?;
    builder.bind(first_name(node)?, value)?;
    Ok(true)
}

/// Writes a copy of another element type or layout in memory as `to` and `clone`, which passes know.
fn copy<'p>(builder: &mut Builder<'_, 'p>, node: &'p schema::Node) -> Result<()> {
    let tensor = builder.tensor_of(node, "self")?;
    let format = match given(node, "memory_format") {
        Some(argument) => builder.argument(argument, "Optional[int]")?,
        None => builder.constant(IValue::None)?,
    };
    let value = match given(node, "dtype") {
        Some(dtype @ Argument::AsScalarType(_)) => {
            let dtype = builder.argument(dtype, "int")?;
            let (blocking, copies) = (builder.constant(false)?, builder.constant(true)?);
            builder.emit_one("aten::to", &[tensor, dtype, blocking, copies, format], "Tensor")?
        }
        _ => builder.emit_one("aten::clone", &[tensor, format], "Tensor")?,
    };
    builder.bind(first_name(node)?, value)
}
