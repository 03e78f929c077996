//! The C ABI: `include/jitquant.h`, which cbindgen makes of this folder.
//!
//! Every function here has the same shape: it checks its arguments, calls the Rust API, stores what came of it where an
//! out-pointer says, and returns a status. `status::enter` catches panics and keeps the message of a failure.
//!
//! Handles are numbers dressed as pointers and looked up in a table (`handle`), so a null pointer, a freed handle or
//! one of another kind is an error and not a crash.
#![allow(non_camel_case_types)]
// Each function's text in the header says what its pointers must be; what holds for all stands at the header's top.
#![allow(clippy::missing_safety_doc)]

mod accelerate;
mod argument;
mod buffer;
mod bytes;
mod callback;
mod control;
mod graph_passes;
mod handle;
mod log;
mod module;
mod node;
mod passes;
mod plugin;
mod qat;
mod quantizer;
mod report;
mod run_into;
mod signature;
mod status;
mod strings;
mod value;
mod zero_touch;

pub use accelerate::*;
pub use buffer::{JQ_BF16, JQ_BOOL, JQ_F16, JQ_F32, JQ_F64, JQ_I8, JQ_I16, JQ_I32, JQ_I64, JQ_U8, jq_buffer, jq_dtype};
pub use bytes::{jq_bytes, jq_bytes_free, jq_bytes_get};
pub use control::*;
pub use log::*;
pub use module::*;
pub use node::*;
pub use passes::*;
pub use plugin::*;
pub use qat::*;
pub use quantizer::*;
pub use report::*;
pub use run_into::*;
pub use signature::*;
pub use status::*;
pub use strings::*;
pub use value::*;
pub use zero_touch::*;
