//! INT8 models made again and again from one calibration.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Clock, Data, Progress, Ranges};
use crate::error::{Context, Error, Result};
use crate::ir::{FORWARD, IValue, Module, Node, Value};
use crate::methods::{Methods, Rounding};
use crate::observer::ObserverKind;
use crate::pass::op_table::{Operator, ReluFusion};
use crate::pass::{Layer, QuantType, layer_of};
use crate::quantizer::{Converted, Prepared, Quantizer};
use crate::ranges::{choice, watched_in};
use crate::watch::watched;

/// What distinguishes one try from the quantizer that the user gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Layers in float, by number.
    pub float: BTreeSet<usize>,
    /// How the ranges of tensors are chosen, by the tensor's key ([`super::ranges`]), where otherwise than said.
    pub searches: BTreeMap<String, ObserverKind>,
    /// Other methods than those of the quantizer.
    pub methods: Option<Methods>,
}

impl Plan {
    /// The same with these layers in float.
    pub fn with_float(&self, numbers: impl IntoIterator<Item = usize>) -> Self {
        let mut plan = self.clone();
        plan.float.extend(numbers);
        plan
    }

    /// The same with that layer in INT8.
    pub fn without_float(&self, number: usize) -> Self {
        let mut plan = self.clone();
        plan.float.remove(&number);
        plan
    }
}

/// A tensor that is quantized.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// Its name ([`super::ranges`]).
    pub key: String,
    /// How its range is chosen, where that is from a histogram.
    pub search: Option<ObserverKind>,
    /// The layers that compute it, an activation or a pool between not counted.
    pub producers: BTreeSet<usize>,
    /// The layers that take it.
    pub consumers: BTreeSet<usize>,
}

/// Whether a node hands on what it takes, as far as its range goes: observers, activations, pools, changes of shape.
fn passes_on(node: Node<'_>) -> bool {
    let is_through = |row: &Operator| row.pass_through.is_of_first() || row.relu == ReluFusion::Relu || row.is_clamp;
    Operator::of(node).is_some_and(is_through)
}

fn observed(node: Node<'_>) -> Option<Value<'_>> {
    (node.kind() == "prim::CallMethod").then(|| node.input(1))?
}

fn before(value: Value<'_>, numbers: &HashMap<Node<'_>, usize>, found: &mut BTreeSet<usize>) {
    let node = value.node();
    match (numbers.get(&node), observed(node)) {
        (Some(number), _) => drop(found.insert(*number)),
        (None, Some(input)) => before(input, numbers, found),
        (None, None) if passes_on(node) => node.input(0).into_iter().for_each(|input| before(input, numbers, found)),
        _ => {}
    }
}

fn after(value: Value<'_>, numbers: &HashMap<Node<'_>, usize>, found: &mut BTreeSet<usize>) {
    for place in value.uses() {
        match numbers.get(&place.user) {
            Some(number) if place.offset == 0 => drop(found.insert(*number)),
            None if observed(place.user).is_some() || passes_on(place.user) => {
                place.user.outputs().into_iter().for_each(|output| after(output, numbers, found));
            }
            _ => {}
        }
    }
}

/// A name for the state file: plans that differ have different ones.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.methods {
            None => f.write_str("methods as said")?,
            Some(methods) => write!(f, "{methods:?}")?,
        }
        write!(f, "; in float {:?}", self.float)?;
        self.searches.iter().try_for_each(|(tensor, kind)| write!(f, "; {tensor} by {}", kind.name()))
    }
}

/// Makes models by [`Plan`].
pub(super) struct Variants<'d> {
    quantizer: Quantizer,
    float: &'d Module,
    calibration: &'d [Vec<IValue>],
    flat: Module,
    kept: Vec<(Layer, String)>,
    ranges: Ranges,
    /// What observers take that leave the choice.
    range: Option<ObserverKind>,
    /// Why layers are in float, for the report.
    pub reasons: BTreeMap<usize, String>,
}

impl<'d> Variants<'d> {
    /// Flattens the model and calibrates, as far as `known` does not tell the ranges already.
    pub fn open(
        quantizer: &Quantizer,
        float: &'d Module,
        data: &'d Data,
        known: Option<&Ranges>,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<Self> {
        crate::init()?;
        let copy = float.deep_clone().context(|| "cloning the module".into())?;
        if copy.is_training() {
            copy.train(false)?;
        }
        let (flat, kept) = quantizer.flatten(&copy)?;
        let ranges = known.cloned().unwrap_or_default();
        let calibration = &data.calibration;
        // Learned rounding takes longer than all else: it is tried once, for the whole model.
        let mut methods = quantizer.accuracy_methods().clone();
        if methods.rounding == Rounding::Auto {
            methods.rounding = Rounding::Sums;
        }
        let quantizer = quantizer.clone().methods(methods).check(false);
        let mut variants =
            Self { quantizer, float, calibration, flat, kept, ranges, range: None, reasons: BTreeMap::new() };
        let prepared = variants.calibrated(variants.quantizer.clone(), progress)?;
        // Once, for all plans.
        let known = variants.ranges.choice();
        variants.range = known.map_or_else(|| prepared.choose_range(prepared.module()), |known| Ok(Some(known)))?;
        Ok(variants)
    }

    /// What calibration found.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// The flat float module.
    pub fn flat(&self) -> &Module {
        &self.flat
    }

    fn prepare(&self, quantizer: &Quantizer) -> Result<Prepared> {
        let copy = |_: &Module| Ok((self.flat.deep_clone()?.copy_instance()?, self.kept.clone()));
        quantizer.prepare_with(self.float, &|observer, _| observer.module(), copy)
    }

    /// A prepared module whose observers know their ranges. The data is run where a tensor is observed for the first time.
    fn calibrated(&mut self, quantizer: Quantizer, progress: &mut dyn FnMut(&Progress<'_>)) -> Result<Prepared> {
        let mut prepared = self.prepare(&quantizer)?;
        let missing = self.ranges.restore(&mut prepared)?;
        if !missing.is_empty() && !self.calibration.is_empty() {
            let mut fresh = self.prepare(&quantizer)?;
            for (done, batch) in self.calibration.iter().enumerate() {
                let total = self.calibration.len();
                progress(&Progress { stage: "calibrating", done, total, found: None });
                fresh.calibrate(batch).context(|| format!("calibration batch {done}"))?;
            }
            self.ranges.extend(Ranges::of(&fresh)?);
            self.ranges.restore(&mut prepared)?;
        } else if !missing.is_empty() && quantizer.quant_type() == QuantType::Static {
            return Err(Error::invalid(format!(
                "the ranges of {} tensors are not known ({}, …) and there is no data to find them with",
                missing.len(),
                missing[0]
            )));
        }
        prepared.supply(self.calibration)?;
        Ok(prepared)
    }

    /// The quantizer for a plan.
    pub fn quantizer(&self, plan: &Plan) -> Quantizer {
        let mut quantizer = self.quantizer.clone();
        if let Some(methods) = &plan.methods {
            quantizer = quantizer.methods(methods.clone());
        }
        let why = |number: &usize| self.reasons.get(number).cloned().unwrap_or_else(|| "accuracy control".to_owned());
        plan.float.iter().fold(quantizer, |quantizer, number| quantizer.skip_layer(*number, why(number)))
    }

    /// The observed module of a plan.
    pub fn prepared(&mut self, plan: &Plan) -> Result<Prepared> {
        let prepared = self.calibrated(self.quantizer(plan), &mut |_| {})?;
        if let Some(choice) = self.range {
            choice::decide(prepared.module(), choice)?;
        }
        if !plan.searches.is_empty() {
            let graph = prepared.module().graph(FORWARD)?;
            for tensor in watched_in(prepared.module(), &graph) {
                let Some(kind) = plan.searches.get(&tensor.key) else { continue };
                tensor.observer.set_attribute("search", &kind.name().into())?;
                tensor.observer.set_attribute("percentile", &IValue::Double(99.99))?;
            }
        }
        Ok(prepared)
    }

    /// The INT8 module of a plan.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where time runs out.
    pub fn convert(&mut self, plan: &Plan, clock: Clock) -> Result<Converted> {
        use std::ops::ControlFlow::{Break, Continue};
        watched(
            move |_| if clock.is_over() { Break(()) } else { Continue(()) },
            || self.prepared(plan)?.convert_unchecked(),
        )
    }

    /// The layers that are quantized where the plan says nothing else, and their numbers.
    pub fn layers(&self) -> Result<Vec<(usize, Layer)>> {
        Ok(self.prepare(&self.quantizer)?.numbered_layers())
    }

    /// The tensors that are observed, weights not counted, with the layers around them.
    pub fn tensors(&self) -> Result<Vec<Observed>> {
        let prepared = self.prepare(&self.quantizer)?;
        let quantized: BTreeSet<usize> = prepared.numbered_layers().into_iter().map(|(number, _)| number).collect();
        let graph = prepared.module().graph(FORWARD)?;
        let layers = graph.all_nodes().into_iter().filter(|node| layer_of(*node, "").is_some()).enumerate();
        let numbers: HashMap<Node<'_>, usize> = layers.map(|(number, node)| (node, number)).collect();
        let mut tensors = Vec::new();
        for tensor in watched_in(prepared.module(), &graph) {
            let (mut producers, mut consumers) = (BTreeSet::new(), BTreeSet::new());
            before(tensor.output, &numbers, &mut producers);
            after(tensor.output, &numbers, &mut consumers);
            let percentile = tensor.observer.attribute("percentile").ok().and_then(|percentile| percentile.as_number());
            let search = match tensor.observer.attribute("search") {
                Ok(IValue::Str(name)) => ObserverKind::ALL.into_iter().find(|kind| kind.name() == name),
                _ => None,
            };
            let search = match (search, percentile) {
                (Some(ObserverKind::Percentile), Some(100.0)) => Some(ObserverKind::MinMax),
                (Some(ObserverKind::Auto), _) => self.range.or(Some(ObserverKind::MinMax)),
                _ => search,
            };
            producers.retain(|number| quantized.contains(number));
            consumers.retain(|number| quantized.contains(number));
            if !(producers.is_empty() && consumers.is_empty()) {
                tensors.push(Observed { key: tensor.key, search, producers, consumers });
            }
        }
        Ok(tensors)
    }

    /// Methods to try for the whole model, beyond those of the quantizer, the cheaper ones first.
    pub fn other_methods(&self) -> Vec<Methods> {
        let own = self.quantizer.accuracy_methods();
        if self.quantizer.quant_type() != QuantType::Static || self.calibration.is_empty() {
            return Vec::new();
        }
        let corrected = Methods { bias_correction: true, ..own.clone() };
        let learned = Methods { rounding: Rounding::Learned, ..own.clone() };
        let is_other = |methods: &Methods| methods != own && own.rounding != Rounding::Learned;
        [corrected, learned].into_iter().filter(is_other).collect()
    }
}
