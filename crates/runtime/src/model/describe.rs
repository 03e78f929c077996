//! Which sizes a model takes and gives: found by planning it on some, which needs neither data nor knowledge of its steps.

use jitquant_kernels::Serial;

use super::{Described, Dim};
use crate::layout::{Element, Format, Layout};
use crate::plan::plan;
use crate::program::{Program, Weight};
use crate::run::{Call, Input};

/// Spatial sizes that are tried.
const SIDES: [i64; 12] = [224, 256, 64, 32, 28, 16, 12, 8, 299, 112, 7, 1];

/// Steps that are tried as the length of a sequence.
const LENGTHS: [i64; 3] = [16, 128, 1];

/// What is added to a size to see whether another one is taken too.
const CHANGES: [i64; 4] = [1, 2, 32, 64];

/// Inputs whose types are tried in all combinations.
const MOST_INPUTS: usize = 4;

/// A call that the model takes: a layout for each input, and those of the outputs.
struct Taken {
    inputs: Vec<Layout>,
    outputs: Vec<Layout>,
}

/// Fills in the types and sizes of inputs and outputs, where a call is found that the model takes; `like` is tried first.
pub(super) fn describe(
    program: &Program,
    weights: &[Weight<'_>],
    inputs: &mut [Described],
    outputs: &mut [Described],
    like: Option<&[Vec<i64>]>,
) {
    let trial = Trial { program, weights };
    let Some(taken) = trial.find(inputs.len(), like) else { return };
    for (described, layout) in inputs.iter_mut().zip(&taken.inputs).chain(outputs.iter_mut().zip(&taken.outputs)) {
        described.element = layout.element;
        described.sizes = Some(layout.sizes.iter().map(|size| Dim::Known(*size)).collect());
    }
    let most = taken.inputs.iter().map(Layout::rank).max().unwrap_or(0);
    for axis in 0..most {
        for size in sizes_of(&taken.inputs, axis) {
            if let Some(changed) = trial.change(&taken, axis, size) {
                name(&taken, &changed, inputs, outputs);
            }
        }
    }
}

/// The different sizes that inputs have along a dimension.
fn sizes_of(inputs: &[Layout], axis: usize) -> Vec<i64> {
    let mut sizes: Vec<i64> = inputs.iter().filter_map(|layout| layout.sizes.get(axis).copied()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

struct Trial<'a> {
    program: &'a Program,
    weights: &'a [Weight<'a>],
}

impl Trial<'_> {
    /// The outputs for these inputs, where the model takes them.
    fn plan(&self, inputs: Vec<Layout>) -> Option<Taken> {
        let given: Vec<Input<'_>> = inputs
            .iter()
            .map(|layout| Input {
                element: layout.element,
                sizes: &layout.sizes,
                strides: &layout.strides,
                memory: &[],
            })
            .collect();
        let plan = plan(self.program, &Call { inputs: &given, numbers: &[], weights: self.weights }, &Serial).ok()?;
        let outputs = plan.outputs().to_vec();
        Some(Taken { inputs, outputs })
    }

    /// A call that the model takes.
    fn find(&self, inputs: usize, like: Option<&[Vec<i64>]>) -> Option<Taken> {
        let calls = match like {
            Some(sizes) => vec![sizes.to_vec()],
            None => self.guesses().into_iter().map(|sizes| vec![sizes; inputs]).collect(),
        };
        let combinations = if inputs <= MOST_INPUTS { 1usize << inputs } else { 1 };
        for (sizes, bits) in calls.iter().flat_map(|sizes| (0..combinations).map(move |bits| (sizes, bits))) {
            let element = |index: usize| if bits >> index & 1 == 1 { Element::U8 } else { Element::F32 };
            let layout = |(index, sizes): (usize, &Vec<i64>)| Layout::new(element(index), sizes, Format::Contiguous);
            if let Some(taken) = self.plan(sizes.iter().enumerate().map(layout).collect()) {
                return Some(taken);
            }
        }
        None
    }

    /// Sizes that the weights suggest, those of the first layers first.
    fn guesses(&self) -> Vec<Vec<i64>> {
        let mut all = Vec::new();
        for (weight, batch) in self.weights.iter().flat_map(|weight| [(weight, 2), (weight, 1)]) {
            match weight {
                Weight::Conv { packed, dimensions, .. } => {
                    let channels = packed.shape().input_channels as i64;
                    all.extend(SIDES.map(|side| [vec![batch, channels], vec![side; *dimensions]].concat()));
                }
                Weight::Linear { packed, .. } => {
                    let k = packed.k() as i64;
                    all.push(vec![batch, k]);
                    all.extend(LENGTHS.map(|length| vec![batch, length, k]));
                }
            }
        }
        all.dedup();
        all
    }

    /// The call with another size in place of `size` along a dimension, where the model takes one.
    fn change(&self, taken: &Taken, axis: usize, size: i64) -> Option<Taken> {
        let changed = |by: i64| {
            let mut inputs = taken.inputs.clone();
            for layout in inputs.iter_mut().filter(|layout| layout.sizes.get(axis) == Some(&size)) {
                layout.sizes[axis] = size.saturating_add(by);
                *layout = Layout::new(layout.element, &layout.sizes, Format::Contiguous);
            }
            self.plan(inputs)
        };
        CHANGES.into_iter().find_map(changed)
    }
}

/// Names the sizes that changed from one call to another.
fn name(before: &Taken, after: &Taken, inputs: &mut [Described], outputs: &mut [Described]) {
    let mut symbol: Option<(String, i64, i64)> = None;
    for (described, (old, new)) in inputs.iter_mut().zip(before.inputs.iter().zip(&after.inputs)) {
        for (axis, (was, is)) in old.sizes.iter().zip(&new.sizes).enumerate().filter(|(_, (was, is))| was != is) {
            let (name, ..) = symbol.get_or_insert_with(|| (word(&described.name, old.rank(), axis), *was, *is));
            set(described, axis, name);
        }
    }
    let Some((name, was, is)) = symbol else { return };
    for (described, (old, new)) in outputs.iter_mut().zip(before.outputs.iter().zip(&after.outputs)) {
        for axis in 0..old.rank().min(new.rank()) {
            if (old.sizes[axis], new.sizes[axis]) == (was, is) {
                set(described, axis, &name);
            } else if old.sizes[axis] != new.sizes[axis] {
                let own = format!("{}.{axis}", described.name);
                set(described, axis, &own);
            }
        }
    }
}

fn set(described: &mut Described, axis: usize, name: &str) {
    if let Some(dim) = described.sizes.as_mut().and_then(|sizes| sizes.get_mut(axis)) {
        *dim = Dim::Named(name.to_owned());
    }
}

/// What a dimension is called.
fn word(input: &str, rank: usize, axis: usize) -> String {
    const IMAGE: [&str; 3] = ["depth", "height", "width"];
    match (axis, rank) {
        (0, _) => "batch".to_owned(),
        (2.., 4 | 5) => IMAGE[3 + axis - rank].to_owned(),
        _ => format!("{input}.{axis}"),
    }
}
