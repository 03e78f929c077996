//! Preparation by data flow: what is done to a float module before observers are inserted, so that what follows does
//! not depend on how the model was written.
//!
//! 1. [`flatten`]: one flat graph, each node with the path of its module.

mod choices;
mod flatten;

pub use flatten::flatten;
