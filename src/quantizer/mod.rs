//! From a float module to an INT8 one: prepare, calibrate, convert.

mod batch_undo;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use self::batch_undo::{Before, find, moving_attributes};
use crate::check::{self, Check, CheckSamples};
use crate::error::{Context, Error, Result};
use crate::ir::{DType, FORWARD, GeneralPass, IValue, Module, Node, Tensor, join_path};
use crate::methods::{Methods, Rounding};
use crate::observer::{ObserverKind, Refusal, UNSET, collect_refusals};
use crate::pass::changed_attributes::{changed_attributes, shared_and_written};
pub use crate::pass::op_table::StockEngine;
use crate::pass::op_table::{Conditions, Form, Limit, Operator, When};
use crate::pass::prepare::{
    IsolatedLinear, PRODUCT, ROWS, Ranks as Dimensions, find_isolated_linear, guard_vectors, keep_biases_in_range,
    leave_unreached, mark_isolated_linear, mark_products, prepare, quantize_isolated_linear, quantize_recurrent,
    restore_products, round_weights, scale_transposed_weights, settle_clamps, square_transposed, unreached_layers,
};
use crate::pass::{
    Coverage, EngineForm, Layer, QuantType, WeightOnly, computes_weight, exact_on, finalize_by, float_results,
    for_any_engine, insert_observers_by_scope, insert_quant_dequant_by_conditions, keep_large_numbers, layer_of,
    layers, pack_transposed, tag_layer, to_native, unfit_weight, weight_only, why_unquantized,
};
use crate::qconfig::{MakeObserver, Part, QConfigDict, QConfigSpec, qconfig_for, unknown_path};
use crate::ranges::{Fnv, choice, fingerprint_of};
use crate::replay::{self, Replay, Samples};
use crate::watch::step;

/// Quantizes modules: which way, with which observers, and which parts.
///
/// ```
/// use jitquant::{Quantizer, ir::{Module, Tensor}};
/// # let linear = Module::new("torch.nn.modules.linear.Linear")?;
/// # linear.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
/// # linear.register_parameter("bias", Tensor::from_slice(&[0.1f32, 0.2], &[2])?)?;
/// # linear.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight, self.bias)\n")?;
/// # let module = Module::new("Net")?;
/// # module.register_submodule("fc", &linear)?;
/// # module.define("def forward(self, x: Tensor) -> Tensor:\n    return self.fc.forward(x)\n")?;
/// let mut prepared = Quantizer::static_ptq().prepare(&module)?;       // or Module::load("model.pt")?
/// let batch = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 3.0], &[2, 2])?; // or a tch::Tensor
/// prepared.calibrate(&[batch.clone()])?;
/// let converted = prepared.convert()?;
/// assert_eq!(converted.report.quantized_layers, 1);
/// let y = converted.module.forward(&[batch])?;                        // converted.module.save("model.int8.pt")?
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Quantizer {
    quant_type: QuantType,
    spec: QConfigSpec,
    skip: Vec<String>,
    /// Single layers that stay in float, by number, and why.
    skip_layers: BTreeMap<usize, String>,
    /// Whether each node tells the layer that it is of ([`tag_layer`]).
    tags: bool,
    preserve: Vec<String>,
    reduce_range: bool,
    form: ModelForm,
    weight_only: Option<WeightOnly>,
    /// The least SQNR of an output in dB, at the check that ends a conversion; `None` where there is no check.
    pub(crate) check: Option<f64>,
    engine: StockEngine,
}

impl Default for Quantizer {
    fn default() -> Self {
        Self {
            quant_type: QuantType::default(),
            spec: QConfigSpec::default(),
            skip: Vec::new(),
            skip_layers: BTreeMap::new(),
            tags: false,
            preserve: Vec::new(),
            reduce_range: false,
            form: ModelForm::default(),
            weight_only: None,
            check: Some(check::LEAST_DB),
            engine: StockEngine::default(),
        }
    }
}

/// Which operators an INT8 model calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelForm {
    /// libtorch's `quantized::` operators: the model runs in any libtorch.
    #[default]
    Portable,
    /// jitquant's own operators on plain bytes ([`to_native`](crate::pass::to_native)): faster and a little more accurate, and
    /// jitquant has to be loaded where the model runs.
    Native,
}

impl Quantizer {
    /// Quantizes activations with ranges found by calibration: for convolutional networks, and wherever speed counts.
    pub fn static_ptq() -> Self {
        Self::default()
    }

    /// Quantizes activations with the range of each input as it comes: needs no data; for linear and recurrent layers,
    /// whose ranges differ much from input to input.
    pub fn dynamic() -> Self {
        Self { quant_type: QuantType::Dynamic, ..Self::default() }
    }

    /// Quantizes weights alone, in this form; activations stay in float. It needs no data: for models whose activations
    /// do not quantize, and for large linear layers on few rows, which are bound by reading their weights.
    pub fn weight_only(form: WeightOnly) -> Self {
        Self { weight_only: Some(form), ..Self::default() }
    }

    /// The same with weights in another form.
    ///
    /// # Errors
    /// Where it does not quantize weights alone.
    pub(crate) fn with_weights(mut self, form: WeightOnly) -> Result<Self> {
        match self.weight_only.replace(form) {
            Some(_) => Ok(self),
            None => Err(Error::invalid("bits of weights are chosen in weight-only quantization; others have 8")),
        }
    }

    /// The way that `quant_type` says.
    pub fn new(quant_type: QuantType) -> Self {
        Self { quant_type, ..Self::default() }
    }

    /// Takes these observers for these parts of the model.
    pub fn qconfig(mut self, spec: QConfigSpec) -> Self {
        self.spec = spec;
        self
    }

    /// Leaves the submodule at `path`, and all below it, in float.
    pub fn skip(mut self, path: impl Into<String>) -> Self {
        self.skip.push(path.into());
        self
    }

    /// Leaves one layer in float, where a path is not enough: a call of a function, one of two calls of a module. `number`
    /// is its place in [`Quantizer::verdicts`], from 0; `why` is said in the report. An activation that takes its result
    /// alone stays with it.
    pub fn skip_layer(mut self, number: usize, why: impl Into<String>) -> Self {
        self.skip_layers.insert(number, why.into());
        self
    }

    /// What the accuracy of its models depends on, in words: why a layer is skipped does not count.
    pub(crate) fn identity(&self) -> String {
        let numbers = self.skip_layers.keys().map(|number| (*number, String::new())).collect();
        format!("{:?}", Self { skip_layers: numbers, ..self.clone() })
    }

    /// Has each node of the converted module tell the layer that it is of.
    pub(crate) fn tag_layers(mut self) -> Self {
        self.tags = true;
        self
    }

    /// When activations are quantized.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// The form of what is made.
    pub fn model_form(&self) -> ModelForm {
        self.form
    }

    /// What is done for accuracy besides.
    pub(crate) fn accuracy_methods(&self) -> &Methods {
        &self.spec.methods
    }

    /// Keeps a method or an attribute beside `forward` in the converted module, which is frozen otherwise.
    pub fn preserve(mut self, name: impl Into<String>) -> Self {
        self.preserve.push(name.into());
        self
    }

    /// What the converted module keeps beside `forward`.
    pub(crate) fn preserved(&self) -> &[String] {
        &self.preserve
    }

    /// What is done for accuracy besides; part of what [`Quantizer::qconfig`] takes.
    pub fn methods(mut self, methods: Methods) -> Self {
        self.spec.methods = methods;
        self
    }

    /// Uses 7 bits of activations in dynamic quantization, for stock libtorch on CPUs without VNNI, whose 16-bit sums
    /// saturate. (In static quantization it is an option of the observer.)
    pub fn reduce_range(mut self, on: bool) -> Self {
        self.reduce_range = on;
        self
    }

    /// Makes a model of this form; portable where it is not said.
    pub fn form(mut self, form: ModelForm) -> Self {
        self.form = form;
        self
    }

    /// Makes portable models for this engine of libtorch's alone. Layers that another engine does not compute exactly then keep
    /// the faster form, and for `x86` and `fbgemm` layers behind a layer norm are some per cent faster.
    pub fn engine(mut self, engine: StockEngine) -> Self {
        self.engine = engine;
        self
    }

    /// Whether [`Prepared::convert`] ends with a check (it does by default): both models run on up to 32 of the samples that
    /// calibrated, the INT8 one read back as a file. Layers that break the model stay in float; where that does not help,
    /// no model is made.
    pub fn check(mut self, on: bool) -> Self {
        self.check = on.then_some(check::LEAST_DB);
        self
    }

    /// The least signal to quantization noise ratio that the check asks of each output, in dB; 10 where it is not said.
    pub fn check_min_sqnr(mut self, least_db: f64) -> Self {
        self.check = Some(least_db);
        self
    }

    fn resolved(&self, module: &Module, make: MakeObserver<'_>) -> Result<QConfigDict> {
        let mut spec = self.spec.clone();
        for path in &self.skip {
            if module.submodule(path).is_err() || path.is_empty() {
                return Err(Error::invalid(format!("skip '{path}': {}", unknown_path(path, &module.modules()))));
            }
            spec.modules.insert(path.clone(), Part::FLOAT);
        }
        spec.resolve_with(module, self.quant_type, make)
    }

    /// The layers of `module`, each with why it would stay in float, or `None` where it would be quantized.
    ///
    /// # Errors
    /// Where the module as a whole cannot be quantized, or the configuration does not fit it.
    pub fn verdicts(&self, module: &Module) -> Result<Vec<(Layer, Option<String>)>> {
        let flat = self.flat(module, &|observer, _| observer.module(), |copy| self.flatten(copy))?;
        Ok(flat.layers.into_iter().map(|planned| (planned.layer, planned.reason)).collect())
    }

    /// The module as one flat graph, and what stays in it as it is (batch norms, writes in place), with why.
    pub(crate) fn flatten(&self, module: &Module) -> Result<(Module, Vec<(Layer, String)>)> {
        let flat = prepare(module, FORWARD, &self.preserve)?;
        if self.quantizes_attention() {
            mark_products(&flat.0, FORWARD).context(|| "marking products of attention".into())?;
        }
        Ok(flat)
    }

    /// The module as one flat graph, the observers by path, and what will become of its layers.
    fn flat(
        &self,
        module: &Module,
        make: MakeObserver<'_>,
        flatten: impl FnOnce(&Module) -> Result<(Module, Vec<(Layer, String)>)>,
    ) -> Result<Flat> {
        crate::init()?;
        step("reading the model", 0, 4)?;
        refuse_unfit(module)?;
        let mut qconfigs = self.resolved(module, make)?;
        step("cloning the module", 1, 4)?;
        let copy = module.clone_with_own_state().context(|| "cloning the module".into())?;
        if copy.is_training() {
            copy.train(false)?;
        }
        step("preparing the graph", 2, 4)?;
        let (flat, kept) = flatten(&copy)?;
        let graph = flat.graph(FORWARD)?;
        let mut planned = Vec::new();
        for node in graph.all_nodes() {
            let Some(layer) = layer_of(node, "") else { continue };
            let number = planned.len();
            let skipped = self.skip_layers.get(&number);
            let reason = match qconfig_for(&qconfigs, &layer.path) {
                None => Some("left in float by the configuration".to_owned()),
                Some(_) => self
                    .why_never(node, layer.operator)
                    .map(str::to_owned)
                    .or_else(|| self.why_not_on_engine(node))
                    .or_else(|| self.weight_only.is_none().then(|| unfit_weight(&flat, node))?)
                    .or_else(|| skipped.cloned()),
            };
            if self.tags || skipped.is_some() {
                let paths = tag_layer(node, number)?;
                qconfigs.extend(paths.into_iter().filter(|_| skipped.is_some()).map(|path| (path, None)));
            }
            planned.push(PlannedLayer { layer, reason });
        }
        if let Some(number) = self.skip_layers.keys().find(|number| **number >= planned.len()) {
            return Err(Error::invalid(format!("layer {number} to skip: there are {} layers", planned.len())));
        }
        drop(graph);
        planned.extend(kept.into_iter().map(|(layer, why)| PlannedLayer { layer, reason: Some(why) }));
        Ok(Flat { module: flat, qconfigs, layers: planned, float: copy })
    }

    fn quantizes_attention(&self) -> bool {
        self.spec.methods.attention && self.quant_type == QuantType::Static && self.weight_only.is_none()
    }

    fn why_never(&self, node: Node<'_>, operator: &str) -> Option<&'static str> {
        match self.weight_only {
            Some(_) => weight_only::why_never(node, operator)
                .or_else(|| computes_weight(node).then_some("its weight is computed when the model runs")),
            None if node.kind() == PRODUCT => None,
            None if operator == "attention" && self.quantizes_attention() => {
                Some("attention with dropout or with fewer heads of keys than of queries is not written out")
            }
            None => why_unquantized(node, operator, self.quant_type),
        }
    }

    /// Why no form of a layer is exact on the engines that the model is for, where none is.
    fn why_not_on_engine(&self, node: Node<'_>) -> Option<String> {
        let is_portable = self.quant_type == QuantType::Static && self.form == ModelForm::Portable;
        let row = Operator::of(node).filter(|_| is_portable && self.weight_only.is_none())?;
        let of_form = |form: &Form| Limit::of(form.kind).find(|limit| limit.when == When::Always);
        let limits = row.forms.iter().map(of_form).collect::<Option<Vec<_>>>()?;
        limits.into_iter().find(|limit| limit.concerns(self.engine)).map(Limit::reason)
    }

    /// Puts observers into a copy of `module`, which stays as it is. The copy is one flat graph with the batch norms
    /// folded into the layers before them, and each tensor that will be quantized is watched.
    ///
    /// # Errors
    /// Where the module is quantized already, has CUDA devices in its code, has no layer to quantize, the
    /// configuration does not fit it, or a pass refuses it.
    pub fn prepare(&self, module: &Module) -> Result<Prepared> {
        self.prepare_with(module, &|observer, _| observer.module(), |copy| self.flatten(copy))
    }

    /// As [`Quantizer::prepare`], with the observers that `make` makes, on the graph that `flatten` gives.
    pub(crate) fn prepare_with(
        &self,
        module: &Module,
        make: MakeObserver<'_>,
        flatten: impl FnOnce(&Module) -> Result<(Module, Vec<(Layer, String)>)>,
    ) -> Result<Prepared> {
        let Flat { module: flat, qconfigs, layers, float } = self.flat(module, make, flatten)?;
        if layers.iter().all(|planned| planned.reason.is_some()) {
            return Err(Error::invalid(match layers.first().and_then(|planned| planned.reason.as_ref()) {
                None => format!("'{FORWARD}' has no layer that could be quantized (convolution, linear, …)"),
                Some(reason) => format!("no layer would be quantized; the first one: {reason}"),
            }));
        }
        if self.weight_only.is_some() {
            return self.prepared(flat, qconfigs, layers, Some(&float));
        }
        step("inserting observers", 3, 4)?;
        let methods = &self.spec.methods;
        methods.check()?;
        let isolated = isolated_linear(self.quant_type, methods, self.reduce_range);
        let graph = flat.graph(FORWARD)?;
        let nodes = graph.all_nodes().into_iter().filter(|node| layer_of(*node, "").is_some());
        let stay_float: HashSet<_> = std::iter::zip(nodes, &layers)
            .filter(|(_, planned)| planned.reason.is_some())
            .map(|(node, _)| node.address().addr())
            .collect();
        let is_quantized = |node: Node<'_>| {
            let scope = node.scope().ok();
            !stay_float.contains(&node.address().addr())
                && scope.is_some_and(|path| qconfig_for(&qconfigs, &path).is_some())
        };
        if self.quant_type == QuantType::Dynamic && self.form == ModelForm::Portable {
            guard_vectors(&graph).context(|| "giving vectors a batch dimension".into())?;
        }
        if self.quant_type == QuantType::Static && self.form == ModelForm::Portable {
            square_transposed(&flat, FORWARD).context(|| "giving transposed convolutions equal channels".into())?;
        }
        let isolated_layers = find_isolated_linear(&graph, isolated, is_quantized);
        let elsewhere = &isolated_layers | &stay_float;
        insert_observers_by_scope(&flat, FORWARD, &qconfigs, self.quant_type, &elsewhere)?;
        mark_isolated_linear(&flat, &graph, isolated, &isolated_layers)?;
        scale_transposed_weights(&flat, FORWARD, self.form == ModelForm::Native)?;
        drop(graph);
        self.prepared(flat, qconfigs, layers, Some(&float))
    }

    fn prepared(
        &self,
        module: Module,
        qconfigs: QConfigDict,
        layers: Vec<PlannedLayer>,
        float: Option<&Module>,
    ) -> Result<Prepared> {
        // Its state as it is now: calibration and the application may change the caller's.
        let float = float.filter(|_| self.check.is_some()).map(Module::clone_with_own_state).transpose()?;
        Ok(Prepared {
            state: state_of(&module)?,
            moving: moving_attributes(&module, FORWARD)?,
            module,
            quantizer: self.clone(),
            float,
            check_samples: CheckSamples::default(),
            quant_type: self.quant_type,
            form: self.form,
            weight_only: self.weight_only,
            preserve: self.preserve.clone(),
            methods: self.spec.methods.clone(),
            reduce_range: self.reduce_range,
            qconfigs,
            layers,
            inputs: Samples::default(),
            batches: 0,
            has_ranges: false,
            ranks_known: self.quant_type == QuantType::Dynamic || self.weight_only.is_some(),
        })
    }

    /// Goes on with an observed module that [`Prepared::module`] gave and that was saved and loaded since. Batches that it
    /// was calibrated with before are in its ranges; methods that run batches again have those from now on only.
    ///
    /// # Errors
    /// Where there are no observers in it.
    pub fn resume(&self, observed: &Module) -> Result<Prepared> {
        crate::init()?;
        let has_observers = observed.modules().iter().any(|(path, _)| is_observer(path));
        if !has_observers {
            return Err(Error::invalid("the module has no observers: it was not made by Quantizer::prepare"));
        }
        let layers = layers(observed, FORWARD)?.into_iter().map(|layer| PlannedLayer { layer, reason: None }).collect();
        let default = QConfigSpec { default: self.spec.default.clone(), ..QConfigSpec::default() };
        self.prepared(observed.clone(), default.resolve(observed, self.quant_type)?, layers, None)
    }
}

/// A linear layer with an INT8 input and a float result.
const FLOAT_RESULT: &str = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32";

/// Why a layer that was meant to be quantized is not.
const UNFUSED: &str = "fusion did not recognize what surrounds it";

#[derive(Clone, Debug)]
struct PlannedLayer {
    layer: Layer,
    /// Why it stays in float.
    reason: Option<String>,
}

/// What [`Quantizer::flat`] makes.
struct Flat {
    module: Module,
    qconfigs: QConfigDict,
    layers: Vec<PlannedLayer>,
    /// The model as it came, in evaluation mode.
    float: Module,
}

/// A module with observers.
#[derive(Debug)]
pub struct Prepared {
    module: Module,
    /// What prepared it.
    pub(crate) quantizer: Quantizer,
    /// The model as it came, for the check; `None` where there is none.
    pub(crate) float: Option<Module>,
    /// What the check runs on.
    pub(crate) check_samples: CheckSamples,
    quant_type: QuantType,
    form: ModelForm,
    weight_only: Option<WeightOnly>,
    preserve: Vec<String>,
    methods: Methods,
    reduce_range: bool,
    qconfigs: QConfigDict,
    layers: Vec<PlannedLayer>,
    /// What the model may change when it runs (buffers and attributes, by path), as the float model has it.
    state: Vec<(String, IValue)>,
    /// What of it the code does change, by path.
    moving: Vec<String>,
    /// The calibration batches, where they are run again.
    pub(crate) inputs: Samples,
    batches: usize,
    /// All ranges were restored, or there are none to find.
    has_ranges: bool,
    /// Whether layers without a batch dimension were looked for.
    ranks_known: bool,
}

impl Prepared {
    /// The module with its observers; it can be saved, loaded, and calibrated further through [`Quantizer::resume`].
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The observers and their paths.
    pub(crate) fn observers(&self) -> Vec<(String, Module)> {
        self.module.modules().into_iter().filter(|(path, _)| is_observer(path)).collect()
    }

    /// What tells it from another: the model, without what was observed, and the options; short.
    ///
    /// # Errors
    /// Where an attribute cannot be read.
    pub(crate) fn identity(&self) -> Result<[String; 2]> {
        let model = fingerprint_of(&self.module, |path| !path.split('.').any(|name| name.starts_with("_observer_")))?;
        let mut options = Fnv::default();
        options.text(&self.quantizer.identity());
        Ok([format!("{model:016x}"), format!("{:016x}", options.0)])
    }

    /// The same plan for another form of the observed module.
    pub(crate) fn with_module(&self, module: Module) -> Self {
        Self {
            module,
            quantizer: self.quantizer.clone(),
            float: None,
            check_samples: CheckSamples::default(),
            quant_type: self.quant_type,
            form: self.form,
            weight_only: self.weight_only,
            preserve: self.preserve.clone(),
            methods: self.methods.clone(),
            reduce_range: self.reduce_range,
            qconfigs: self.qconfigs.clone(),
            layers: self.layers.clone(),
            state: self.state.clone(),
            moving: self.moving.clone(),
            inputs: Samples::default(),
            batches: self.batches,
            has_ranges: self.has_ranges,
            ranks_known: self.ranks_known,
        }
    }

    /// Takes the observers' ranges for known without data: they were restored, each of them.
    pub(crate) fn take_ranges_for_known(&mut self) {
        self.has_ranges = true;
    }

    /// The layers that will be quantized, with their numbers ([`Quantizer::skip_layer`]).
    pub(crate) fn numbered_layers(&self) -> Vec<(usize, Layer)> {
        let all = self.layers.iter().enumerate().filter(|(_, planned)| planned.reason.is_none());
        all.map(|(number, planned)| (number, planned.layer.clone())).collect()
    }

    /// Keeps calibration batches for the methods that run the model again ([`Prepared::needs_inputs`]), without observing
    /// them: for a module whose ranges are known ([`crate::control::Ranges`]).
    ///
    /// # Errors
    /// Where memory is short, or libtorch refuses to change the graph.
    pub fn supply(&mut self, batches: &[Vec<IValue>]) -> Result<()> {
        if let Some(batch) = batches.first() {
            self.find_ranks(batch)?;
            self.ranks_known = true;
        }
        (self.inputs, self.check_samples) = (Samples::default(), CheckSamples::default());
        batches.iter().try_for_each(|batch| self.keep(batch.clone()))
    }

    /// The layers that will be quantized.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|planned| planned.reason.is_none()).map(|planned| &planned.layer)
    }

    /// Runs the model on a batch (tensors, tch tensors or [`IValue`]s) and lets the observers watch. The more the data
    /// is like that of later use the better; some hundred samples are enough for most models. A batch that fails, or that a
    /// watch ends, leaves no trace.
    ///
    /// # Errors
    /// Where the model refuses the inputs, or where a tensor on the way and the model's result hold NaN or infinity; the
    /// message names the tensor. Where only the tensor does, it stays in float, with a warning.
    pub fn calibrate<'a, T>(&mut self, inputs: &'a [T]) -> Result<IValue>
    where
        IValue: From<&'a T>,
    {
        crate::init()?;
        step("running the model", 0, 0)?;
        let inputs: Vec<IValue> = inputs.iter().map(IValue::from).collect();
        self.find_ranks(&inputs)?;
        let before = Before::of(self.observers(), &self.module, &self.moving)?;
        match self.take_in(inputs) {
            Ok(output) => {
                (self.batches, self.ranks_known) = (self.batches + 1, true);
                Ok(output)
            }
            Err(error) => {
                before.restore().context(|| format!("taking back a batch that failed ({error})"))?;
                Err(error)
            }
        }
    }

    /// Runs the observed model on a batch, and keeps it.
    fn take_in(&mut self, inputs: Vec<IValue>) -> Result<IValue> {
        // The model may write into what it is given; the caller's tensors, and those kept, are the samples as they came.
        let (output, refusals) = collect_refusals(|| self.module.call_on_copies(FORWARD, &inputs));
        let output = output?;
        self.settle_refusals(&refusals, &output)?;
        self.keep(inputs)?;
        Ok(output)
    }

    /// Puts batch dimensions where layers have none, as the first batch that the model takes shows it.
    fn find_ranks(&self, inputs: &[IValue]) -> Result<()> {
        if !self.ranks_known
            && let Some(ranks) = Dimensions::of_run(&self.module, FORWARD, inputs)?
        {
            let added = ranks.add_dimensions(&self.module, FORWARD);
            added.context(|| "giving layers a batch dimension".into())?;
        }
        Ok(())
    }

    /// Decides on tensors that observers refused. Where the model's results on these inputs are finite, it does not use their
    /// NaN and infinite values, or uses them for what they are (a mask): such a tensor stays in float.
    fn settle_refusals(&self, refusals: &[Refusal], output: &IValue) -> Result<()> {
        let Some(first) = refusals.first() else { return Ok(()) };
        let is_finite =
            |tensor: &Tensor| tensor.to_f32_vec().is_ok_and(|all| all.iter().all(|value| value.is_finite()));
        if !output.tensors().into_iter().all(is_finite) {
            let name = if first.tensor.is_empty() { "a tensor" } else { &first.tensor };
            return Err(Error::invalid(format!(
                "the observer of {name} refuses it: {}; with such values there is no range, and the model's result is not \
                 finite either: leave these samples out",
                first.why
            )));
        }
        for (_, observer) in self.observers() {
            let name = match observer.attribute("observed") {
                Ok(IValue::Str(name)) => name,
                _ => continue,
            };
            let Some(refusal) = refusals.iter().find(|refusal| refusal.tensor == name) else { continue };
            tracing::warn!("{name} has {}; it stays in float", refusal.why);
            for bound in ["min_val", "max_val"] {
                if let IValue::Tensor(state) = observer.attribute(bound)? {
                    let shape = state.shape();
                    let count = shape.iter().product::<i64>().max(1) as usize;
                    let shape = if shape == [0] { vec![1] } else { shape };
                    observer.set_attribute(bound, &Tensor::from_slice(&vec![f32::NAN; count], &shape)?.into())?;
                }
            }
        }
        Ok(())
    }

    /// Whether there is what conversion needs.
    pub(crate) fn is_ready(&self) -> bool {
        self.weight_only.is_some()
            || self.quant_type == QuantType::Dynamic
            || self.batches > 0
            || self.has_ranges
            || self.was_calibrated()
    }

    /// [`Prepared::convert`] without the check.
    pub(crate) fn convert_unchecked(&self) -> Result<Converted> {
        if let Some(form) = self.weight_only {
            return self.convert_weights(form);
        }
        if !self.is_ready() {
            return Err(Error::invalid(
                "static quantization needs data: no batch was taken in; call calibrate before convert",
            ));
        }
        step("rounding weights", 0, 3)?;
        let observed = replay::trial_copy(&self.module, FORWARD)?;
        self.restore_state(&observed)?;
        if self.quant_type == QuantType::Static {
            keep_biases_in_range(&observed, FORWARD).context(|| "looking at biases".into())?;
        }
        if self.methods.equalize && !self.inputs.is_empty() && self.equalize(&observed)? {
            forget_observations(&observed)?;
            for batch in self.inputs.batches() {
                observed.call_on_copies(FORWARD, batch)?;
            }
        }
        let chosen_range = self.choose_range(&observed)?;
        if let Some(choice) = chosen_range {
            choice::decide(&observed, choice)?;
        }
        let replay = Replay {
            rounding: self.rounding(),
            bias_correction: self.methods.bias_correction,
            is_required: self.methods.rounding == Rounding::Learned,
        };
        // Before clamps go: the float run needs them.
        let fits = replay.bias_correction || replay.rounding == Rounding::Learned;
        if fits && !self.inputs.is_empty() {
            replay::replay(&observed, FORWARD, &self.batches_to_run()?, replay).context(|| "fitting layers".into())?;
        } else if replay.rounding != Rounding::Nearest {
            round_weights(&observed, FORWARD).context(|| "rounding weights".into())?;
        }
        self.restore_state(&observed)?;
        let module = self.int8(&observed)?;
        let mut report = Report { chosen_range, engine_forms: Vec::new(), ..self.report(&module)? };
        if report.quantized_layers == 0 {
            return Err(Error::invalid(format!(
                "no layer could be quantized: {}",
                report.float.first().map_or("nothing is left to say why", |layer| layer.reason.as_str())
            )));
        }
        let module = match self.form {
            ModelForm::Portable => {
                report.engine_forms.extend(self.portable(&module)?);
                module
            }
            ModelForm::Native => to_native(&module)?,
        };
        for EngineForm { path, source, operator, form, why } in &report.engine_forms {
            tracing::debug!("{operator} {path} ({source}): {form}: {why}");
        }
        keep_large_numbers(&module)?;
        // What the passes made on the way goes with their modules.
        Ok(Converted { module: module.clone_sharing(|_, _| true)?, report })
    }

    /// Equalizes channels where the model runs on the data by itself; whether anything changed.
    fn equalize(&self, observed: &Module) -> Result<bool> {
        match replay::equalize(observed, FORWARD, self.inputs.batches()) {
            Err(e) if !e.is_cancelled() => {
                tracing::info!("channels are not equalized: {e}");
                Ok(false)
            }
            outcome => outcome,
        }
    }

    /// Gives the portable module forms that the engines compute exactly which it is for; which.
    fn portable(&self, module: &Module) -> Result<Vec<EngineForm>> {
        let engine = self.quantizer.engine;
        let graph = module.graph(FORWARD)?;
        if Limit::of(FLOAT_RESULT).any(|limit| limit.concerns(engine)) {
            for_any_engine(module, &graph).context(|| "giving results in float".into())?;
        }
        exact_on(module, &graph, engine).context(|| "choosing forms that engines compute exactly".into())
    }

    /// Which range the observers take that leave the choice; `None` where none does, or there is no data to choose by.
    pub(crate) fn choose_range(&self, observed: &Module) -> Result<Option<ObserverKind>> {
        if self.inputs.is_empty() || !choice::is_open(observed) {
            return Ok(None);
        }
        // Weights are rounded once for all choices.
        let rounded = replay::trial_copy(observed, FORWARD)?;
        if self.methods.rounding != Rounding::Nearest {
            round_weights(&rounded, FORWARD)?;
        }
        let chosen = choice::choose(
            || replay::float_copy(observed, FORWARD),
            &rounded,
            self.inputs.batches(),
            |copy| {
                let module = self.int8(copy)?;
                crate::engine::accelerate(&module)?;
                Ok(module)
            },
        );
        match chosen {
            Err(e) if !e.is_cancelled() => {
                tracing::info!("ranges are not chosen by the outputs: {e}");
                Ok(None)
            }
            chosen => chosen,
        }
    }

    /// The portable INT8 module of the flat module `observed`, whose ranges and weights are settled; changes it.
    pub(crate) fn int8(&self, observed: &Module) -> Result<Module> {
        if self.quant_type == QuantType::Static {
            leave_unreached(observed, FORWARD)?;
            settle_clamps(observed, FORWARD).context(|| "removing clamps".into())?;
        }
        let qconfig = |node: Node<'_>| qconfig_for(&self.qconfigs, &node.scope().ok()?);
        let isolated = isolated_linear(self.quant_type, &self.methods, self.reduce_range);
        quantize_isolated_linear(observed, FORWARD, isolated, self.methods.smooth, qconfig)?;
        if self.quant_type == QuantType::Dynamic {
            separate_from_branches(observed)?;
        }
        step("inserting quantize and dequantize", 1, 3)?;
        let quantized = insert_quant_dequant_by_conditions(observed, FORWARD, self.quant_type)
            .context(|| "inserting quantize and dequantize".into())?;
        if !self.reduce_range {
            use_full_range(&quantized)?;
        }
        let wants_float = self.quant_type == QuantType::Static && self.methods.float_results;
        if self.form == ModelForm::Native {
            pack_transposed(&quantized, FORWARD).context(|| "packing transposed convolutions".into())?;
        }
        step("fusing and prepacking quantized operators", 2, 3)?;
        let module = finalize_by(&quantized, self.quant_type, &self.preserve, Conditions::Asked)
            .context(|| "fusing and prepacking quantized operators".into())?;
        quantize_recurrent(&module, FORWARD, qconfig)?;
        restore_products(&module.graph(FORWARD)?)?;
        if wants_float {
            float_results(&module.graph(FORWARD)?).context(|| "giving results in float".into())?;
        }
        Ok(module)
    }

    /// The kept batches, for a run that does not copy them: copies where the model writes in place.
    fn batches_to_run(&self) -> Result<Cow<'_, [Vec<IValue>]>> {
        let batches = self.inputs.batches();
        let graph = self.module.graph(FORWARD)?;
        match graph.all_nodes().iter().any(|node| node.kind().starts_with("aten::") && node.kind().ends_with('_')) {
            false => Ok(Cow::Borrowed(batches)),
            true => batches.iter().map(|batch| batch.iter().map(IValue::deep_clone).collect()).collect::<Result<_>>(),
        }
    }

    /// Gives `observed`, a copy of the module that has run on data, the float model's state again.
    fn restore_state(&self, observed: &Module) -> Result<()> {
        for (path, value) in &self.state {
            let gone = || Error::invalid(format!("the observed module has no attribute '{path}' any more"));
            let (owner, name) = find(observed, path).ok_or_else(gone)?;
            owner.set_attribute(&name, &value.deep_clone()?)?;
        }
        Ok(())
    }

    /// Has the observers forget what they have seen.
    ///
    /// # Errors
    /// Where an observer's state cannot be set.
    pub fn forget(&mut self) -> Result<()> {
        (self.batches, self.inputs, self.check_samples) = (0, Samples::default(), CheckSamples::default());
        self.has_ranges = false;
        forget_observations(&self.module)
    }

    /// Keeps a batch, where batches are run again.
    ///
    /// # Errors
    /// Where memory is short.
    pub(crate) fn keep(&mut self, inputs: Vec<IValue>) -> Result<()> {
        if self.float.is_some() {
            self.check_samples.keep(&inputs)?;
        }
        if self.requires_inputs() {
            self.inputs.push(inputs);
        } else if self.needs_inputs() {
            self.inputs.push_some(inputs);
        }
        Ok(())
    }

    fn convert_weights(&self, form: WeightOnly) -> Result<Converted> {
        step("rounding weights", 0, 1)?;
        let small = replay::trial_copy(&self.module, FORWARD)?;
        let wanted = |node: Node<'_>| {
            let is_on = layer_of(node, "").is_some_and(|layer| qconfig_for(&self.qconfigs, &layer.path).is_some());
            is_on && !computes_weight(node)
        };
        let outcome = weight_only::quantize_weights(&small, FORWARD, form, wanted)?;
        small.graph(FORWARD)?.run(GeneralPass::ClearProfiling)?;
        let preserved = [&self.preserve[..], &changed_attributes(&small, true)?].concat();
        let module = small.freeze(&preserved, false).context(|| "freezing the quantized module".into())?;
        let planned = self.layers.iter().filter_map(|planned| Some((planned.layer.clone(), planned.reason.clone()?)));
        let float = planned.chain(outcome.float).map(|(layer, reason)| FloatLayer::new(&layer, &reason)).collect();
        let quantized_layers = outcome.kept.values().sum();
        if quantized_layers == 0 {
            return Err(Error::invalid("no layer has a weight that could be kept in fewer bits"));
        }
        let module = match self.form {
            ModelForm::Portable => module,
            ModelForm::Native => to_native(&module)?,
        };
        keep_large_numbers(&module)?;
        Ok(Converted {
            module,
            report: Report { quantized_layers, quantized_operators: outcome.kept, float, ..Report::default() },
        })
    }

    /// Whether a method runs the model again on the calibration data.
    pub fn needs_inputs(&self) -> bool {
        self.fits_weights() || (self.quant_type == QuantType::Static && choice::is_open(&self.module))
    }

    /// Whether weights are rounded by the calibration data, where there is some.
    pub fn fits_weights(&self) -> bool {
        self.requires_inputs() || (self.quant_type == QuantType::Static && self.methods.rounding == Rounding::Auto)
    }

    /// Whether a method was asked for that runs the model again on the calibration data, and cannot do without.
    pub fn requires_inputs(&self) -> bool {
        let methods = &self.methods;
        self.quant_type == QuantType::Static
            && (methods.equalize || methods.rounding == Rounding::Learned || methods.bias_correction)
    }

    /// How weights are rounded, [`Rounding::Auto`] being decided.
    fn rounding(&self) -> Rounding {
        match self.methods.rounding {
            Rounding::Auto if self.inputs.is_empty() => Rounding::Sums,
            Rounding::Auto => Rounding::Learned,
            said => said,
        }
    }

    fn was_calibrated(&self) -> bool {
        self.observers().iter().any(|(_, observer)| has_observed(observer))
    }

    fn report(&self, converted: &Module) -> Result<Report> {
        let coverage = Coverage::of(converted, FORWARD)?;
        let float_layer = FloatLayer::new;
        let mut float: Vec<FloatLayer> = self
            .layers
            .iter()
            .filter_map(|planned| planned.reason.as_ref().map(|reason| float_layer(&planned.layer, reason)))
            .collect();
        // Between INT8 operators a batch norm that did not fold is one as well.
        let mut norms = coverage.batch_norms.clone();
        float.retain(|layer| layer.operator != "batch_norm" || take_one(&mut norms, &layer.path));
        // What is in float beyond what was meant to be.
        let mut meant: BTreeMap<(String, String), usize> = BTreeMap::new();
        float.iter().for_each(|l| *meant.entry((l.operator.clone(), l.path.clone())).or_default() += 1);
        let unreached = match self.quant_type {
            QuantType::Static => unreached_layers(&self.module, FORWARD)?,
            QuantType::Dynamic => Vec::new(),
        };
        let mut unmeant = Vec::new();
        for layer in &coverage.float {
            match meant.get_mut(&(layer.operator.to_owned(), layer.path.clone())) {
                Some(count) if *count > 0 => *count -= 1,
                _ => {
                    let known = unreached.iter().find(|(unreached, _)| unreached == layer).map(|(_, why)| *why);
                    unmeant.push(float_layer(layer, known.unwrap_or(UNFUSED)));
                }
            }
        }
        float.extend(unmeant);
        let quantized_layers = coverage.quantized_layers();
        Ok(Report { quantized_layers, quantized_operators: coverage.quantized, float, ..Report::default() })
    }
}

/// An INT8 module and what became of its layers.
#[derive(Debug)]
pub struct Converted {
    /// The module, frozen. In portable form it uses libtorch's `quantized::` operators and runs without jitquant.
    pub module: Module,
    /// What was quantized and what was not.
    pub report: Report,
}

/// What became of a model's layers.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Report {
    /// How many layers are quantized.
    pub quantized_layers: usize,
    /// How many nodes of each `quantized::` operator there are.
    pub quantized_operators: BTreeMap<String, usize>,
    /// The layers that stay in float.
    pub float: Vec<FloatLayer>,
    /// Which range observers took that leave the choice ([`ObserverKind::Auto`]), where it was made in this conversion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen_range: Option<ObserverKind>,
    /// Operators of a portable model that have another form than by themselves, so that each engine of libtorch that the
    /// model is for computes them exactly.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engine_forms: Vec<EngineForm>,
    /// What the check at the end found; `None` where there were no samples to check with, or no check was wanted.
    pub check: Option<Check>,
}

/// A layer that stays in float.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct FloatLayer {
    /// The path of its module, where it is known.
    pub path: String,
    /// What it does, e.g. `conv2d`.
    pub operator: String,
    /// Its place in the TorchScript source.
    pub source: String,
    /// Why.
    pub reason: String,
}

impl FloatLayer {
    fn new(layer: &Layer, reason: &str) -> Self {
        let Layer { path, operator, source } = layer.clone();
        Self { path, operator: operator.to_owned(), source, reason: reason.to_owned() }
    }
}

/// Takes one of `items` that is `wanted`; whether there was one.
fn take_one(items: &mut Vec<String>, wanted: &str) -> bool {
    let found = items.iter().position(|item| item == wanted);
    found.map(|index| items.swap_remove(index)).is_some()
}

/// Which linear layers between float operators are quantized by themselves.
fn isolated_linear(quant_type: QuantType, methods: &Methods, reduce_range: bool) -> IsolatedLinear {
    IsolatedLinear {
        quant_type,
        per_row: methods.per_row && !reduce_range,
        // A smoothed layer has a float result.
        smooth: methods.smooth > 0.0 && (quant_type == QuantType::Dynamic || methods.float_results),
    }
}

/// Buffers and attributes of an observed flat module that its code may change, by path. Weights, which are parameters,
/// are not among them, unless the code writes into them.
fn state_of(module: &Module) -> Result<Vec<(String, IValue)>> {
    let graph = module.graph(FORWARD)?;
    let mut written = HashSet::new();
    for node in graph.all_nodes().into_iter().filter(|node| node.kind().ends_with('_')) {
        written.extend(node.input(0).and_then(|target| target.attribute_path()).map(|path| path.join(".")));
    }
    let mut state = Vec::new();
    for (path, part) in module.modules() {
        if path.split('.').any(|name| name.starts_with("_observer_")) {
            continue;
        }
        for attribute in part.attributes().into_iter().filter(|attribute| !attribute.is_module) {
            let place = join_path(&path, &attribute.name);
            if !attribute.is_parameter || written.contains(&place) {
                state.push((place, part.attribute(&attribute.name)?.deep_clone()?));
            }
        }
    }
    Ok(state)
}

/// Whether an observer has seen a value.
pub(crate) fn has_observed(observer: &Module) -> bool {
    let Ok(IValue::Tensor(min)) = observer.attribute("min_val") else { return false };
    min.to_vec::<f32>().is_ok_and(|values| values.iter().any(|value| value.is_finite()))
}

fn is_observer(path: &str) -> bool {
    path.rsplit('.').next().is_some_and(|name| name.starts_with("_observer_"))
}

/// Puts a view between a branch's result and its observer: libtorch's passes move what quantizes a branch's result into
/// the branches, but forget what finds its range at run time.
fn separate_from_branches(observed: &Module) -> Result<()> {
    let graph = observed.graph(FORWARD)?;
    for call in graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::CallMethod") {
        if let Some(value) = call.input(1).filter(|value| value.node().kind() == "prim::If") {
            call.replace_input(1, call.insert_operator("aten::detach", &[value])?)?;
        }
    }
    Ok(())
}

/// Brings all observers back to where they have seen nothing.
fn forget_observations(observed: &Module) -> Result<()> {
    for (_, observer) in observed.modules().into_iter().filter(|(path, _)| is_observer(path)) {
        for (name, start) in [("min_val", UNSET.0), ("max_val", UNSET.1), ("histogram", 0.0), (ROWS, 0.0)] {
            let Ok(IValue::Tensor(state)) = observer.attribute(name) else { continue };
            let fresh = match (name, &state.shape()[..]) {
                ("histogram", shape) | (_, shape @ []) => {
                    Tensor::from_slice(&vec![start; shape.iter().product::<i64>() as usize], shape)?
                }
                // Per channel: as many as the next tensor has.
                _ => Tensor::from_slice::<f32>(&[], &[0])?,
            };
            observer.set_attribute(name, &fresh.into())?;
        }
    }
    Ok(())
}

/// Has activations use all 8 bits in dynamic quantization. libtorch's passes always leave one out, for AVX2's sums of 16
/// bits; where VNNI adds up in 32, that costs MiniLM 0.02 of its cosine for nothing.
fn use_full_range(quantized: &Module) -> Result<()> {
    let graph = quantized.graph(FORWARD)?;
    for choose in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::_choose_qparams_per_tensor") {
        choose.replace_input(1, choose.insert_constant(false)?)?;
    }
    Ok(())
}

/// The name of the float type that a tensor has, where it is another than float32.
fn other_float(tensor: &Tensor) -> Option<&'static str> {
    match tensor.dtype()? {
        DType::F64 => Some("float64"),
        DType::F16 => Some("float16"),
        DType::BF16 => Some("bfloat16"),
        _ => None,
    }
}

fn not_float32(what: &str, dtype: &str) -> String {
    format!(
        "{what} is {dtype}; quantization starts from float32: save the model after .float(), or have it converted \
         (--to-float, Module::to_float)"
    )
}

/// Refuses what cannot be quantized at all, in words.
fn refuse_unfit(module: &Module) -> Result<()> {
    if let Some((written, other)) = shared_and_written(module)? {
        return Err(Error::invalid(format!(
            "the code changes '{written}', which is the same memory as '{other}': the quantized model would hold two copies, \
             and a change of one would not be seen in the other. Give the model one of them, or a copy (clone())"
        )));
    }
    if !module.has_method(FORWARD) {
        let methods = module.method_names().join(", ");
        return Err(Error::invalid(format!("the model has no method '{FORWARD}'; it has {methods}")));
    }
    for (path, part) in module.modules() {
        let place = if path.is_empty() { "the model".to_owned() } else { format!("module '{path}'") };
        for attribute in part.attributes() {
            if attribute.type_name.contains("torch.classes.quantized") || attribute.type_name.contains("PackedParams") {
                return Err(Error::invalid(format!(
                    "the model is quantized already: {place} holds packed INT8 weights ('{}'). Quantize the float model",
                    attribute.name
                )));
            }
            if !(attribute.is_parameter || attribute.is_buffer) {
                continue;
            }
            if let Ok(IValue::Tensor(tensor)) = part.attribute(&attribute.name)
                && tensor.is_defined()
            {
                if tensor.is_quantized() {
                    let name = &attribute.name;
                    return Err(Error::invalid(format!("the model is quantized already: '{name}' of {place} is INT8")));
                }
                if attribute.is_parameter
                    && let Some(dtype) = other_float(&tensor)
                {
                    return Err(Error::invalid(not_float32(&format!("'{}' of {place}", attribute.name), dtype)));
                }
            }
        }
        for method in part.method_names() {
            let graph = part.graph(&method)?;
            for node in graph.all_nodes() {
                if node.kind().starts_with("quantized::") {
                    return Err(Error::invalid(format!(
                        "the model is quantized already: '{method}' of {place} calls {}. Quantize the float model",
                        node.kind()
                    )));
                }
                if weight_only::Stored::of(node).is_some() || node.kind() == "jitquant::linear_weight_only" {
                    return Err(Error::invalid(format!(
                        "the model is quantized already: '{method}' of {place} keeps weights in 8 or 4 bits. Quantize the \
                         float model"
                    )));
                }
                // The weights of a frozen model are in its code.
                if layer_of(node, "").is_some()
                    && let Some(IValue::Tensor(weight)) = node.input(1).and_then(|value| value.constant())
                    && let Some(dtype) = other_float(&weight)
                {
                    let source = crate::pass::source_of(node);
                    return Err(Error::invalid(not_float32(&format!("a weight of {place} ({source})"), dtype)));
                }
                if let Some(IValue::Device(device)) = node.output(0).and_then(|value| value.constant())
                    && device.starts_with("cuda")
                {
                    let source = crate::pass::source_of(node);
                    return Err(Error::invalid(format!(
                        "the model's code names the device {device} ('{method}' of {place}, {source}); INT8 runs on the \
                         CPU: trace or script the model on the CPU and save it again"
                    )));
                }
            }
        }
    }
    Ok(())
}
