//! Layers in a form that the engines compute exactly which a portable model is for.
//!
//! The list of what they do not ([`LIMITS`](super::op_table::LIMITS)) is about operators, arguments and weights. Where an
//! operator of a finished INT8 graph meets it, it gets another form with the same result:
//!
//! | what | form |
//! | --- | --- |
//! | a depthwise convolution whose weights saturate in FBGEMM, or that it computes without a kernel of its own, a hundred times slower than float | a convolution in fewer groups, some of them joined, with zeros between them |
//! | groups of 2 or 4 channels where FBGEMM writes past its memory | the same |
//! | padded convolutions with 17 to 31 channels in a group, which oneDNN gets wrong | the same |
//! | a transposed convolution with two rows that FBGEMM computes wrongly | four rows, of which the first and the last are zero and are cut off by padding |
//! | pooling that QNNPACK lacks or gets wrong | in float |
//! | a clamp, which QNNPACK gets wrong where channels come last | on a contiguous copy |

mod blocks;
mod packed;

use std::collections::HashSet;
use std::ops::RangeInclusive;

pub(crate) use self::blocks::{narrowed, trimmed};
use self::packed::Packed;
use super::float_results::parameters;
use super::op_table::{
    Geometry, Limit, MOST_GROUPS_OF_ONEDNN, MOST_OF_A_PAIR, Operator, PassThrough, StockEngine, When, largest_pair,
};
use super::source_of;
use crate::error::Result;
use crate::ir::{GeneralPass, Graph, IValue, Module, Node, Value};

/// An operator that has another form than it would have by itself, because an engine does not compute that exactly.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct EngineForm {
    /// The path of its module, where it is known.
    pub path: String,
    /// The operator, e.g. `quantized::conv2d`.
    pub operator: String,
    /// Its place in the TorchScript source.
    pub source: String,
    /// The form that it has.
    pub form: String,
    /// Why.
    pub why: String,
}

impl EngineForm {
    pub(super) fn of(node: Node<'_>, form: String, why: String) -> Self {
        let path = node.scope().unwrap_or_default();
        Self { path, operator: node.kind().to_owned(), source: source_of(node), form, why }
    }
}

/// Gives the operators of an INT8 graph of `module` forms that `engine` computes exactly; which ones and why.
///
/// # Errors
/// Where a packed weight cannot be read, or libtorch refuses an operator.
pub(crate) fn exact_on(module: &Module, graph: &Graph, engine: StockEngine) -> Result<Vec<EngineForm>> {
    let mut changed = Vec::new();
    let mut repacked = HashSet::new();
    for node in graph.all_nodes() {
        if Packed::is_taken_by(node) {
            if let Some(place) = Packed::place(module, node)
                && repacked.insert(place.1.clone())
                && let Some(packed) = Packed::read(module, node)?
                && let Some((form, why)) = ConvolutionForm::of(&packed, engine)
            {
                place.0.set_attribute(&place.1, &form.repack(&packed)?)?;
                changed.push(EngineForm::of(node, form.to_string(), why));
            }
            continue;
        }
        let limit = Limit::of(node.kind()).find(|limit| limit.concerns(engine) && meets(limit, node, None));
        let Some(limit) = limit.filter(|_| node.input(0).is_some_and(is_quantized)) else { continue };
        let form = match limit.when {
            When::ChannelsLast => on_contiguous(node)?,
            When::Always | When::UncountedPadding => in_float(node)?,
            _ => continue,
        };
        changed.push(EngineForm::of(node, form.to_owned(), limit.reason()));
    }
    Ok(changed)
}

/// An operator of an INT8 module that an engine does not compute exactly.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Inexact {
    /// The engine.
    pub engine: StockEngine,
    /// The operator, e.g. `quantized::conv2d`.
    pub operator: String,
    /// Its place in the TorchScript source.
    pub source: String,
    /// What the engine does instead.
    pub what: String,
}

/// What engines of libtorch do not compute exactly of `method` of a portable INT8 module, on machines with VNNI; empty where
/// all of them are exact to one step an operator.
///
/// # Errors
/// Where a graph or a packed weight cannot be read.
pub fn inexact(module: &Module, method: &str) -> Result<Vec<Inexact>> {
    let mut graph = module.graph(method)?.deep_clone()?;
    graph.run(GeneralPass::Inline)?;
    let mut found = Vec::new();
    for node in graph.all_nodes() {
        let limits: Vec<_> = Limit::of(node.kind()).collect();
        if limits.is_empty() || !(node.kind().starts_with("quantized::") || node.input(0).is_some_and(is_quantized)) {
            continue;
        }
        let packed = if Packed::is_taken_by(node) { Packed::read(module, node)? } else { None };
        for engine in StockEngine::ALL {
            let is_met =
                |limit: &&&Limit| limit.concerns(engine) && meets(limit, node, packed.as_ref().map(|p| (p, engine)));
            if let Some(limit) = limits.iter().find(is_met) {
                let (operator, source) = (node.kind().to_owned(), source_of(node));
                found.push(Inexact { engine, operator, source, what: limit.what.to_owned() });
            }
        }
    }
    Ok(found)
}

/// Whether `node` is one of those that the limit is about.
fn meets(limit: &Limit, node: Node<'_>, packed: Option<(&Packed, StockEngine)>) -> bool {
    let of_weight = |is_met: fn(&Packed, StockEngine) -> bool| packed.is_some_and(|(p, engine)| is_met(p, engine));
    match limit.when {
        When::Always => true,
        When::DepthwisePairs => of_weight(saturates),
        When::UnevenGroups => of_weight(overruns),
        When::MiddleGroups => of_weight(is_middle),
        When::DirectTransposed => of_weight(|packed, _| packed.geometry.is_fbgemm_direct()),
        When::UnequalChannels => of_weight(|packed, _| packed.geometry.inputs != packed.geometry.outputs),
        When::UncountedPadding => pads_uncounted(node),
        // The memory format is known when the model runs; one without a convolution before it is rare.
        When::ChannelsLast => node.input(0).is_none_or(|x| x.node().kind() != "aten::contiguous"),
    }
}

/// Whether a depthwise kernel of FBGEMM saturates with these weights.
fn saturates(packed: &Packed, engine: StockEngine) -> bool {
    let taps = packed.geometry.kernel.iter().product::<i64>() as usize;
    takes_depthwise_kernel(&packed.geometry, engine) && largest_pair(&packed.values, taps) > MOST_OF_A_PAIR
}

/// Whether a kernel of FBGEMM for groups writes past its memory.
fn overruns(packed: &Packed, engine: StockEngine) -> bool {
    is_fbgemms(&packed.geometry, engine) && packed.geometry.has_uneven_groups()
}

/// Whether oneDNN gets the layer wrong.
fn is_middle(packed: &Packed, engine: StockEngine) -> bool {
    let geometry = &packed.geometry;
    let is_onednns = engine.includes(StockEngine::Onednn)
        || (engine.includes(StockEngine::X86) && geometry.groups <= MOST_GROUPS_OF_ONEDNN);
    is_onednns && geometry.has_middle_groups()
}

/// Whether a model for `engine` may meet FBGEMM in this layer (on a machine with VNNI).
fn is_fbgemms(geometry: &Geometry, engine: StockEngine) -> bool {
    engine.includes(StockEngine::Fbgemm)
        || (engine.includes(StockEngine::X86) && geometry.groups > MOST_GROUPS_OF_ONEDNN)
}

/// Whether a model for `engine` may meet FBGEMM's kernels for depthwise convolutions in this layer.
fn takes_depthwise_kernel(geometry: &Geometry, engine: StockEngine) -> bool {
    is_fbgemms(geometry, engine) && geometry.is_fbgemm_depthwise()
}

/// Another form of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConvolutionForm {
    /// With so many groups joined, and zeros between them.
    Joined(i64),
    /// With two more rows of zeros.
    FourRows,
}

impl std::fmt::Display for ConvolutionForm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Joined(count) => write!(f, "{count} groups joined, with zeros between them"),
            Self::FourRows => write!(f, "four rows instead of two"),
        }
    }
}

impl ConvolutionForm {
    /// The form that a layer needs on `engine`, where it needs one, and why.
    fn of(packed: &Packed, engine: StockEngine) -> Option<(Self, String)> {
        let geometry = &packed.geometry;
        let limit = |when: When| {
            super::op_table::LIMITS.iter().find(|limit| limit.when == when && limit.concerns(engine)).map(Limit::reason)
        };
        if geometry.is_fbgemm_direct() {
            return Some((Self::FourRows, limit(When::DirectTransposed)?));
        }
        let why = match () {
            () if saturates(packed, engine) => limit(When::DepthwisePairs)?,
            () if overruns(packed, engine) => limit(When::UnevenGroups)?,
            () if is_middle(packed, engine) => {
                let own = geometry.inputs / geometry.groups;
                let count = (2..=geometry.groups).find(|count| geometry.groups % count == 0 && own * count >= 32)?;
                return Some((Self::Joined(count), limit(When::MiddleGroups)?));
            }
            () if is_slow(geometry, engine) => {
                "FBGEMM has no kernel for this depthwise layer and is slower than float".to_owned()
            }
            () => return None,
        };
        Some((Self::Joined(groups_to_join(geometry, engine)?), why))
    }

    fn repack(self, packed: &Packed) -> Result<IValue> {
        let geometry = &packed.geometry;
        match self {
            Self::Joined(count) => {
                let (values, sizes) = blocks::widened(&packed.values, &packed.sizes, geometry, count);
                packed.pack(&values, &sizes, &Geometry { groups: geometry.groups / count, ..geometry.clone() })
            }
            Self::FourRows => {
                let (values, sizes) = blocks::four_rows(&packed.values, &packed.sizes);
                let padding = vec![1, 0];
                packed.pack(&values, &sizes, &Geometry { padding, ..geometry.clone() })
            }
        }
    }
}

/// Whether libtorch's default engine on x86 computes a depthwise layer without a kernel of its own.
fn is_slow(geometry: &Geometry, engine: StockEngine) -> bool {
    engine.includes(StockEngine::X86)
        && geometry.is_depthwise()
        && geometry.groups > MOST_GROUPS_OF_ONEDNN
        && !geometry.is_fbgemm_depthwise()
}

/// Channels of a group that an ordinary convolution computes well. Of 17 to 31 oneDNN gets padded ones wrong.
const WIDE_GROUPS: RangeInclusive<i64> = 32..=160;

/// How many groups of a layer should become one, where there is a number that is exact and fast. Other numbers of channels than
/// these are not exact in oneDNN.
fn groups_to_join(geometry: &Geometry, engine: StockEngine) -> Option<i64> {
    let own = geometry.inputs / geometry.groups;
    let is_few = |count: &i64| geometry.groups / count <= MOST_GROUPS_OF_ONEDNN;
    let fits = |count: &i64| {
        let joined = Geometry { groups: geometry.groups / count, ..geometry.clone() };
        geometry.groups % count == 0 && !(is_fbgemms(&joined, engine) && joined.has_uneven_groups())
    };
    let is_groupwise = geometry.kernel.len() == 2 && geometry.is_fbgemm_groupwise();
    if geometry.is_depthwise() && is_groupwise && fits(&4) && !is_few(&4) {
        return Some(4);
    }
    // oneDNN is the faster the more channels a group has, up to its vectors; FBGEMM's time is inverse to their number.
    let counts = || [8, 16, 4, 2].into_iter().filter(|count| own * count <= 16 && fits(count));
    // 116 channels, or 117, have no such number. As an ordinary convolution they are still faster than by FBGEMM's fallback.
    let wide = || (2..=geometry.groups).find(|count| WIDE_GROUPS.contains(&(own * count)) && fits(count));
    let dense = (!geometry.is_depthwise()).then_some(geometry.groups);
    counts().find(is_few).or_else(|| counts().next()).or_else(wide).or(dense)
}

/// Whether average pooling has padding that does not count.
fn pads_uncounted(node: Node<'_>) -> bool {
    let constant = |index: usize| node.input(index).and_then(|value| value.constant());
    let is_padded = match constant(3) {
        Some(IValue::List { items, .. }) => items.iter().any(|size| size.as_int() != Some(0)),
        _ => true,
    };
    is_padded && !matches!(constant(5), Some(IValue::Bool(true)))
}

/// Whether `value` is a quantized tensor, as far as the operators before it tell.
fn is_quantized(value: Value<'_>) -> bool {
    let node = value.node();
    match node.kind() {
        "aten::quantize_per_tensor" | "aten::_make_per_tensor_quantized_tensor" => true,
        kind if kind.starts_with("quantized::") => {
            !["output_fp32", "_dynamic", "_unpack"].iter().any(|end| kind.ends_with(end))
        }
        _ => Operator::of(node).is_some_and(|row| {
            let keeps = row.pass_through.is_of_first() || row.pass_through == PassThrough::Unpack;
            keeps && node.input(0).is_some_and(is_quantized)
        }),
    }
}

/// Has an operator compute in float; the form's name.
fn in_float(node: Node<'_>) -> Result<&'static str> {
    let x = node.inputs()[0];
    let known = parameters(x);
    let float = insert(node, "aten::dequantize", &[x])?;
    node.replace_input(0, float)?;
    let next = node.next();
    let [scale, zero_point] = match known {
        Some(known) => known,
        None => [insert(next, "aten::q_scale", &[x])?, insert(next, "aten::q_zero_point", &[x])?],
    };
    let result = node.outputs()[0];
    let quint8 = next.insert_constant(IValue::Int(13))?;
    let quantized = insert(next, "aten::quantize_per_tensor", &[result, scale, zero_point, quint8])?;
    result.replace_all_uses_with(quantized)?;
    quantized.node().replace_input(0, result)?;
    quantized.node().copy_metadata(node)?;
    Ok("in float")
}

/// Has an operator take a contiguous tensor; the form's name.
fn on_contiguous(node: Node<'_>) -> Result<&'static str> {
    let plain = insert(node, "aten::contiguous", &[node.inputs()[0]])?;
    node.replace_input(0, plain)?;
    Ok("on a contiguous copy")
}

/// An operator before `at` that belongs to it.
fn insert<'g>(at: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    let value = at.insert_operator(kind, inputs)?;
    value.node().copy_metadata(at)?;
    Ok(value)
}

/// The opposite of [`exact_on`] for weights with zeros between the channels: for the native form, whose kernels are exact.
///
/// # Errors
/// Where a packed weight cannot be read or packed.
pub(crate) fn as_depthwise(module: &Module, graph: &Graph) -> Result<usize> {
    let mut changed = HashSet::new();
    for node in graph.all_nodes().into_iter().filter(|node| Packed::is_taken_by(*node)) {
        let Some((owner, name)) = Packed::place(module, node).filter(|place| !changed.contains(&place.1)) else {
            continue;
        };
        let Some(packed) = Packed::read(module, node)? else { continue };
        let geometry = &packed.geometry;
        let Some((sizes, values)) = narrowed(&packed.sizes, &packed.values).filter(|_| !geometry.transposed) else {
            continue;
        };
        let groups = geometry.inputs;
        owner.set_attribute(&name, &packed.pack(&values, &sizes, &Geometry { groups, ..geometry.clone() })?)?;
        changed.insert(name);
    }
    Ok(changed.len())
}
