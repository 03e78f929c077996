//! From a float module to one that trains, and from a trained one to INT8.

use std::collections::HashMap;

use super::batch_norm::{BatchNorm, candidates, fold_trained};
use super::fake_quantize::{fake_quantize_module, follow_weight, is_fake_quantize, learn_step, never_round, rounds};
use super::operators::bridge as ffi;
use super::targets::Targets;
use crate::analysis::add_tap;
use crate::distributed::{Calibration, Group};
use crate::error::{Context, Error, Result};
use crate::ir::{DType, FORWARD, IValue, Module, Node, Tensor, Value, join_path};
use crate::methods::{Methods, Rounding};
use crate::observer::{ObserverConfig, ObserverKind};
use crate::pass::Layer;
use crate::pass::op_table::Operator;
use crate::pass::prepare::{
    canonicalize, flatten, fold_batch_norm, fold_padding, functionalize, observed_weight, weights_as_attributes,
};
use crate::qconfig::{QConfigSpec, Role};
use crate::quantizer::has_observed;
use crate::ranges::choice;
use crate::replay::{self, Replay};
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
        Self::prepare_as(module, quantizer, BatchNorms::Trained)
    }

    /// As [`QatModule::prepare`], with the batch norms folded for good, and a bias in every layer: what
    /// [`QatModule::fit_layers`] takes. For a model that is trained, where few samples are no better statistics than
    /// those that it came with.
    ///
    /// # Errors
    /// Those of [`prepare_qat`].
    pub fn prepare_folded(module: &Module, quantizer: &Quantizer) -> Result<Self> {
        Self::prepare_as(module, quantizer, BatchNorms::Folded)
    }

    fn prepare_as(module: &Module, quantizer: &Quantizer, batch_norms_are: BatchNorms) -> Result<Self> {
        // Training does what these methods are for, and what it trained stays as it is.
        let quantizer = &quantizer.clone().methods(none_but_results(quantizer));
        let mut batch_norms = Vec::new();
        let prepared = quantizer.prepare_with(module, &make, |copy| {
            let (flat, kept, folded) = flatten_for_training(copy, quantizer.preserved())?;
            batch_norms = folded;
            Ok((flat, kept))
        })?;
        let flat = prepared.module();
        match batch_norms_are {
            BatchNorms::Trained => {
                restore_batch_norms(flat, &batch_norms).context(|| "restoring batch norms".into())?;
            }
            BatchNorms::Folded => add_biases(flat).context(|| "adding biases".into())?,
        }
        if quantizer.accuracy_methods().float_results {
            leave_results_in_float(flat)?;
        }
        parameters_as_attributes(flat).context(|| "making parameters of weights and biases".into())?;
        let qat = Self { prepared };
        qat.require_gradients()?;
        Ok(qat)
    }

    fn require_gradients(&self) -> Result<()> {
        self.parameters()?.iter().try_for_each(|(_, parameter)| Ok(ffi::tensor_require_gradient(&parameter.0, true)?))
    }

    /// Rounds the weights so that each layer's results on `batches` change least, and fits the biases
    /// ([`Rounding::Learned`](crate::Rounding::Learned)): a start that training improves on. After calibration and before
    /// an optimizer is made, as the parameters are other tensors then. A model with branches or loops stays as it is.
    ///
    /// # Errors
    /// Where batch norms are trained ([`QatModule::prepare`]), or an operator fails.
    pub fn fit_layers(&self, batches: &[Vec<IValue>]) -> Result<()> {
        let flat = self.module();
        if flat.modules().iter().any(|(_, module)| module.has_method("folded_weight")) {
            return Err(Error::invalid("fit_layers needs a module of QatModule::prepare_folded"));
        }
        if !replay::is_straight(&flat.graph(FORWARD)?) {
            return Ok(());
        }
        let methods = Replay { rounding: Rounding::Learned, bias_correction: false, is_required: true };
        replay::replay(flat, FORWARD, batches, methods).context(|| "fitting layers".into())?;
        self.require_gradients()
    }

    /// Where observers leave the choice of their range to the model ([`ObserverKind::Auto`]), has them take what loses less at
    /// the outputs on `batches`; what that is. Where nothing was chosen they take all that they have seen.
    ///
    /// # Errors
    /// Where an operator fails.
    pub fn choose_ranges(&self, batches: &[Vec<IValue>]) -> Result<Option<ObserverKind>> {
        let int8 = |copy: &Module| {
            let settled = self.prepared.with_module(settle(copy)?);
            settled.int8(settled.module())
        };
        let choice = choice::choose(|| self.float_copy(), self.module(), batches, int8)?;
        choice.map_or(Ok(()), |choice| self.take_ranges(choice))?;
        Ok(choice)
    }

    /// Has observers that leave the choice of their range take this one, as another process chose.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn take_ranges(&self, choice: ObserverKind) -> Result<()> {
        choice::decide(self.module(), choice)
    }

    /// Gives the module a method `name` that returns what `forward` does, and behind that the tensors of `targets`; a
    /// tuple. How many tensors they are.
    ///
    /// # Errors
    /// Where a target is not in the model; the message has those that are.
    pub fn add_targets(&self, name: &str, targets: &Targets) -> Result<usize> {
        let graph = self.module().graph(FORWARD)?;
        let values = targets.values(&graph)?;
        let names: Vec<String> =
            graph.outputs().into_iter().chain(values.iter().copied()).map(|value| value.debug_name()).collect();
        add_tap(self.module(), FORWARD, name, &names)?;
        Ok(values.len())
    }

    /// A copy that computes in float, as the model did before: to be taken before the parameters change.
    ///
    /// # Errors
    /// Where the module cannot be copied.
    pub fn float_copy(&self) -> Result<Module> {
        let copy = self.module().deep_clone()?.copy_instance()?;
        for (_, module) in copy.modules().into_iter().filter(|(_, module)| is_fake_quantize(module)) {
            module.set_attribute("observer_enabled", &false.into())?;
            module.set_attribute("fake_quant_enabled", &false.into())?;
        }
        copy.train(false)?;
        Ok(copy)
    }

    /// Goes on with a module that [`QatModule::module`] gave and that was saved and loaded since.
    ///
    /// # Errors
    /// Where there is no fake quantization in it.
    pub fn resume(module: &Module, quantizer: &Quantizer) -> Result<Self> {
        let quantizer = quantizer.clone().methods(none_but_results(quantizer));
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

    /// How far apart the values are that each quantized weight is rounded to, by the weight's path: one step, or one for each
    /// output channel (dimension 0). Layers whose output channels are not the weight's dimension 0 are left out.
    ///
    /// # Errors
    /// Where a range cannot be quantized.
    pub fn weight_steps(&self) -> Result<HashMap<String, Tensor>> {
        let flat = self.module();
        let graph = flat.graph(FORWARD)?;
        let mut steps = HashMap::new();
        for (observer, weight) in graph.all_nodes().into_iter().filter_map(|node| observed_weight(flat, node)) {
            let qparams = observer.call::<IValue>("calculate_qparams", &[])?;
            if let Some(scale) = qparams.tensors().first() {
                steps.insert(weight, scale.deep_clone()?);
            }
        }
        Ok(steps)
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
        activations.filter(|(_, module)| rounds(module)).try_for_each(|(_, module)| learn_step(&module))
    }

    /// Makes the INT8 module of what was trained; this one stays as it is.
    ///
    /// # Errors
    /// Where no batch was seen, neither in calibration nor in training, and those of [`Prepared::convert`].
    pub fn convert(&self) -> Result<Converted> {
        let weights = weight_observers(self.module())?;
        let mut activations = self.fake_quantizers().into_iter().filter(|(path, _)| !weights.contains(path)).peekable();
        if activations.peek().is_some() && !activations.any(|(_, module)| has_observed(&module)) {
            return Err(Error::invalid(
                "no activation has a range: call calibrate, or train with observation on, before convert",
            ));
        }
        self.prepared.with_module(settle(self.module())?).convert()
    }
}

/// The methods that training leaves alone: where results are float.
fn none_but_results(quantizer: &Quantizer) -> Methods {
    Methods { float_results: quantizer.accuracy_methods().float_results, ..Methods::none() }
}

/// What becomes of the batch norms that fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchNorms {
    Trained,
    Folded,
}

/// Gives the layers that are quantized and have no bias one of zeros.
fn add_biases(flat: &Module) -> Result<()> {
    let graph = flat.graph(FORWARD)?;
    for node in graph.all_nodes() {
        let Some((_, weight)) = observed_weight(flat, node) else { continue };
        let Some(index) = Operator::of(node).and_then(|row| row.bias) else { continue };
        let has_none = node.input(index).and_then(Value::constant).is_some_and(|value| matches!(value, IValue::None));
        if has_none && let IValue::Tensor(weight) = flat.attribute(&weight)? {
            let outputs = weight.shape()[0];
            let zeros = Tensor::from_slice(&vec![0.0f32; outputs as usize], &[outputs])?;
            node.replace_input(index, node.insert_constant(zeros)?)?;
        }
    }
    Ok(())
}

/// The results of linear layers that stay in float in the INT8 model too ([`crate::pass::float_results`]) are not rounded in
/// training: those that the model returns, or that no quantized operator takes.
fn leave_results_in_float(flat: &Module) -> Result<()> {
    let graph = flat.graph(FORWARD)?;
    for call in graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::CallMethod") {
        let (Some(path), Some(value)) = (call.input(0).and_then(Value::attribute_path), call.input(1)) else {
            continue;
        };
        let layer = match value.node() {
            relu if relu.kind().starts_with("aten::relu") => relu.inputs()[0].node(),
            layer => layer,
        };
        let takes_float = |user: Node<'_>| {
            user.kind() == "prim::Return" || (user.kind().starts_with("aten::") && Operator::of(user).is_none())
        };
        let is_float = call.outputs()[0].uses().into_iter().all(|place| takes_float(place.user));
        if layer.kind() == "aten::linear" && is_float {
            let module = flat.submodule(&path.join("."))?;
            if is_fake_quantize(&module) {
                never_round(&module)?;
            }
        }
    }
    Ok(())
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
    // Training changes its parameters, which must not be the caller's.
    let flat = flatten(&module.deep_clone()?, preserve)?;
    let written = functionalize(&mut flat.graph(FORWARD)?).context(|| "following writes in place".into())?;
    canonicalize(&mut flat.graph(FORWARD)?).context(|| "simplifying the graph".into())?;
    let graph = flat.graph(FORWARD)?;
    let found = candidates(&graph);
    let kept = fold_batch_norm(&graph).context(|| "folding batch norms".into())?;
    fold_padding(&graph).context(|| "folding paddings".into())?;
    weights_as_attributes(&flat, FORWARD)?;
    let folded = found.into_iter().filter_map(|candidate| candidate.folded()).collect();
    drop(graph);
    let kept = kept.into_iter().map(|(layer, why)| (layer, format!("not folded: {why}")));
    Ok((flat, kept.chain(written).collect(), folded))
}

fn restore_batch_norms(flat: &Module, batch_norms: &[BatchNorm]) -> Result<()> {
    let graph = flat.graph(FORWARD)?;
    for (number, batch_norm) in batch_norms.iter().enumerate() {
        batch_norm.restore(flat, &graph, &format!("_batch_norm_{number}"))?;
    }
    Ok(())
}

/// Makes parameters of the constants that operators take as weight or bias.
fn parameters_as_attributes(flat: &Module) -> Result<()> {
    let graph = flat.graph(FORWARD)?;
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
    let graph = flat.graph(FORWARD)?;
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
    let graph = flat.graph(FORWARD)?;
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
