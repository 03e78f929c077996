//! Ranges of the tensors in graphs that libtorch executes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::ir::{Graph, IValue};
use crate::observer::{UNSET, observe_min_max};
use crate::pass::observed_in_graph;
use crate::ranges::{Fnv, unmangled};

/// What a tensor's values were.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedRange {
    /// Which graph it is in: a number that equal graphs share, in every process.
    pub graph: u64,
    /// The name of the value in the graph.
    pub value: String,
    /// The smallest value.
    pub min: f32,
    /// The largest value.
    pub max: f32,
    /// How many tensors were observed.
    pub count: u64,
}

/// By graph and value: smallest, largest, number of tensors.
type Ranges = BTreeMap<(u64, String), (f32, f32, u64)>;

static RANGES: Mutex<Ranges> = Mutex::new(Ranges::new());

fn ranges() -> MutexGuard<'static, Ranges> {
    RANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has each value that static quantization would observe go through `jitquant::observe`.
pub(super) fn observe(graph: &Graph) -> Result<()> {
    let mut hash = Fnv::default();
    hash.text(&unmangled(&graph.to_string()));
    let observed = observed_in_graph(graph);
    for value in observed {
        let name = value.debug_name();
        // An argument has no node of its own to come after.
        let next = match value.node().kind() {
            "prim::Param" => value.node().owning_block().and_then(|block| block.nodes().next()),
            _ => Some(value.node().next()),
        };
        let Some(next) = next else { continue };
        let number = next.insert_constant(IValue::Int(hash.0 as i64))?;
        let text = next.insert_constant(name.as_str())?;
        let passed_on = next.insert_operator("jitquant::observe", &[value, number, text])?;
        passed_on.set_type(&value.type_of())?;
        value.replace_all_uses_with(passed_on)?;
        passed_on.node().replace_input(0, value)?;
    }
    Ok(())
}

/// What the operator `jitquant::observe` calls. A tensor with NaN or infinity does not count.
pub(super) fn record_range(x: &[f32], graph: i64, value: &str) {
    let (mut min, mut max) = UNSET;
    if observe_min_max(x, &mut min, &mut max).is_err() {
        return;
    }
    let mut ranges = ranges();
    let range = ranges.entry((graph as u64, value.to_owned())).or_insert((UNSET.0, UNSET.1, 0));
    *range = (range.0.min(min), range.1.max(max), range.2 + 1);
}

/// The ranges that were observed in this process, by graph and value.
pub fn observed_ranges() -> Vec<ObservedRange> {
    let range = |((graph, value), (min, max, count)): (&(u64, String), &(f32, f32, u64))| ObservedRange {
        graph: *graph,
        value: value.clone(),
        min: *min,
        max: *max,
        count: *count,
    };
    ranges().iter().map(range).collect()
}

/// Forgets what was observed.
pub fn forget_ranges() {
    ranges().clear();
}

/// Writes what was observed as TOML: `[graph]`, and for each value `name = [min, max, count]`.
///
/// # Errors
/// Where the file cannot be written.
pub fn save_ranges(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let mut graphs: BTreeMap<String, BTreeMap<String, (f32, f32, u64)>> = BTreeMap::new();
    for range in observed_ranges() {
        let graph = graphs.entry(format!("{:016x}", range.graph)).or_default();
        graph.insert(range.value, (range.min, range.max, range.count));
    }
    let text = toml::to_string(&graphs).map_err(|e| Error::file(path, e.to_string()))?;
    crate::file::write_atomically(path, |part| crate::file::write_bytes(part, path, text.as_bytes()))
}
