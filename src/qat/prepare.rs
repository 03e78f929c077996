//! From a float module to one that trains, and from a trained one to INT8.

use std::collections::HashMap;

use super::batch_norm::{BatchNorm, candidates, fold_trained};
use super::fake_quantize::{fake_quantize_module, follow_weight, is_fake_quantize, learn_step};
use super::operators::bridge as ffi;
use crate::distributed::{Calibration, Group};
use crate::error::{Context, Error, Result};
use crate::ir::{DType, IValue, Module, Node, Tensor, Value, join_path};
use crate::methods::Methods;
use crate::observer::ObserverConfig;
use crate::pass::Layer;
use crate::pass::op_table::Operator;
use crate::pass::prepare::{canonicalize, flatten, fold_batch_norm, fold_padding, weights_as_attributes};
use crate::pipeline::METHOD;
use crate::qconfig::{QConfigSpec, Role};
use crate::{Converted, Prepared, Quantizer};

/// A module that is trained for quantization.
///
/// Its clones of [`QatModule::module`] share their tensors: what an optimizer changes is changed here.
#[derive(Debug)]
pub struct QatModule {
    prepared: Prepared,
}

/// Makes a copy of `module` for quantization-aware training, with the observers that `qconfig` says.
///
/// Where [`Quantizer::prepare`] would put an observer stands a fake-quantize module with that observer: on the inputs and
/// results of quantized layers, behind a relu that fuses, and on weights. A convolution followed by a batch norm trains
/// as libtorch's `ConvBn2d` does; other batch norms are folded or keep their statistics. Weights and biases are
/// parameters of the flat module, named by where they were (`layer1.conv.weight`). Dropout is taken away.
///
/// Observation is on and fake quantization off at first: ranges come from data, in evaluation mode, as in calibration
/// ([`QatModule::calibrate`]); then [`QatModule::fake_quantize`] switches rounding on.
///
/// # Errors
/// Those of [`Quantizer::prepare`]; and where activations have other bounds than eight bits, which INT8 operators do not
/// saturate at. Weights may have fewer bits.
pub fn prepare_qat(module: &Module, qconfig: &QConfigSpec) -> Result<QatModule> {
    QatModule::prepare(module, &Quantizer::static_ptq().qconfig(qconfig.clone()))
}

impl QatModule {
    /// As [`prepare_qat`], with all options of a static [`Quantizer`].
    ///
    /// # Errors
    /// Those of [`prepare_qat`].
    pub fn prepare(module: &Module, quantizer: &Quantizer) -> Result<Self> {
        // Training does what these methods are for, and what it trained stays as it is.
        let quantizer = &quantizer.clone().methods(Methods::none());
        let mut batch_norms = Vec::new();
        let prepared = quantizer.prepare_with(module, &make, |copy| {
            let (flat, kept, folded) = flatten_for_training(copy, quantizer.preserved())?;
            batch_norms = folded;
            Ok((flat, kept))
        })?;
        let flat = prepared.module();
        restore_batch_norms(flat, &batch_norms).context(|| "restoring batch norms".into())?;
        parameters_as_attributes(flat).context(|| "making parameters of weights and biases".into())?;
        let qat = Self { prepared };
        for (_, parameter) in qat.parameters()? {
            ffi::tensor_require_gradient(&parameter.0, true)?;
        }
        Ok(qat)
    }

    /// Goes on with a module that [`QatModule::module`] gave and that was saved and loaded since.
    ///
    /// # Errors
    /// Where there is no fake quantization in it.
    pub fn resume(module: &Module, quantizer: &Quantizer) -> Result<Self> {
        let quantizer = quantizer.clone().methods(Methods::none());
        let qat = Self { prepared: quantizer.resume(module)? };
        match qat.fake_quantizers().is_empty() {
            true => Err(Error::invalid("the module has no fake quantization: it was not made by prepare_qat")),
            false => Ok(qat),
        }
    }

    /// The TorchScript module: flat, `forward` as the model's.
    pub fn module(&self) -> &Module {
        self.prepared.module()
    }

    /// Runs the model on a batch, for the ranges of activations.
    ///
    /// # Errors
    /// Those of [`Prepared::calibrate`].
    pub fn calibrate<'a, T>(&mut self, inputs: &'a [T]) -> Result<IValue>
    where
        IValue: From<&'a T>,
    {
        self.prepared.calibrate(inputs)
    }

    /// Calibration whose batches are dealt out to the processes of `group`, for the ranges of activations.
    ///
    /// # Errors
    /// Those of [`Calibration::new`].
    pub fn calibration<'a>(&'a mut self, group: Option<&'a Group>) -> Result<Calibration<'a>> {
        Calibration::new(&mut self.prepared, group)
    }

    /// What an optimizer trains, by path: weights, biases, batch norms, and steps where they are learned.
    ///
    /// # Errors
    /// Where libtorch cannot read them.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let steps = self.fake_quantizers();
        let is_fixed = |path: &str| {
            let owner = path.strip_suffix(".scale").unwrap_or_default();
            let learned = |step: &Module| matches!(step.attribute("learned"), Ok(IValue::Bool(true)));
            steps.iter().any(|(step, module)| step == owner && !learned(module))
        };
        Ok(all_parameters(self.module())?.into_iter().filter(|(path, _)| !is_fixed(path)).collect())
    }

    /// The fake-quantize modules and their paths.
    fn fake_quantizers(&self) -> Vec<(String, Module)> {
        self.prepared.observers().into_iter().filter(|(_, module)| is_fake_quantize(module)).collect()
    }

    /// Whether activations' ranges follow the data. Weights' always follow the weights.
    ///
    /// # Errors
    /// Where the switch is missing.
    pub fn observe(&self, on: bool) -> Result<()> {
        let weights = weight_observers(self.module())?;
        let activations = self.fake_quantizers().into_iter().filter(|(path, _)| !weights.contains(path));
        activations.into_iter().try_for_each(|(_, module)| module.set_attribute("observer_enabled", &on.into()))
    }

    /// Whether tensors are rounded. Switching it on takes the ranges observed so far.
    ///
    /// # Errors
    /// Where a range cannot be quantized.
    pub fn fake_quantize(&self, on: bool) -> Result<()> {
        for (_, module) in self.fake_quantizers() {
            module.call::<IValue>("enable_fake_quant", &[on.into()])?;
        }
        Ok(())
    }

    /// Batch norms go on with the running statistics that they have, in training too.
    ///
    /// # Errors
    /// Where the switch is missing.
    pub fn freeze_batch_norms(&self, on: bool) -> Result<()> {
        let modules = self.module().modules().into_iter().filter(|(_, module)| module.has_method("folded_weight"));
        modules.into_iter().try_for_each(|(_, module)| module.set_attribute("frozen", &on.into()))
    }

    /// Makes the steps of activations trained parameters (learned step size), from what they are now: to be called after
    /// calibration. They are among [`QatModule::parameters`] then; an optimizer should move them by small parts of
    /// themselves.
    ///
    /// # Errors
    /// Where a range cannot be quantized.
    pub fn learn_steps(&self) -> Result<()> {
        let weights = weight_observers(self.module())?;
        let activations = self.fake_quantizers().into_iter().filter(|(path, _)| !weights.contains(path));
        activations.into_iter().try_for_each(|(_, module)| learn_step(&module))
    }

    /// Makes the INT8 module of what was trained; this one stays as it is.
    ///
    /// # Errors
    /// Those of [`Prepared::convert`].
    pub fn convert(&self) -> Result<Converted> {
        self.prepared.with_module(settle(self.module())?).convert()
    }
}

/// The fake-quantize module in an observer's place.
fn make(config: &ObserverConfig, role: Role) -> Result<Module> {
    match role {
        Role::Weight => fake_quantize_module(&follow_weight(config)),
        Role::Activation => {
            let bounds = config.range()?.bounds().map_err(|e| Error::invalid(e.to_string()))?;
            if bounds != config.dtype.bounds() {
                let (low, high) = config.dtype.bounds();
                return Err(Error::invalid(format!(
                    "activations from {} to {}: INT8 operators saturate at {low} and {high}, so train with these (weights \
                     may have fewer bits)",
                    bounds.0, bounds.1
                )));
            }
            fake_quantize_module(config)
        }
    }
}

/// The steps of [`crate::pass::prepare::prepare`], and the batch norms that were folded, as they were before.
#[allow(clippy::type_complexity)]
fn flatten_for_training(
    module: &Module,
    preserve: &[String],
) -> Result<(Module, Vec<(Layer, String)>, Vec<BatchNorm>)> {
    let flat = flatten(module, preserve)?;
    canonicalize(&mut flat.graph(METHOD)?).context(|| "simplifying the graph".into())?;
    let graph = flat.graph(METHOD)?;
    let found = candidates(&graph);
    let kept = fold_batch_norm(&graph).context(|| "folding batch norms".into())?;
    fold_padding(&graph).context(|| "folding paddings".into())?;
    weights_as_attributes(&flat, METHOD)?;
    let folded = found.into_iter().filter_map(|candidate| candidate.folded()).collect();
    drop(graph);
    Ok((flat, kept, folded))
}

fn restore_batch_norms(flat: &Module, batch_norms: &[BatchNorm]) -> Result<()> {
    let graph = flat.graph(METHOD)?;
    for (number, batch_norm) in batch_norms.iter().enumerate() {
        batch_norm.restore(flat, &graph, &format!("_batch_norm_{number}"))?;
    }
    Ok(())
}

/// Makes parameters of the constants that operators take as weight or bias.
fn parameters_as_attributes(flat: &Module) -> Result<()> {
    let graph = flat.graph(METHOD)?;
    let mut known: HashMap<Value<'_>, String> = HashMap::new();
    for node in graph.all_nodes() {
        for argument in ["weight", "bias"] {
            let Some(value) = node.named_input(argument).filter(|value| value.is_constant()) else { continue };
            let Some(IValue::Tensor(tensor)) = value.constant() else { continue };
            if tensor.dtype() != Some(DType::F32) || tensor.shape().is_empty() {
                continue;
            }
            let name = match known.get(&value) {
                Some(name) => name.clone(),
                None => {
                    let name = free_name(flat, &join_path(&node.scope()?, argument));
                    flat.register_parameter(&name, tensor.deep_clone()?)?;
                    known.insert(value, name.clone());
                    name
                }
            };
            let read = node.insert_get_attribute(graph.inputs()[0], &name)?;
            read.node().copy_metadata(node)?;
            node.replace_input_with(value, read)?;
        }
    }
    Ok(())
}

fn free_name(module: &Module, name: &str) -> String {
    let numbered = (1..).map(|number| format!("{name}_{number}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|name| !module.has_attribute(name)).unwrap_or_default()
}

fn all_parameters(module: &Module) -> Result<Vec<(String, Tensor)>> {
    let mut found = Vec::new();
    for (path, part) in module.modules() {
        for attribute in part.attributes().into_iter().filter(|attribute| attribute.is_parameter) {
            if let IValue::Tensor(tensor) = part.attribute(&attribute.name)?
                && tensor.dtype() == Some(DType::F32)
            {
                found.push((join_path(&path, &attribute.name), tensor));
            }
        }
    }
    Ok(found)
}

/// The paths of what observes weights.
fn weight_observers(flat: &Module) -> Result<Vec<String>> {
    let graph = flat.graph(METHOD)?;
    let observer = |node: Node<'_>| {
        let index = Operator::of(node)?.weight?;
        let call = Operator::argument(node, index)?.node();
        (call.kind() == "prim::CallMethod").then(|| call.input(0)?.attribute_path()).flatten()
    };
    Ok(graph.all_nodes().into_iter().filter_map(|node| Some(observer(node)?.join("."))).collect())
}

/// A copy as [`Prepared::convert`] takes it: batch norms folded, weights on the grid of their steps, observers at rest.
fn settle(module: &Module) -> Result<Module> {
    let flat = module.deep_clone()?;
    flat.train(false)?;
    let graph = flat.graph(METHOD)?;
    fold_trained(&flat, &graph).context(|| "folding batch norms".into())?;
    let weights = weight_observers(&flat)?;
    for call in graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::CallMethod") {
        let Some(path) = call.input(0).and_then(Value::attribute_path).map(|path| path.join(".")) else { continue };
        let observer = flat.submodule(&path)?;
        if !is_fake_quantize(&observer) {
            continue;
        }
        // A weight's range is that of the weight as it is now; an activation's stays.
        observer.call::<IValue>("enable_fake_quant", &[true.into()])?;
        let read = call.inputs()[1].node();
        if weights.contains(&path)
            && let Some(name) = read.name_attribute().filter(|_| read.kind() == "prim::GetAttr")
        {
            let rounded = observer.forward(&[flat.attribute(&name)?])?;
            flat.set_attribute(&name, &rounded)?;
        }
        observer.set_attribute("observer_enabled", &false.into())?;
    }
    drop(graph);
    Ok(flat)
}
