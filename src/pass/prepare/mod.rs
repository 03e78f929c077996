//! Preparation by data flow: what is done to a float module before observers are inserted, so that what follows does
//! not depend on how the model was written.
//!
//! 1. [`flatten`]: one flat graph, each node with the path of its module.
//! 2. [`canonicalize`]: one spelling for what is the same.
//! 3. [`fold_batch_norm`]: batch norms become part of the layers before them.

mod axis;
mod canonical;
mod choices;
mod flatten;
mod fold_batch_norm;

pub use canonical::canonicalize;
pub use flatten::flatten;
pub use fold_batch_norm::fold_batch_norm;
