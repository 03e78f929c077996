//! Ranges that observers found, kept in a file: converting again with other options then runs no data.
//!
//! The file is the one that `JITQUANT=observe:FILE` records (docs/zero-touch.md), TOML: for each model, by its hash, and
//! each observed tensor, what its observer saw. A tensor is named by its place in the flat float graph, which is the same
//! whatever is quantized, and by what is kept of it: `31:0 histogram-2048` is result 0 of node 31, in a histogram of 2048
//! bins. Where ranges are chosen from the same histogram (`auto`, `histogram`, `percentile`, `squared-error`,
//! `entropy`), they share it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::error::Result;
use crate::ir::{Graph, IValue, Module, Node, Tensor, Value};
use crate::observer::ObserverKind;
use crate::pass::prepare::ROWS;
use crate::pipeline::{METHOD, Prepared};
use crate::range_choice;
use crate::zero_touch::fingerprint::fingerprint;
use crate::zero_touch::recorded::{Model, Recorded, State};

/// What the observers of one model saw.
///
/// ```
/// use jitquant::{ModelForm, Quantizer, control::Ranges, ir::{Module, Tensor}};
/// # let module = Module::new("torch.nn.modules.linear.Linear")?;
/// # module.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
/// # module.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n")?;
/// let mut prepared = Quantizer::static_ptq().prepare(&module)?;           // or Module::load("model.pt")?
/// prepared.calibrate(&[Tensor::from_slice(&[0.0f32, 1.0], &[1, 2])?])?;
/// let ranges = Ranges::of(&prepared)?;                                    // ranges.save("ranges.jq", &module)?
/// let mut other = Quantizer::static_ptq().form(ModelForm::Native).prepare(&module)?;
/// assert_eq!(ranges.restore(&mut other)?, Vec::<String>::new());          // nothing is missing: no data is run
/// assert_eq!(other.convert()?.report.quantized_layers, 1);
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges {
    model: Model,
}

impl Ranges {
    /// What the observers of `prepared` have seen so far, and what those take that leave the choice of their range
    /// ([`ObserverKind::Auto`]), where there is data to choose by.
    ///
    /// # Errors
    /// Where an observer cannot be read, or the model does not convert.
    pub fn of(prepared: &Prepared) -> Result<Self> {
        Self::seen(prepared, prepared.choose_range(prepared.module())?)
    }

    /// As [`Ranges::of`], where the choice is known.
    ///
    /// # Errors
    /// Where an observer cannot be read.
    pub(crate) fn seen(prepared: &Prepared, choice: Option<ObserverKind>) -> Result<Self> {
        let mut ranges = Self::default();
        ranges.model.range = choice;
        for (tensor, observer) in watched(prepared.module())? {
            // Those that saw nothing too: no data would reach them.
            ranges.model.observers.insert(tensor, State::of(&observer)?);
        }
        Ok(ranges)
    }

    /// What the file at `path` has of `module`, whose code and weights tell; `None` where there is no file yet, or one that
    /// has ranges of other models only.
    ///
    /// # Errors
    /// Where the file cannot be read or is none of this kind.
    pub fn load(path: impl AsRef<Path>, module: &Module) -> Result<Option<Self>> {
        let path = path.as_ref();
        if !path.exists() {
            return Ok(None);
        }
        let recorded = Recorded::load(path)?;
        Ok(recorded.model(fingerprint(module)?).map(|model| Self { model: model.clone() }))
    }

    /// Writes them into the file at `path`, in the place of what it had of `module`; other models' ranges stay.
    ///
    /// # Errors
    /// Where the file cannot be written, or there is one of another kind.
    pub fn save(&self, path: impl AsRef<Path>, module: &Module) -> Result<()> {
        Recorded::replace_in_file(path.as_ref(), fingerprint(module)?, &self.model)
    }

    /// What data they come from, in the words of who found them ([`Ranges::with_source`]); empty where nobody said.
    pub fn source(&self) -> &str {
        &self.model.data
    }

    /// Says what data they come from.
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.model.data = source.into();
        self
    }

    /// Gives the observers of `prepared` what was seen, in the place of what they have seen; the tensors that nothing is
    /// known of, which is none where the observers keep the same and no more is quantized than was observed.
    ///
    /// # Errors
    /// Where an observer does not take it.
    pub fn restore(&self, prepared: &mut Prepared) -> Result<Vec<String>> {
        let missing = restore(prepared.module(), &self.model)?;
        if missing.is_empty() {
            prepared.take_ranges_for_known();
        }
        Ok(missing)
    }

    /// What the ranges were kept of, in words: `histogram-2048, min-max`.
    pub fn kept(&self) -> String {
        let kinds = self.model.observers.keys().filter_map(|key| key.split_once(' ').map(|(_, kept)| kept));
        let kinds: BTreeSet<_> = kinds.filter(|kept| !kept.contains("channels")).collect();
        kinds.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Takes over what `other` knows, tensor by tensor.
    pub fn extend(&mut self, other: Self) {
        self.model.observers.extend(other.model.observers);
        self.model.range = self.model.range.or(other.model.range);
    }

    /// What observers take that leave the choice of their range.
    pub(super) fn choice(&self) -> Option<ObserverKind> {
        self.model.range
    }
}

/// An observed tensor of a flat module.
pub(crate) struct Watched<'g> {
    /// The tensor's place, and what is kept of it: the same whatever else is observed.
    pub key: String,
    pub observer: Module,
    /// The observed tensor, as what takes it sees it.
    pub output: Value<'g>,
}

/// The observed tensors of a module that [`Prepared`] holds. Observers that keep nothing are left out.
pub(crate) fn watched(module: &Module) -> Result<Vec<(String, Module)>> {
    let graph = module.graph(METHOD)?;
    Ok(watched_in(module, &graph).into_iter().map(|watched| (watched.key, watched.observer)).collect())
}

/// As [`watched`], with the values.
pub(crate) fn watched_in<'g>(module: &Module, graph: &'g Graph) -> Vec<Watched<'g>> {
    let places = places(graph);
    let mut found = Vec::new();
    for call in graph.all_nodes() {
        let Some(name) = observer_name(call).filter(|_| call.kind() == "prim::CallMethod") else { continue };
        let Ok(observer) = module.submodule(&name) else { continue };
        let mut value = call.inputs()[1];
        while observer_name(value.node()).is_some() && value.node().kind() == "prim::CallMethod" {
            value = value.node().inputs()[1];
        }
        if let (Some(place), Some(kept)) = (places.get(&value), kept(&observer)) {
            found.push(Watched { key: format!("{place} {kept}"), observer, output: call.outputs()[0] });
        }
    }
    found
}

/// The name of the observer that a node reads or calls.
fn observer_name(node: Node<'_>) -> Option<String> {
    let read = match node.kind() {
        "prim::GetAttr" => node,
        "prim::CallMethod" => node.input(0)?.node(),
        _ => return None,
    };
    let name = (read.kind() == "prim::GetAttr").then(|| read.name_attribute())??;
    name.starts_with("_observer_").then_some(name)
}

/// Where each value of a graph is computed, observers not counted.
fn places(graph: &Graph) -> HashMap<Value<'_>, String> {
    let mut places: HashMap<_, _> =
        graph.inputs().into_iter().enumerate().map(|(index, input)| (input, format!("input:{index}"))).collect();
    let nodes = graph.all_nodes().into_iter().filter(|node| observer_name(*node).is_none());
    for (number, node) in nodes.enumerate() {
        places.extend(node.outputs().into_iter().enumerate().map(|(i, output)| (output, format!("{number}:{i}"))));
        for (b, block) in node.blocks().into_iter().enumerate() {
            let inputs = block.inputs().into_iter().enumerate();
            places.extend(inputs.map(|(i, input)| (input, format!("{number}.{b}:{i}"))));
        }
    }
    places
}

/// What an observer keeps, in a word; `None` of what is no observer of jitquant's or keeps nothing.
fn kept(observer: &Module) -> Option<String> {
    let number = |name: &str| observer.attribute(name).ok();
    let constant = || number("averaging_constant").and_then(|constant| constant.as_number()).unwrap_or(0.0);
    let axis = || number("ch_axis").and_then(|axis| axis.as_int()).unwrap_or(0);
    if let Some(IValue::Tensor(histogram)) = number("histogram") {
        return Some(format!("histogram-{}", histogram.shape().first()?));
    }
    let class = crate::qconfig::plain_class_name(&observer.class_name());
    match class.rsplit('.').next()? {
        "MinMaxObserver" => Some("min-max".to_owned()),
        "MovingAverageMinMaxObserver" => Some(format!("average-{}", constant())),
        "PerChannelMinMaxObserver" => Some(format!("channels-{}", axis())),
        "MovingAveragePerChannelMinMaxObserver" => Some(format!("average-{}-channels-{}", constant(), axis())),
        _ => None,
    }
}

/// Gives the observers of a prepared module what was recorded; the tensors that nothing was recorded of.
pub(crate) fn restore(prepared: &Module, recorded: &Model) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for (key, observer) in watched(prepared)? {
        let Some(State { min, max, counts }) = state_for(&key, recorded) else {
            let what = match observer.attribute("observed") {
                Ok(IValue::Str(what)) if !what.is_empty() => what,
                _ => key,
            };
            missing.push(what);
            continue;
        };
        let set = |name: &str, values: &[f32]| {
            let is_single = matches!(observer.attribute(name)?, IValue::Tensor(old) if old.shape().is_empty());
            let shape = if is_single { vec![] } else { vec![values.len() as i64] };
            observer.set_attribute(name, &Tensor::from_slice(values, &shape)?.into())
        };
        set("min_val", min)?;
        set("max_val", max)?;
        if observer.has_attribute("histogram") {
            set("histogram", counts)?;
        }
        if observer.has_attribute(ROWS) {
            set(ROWS, if counts.is_empty() { &[0.0] } else { counts })?;
        }
    }
    recorded.range.map_or(Ok(()), |choice| range_choice::decide(prepared, choice))?;
    Ok(missing)
}

/// What was recorded for an observed tensor: of what its observer keeps, or of what has that in it. A histogram has the
/// smallest and the largest value.
fn state_for<'a>(key: &str, recorded: &'a Model) -> Option<&'a State> {
    let of_histogram = || {
        let place = key.strip_suffix("min-max")?;
        let histograms = format!("{place}histogram-");
        let mut all = recorded.observers.range(histograms.clone()..);
        all.next().filter(|(key, _)| key.starts_with(&histograms)).map(|(_, state)| state)
    };
    recorded.observers.get(key).or_else(of_histogram)
}

/// A hash of what batches hold: equal data have equal hashes, in every process.
pub(super) fn hash_of_batches(batches: &[Vec<IValue>]) -> Result<u64> {
    let mut hash = crate::zero_touch::fingerprint::Fnv::default();
    for value in batches.iter().flatten() {
        match value {
            IValue::Tensor(tensor) => {
                tensor.shape().iter().for_each(|size| hash.bytes(&size.to_le_bytes()));
                hash.bytes(&tensor.raw_bytes()?);
            }
            IValue::Int(number) => hash.bytes(&number.to_le_bytes()),
            IValue::Double(number) => hash.bytes(&number.to_le_bytes()),
            _ => {}
        }
    }
    Ok(hash.0)
}
