//! What an operator is as a step.

use jitquant_runtime::{Format, Op, Product, Store, View, WeightId};

use super::read::{bool, bound, byte, floats, int, ints, is_left_alone, is_none, items, qparams, table};
use crate::engine::step_window;
use crate::error::{Error, Result};
use crate::ir::{Node, Value};
use crate::kernel::{AveragePool, DynamicScheme, QParams, Table};

/// An operator that computes, as a step.
pub(super) struct Computation<'g> {
    pub operands: Vec<Value<'g>>,
    /// Its weight, and of which kind.
    pub weight: Option<(Value<'g>, WeightKind)>,
    /// The step, where the weight is known.
    pub op: Box<dyn Fn(Option<WeightId>) -> Result<Op> + 'g>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightKind {
    Conv,
    Linear,
}

/// The step of an operator that computes; `None` for another one, an error for one whose arguments have no step.
pub(super) fn computation<'g>(node: Node<'g>) -> Option<Result<Computation<'g>>> {
    let inputs = node.inputs();
    Some(match (node.kind(), &inputs[..]) {
        ("jitquant::quantize", [x, scale, zero]) => mapped(*x, qparams(*scale, *zero).map(Op::Quantize)),
        ("jitquant::dequantize", [x, scale, zero]) => mapped(*x, qparams(*scale, *zero).map(Op::Dequantize)),
        ("jitquant::requantize", [x, from, from_zero, to, to_zero]) => {
            let both = qparams(*from, *from_zero).and_then(|from| Ok((from, qparams(*to, *to_zero)?)));
            mapped(*x, both.map(|(from, to)| Op::Lookup(Box::new(Table::requantize(from, to)))))
        }
        ("jitquant::lookup", [x, map]) => mapped(*x, table(*map).map(|table| Op::Lookup(Box::new(table)))),
        ("jitquant::clamp", [x, min, max]) => mapped(*x, byte(*min).and_then(|min| Ok(Op::Clamp(min, byte(*max)?)))),
        ("jitquant::add", _) => binary(&inputs).map(|(operands, form)| plain(operands, Op::Add(form))),
        ("jitquant::mul", _) => binary(&inputs).map(|(operands, form)| plain(operands, Op::Mul(form))),
        ("jitquant::conv" | "jitquant::conv_float" | "jitquant::linear" | "jitquant::linear_float", _) => layer(node),
        ("jitquant::linear_dynamic", _) => dynamic(&inputs),
        ("jitquant::cat", _) => cat(&inputs),
        ("jitquant::max_pool", _) => max_pool(&inputs),
        ("jitquant::avg_pool", _) => avg_pool(&inputs),
        ("jitquant::adaptive_avg_pool", [x, zero, sizes]) => {
            let op = byte(*zero).and_then(|zero_point| Ok(Op::AdaptiveAvgPool { sizes: ints(*sizes)?, zero_point }));
            mapped(*x, op)
        }
        ("jitquant::mean", [x, zero, axes, keep]) => mapped(*x, mean(*zero, *axes, *keep)),
        _ => return None,
    })
}

fn mapped<'g>(x: Value<'g>, op: Result<Op>) -> Result<Computation<'g>> {
    op.map(|op| plain(vec![x], op))
}

fn plain(operands: Vec<Value<'_>>, op: Op) -> Computation<'_> {
    Computation { operands, weight: None, op: Box::new(move |_| Ok(op.clone())) }
}

fn unknown() -> Error {
    Error::invalid("arguments of another version of the operator")
}

fn binary<'g>(inputs: &[Value<'g>]) -> Result<(Vec<Value<'g>>, jitquant_runtime::Binary)> {
    let [a, a_scale, a_zero, b, b_scale, b_zero, scale, zero, min, max] = inputs[..] else { return Err(unknown()) };
    let form = jitquant_runtime::Binary {
        a: qparams(a_scale, a_zero)?,
        b: qparams(b_scale, b_zero)?,
        to: qparams(scale, zero)?,
        min: byte(min)?,
        max: byte(max)?,
    };
    Ok((vec![a, b], form))
}

fn layer<'g>(node: Node<'g>) -> Result<Computation<'g>> {
    let inputs = node.inputs();
    let is_conv = node.kind().starts_with("jitquant::conv");
    let (operands, weight, x, store) = match inputs[..] {
        [x, weight, x_scale, x_zero, min, max] => {
            let store = Store::Floats { min: bound(min, f32::NEG_INFINITY)?, max: bound(max, f32::INFINITY)? };
            (vec![x], weight, qparams(x_scale, x_zero)?, store)
        }
        [x, weight, x_scale, x_zero, scale, zero, min, max, residual, r_scale, r_zero, map] => {
            let added = !is_none(residual);
            let store = Store::Bytes {
                to: qparams(scale, zero)?,
                min: byte(min)?,
                max: byte(max)?,
                residual: added.then(|| qparams(r_scale, r_zero)).transpose()?,
                table: (!is_none(map)).then(|| table(map).map(Box::new)).transpose()?,
            };
            let operands = if added { vec![x, residual] } else { vec![x] };
            (operands, weight, qparams(x_scale, x_zero)?, store)
        }
        _ => return Err(unknown()),
    };
    let kind = if is_conv { WeightKind::Conv } else { WeightKind::Linear };
    let op = move |weight: Option<WeightId>| {
        let product = Product { weight: weight.ok_or_else(unknown)?, x, store: store.clone() };
        Ok(if is_conv { Op::Conv(product) } else { Op::Linear(product) })
    };
    Ok(Computation { operands, weight: Some((weight, kind)), op: Box::new(op) })
}

fn dynamic<'g>(inputs: &[Value<'g>]) -> Result<Computation<'g>> {
    let [x, weight, per_row, reduce_range, min, max] = inputs[..] else { return Err(unknown()) };
    let scheme = match bool(per_row)? {
        true => DynamicScheme::PerRow,
        false => DynamicScheme::PerTensor { reduce_range: bool(reduce_range)? },
    };
    let (min, max) = (bound(min, f32::NEG_INFINITY)?, bound(max, f32::INFINITY)?);
    let op =
        move |weight: Option<WeightId>| Ok(Op::LinearDynamic { weight: weight.ok_or_else(unknown)?, scheme, min, max });
    Ok(Computation { operands: vec![x], weight: Some((weight, WeightKind::Linear)), op: Box::new(op) })
}

fn cat<'g>(inputs: &[Value<'g>]) -> Result<Computation<'g>> {
    let [tensors, scales, zeros, axis, scale, zero] = inputs[..] else { return Err(unknown()) };
    let operands = items(tensors)?;
    let (scales, zeros) = (floats(scales)?, ints(zeros)?);
    if operands.is_empty() || scales.len() != operands.len() || zeros.len() != operands.len() {
        return Err(unknown());
    }
    let (to, axis) = (qparams(scale, zero)?, int(axis)?);
    let (to_scale, to_zero) = (super::read::float(scale)?, int(zero)?);
    let table = |(scale, zero): (&f64, &i64)| -> Result<Option<Box<Table>>> {
        let is_same = *scale == to_scale && *zero == to_zero;
        let from: QParams = crate::engine::step_qparams(*scale, *zero)?;
        Ok((!is_same).then(|| Box::new(Table::requantize(from, to))))
    };
    let tables = scales.iter().zip(&zeros).map(table).collect::<Result<Vec<_>>>()?;
    Ok(plain(operands, Op::Cat { axis, tables }))
}

fn max_pool<'g>(inputs: &[Value<'g>]) -> Result<Computation<'g>> {
    let [x, kernel, stride, padding, dilation, ceil_mode] = inputs[..] else { return Err(unknown()) };
    let kernel = ints(kernel)?;
    let window = step_window(&kernel, &ints(stride)?, &ints(padding)?, &ints(dilation)?, bool(ceil_mode)?)?;
    Ok(plain(vec![x], Op::MaxPool { window, dimensions: kernel.len() }))
}

fn avg_pool<'g>(inputs: &[Value<'g>]) -> Result<Computation<'g>> {
    let [x, zero, kernel, stride, padding, ceil_mode, count_include_pad, divisor] = inputs[..] else {
        return Err(unknown());
    };
    let kernel = ints(kernel)?;
    let window = step_window(&kernel, &ints(stride)?, &ints(padding)?, &[], bool(ceil_mode)?)?;
    let divisor = if is_none(divisor) { 0 } else { int(divisor)? };
    let pool = AveragePool {
        window,
        count_include_pad: bool(count_include_pad)?,
        divisor_override: usize::try_from(divisor).ok().filter(|divisor| *divisor > 0),
    };
    Ok(plain(vec![x], Op::AvgPool { pool, dimensions: kernel.len(), zero_point: byte(zero)? }))
}

fn mean(zero: Value<'_>, axes: Value<'_>, keep: Value<'_>) -> Result<Op> {
    Ok(Op::Mean { axes: ints(axes)?, keep: bool(keep)?, zero_point: byte(zero)? })
}

/// An operator that moves or reinterprets: the tensor, and a view for each output.
pub(super) struct Views<'g> {
    pub operand: Value<'g>,
    pub views: Vec<Shown<'g>>,
}

/// A view whose sizes may be values of the graph.
pub(super) enum Shown<'g> {
    Known(View),
    Reshape(Vec<Value<'g>>),
    Reinterpret(Vec<Value<'g>>),
    Expand(Vec<Value<'g>>),
    Slice { axis: i64, start: Option<Value<'g>>, end: Option<Value<'g>>, step: i64 },
}

/// libtorch's number of `torch.contiguous_format` and of its two orders with channels last.
const FORMATS: [(i64, Format); 3] = [(0, Format::Contiguous), (2, Format::ChannelsLast), (3, Format::ChannelsLast)];

/// The views of an operator; `None` for one that has none.
pub(super) fn views<'g>(node: Node<'g>) -> Option<Views<'g>> {
    let inputs = node.inputs();
    let one = |operand: &Value<'g>, view: Shown<'g>| Some(Views { operand: *operand, views: vec![view] });
    let known = |operand: &Value<'g>, view: View| one(operand, Shown::Known(view));
    let number = |value: &Value<'g>| int(*value).ok();
    match (node.kind(), &inputs[..]) {
        ("aten::permute", [x, axes]) => known(x, View::Permute(ints(*axes).ok()?)),
        ("aten::transpose", [x, a, b]) => known(x, View::Transpose(number(a)?, number(b)?)),
        ("aten::select", [x, axis, index]) => known(x, View::Select(number(axis)?, number(index)?)),
        ("aten::flatten", [x, from, to]) => known(x, View::Flatten(number(from)?, number(to)?)),
        ("aten::unsqueeze", [x, axis]) => known(x, View::Unsqueeze(number(axis)?)),
        ("aten::squeeze", [x]) => known(x, View::Squeeze(None)),
        ("aten::squeeze", [x, axis]) => known(x, View::Squeeze(Some(number(axis)?))),
        ("aten::contiguous", [x, format]) => {
            let format = number(format)?;
            let (_, format) = FORMATS.into_iter().find(|(number, _)| *number == format)?;
            known(x, View::Contiguous(format))
        }
        ("aten::reshape", [x, sizes]) => one(x, Shown::Reshape(numbers(*sizes)?)),
        ("aten::view", [x, sizes]) if sizes.type_of().kind() == "ListType" => {
            one(x, Shown::Reinterpret(numbers(*sizes)?))
        }
        ("aten::expand", [x, sizes, _]) => one(x, Shown::Expand(numbers(*sizes)?)),
        ("aten::slice", [x, axis, start, end, step]) if x.type_of().is_tensor() => {
            let bound = |value: &Value<'g>| (!is_none(*value)).then_some(*value);
            let (axis, step) = (number(axis)?, number(step)?);
            one(x, Shown::Slice { axis, start: bound(start), end: bound(end), step })
        }
        ("prim::ConstantChunk", [x]) => {
            let attribute = |name: &str| node.attribute(name).and_then(|value| value.as_int());
            let (parts, axis) = (attribute("chunks")?, attribute("dim")?);
            let view = |index: i64| Shown::Known(View::Chunk { axis, parts, index });
            Some(Views { operand: *x, views: (0..node.outputs().len() as i64).map(view).collect() })
        }
        ("prim::ListUnpack", [list]) if is_left_alone(*list) => unpacked(list.node(), node.outputs().len() as i64),
        _ => None,
    }
}

/// Whether a view is a copy for some layouts.
pub(super) fn may_copy(node: Node<'_>) -> bool {
    matches!(node.kind(), "aten::reshape" | "aten::flatten" | "aten::contiguous")
}

/// The parts that a list of them is unpacked to.
fn unpacked<'g>(node: Node<'g>, count: i64) -> Option<Views<'g>> {
    let [x, how, axis] = node.inputs()[..] else { return None };
    let (how, axis) = (int(how).ok()?, int(axis).ok()?);
    let view = |index: i64| match node.kind() {
        "aten::chunk" => Some(View::Chunk { axis, parts: how, index }),
        "aten::split" => Some(View::Split { axis, size: how, index }),
        _ => None,
    };
    let views = (0..count).map(|index| view(index).map(Shown::Known)).collect::<Option<Vec<_>>>()?;
    Some(Views { operand: x, views })
}

/// What a list of sizes is made of.
fn numbers(list: Value<'_>) -> Option<Vec<Value<'_>>> {
    items(list).ok()
}

/// A node that computes a size, or makes a list: what of.
pub(super) fn is_size(node: Node<'_>) -> bool {
    let inputs = node.inputs();
    match (node.kind(), &inputs[..]) {
        ("prim::ListConstruct", _) => true,
        ("aten::size", [_, axis]) => int(*axis).is_ok(),
        ("prim::NumToTensor" | "aten::Int", [x]) => is_number(*x),
        ("aten::mul" | "aten::floor_divide" | "aten::floordiv", [a, b]) => is_number(*a) && is_number(*b),
        ("aten::add" | "aten::sub", [a, b]) => is_number(*a) && is_number(*b),
        ("aten::add" | "aten::sub", [a, b, factor]) => is_number(*a) && is_number(*b) && int(*factor).ok() == Some(1),
        ("aten::chunk" | "aten::split", [_, how, axis]) => int(*how).is_ok() && int(*axis).is_ok(),
        _ => false,
    }
}

/// Whether a value is an integer, or a tensor that was made of one.
fn is_number(value: Value<'_>) -> bool {
    value.type_of().kind() == "IntType" || (value.node().kind() != "prim::ListConstruct" && is_size(value.node()))
}
