//! Which observer for which part of a model.

use std::collections::BTreeMap;

use crate::ir::Module;

/// The observers of one part of a model: templates, copied for each tensor that is observed.
#[derive(Clone, Debug)]
pub struct QConfig {
    /// Watches activations.
    pub activation: Module,
    /// Watches weights.
    pub weight: Module,
}

/// Observers by submodule path (`""` is the whole model); a path without an entry inherits from the nearest one above,
/// `None` leaves the part in float.
pub type QConfigDict = BTreeMap<String, Option<QConfig>>;
