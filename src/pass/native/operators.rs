//! The table of operators that have a native form, and how each is built.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::call::{Bytes, constant, constant_qparams, constant_table, int, ints, is_none, list, operator, output};
use super::convert::{Converter, Outcome};
use super::weights::attribute_of;
use crate::error::Result;
use crate::ir::{IValue, Node, Type, Value};
use crate::kernel::{Activation, QParams, Table};
use crate::pass::op_table::FixedQParams;

/// How a node becomes native.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// `aten::quantize_per_tensor`.
    Quantize,
    /// `aten::dequantize`.
    Dequantize,
    /// `aten::int_repr`, `q_scale`, `q_zero_point`: parts of the native form.
    Part(fn(Bytes<'_>) -> Value<'_>),
    /// `aten::_make_per_tensor_quantized_tensor`: of bytes.
    Made,
    /// A convolution or a linear layer.
    Layer { kind: &'static str, from_packed: &'static str, relu: bool, flat: bool },
    /// A layer that quantizes its f32 input itself: a native one, its bound 0 with relu.
    Dynamic { kind: &'static str, from_packed: &'static str, relu: bool },
    /// A linear layer that quantizes its f32 input to the scale and zero point given, and has an f32 result.
    QuantizesInside { relu: bool },
    /// A row of a packed table for each index.
    Embedding { bits: i64, from_packed: &'static str },
    /// Sums of rows of a table, which is plain bytes where it is not packed.
    EmbeddingBag { bits: i64, from_packed: Option<&'static str> },
    /// `(a, b, scale, zero_point)`.
    Binary { kind: &'static str, relu: bool },
    /// `quantized::cat`.
    Cat { relu: bool },
    /// A function of one value; the result's parameters are at this input.
    Function { of: fn(Node<'_>) -> Option<Activation>, result: Parameters },
    /// A clamp by constants, of real numbers.
    Clamp(fn(Node<'_>) -> Option<(f64, f64)>),
    /// Inputs after the tensor, as they are, in this order.
    Arguments { kind: &'static str, order: &'static [Argument] },
    /// A pooling window: kernel, stride, …, where an empty stride is the kernel's size.
    Pool { kind: &'static str, with_zero_point: bool },
    /// Upsampling; scale factors, in one list or one by one, are the inputs from `first_factor` on.
    Upsample { kind: &'static str, first_factor: usize },
    /// It moves elements: the same operator takes bytes.
    Moves,
    /// As `Moves`, from the list of tensors at input 0, which have one scale.
    MovesAll,
    /// `prim::ListUnpack`, `aten::__getitem__`: out of a list of bytes.
    Unpack,
    /// It asks for a shape.
    Asks,
}

/// Where a result's parameters come from.
#[derive(Clone, Copy)]
pub(super) enum Parameters {
    /// Scale and zero point are inputs from this one on.
    At(usize),
    /// They are known.
    Fixed(FixedQParams),
    /// They are the input's.
    OfInput,
}

/// An argument of a native operator after the bytes.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    /// The input's scale and zero point.
    QParams,
    /// The input's zero point.
    Zero,
    /// This input.
    At(usize),
    /// Scale and zero point of the result, at these inputs.
    Result(usize),
    /// The bounds of a relu.
    Relu(usize),
}

use Argument::{At, QParams as Of, Relu, Result as To, Zero};

const CONV2D: &str = "jitquant::conv_from_packed";
const LINEAR: &str = "jitquant::linear_from_packed";
const TABLE8: &str = "jitquant::embedding_byte_from_packed";
const TABLE4: &str = "jitquant::embedding_4bit_from_packed";

const fn conv(relu: bool) -> Rule {
    Rule::Layer { kind: "jitquant::conv", from_packed: CONV2D, relu, flat: false }
}

/// A convolution of one dimension, which libtorch keeps as one of two.
const fn conv1d(relu: bool) -> Rule {
    Rule::Layer { kind: "jitquant::conv", from_packed: CONV2D, relu, flat: true }
}

const fn linear(relu: bool) -> Rule {
    Rule::Layer { kind: "jitquant::linear", from_packed: LINEAR, relu, flat: false }
}

const fn binary(kind: &'static str, relu: bool) -> Rule {
    Rule::Binary { kind, relu }
}

const fn arguments(kind: &'static str, order: &'static [Argument]) -> Rule {
    Rule::Arguments { kind, order }
}

const fn function(of: fn(Node<'_>) -> Option<Activation>, result: Parameters) -> Rule {
    Rule::Function { of, result }
}

fn number(node: Node<'_>, index: usize) -> Option<f32> {
    Some(node.input(index)?.constant()?.as_number()? as f32)
}

fn elu(node: Node<'_>, first: usize) -> Option<Activation> {
    let [alpha, scale, input_scale] = [0, 1, 2].map(|i| number(node, first + i));
    Some(Activation::Elu { alpha: alpha?, scale: scale?, input_scale: input_scale? })
}

fn leaky_relu(node: Node<'_>) -> Option<Activation> {
    Some(Activation::LeakyRelu { negative_slope: number(node, 1)? })
}

fn gelu(node: Node<'_>) -> Option<Activation> {
    match node.input(1)?.constant()?.as_str()? {
        "tanh" => Some(Activation::GeluTanh),
        _ => Some(Activation::Gelu),
    }
}

/// The bounds at inputs 1 and 2, infinite where they are `None`.
fn bounds(node: Node<'_>) -> Option<(f64, f64)> {
    let bound = |index: usize, missing: f64| match node.input(index)?.constant()? {
        IValue::None => Some(missing),
        constant => constant.as_number(),
    };
    Some((bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?))
}

/// The table: an operator of a portable graph, and how it becomes native.
#[rustfmt::skip]
static RULES: &[(&str, Rule)] = &[
    ("aten::quantize_per_tensor", Rule::Quantize),
    ("aten::dequantize", Rule::Dequantize),
    ("aten::int_repr", Rule::Part(|x| x.bytes)),
    ("aten::q_scale", Rule::Part(|x| x.scale)),
    ("aten::q_zero_point", Rule::Part(|x| x.zero_point)),
    ("aten::_make_per_tensor_quantized_tensor", Rule::Made),

    ("quantized::conv1d", conv1d(false)),
    ("quantized::conv1d_relu", conv1d(true)),
    ("quantized::conv2d", conv(false)),
    ("quantized::conv2d_relu", conv(true)),
    ("quantized::conv3d", conv(false)),
    ("quantized::conv3d_relu", conv(true)),
    ("quantized::conv_transpose1d", conv1d(false)),
    ("quantized::conv_transpose2d", conv(false)),
    ("quantized::conv_transpose3d", conv(false)),
    ("quantized::linear", linear(false)),
    ("quantized::linear_relu", linear(true)),
    ("quantized::linear_dynamic", Rule::Dynamic { kind: "jitquant::linear_dynamic", from_packed: LINEAR, relu: false }),
    ("quantized::linear_relu_dynamic", Rule::Dynamic { kind: "jitquant::linear_dynamic", from_packed: LINEAR, relu: true }),

    ("quantized::linear_with_input_q_dq_qweight_dq_output_fp32", Rule::QuantizesInside { relu: false }),
    ("quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32", Rule::QuantizesInside { relu: true }),

    ("quantized::embedding_byte", Rule::Embedding { bits: 8, from_packed: TABLE8 }),
    ("quantized::embedding_4bit", Rule::Embedding { bits: 4, from_packed: TABLE4 }),
    ("quantized::embedding_bag_byte", Rule::EmbeddingBag { bits: 8, from_packed: Some(TABLE8) }),
    ("quantized::embedding_bag_4bit", Rule::EmbeddingBag { bits: 4, from_packed: Some(TABLE4) }),
    ("quantized::embedding_bag_byte_rowwise_offsets", Rule::EmbeddingBag { bits: 8, from_packed: None }),
    ("quantized::embedding_bag_4bit_rowwise_offsets", Rule::EmbeddingBag { bits: 4, from_packed: None }),

    ("quantized::add", binary("jitquant::add", false)),
    ("quantized::add_relu", binary("jitquant::add", true)),
    ("quantized::mul", binary("jitquant::mul", false)),
    ("quantized::matmul", binary("jitquant::matmul", false)),
    ("quantized::mul_relu", binary("jitquant::mul", true)),
    ("quantized::cat", Rule::Cat { relu: false }),
    ("quantized::cat_relu", Rule::Cat { relu: true }),

    ("quantized::hardswish", function(|_| Some(Activation::HardSwish), Parameters::At(1))),
    ("quantized::elu", function(|node| elu(node, 3), Parameters::At(1))),
    ("quantized::leaky_relu", function(leaky_relu, Parameters::At(3))),
    ("quantized::sigmoid", function(|_| Some(Activation::Sigmoid), Parameters::At(1))),
    ("aten::sigmoid", function(|_| Some(Activation::Sigmoid), Parameters::Fixed(FixedQParams::UNIT))),
    ("aten::hardsigmoid", function(|_| Some(Activation::HardSigmoid), Parameters::Fixed(FixedQParams::UNIT))),
    ("aten::tanh", function(|_| Some(Activation::Tanh), Parameters::Fixed(FixedQParams::SIGNED_UNIT))),
    ("aten::leaky_relu", function(leaky_relu, Parameters::OfInput)),
    ("aten::gelu", function(gelu, Parameters::OfInput)),
    ("aten::relu", Rule::Clamp(|_| Some((0.0, f64::INFINITY)))),
    ("aten::relu6", Rule::Clamp(|_| Some((0.0, 6.0)))),
    ("quantized::relu6", Rule::Clamp(|_| Some((0.0, 6.0)))),
    ("aten::clamp", Rule::Clamp(bounds)),
    ("aten::hardtanh", Rule::Clamp(bounds)),
    ("quantized::clamp", Rule::Clamp(bounds)),

    ("quantized::batch_norm", arguments("jitquant::batch_norm", &[Of, At(1), At(2), At(3), At(4), At(5), To(6)])),
    ("quantized::batch_norm_relu", arguments("jitquant::batch_norm", &[Of, At(1), At(2), At(3), At(4), At(5), To(6), Relu(7)])),
    ("quantized::batch_norm2d", arguments("jitquant::batch_norm", &[Of, At(1), At(2), At(3), At(4), At(5), To(6)])),
    ("quantized::batch_norm2d_relu", arguments("jitquant::batch_norm", &[Of, At(1), At(2), At(3), At(4), At(5), To(6), Relu(7)])),
    ("quantized::layer_norm", arguments("jitquant::layer_norm", &[Of, At(1), At(2), At(3), At(4), To(5)])),
    ("quantized::group_norm", arguments("jitquant::group_norm", &[Of, At(1), At(2), At(3), At(4), To(5)])),
    ("quantized::instance_norm", arguments("jitquant::instance_norm", &[Of, At(1), At(2), At(3), To(4)])),
    ("quantized::softmax", arguments("jitquant::softmax", &[Of, At(1), To(2)])),

    ("aten::max_pool1d", Rule::Pool { kind: "jitquant::max_pool", with_zero_point: false }),
    ("aten::max_pool2d", Rule::Pool { kind: "jitquant::max_pool", with_zero_point: false }),
    ("aten::max_pool3d", Rule::Pool { kind: "jitquant::max_pool", with_zero_point: false }),
    ("aten::avg_pool1d", Rule::Pool { kind: "jitquant::avg_pool", with_zero_point: true }),
    ("aten::avg_pool2d", Rule::Pool { kind: "jitquant::avg_pool", with_zero_point: true }),
    ("aten::avg_pool3d", Rule::Pool { kind: "jitquant::avg_pool", with_zero_point: true }),
    ("aten::adaptive_avg_pool1d", arguments("jitquant::adaptive_avg_pool", &[Zero, At(1)])),
    ("aten::adaptive_avg_pool2d", arguments("jitquant::adaptive_avg_pool", &[Zero, At(1)])),
    ("aten::adaptive_avg_pool3d", arguments("jitquant::adaptive_avg_pool", &[Zero, At(1)])),
    ("aten::mean", arguments("jitquant::mean", &[Zero, At(1), At(2)])),

    ("aten::upsample_nearest1d", Rule::Upsample { kind: "jitquant::upsample_nearest", first_factor: 2 }),
    ("aten::upsample_nearest2d", Rule::Upsample { kind: "jitquant::upsample_nearest", first_factor: 2 }),
    ("aten::upsample_nearest3d", Rule::Upsample { kind: "jitquant::upsample_nearest", first_factor: 2 }),
    ("aten::upsample_bilinear2d", Rule::Upsample { kind: "jitquant::upsample_bilinear", first_factor: 3 }),

    ("aten::flatten", Rule::Moves),
    ("aten::reshape", Rule::Moves),
    ("aten::view", Rule::Moves),
    ("aten::transpose", Rule::Moves),
    ("aten::t", Rule::Moves),
    ("aten::permute", Rule::Moves),
    ("aten::contiguous", Rule::Moves),
    ("aten::squeeze", Rule::Moves),
    ("aten::unsqueeze", Rule::Moves),
    ("aten::expand", Rule::Moves),
    ("aten::repeat", Rule::Moves),
    ("aten::repeat_interleave", Rule::Moves),
    ("aten::detach", Rule::Moves),
    ("aten::clone", Rule::Moves),
    ("aten::slice", Rule::Moves),
    ("aten::select", Rule::Moves),
    ("aten::narrow", Rule::Moves),
    ("aten::flip", Rule::Moves),
    ("aten::roll", Rule::Moves),
    ("aten::index_select", Rule::Moves),
    ("aten::unflatten", Rule::Moves),
    ("aten::pixel_shuffle", Rule::Moves),
    ("aten::pixel_unshuffle", Rule::Moves),
    ("aten::channel_shuffle", Rule::Moves),
    ("aten::chunk", Rule::Moves),
    ("aten::split", Rule::Moves),
    ("aten::unbind", Rule::Moves),
    ("aten::stack", Rule::MovesAll),
    ("prim::ListUnpack", Rule::Unpack),
    ("aten::__getitem__", Rule::Unpack),

    ("aten::size", Rule::Asks),
    ("aten::len", Rule::Asks),
    ("aten::dim", Rule::Asks),
    ("aten::numel", Rule::Asks),
    ("prim::device", Rule::Asks),
];

/// Whether it gives or takes a tensor of a quantized dtype although it is in namespace `aten`.
pub(super) fn makes_quantized(kind: &str) -> bool {
    matches!(
        kind,
        "aten::quantize_per_tensor" | "aten::dequantize" | "aten::_make_per_tensor_quantized_tensor" | "aten::int_repr"
    )
}

/// Whether an operator moves elements, so that it takes bytes as it takes floats.
pub(super) fn moves(kind: &str) -> bool {
    matches!(Rule::named(kind), Some(Rule::Moves))
}

/// The bounds of a clamp by constants, of real numbers, where `node` is one.
pub(super) fn clamp_of(node: Node<'_>) -> Option<(f64, f64)> {
    match Rule::of(node)? {
        Rule::Clamp(bounds) => bounds(node),
        _ => None,
    }
}

impl Rule {
    fn named(kind: &str) -> Option<Rule> {
        static ROWS: LazyLock<HashMap<&str, Rule>> = LazyLock::new(|| RULES.iter().copied().collect());
        ROWS.get(kind).copied()
    }

    /// The rule for `node`, where there is one.
    pub fn of(node: Node<'_>) -> Option<Rule> {
        Self::named(node.kind())
    }

    /// Builds the native form before `node`.
    pub fn apply<'g>(self, converter: &mut Converter<'_, 'g, '_>, node: Node<'g>) -> Result<Outcome<'g>> {
        let inputs = node.inputs();
        let Some(&first) = inputs.first() else { return Ok(Outcome::Kept) };
        let known = converter.known(first);
        match self {
            Self::Quantize => quantize(node),
            Self::Made => match inputs[..] {
                [bytes, scale, zero_point] => Ok(Outcome::Bytes(Bytes { bytes, scale, zero_point })),
                _ => Ok(Outcome::Kept),
            },
            Self::Layer { kind, from_packed, relu, flat } => {
                let [x, packed, scale, zero_point] = inputs[..] else { return Ok(Outcome::Kept) };
                let Some(x) = converter.bytes(x)? else { return Ok(Outcome::Kept) };
                let weight = converter.weights.native(node, from_packed, packed)?;
                let x = if flat { x.with(squeeze(node, "aten::unsqueeze", x.bytes)?) } else { x };
                let mut arguments = vec![x.bytes, weight, x.scale, x.zero_point, scale, zero_point];
                arguments.extend(relu_bounds(node, relu, zero_point)?);
                let bytes = operator(node, kind, &arguments)?;
                let bytes = if flat { squeeze(node, "aten::squeeze", bytes)? } else { bytes };
                converter.layers += 1;
                Ok(Outcome::Bytes(Bytes { bytes, scale, zero_point }))
            }
            Self::Dynamic { kind, from_packed, relu } => {
                let [x, packed, _] = inputs[..] else { return Ok(Outcome::Kept) };
                if !can_move(packed) {
                    return Ok(Outcome::Kept);
                }
                let weight = converter.weights.native(node, from_packed, packed)?;
                let mut arguments = vec![x, weight];
                if relu {
                    // The kernels are exact with all eight bits: no range is reduced.
                    arguments.extend([constant(node, false)?, constant(node, false)?, constant(node, 0.0)?]);
                }
                converter.layers += 1;
                Ok(Outcome::Plain(operator(node, kind, &arguments)?))
            }
            Self::QuantizesInside { relu } => {
                let [x, scale, zero_point, packed] = inputs[..] else { return Ok(Outcome::Kept) };
                if !can_move(packed) {
                    return Ok(Outcome::Kept);
                }
                let weight = converter.weights.native(node, LINEAR, packed)?;
                let bytes = operator(node, "jitquant::quantize", &[x, scale, zero_point])?;
                let min = constant(node, if relu { IValue::Double(0.0) } else { IValue::None })?;
                let arguments = [bytes, weight, scale, zero_point, min, constant(node, IValue::None)?];
                converter.layers += 1;
                Ok(Outcome::Plain(operator(node, "jitquant::linear_float", &arguments)?))
            }
            Self::Embedding { bits, from_packed } => {
                let [packed, indices, pruned] = inputs[..] else { return Ok(Outcome::Kept) };
                if !can_move(packed) || flag(pruned) != Some(false) {
                    return Ok(Outcome::Kept);
                }
                let table = converter.weights.native(node, from_packed, packed)?;
                converter.layers += 1;
                let arguments = [table, indices, constant(node, bits)?];
                Ok(Outcome::Plain(operator(node, "jitquant::embedding", &arguments)?))
            }
            Self::EmbeddingBag { bits, from_packed } => {
                // libtorch looks at neither the scaling of gradients nor the mode: it gives sums.
                let [table, indices, offsets, _, _, pruned, weights, map, last] = inputs[..] else {
                    return Ok(Outcome::Kept);
                };
                let map = match flag(pruned) {
                    Some(true) => map,
                    Some(false) => constant(node, IValue::None)?,
                    None => return Ok(Outcome::Kept),
                };
                let table = match from_packed {
                    None => table,
                    Some(from_packed) if can_move(table) => converter.weights.native(node, from_packed, table)?,
                    Some(_) => return Ok(Outcome::Kept),
                };
                converter.layers += 1;
                let (bits, mean) = (constant(node, bits)?, constant(node, false)?);
                let arguments = [table, indices, offsets, bits, mean, weights, map, last];
                Ok(Outcome::Plain(operator(node, "jitquant::embedding_bag", &arguments)?))
            }
            Self::Binary { kind, relu } => {
                let [a, b, scale, zero_point] = inputs[..] else { return Ok(Outcome::Kept) };
                let (Some(a), Some(b)) = (converter.bytes(a)?, converter.bytes(b)?) else { return Ok(Outcome::Kept) };
                let mut arguments =
                    vec![a.bytes, a.scale, a.zero_point, b.bytes, b.scale, b.zero_point, scale, zero_point];
                arguments.extend(relu_bounds(node, relu, zero_point)?);
                let bytes = operator(node, kind, &arguments)?;
                Ok(Outcome::Bytes(Bytes { bytes, scale, zero_point }))
            }
            Self::Cat { relu } => cat(converter, node, relu),
            _ => match known {
                Some(x) => self.apply_to_bytes(converter, node, x),
                None if matches!(self, Self::MovesAll) => stack(converter, node),
                None => Ok(Outcome::Kept),
            },
        }
    }

    /// Rules of operators that take float tensors too: `x` is their first input's native form.
    fn apply_to_bytes<'g>(
        self,
        converter: &mut Converter<'_, 'g, '_>,
        node: Node<'g>,
        x: Bytes<'g>,
    ) -> Result<Outcome<'g>> {
        let inputs = node.inputs();
        match self {
            Self::Dequantize => {
                Ok(Outcome::Plain(operator(node, "jitquant::dequantize", &[x.bytes, x.scale, x.zero_point])?))
            }
            Self::Part(part) => Ok(Outcome::Plain(part(x))),
            Self::Function { of, result } => {
                let to = match result {
                    Parameters::OfInput => x.qparams(),
                    Parameters::Fixed(fixed) => Some(QParams::new(fixed.scale, fixed.zero_point as i32)),
                    Parameters::At(index) => match (inputs.get(index), inputs.get(index + 1)) {
                        (Some(scale), Some(zero_point)) => super::call::qparams(*scale, *zero_point),
                        _ => None,
                    },
                };
                let (Some(activation), Some(from), Some(to)) = (of(node), x.qparams(), to) else {
                    return Ok(Outcome::Kept);
                };
                let table = constant_table(node, Table::of(activation, from, to).bytes())?;
                let bytes = operator(node, "jitquant::lookup", &[x.bytes, table])?;
                let [scale, zero_point] = constant_qparams(node, to)?;
                Ok(Outcome::Bytes(Bytes { bytes, scale, zero_point }))
            }
            Self::Clamp(bounds) => {
                let (Some((low, high)), Some(qparams)) = (bounds(node), x.qparams()) else { return Ok(Outcome::Kept) };
                let bounds = [qparams.quantize::<u8>(low as f32), qparams.quantize::<u8>(high as f32)];
                let [low, high] = bounds.map(|bound| constant(node, i64::from(bound)));
                Ok(Outcome::Bytes(x.with(operator(node, "jitquant::clamp", &[x.bytes, low?, high?])?)))
            }
            Self::Arguments { kind, order } => {
                let mut arguments = vec![x.bytes];
                let mut result = x;
                for argument in order {
                    let needed = match argument {
                        Of | Zero => 0,
                        At(index) | Relu(index) => *index,
                        To(index) => index + 1,
                    };
                    if needed >= inputs.len() {
                        return Ok(Outcome::Kept);
                    }
                    match argument {
                        Of => arguments.extend([x.scale, x.zero_point]),
                        Zero => arguments.push(x.zero_point),
                        At(index) => arguments.push(inputs[*index]),
                        To(index) => {
                            (result.scale, result.zero_point) = (inputs[*index], inputs[index + 1]);
                            arguments.extend([result.scale, result.zero_point]);
                        }
                        Relu(index) => arguments.extend(relu_bounds(node, true, inputs[*index])?),
                    }
                }
                Ok(Outcome::Bytes(result.with(operator(node, kind, &arguments)?)))
            }
            Self::Pool { kind, with_zero_point } => {
                let [_, kernel, stride, ..] = inputs[..] else { return Ok(Outcome::Kept) };
                let Some(given) = ints(stride) else { return Ok(Outcome::Kept) };
                let mut arguments = vec![x.bytes];
                arguments.extend(with_zero_point.then_some(x.zero_point));
                arguments.extend([kernel, if given.is_empty() { kernel } else { stride }]);
                arguments.extend(&inputs[3..]);
                Ok(Outcome::Bytes(x.with(operator(node, kind, &arguments)?)))
            }
            Self::Upsample { kind, first_factor } => {
                let Some((given, factors)) = inputs.split_at_checked(first_factor) else { return Ok(Outcome::Kept) };
                let is_a = |value: &Value<'_>, kind: &str| value.type_of().kind() == kind;
                let factors = match factors {
                    all if all.iter().all(|factor| is_none(*factor)) => constant(node, IValue::None)?,
                    [all] if is_a(all, "ListType") => *all,
                    all if all.iter().all(|factor| is_a(factor, "FloatType")) => list(node, all, "List[float]")?,
                    // libtorch's operator takes bytes as well.
                    _ => return Self::Moves.apply_to_bytes(converter, node, x),
                };
                let arguments = [&[x.bytes][..], &given[1..], &[factors]].concat();
                Ok(Outcome::Bytes(x.with(operator(node, kind, &arguments)?)))
            }
            Self::Moves => {
                let moved = again(node, x.bytes)?;
                Ok(Outcome::Bytes(x.with(output(moved)?)))
            }
            Self::Unpack => {
                let unpacked = again(node, x.bytes)?;
                Ok(Outcome::Many(unpacked.outputs().into_iter().map(|bytes| x.with(bytes)).collect()))
            }
            Self::Asks => Ok(Outcome::Plain(output(again(node, x.bytes)?)?)),
            Self::MovesAll => stack(converter, node),
            _ => Ok(Outcome::Kept),
        }
    }
}

/// Whether a packed weight is a constant or an attribute. Those of recurrent layers and of other modules stay with them.
fn can_move(packed: Value<'_>) -> bool {
    packed.constant().is_some() || attribute_of(packed).is_some()
}

/// A constant of type bool.
fn flag(value: Value<'_>) -> Option<bool> {
    match value.constant()? {
        IValue::Bool(flag) => Some(flag),
        _ => None,
    }
}

/// The same node on other bytes, before it.
pub(super) fn again<'g>(node: Node<'g>, x: Value<'g>) -> Result<Node<'g>> {
    let copy = node.copy()?.insert_before(node)?;
    copy.replace_input(0, x)?;
    // What profiling recorded of element types no longer holds.
    for output in copy.outputs().into_iter().filter(|output| output.type_of().is_tensor()) {
        output.set_type(&Type::parse("Tensor")?)?;
    }
    Ok(copy)
}

/// The bounds of a relu in bytes; none without one.
fn relu_bounds<'g>(node: Node<'g>, relu: bool, zero_point: Value<'g>) -> Result<Vec<Value<'g>>> {
    Ok(if relu { vec![zero_point, constant(node, 255i64)?] } else { Vec::new() })
}

/// One dimension more, or less, in front of the last: where libtorch has it for convolutions of one dimension.
fn squeeze<'g>(node: Node<'g>, kind: &str, x: Value<'g>) -> Result<Value<'g>> {
    let dimension = constant(node, 2i64)?;
    operator(node, kind, &[x, dimension])
}

fn quantize<'g>(node: Node<'g>) -> Result<Outcome<'g>> {
    let [x, scale, zero_point, dtype] = node.inputs()[..] else { return Ok(Outcome::Kept) };
    let is_number = |value: Value<'_>, kind: &str| value.type_of().kind() == kind;
    let quint8 = int(dtype) == Some(crate::ir::DType::QU8 as i64);
    if !quint8 || !is_number(scale, "FloatType") || !is_number(zero_point, "IntType") {
        return Ok(Outcome::Kept);
    }
    let bytes = operator(node, "jitquant::quantize", &[x, scale, zero_point])?;
    Ok(Outcome::Bytes(Bytes { bytes, scale, zero_point }))
}

/// The tensors of a list that nothing changes.
fn items<'g>(list: Value<'g>) -> Option<Vec<Value<'g>>> {
    (list.node().kind() == "prim::ListConstruct" && list.uses().len() == 1).then(|| list.node().inputs())
}

fn cat<'g>(converter: &mut Converter<'_, 'g, '_>, node: Node<'g>, relu: bool) -> Result<Outcome<'g>> {
    let [tensors, dimension, scale, zero_point] = node.inputs()[..] else { return Ok(Outcome::Kept) };
    let Some(tensors) = items(tensors).filter(|_| !is_none(scale) && !is_none(zero_point)) else {
        return Ok(Outcome::Kept);
    };
    let mut all = Vec::new();
    for tensor in tensors {
        let Some(bytes) = converter.bytes(tensor)? else { return Ok(Outcome::Kept) };
        all.push(bytes);
    }
    let column = |of: fn(&Bytes<'g>) -> Value<'g>| all.iter().map(of).collect::<Vec<_>>();
    let arguments = [
        list(node, &column(|x| x.bytes), "List[Tensor]")?,
        list(node, &column(|x| x.scale), "List[float]")?,
        list(node, &column(|x| x.zero_point), "List[int]")?,
        dimension,
        scale,
        zero_point,
    ];
    let mut bytes = operator(node, "jitquant::cat", &arguments)?;
    if relu {
        let [low, high] = relu_bounds(node, true, zero_point)?[..] else { return Ok(Outcome::Kept) };
        bytes = operator(node, "jitquant::clamp", &[bytes, low, high])?;
    }
    Ok(Outcome::Bytes(Bytes { bytes, scale, zero_point }))
}

/// `aten::stack` of tensors with the same parameters.
fn stack<'g>(converter: &mut Converter<'_, 'g, '_>, node: Node<'g>) -> Result<Outcome<'g>> {
    let Some(tensors) = node.input(0).and_then(items) else { return Ok(Outcome::Kept) };
    let Some(all) = tensors.into_iter().map(|tensor| converter.known(tensor)).collect::<Option<Vec<_>>>() else {
        return Ok(Outcome::Kept);
    };
    let Some(first) =
        all.first().filter(|first| all.iter().all(|x| x.qparams().is_some() && x.qparams() == first.qparams()))
    else {
        return Ok(Outcome::Kept);
    };
    let bytes = list(node, &all.iter().map(|x| x.bytes).collect::<Vec<_>>(), "List[Tensor]")?;
    Ok(Outcome::Bytes(first.with(output(again(node, bytes)?)?)))
}
