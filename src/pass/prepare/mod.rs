//! Preparation by data flow: what is done to a float module before observers are inserted, so that what follows does
//! not depend on how the model was written.
//!
//! 1. [`flatten`]: one flat graph, each node with the path of its module.
//!    What PyTorch's modules hide behind conditions and fast paths is written out (`write_layers_out`).
//! 2. [`functionalize`]: writes in place, changed lists and dictionaries become operators that give new values.
//! 3. [`canonicalize`]: one spelling for what is the same.
//! 4. [`fold_batch_norm`]: batch norms become part of the layers before them.
//! 5. [`fold_padding`]: zeros around an image become padding of the convolution after it.
//! 6. [`weights_as_attributes`]: weights are attributes again, named by where they were.
//!
//! [`quantize_recurrent`] packs recurrent layers, which libtorch's fusion does not know, when the rest is converted.
//! Products of two activations are marked between the two, where they are to be quantized (`mark_products`).
//! Before that, when ranges are known, [`settle_clamps`] takes away the clamps that saturation makes needless,
//! and [`round_weights`] rounds so that errors cancel.

mod attention;
mod axis;
mod batch_dimension;
mod bias_range;
mod canonical;
mod choices;
mod clamps;
mod conditions;
mod einsum;
mod fast_paths;
mod flatten;
mod fold_batch_norm;
mod fold_padding;
mod functionalize;
mod isolated_linear;
mod known_sizes;
mod nested;
mod padding_mode;
mod quantize_isolated_linear;
mod recurrent;
mod round_weights;
mod transposed;
mod unreached;
mod weight_grid;
mod weights;

pub(crate) use attention::{PRODUCT, mark_products, restore_products};
pub(crate) use batch_dimension::{Ranks, guard_vectors};
pub(crate) use bias_range::keep_biases_in_range;
pub use canonical::canonicalize;
pub use clamps::settle_clamps;
pub use flatten::flatten;
pub use fold_batch_norm::fold_batch_norm;
pub use fold_padding::fold_padding;
pub use functionalize::functionalize;
pub(crate) use functionalize::{viewed, writes, written};
pub(crate) use isolated_linear::{IsolatedLinear, ROWS, find_isolated_linear, mark_isolated_linear};
pub(crate) use quantize_isolated_linear::quantize_isolated_linear;
pub use recurrent::quantize_recurrent;
pub(crate) use recurrent::{has_constant_weights, projects};
pub use round_weights::round_weights;
pub(crate) use round_weights::{observed_weight, rounded as rounded_by_sums};
pub(crate) use transposed::{is_transposed, scale_transposed_weights, square_transposed};
pub(crate) use unreached::{leave_unreached, unreached_layers};
pub(crate) use weight_grid::{Channel, WeightGrid};
pub(crate) use weights::path_of_weight;
pub use weights::weights_as_attributes;

use self::conditions::{decide_conditions, unwritten_attributes};
use self::fast_paths::{take_plain_paths, write_out};
use self::known_sizes::know_feature_sizes;
use self::nested::stay_padded;
use super::Layer;
use crate::error::{Context, Result};
use crate::ir::{GeneralPass, Module};

/// Takes a float module in evaluation mode through all steps; and what stays as it is, with the reasons: batch norms, writes
/// in place, lists.
///
/// # Errors
/// Where there is no such method, or libtorch cannot freeze the module.
pub fn prepare(module: &Module, method: &str, preserve: &[String]) -> Result<(Module, Vec<(Layer, String)>)> {
    module.graph(method)?;
    let flat = flatten(module, preserve)?;
    write_layers_out(&flat, method).context(|| "writing layers out".into())?;
    let written = functionalize(&mut flat.graph(method)?).context(|| "following writes in place".into())?;
    canonicalize(&mut flat.graph(method)?).context(|| "simplifying the graph".into())?;
    let kept = fold_batch_norm(&flat.graph(method)?).context(|| "folding batch norms".into())?;
    fold_padding(&flat.graph(method)?).context(|| "folding paddings".into())?;
    weights_as_attributes(&flat, method)?;
    let kept = kept.into_iter().map(|(layer, why)| (layer, format!("not folded: {why}")));
    Ok((flat, kept.chain(written).collect()))
}

/// Brings out the layers of a flat module: conditions that the graph decides are decided, fast paths are written out, and
/// pieces of constants are constants.
fn write_layers_out(flat: &Module, method: &str) -> Result<()> {
    let mut graph = flat.graph(method)?;
    take_plain_paths(&mut graph)?;
    stay_padded(&graph)?;
    decide_conditions(&mut graph)?;
    graph.run(GeneralPass::RemoveTensorMutation)?;
    unwritten_attributes(flat, method)?;
    write_out(&mut graph)?;
    // What is known of one size may tell another.
    while know_feature_sizes(&graph)? > 0 {
        graph.run(GeneralPass::ConstantPropagation)?;
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    Ok(())
}
