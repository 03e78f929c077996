//! Native operators in a graph: how a pass reads and builds them.

use crate::error::{Error, Result};
use crate::ir::{IValue, Node, Tensor, Type, Value};
use crate::kernel::QParams;

/// A quantized tensor in native form: its bytes, and what they stand for.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'g> {
    pub bytes: Value<'g>,
    pub scale: Value<'g>,
    pub zero_point: Value<'g>,
}

impl<'g> Bytes<'g> {
    /// The same parameters for other bytes.
    pub fn with(self, bytes: Value<'g>) -> Self {
        Self { bytes, ..self }
    }

    /// Scale and zero point, where they are constants that bytes can have.
    pub fn qparams(&self) -> Option<QParams> {
        qparams(self.scale, self.zero_point)
    }
}

/// The parameters that two constants stand for; `None` where they are none of a u8 tensor.
pub(super) fn qparams(scale: Value<'_>, zero_point: Value<'_>) -> Option<QParams> {
    let scale = scale.constant()?.as_number()? as f32;
    let zero_point = u8::try_from(zero_point.constant()?.as_int()?).ok()?;
    (scale > 0.0 && scale.is_finite()).then_some(QParams::new(scale, zero_point.into()))
}

/// An integer constant.
pub(super) fn int(value: Value<'_>) -> Option<i64> {
    value.constant()?.as_int()
}

/// Whether a value is the constant `None`.
pub(super) fn is_none(value: Value<'_>) -> bool {
    matches!(value.constant(), Some(IValue::None))
}

/// A list of integer constants, made by the graph or a constant itself.
pub(super) fn ints(list: Value<'_>) -> Option<Vec<i64>> {
    match list.constant() {
        Some(IValue::List { items, .. }) => items.iter().map(IValue::as_int).collect(),
        Some(_) => None,
        None if list.node().kind() == "prim::ListConstruct" => list.node().inputs().into_iter().map(int).collect(),
        None => None,
    }
}

/// A list of `items`, of a type in TorchScript's syntax, before `at`.
pub(super) fn list<'g>(at: Node<'g>, items: &[Value<'g>], ty: &str) -> Result<Value<'g>> {
    let made = at.graph().create("prim::ListConstruct", items, 1)?.insert_before(at)?;
    let value = output(made)?;
    value.set_type(&Type::parse(ty)?)?;
    Ok(value)
}

/// The one output of a node.
pub(super) fn output(node: Node<'_>) -> Result<Value<'_>> {
    node.output(0).ok_or_else(|| Error::invalid(format!("{} should have an output", node.kind())))
}

/// Operator `kind` on `inputs` before `at`, with the place in the source of `at`.
pub(super) fn operator<'g>(at: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    let value = at.insert_operator(kind, inputs)?;
    value.node().copy_metadata(at)?;
    Ok(value)
}

/// A constant before `at`.
pub(super) fn constant<'g>(at: Node<'g>, value: impl Into<IValue>) -> Result<Value<'g>> {
    at.insert_constant(value)
}

/// Scale and zero point as constants before `at`.
pub(super) fn constant_qparams<'g>(at: Node<'g>, qparams: QParams) -> Result<[Value<'g>; 2]> {
    Ok([constant(at, f64::from(qparams.scale))?, constant(at, i64::from(qparams.zero_point))?])
}

/// A table of 256 bytes as a constant before `at`.
pub(super) fn constant_table<'g>(at: Node<'g>, table: &[u8; 256]) -> Result<Value<'g>> {
    constant(at, Tensor::from_slice(table, &[256])?)
}

/// The constant table of 256 bytes that a value is.
pub(super) fn table(value: Value<'_>) -> Option<[u8; 256]> {
    value.constant()?.as_tensor()?.to_vec::<u8>().ok()?.try_into().ok()
}

/// Has `new` stand in the place of the output of `node`, and destroys `node`.
pub(super) fn replace<'g>(node: Node<'g>, new: Value<'g>) -> Result<()> {
    let old = output(node)?;
    old.replace_all_uses_with(new)?;
    node.destroy()
}

/// A layer with a u8 result, `jitquant::linear` or `jitquant::conv`: its arguments by name.
///
/// `(x, weight, x_scale, x_zero_point, scale, zero_point, min, max, residual, residual_scale, residual_zero_point, table)`
#[derive(Clone, Copy)]
pub(super) struct LayerCall<'g> {
    pub node: Node<'g>,
    pub x: Bytes<'g>,
    pub weight: Value<'g>,
    pub scale: Value<'g>,
    pub zero_point: Value<'g>,
    pub min: Value<'g>,
    pub max: Value<'g>,
    pub residual: Option<Bytes<'g>>,
    pub table: Option<Value<'g>>,
}

/// Layers with a u8 result, and those with an f32 one.
pub(super) const LAYERS: [(&str, &str); 2] =
    [("jitquant::linear", "jitquant::linear_float"), ("jitquant::conv", "jitquant::conv_float")];

impl<'g> LayerCall<'g> {
    /// The layer that computes `value`, where it is one and nobody else uses the value.
    pub fn alone(value: Value<'g>) -> Option<Self> {
        (value.uses().len() == 1).then(|| Self::of(value.node())).flatten()
    }

    pub fn of(node: Node<'g>) -> Option<Self> {
        LAYERS.iter().find(|(bytes, _)| *bytes == node.kind())?;
        let [x, weight, x_scale, x_zero_point, scale, zero_point, min, max, residual, r_scale, r_zero_point, table] =
            node.inputs()[..]
        else {
            return None;
        };
        let residual = Bytes { bytes: residual, scale: r_scale, zero_point: r_zero_point };
        Some(Self {
            node,
            x: Bytes { bytes: x, scale: x_scale, zero_point: x_zero_point },
            weight,
            scale,
            zero_point,
            min,
            max,
            residual: (!is_none(residual.bytes)).then_some(residual),
            table: (!is_none(table)).then_some(table),
        })
    }

    /// Its result's parameters, where constant.
    pub fn qparams(&self) -> Option<QParams> {
        qparams(self.scale, self.zero_point)
    }

    /// The bounds of its clamp, where constant.
    pub fn bounds(&self) -> Option<(u8, u8)> {
        let byte = |value| u8::try_from(int(value)?).ok();
        Some((byte(self.min)?, byte(self.max)?))
    }

    /// Whether it stores sums as they are: with no bound, residual or table. Where byte 0 stands for 0, saturation may be a
    /// relu.
    pub fn is_plain(&self) -> bool {
        let is_unbounded = self.bounds() == Some((0, 255)) && self.qparams().is_some_and(|to| to.zero_point != 0);
        is_unbounded && self.residual.is_none() && self.table.is_none()
    }

    /// The layer before `at`, with what was changed in `self`.
    pub fn insert(&self, at: Node<'g>) -> Result<Value<'g>> {
        let none = constant(at, IValue::None)?;
        let [one, zero] = [constant(at, 1.0)?, constant(at, 0i64)?];
        let residual = self.residual.unwrap_or(Bytes { bytes: none, scale: one, zero_point: zero });
        let inputs = [
            self.x.bytes,
            self.weight,
            self.x.scale,
            self.x.zero_point,
            self.scale,
            self.zero_point,
            self.min,
            self.max,
            residual.bytes,
            residual.scale,
            residual.zero_point,
            self.table.unwrap_or(none),
        ];
        let value = at.insert_operator(self.node.kind(), &inputs)?;
        value.node().copy_metadata(self.node)?;
        Ok(value)
    }
}
