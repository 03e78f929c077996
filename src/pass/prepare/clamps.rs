//! Clamps (relu6, hardtanh) that quantization makes needless.

use crate::error::Result;
use crate::ir::{IValue, Module, Node, Value};
use crate::pass::op_table::Operator;

/// Moves each clamp by constants behind the observer that watched its result, and takes it away where the quantized
/// range does not go beyond its bounds; how many were taken away. Both are exact.
///
/// The observers have seen their data: quantizing rounds and saturates, in the same order of values, so that
/// `quantize(clamp(x, low, high)) = clamp(quantize(x), quantize(low), quantize(high))`; and a clamp to
/// `quantize(low) <= quant_min`, `quantize(high) >= quant_max` does nothing more than saturation does.
///
/// # Errors
/// Where an observer that has seen data does not give its scale and zero point.
pub fn settle_clamps(module: &Module, method: &str) -> Result<usize> {
    let graph = module.graph(method)?;
    let mut removed = 0;
    for clamp in graph.all_nodes() {
        let Some(bounds) = bounds(clamp) else { continue };
        let (before, after) = (clamp.inputs()[0], clamp.outputs()[0]);
        let [place] = after.uses()[..] else { continue };
        let Some(observer) = observer_called_by(module, place.user) else { continue };
        let observed = place.user.outputs()[0];
        if before.uses().len() != 1 || before.node().kind() == "prim::CallMethod" {
            continue;
        }
        let range = QuantizedRange::of(&observer)?;
        place.user.replace_input(place.offset, before)?;
        if range.is_some_and(|range| range.is_within(bounds)) {
            clamp.destroy()?;
            removed += 1;
        } else {
            clamp.move_after(place.user)?;
            observed.replace_all_uses_with(after)?;
            clamp.replace_input(0, observed)?;
        }
    }
    Ok(removed)
}

/// The bounds of a clamp, infinite where there is none; `None` where `node` is no clamp by constants.
fn bounds(node: Node<'_>) -> Option<(f64, f64)> {
    if !Operator::of(node)?.is_clamp {
        return None;
    }
    let bound = |index: usize, missing: f64| match node.input(index).and_then(Value::constant)? {
        IValue::None => Some(missing),
        constant => constant.as_number(),
    };
    Some((bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?))
}

/// The observer of the flat module whose `forward` `call` calls.
pub(super) fn observer_called_by(module: &Module, call: Node<'_>) -> Option<Module> {
    let is_forward = call.kind() == "prim::CallMethod" && call.name_attribute().as_deref() == Some("forward");
    let path = call.input(0).filter(|_| is_forward)?.attribute_path()?;
    let observer = module.submodule(&path.join(".")).ok()?;
    observer.has_method("calculate_qparams").then_some(observer)
}

/// What real numbers become when they are quantized per tensor.
struct QuantizedRange {
    scale: f64,
    zero_point: f64,
    smallest: f64,
    largest: f64,
}

impl QuantizedRange {
    /// That of what `observer` watched; `None` where it is not one of 8 bits per tensor.
    fn of(observer: &Module) -> Result<Option<Self>> {
        let (smallest, largest) = match observer.attribute("dtype")?.as_int() {
            Some(12) => (-128.0, 127.0),
            Some(13) => (0.0, 255.0),
            _ => return Ok(None),
        };
        let qparams = observer.call::<IValue>("calculate_qparams", &[])?;
        let [scale, zero_point] = qparams.tensors()[..] else { return Ok(None) };
        let (scale, zero_point) = (scale.to_f32_vec()?, zero_point.to_f32_vec()?);
        let ([scale], [zero_point]) = (&scale[..], &zero_point[..]) else { return Ok(None) };
        Ok(Some(Self { scale: (*scale).into(), zero_point: (*zero_point).into(), smallest, largest }))
    }

    fn quantize(&self, value: f64) -> f64 {
        (value / self.scale).round_ties_even() + self.zero_point
    }

    /// Whether saturation bounds at least as tightly.
    fn is_within(&self, (low, high): (f64, f64)) -> bool {
        self.quantize(low) <= self.smallest && self.quantize(high) >= self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturation_is_as_tight_as_a_clamp_to_the_range() {
        let to = |low: f64, high: f64| {
            let scale = (high - low) / 255.0;
            QuantizedRange { scale, zero_point: (-low / scale).round(), smallest: 0.0, largest: 255.0 }
        };
        assert!(to(0.0, 6.0).is_within((0.0, 6.0)));
        assert!(to(0.0, 4.5).is_within((0.0, 6.0)));
        assert!(to(-1.0, 1.0).is_within((-1.0, 1.0)));
        assert!(!to(0.0, 6.1).is_within((0.0, 6.0)));
        assert!(!to(-0.1, 6.0).is_within((0.0, 6.0)));
        assert!(to(-3.0, 3.0).is_within((f64::NEG_INFINITY, f64::INFINITY)));
    }
}
