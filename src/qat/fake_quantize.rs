//! Fake quantization as a TorchScript module: an observer that also rounds.
//!
//! To the passes it is an observer (`forward(x)`, `calculate_qparams()`, `dtype`, `qscheme`, `ch_axis`), so what finds
//! and converts observers finds and converts it. Two switches say what `forward` does: `observer_enabled` and
//! `fake_quant_enabled`, as in `torch.ao.quantization.FakeQuantize`. A third, `rounds`, is off for good where the INT8 model
//! does not round ([`never_round`]).

use super::operators::bridge as ffi;
use crate::error::Result;
use crate::ir::{IValue, Module, Tensor, Type};
use crate::observer::{ObserverConfig, ObserverKind};

/// What marks a module as fake quantization.
const MARK: &str = "fake_quant_enabled";

/// The module for what `config` observes; it observes and does not round yet.
///
/// `scale` is a parameter, which has no gradient until the step is learned ([`learn_step`]).
///
/// # Errors
/// Where the options contradict each other.
pub(super) fn fake_quantize_module(config: &ObserverConfig) -> Result<Module> {
    let range = config.range()?;
    let (low, high) = range.bounds().map_err(|e| crate::Error::invalid(e.to_string()))?;
    let module = config.module_of_class("jitquant.FakeQuantize")?;
    let (int, boolean) = (Type::parse("int")?, Type::parse("bool")?);
    module.register_parameter("scale", Tensor::from_slice(&[1.0f32], &[1])?)?;
    module.register_buffer("zero_point", Tensor::from_slice(&[0i32], &[1])?)?;
    module.register_attribute("observer_enabled", &boolean, &true.into())?;
    module.register_attribute(MARK, &boolean, &false.into())?;
    module.register_attribute("rounds", &boolean, &true.into())?;
    module.register_attribute("learned", &boolean, &false.into())?;
    module.register_attribute("low", &int, &IValue::Int(low.into()))?;
    module.register_attribute("high", &int, &IValue::Int(high.into()))?;
    let axis = if range.scheme.is_per_channel() { config.axis } else { -1 };
    module.register_attribute("quant_axis", &int, &IValue::Int(axis))?;
    let range_of = config.kind.range_expression();
    let observation = config.kind.observation();
    module.define(&format!(
        "def update(self) -> None:\n    \
         low, high = {range_of}\n    \
         scale, zero_point = ops.jitquant.qparams(low, high, self.dtype, self.qscheme, self.quant_min, self.quant_max, \
         self.reduce_range, self.eps, self.observed)\n    \
         self.scale = scale\n    \
         self.zero_point = zero_point\n"
    ))?;
    module.define(&format!(
        "def forward(self, x: Tensor) -> Tensor:\n    \
         if self.observer_enabled:\n        \
         {observation}\n        \
         if self.fake_quant_enabled:\n            \
         self.update()\n    \
         if self.fake_quant_enabled:\n        \
         if self.learned:\n            \
         scale = torch.clamp_min(torch.abs(self.scale), self.eps)\n            \
         factor = (float(x.numel()) * float(self.high)) ** -0.5\n            \
         x = ops.jitquant.fake_quantize_learned(x, scale, self.zero_point, self.quant_axis, self.low, self.high, factor)\n        \
         else:\n            \
         x = ops.jitquant.fake_quantize(x, self.scale, self.zero_point, self.quant_axis, self.low, self.high)\n    \
         return x\n"
    ))?;
    module.define(
        "def calculate_qparams(self) -> Tuple[Tensor, Tensor]:\n    \
         if not self.fake_quant_enabled:\n        \
         self.update()\n    \
         return torch.clamp_min(torch.abs(self.scale.detach()), self.eps), self.zero_point\n",
    )?;
    module.define("def enable_observer(self, enabled: bool=True) -> None:\n    self.observer_enabled = enabled\n")?;
    module.define(
        "def enable_fake_quant(self, enabled: bool=True) -> None:\n    \
         if enabled and not self.fake_quant_enabled and not self.learned:\n        \
         self.update()\n    \
         self.fake_quant_enabled = enabled and self.rounds\n",
    )?;
    Ok(module)
}

/// Whether a module is one of these.
pub(super) fn is_fake_quantize(module: &Module) -> bool {
    module.has_attribute(MARK) && module.has_method("calculate_qparams")
}

/// Has the module observe only, whatever is switched on later.
pub(super) fn never_round(module: &Module) -> Result<()> {
    module.set_attribute("rounds", &false.into())
}

/// Whether it rounds when that is switched on.
pub(super) fn rounds(module: &Module) -> bool {
    matches!(module.attribute("rounds"), Ok(IValue::Bool(true)))
}

/// For a weight: its range is that which it has at the moment, since it changes from step to step.
pub(super) fn follow_weight(config: &ObserverConfig) -> ObserverConfig {
    let kind = match config.kind {
        ObserverKind::PerChannelMinMax | ObserverKind::MovingAveragePerChannelMinMax => {
            ObserverKind::MovingAveragePerChannelMinMax
        }
        _ => ObserverKind::MovingAverageMinMax,
    };
    let scheme = Some(config.effective_scheme());
    ObserverConfig { kind, scheme, averaging_constant: 1.0, ..config.clone() }
}

/// Makes the step a trained parameter, from what it is now; it observes no more.
pub(super) fn learn_step(module: &Module) -> Result<()> {
    module.call::<IValue>("enable_fake_quant", &[true.into()])?;
    module.set_attribute("observer_enabled", &false.into())?;
    module.set_attribute("learned", &true.into())?;
    if let IValue::Tensor(scale) = module.attribute("scale")? {
        let scale = scale.deep_clone()?;
        ffi::tensor_require_gradient(&scale.0, true)?;
        module.set_attribute("scale", &scale.into())?;
    }
    Ok(())
}
