//! A quantized model, or a part of one, as a [`Program`]: steps over values whose sizes are known when it is called.
//!
//! For the sizes of a call there is a [`Plan`], made once and kept: where each value lies in one arena, which are views of
//! others, and which kernel computes each. Running a plan allocates nothing. Pure Rust over `jitquant-kernels`; libtorch is
//! not needed.
//!
//! ```
//! use jitquant_kernels::{QParams, Serial};
//! use jitquant_runtime::{Builder, Call, Element, Input, Op};
//!
//! let mut builder = Builder::default();
//! let x = builder.input();
//! let bytes = builder.step(Op::Quantize(QParams::new(0.5, 128)), &[x])?;
//! let program = builder.finish(&[bytes])?;
//!
//! let values = [1.0f32, -1.0];
//! let inputs = [Input::floats(&values, &[2], &[1])];
//! let call = Call { inputs: &inputs, numbers: &[], weights: &[] };
//! let plan = program.plan(&call, &Serial)?;
//! assert_eq!((plan.outputs()[0].element, &plan.outputs()[0].sizes[..]), (Element::U8, &[2][..]));
//! let mut out = [0u8; 2];
//! program.run(&plan, &call, &mut [&mut out], &Serial)?;
//! assert_eq!(out, [130, 126]);
//! # Ok::<(), jitquant_runtime::Error>(())
//! ```
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod arena;
mod bound;
mod float;
mod fuse;
mod layout;
mod map;
mod model;
mod parts;
mod plan;
mod program;
mod run;
mod size;
mod steps;
mod view;

pub use float::{Attention, Float};
pub use layout::{Element, Format, Layout};
pub use model::{
    Described, Dim, Model, OwnedValues, PlainWeight, Tensor, TensorRef, Values, ValuesMut, WeightForm, write_model,
};
pub use parts::in_parts;
pub use plan::{Buffer, Plan, TaskInfo, place};
pub use program::{Binary, Builder, NumberId, Op, Product, Program, Step, Store, ValueId, Weight, WeightId};
pub use run::{Call, Input};
pub use size::Size;
pub use view::View;

/// What does not fit, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

impl From<jitquant_kernels::Error> for Error {
    fn from(error: jitquant_kernels::Error) -> Self {
        Self(error.0)
    }
}

/// The result of what checks its arguments.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of these words.
pub(crate) fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error(why.into()))
}
