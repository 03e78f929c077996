//! Where the outputs of a product go, in a form that tasks on several threads share.

#![allow(unsafe_code)]

use super::{Dequantize, Output, Requantize};
use crate::{Error, Result};

/// An [`Output`] whose sizes have been checked, shared by tasks that write disjoint parts of it.
#[derive(Clone, Copy)]
pub(crate) enum Sink<'a> {
    I32(*mut i32),
    F32(*mut f32, Dequantize<'a>),
    U8(*mut u8, Requantize<'a>),
}

// SAFETY: the pointers come from exclusive borrows that outlive the sink, and each task writes its own elements.
unsafe impl Sync for Sink<'_> {}
// SAFETY: as above.
unsafe impl Send for Sink<'_> {}

impl<'a> Sink<'a> {
    /// Checks that `output` has at least `len` elements and an epilogue for `channels` output channels.
    ///
    /// # Errors
    /// What is too short or does not fit.
    pub fn new(output: Output<'a>, len: usize, channels: usize) -> Result<Self> {
        let elements = |found: usize| match found >= len {
            true => Ok(()),
            false => Err(Error(format!("the output has {found} elements, {len} are needed"))),
        };
        let per_channel = |name: &str, found: usize, other: usize| match found {
            found if found == channels || found == other => Ok(()),
            _ => Err(Error(format!("{name}: {found} elements for {channels} channels, not {other} or {channels}"))),
        };
        match output {
            Output::I32(to) => {
                elements(to.len())?;
                Ok(Sink::I32(to.as_mut_ptr()))
            }
            Output::F32(to, form) => {
                elements(to.len())?;
                per_channel("scale", form.scale.len(), 1)?;
                per_channel("bias", form.bias.len(), 0)?;
                Ok(Sink::F32(to.as_mut_ptr(), form))
            }
            Output::U8(to, form) => {
                elements(to.len())?;
                per_channel("scale", form.scale.len(), 1)?;
                per_channel("bias", form.bias.len(), 0)?;
                if let Some(residual) = form.residual.filter(|residual| residual.data.len() < len) {
                    let found = residual.data.len();
                    return Err(Error(format!("the residual has {found} elements, {len} are needed")));
                }
                Ok(Sink::U8(to.as_mut_ptr(), form))
            }
        }
    }

    /// Stores one accumulator of channel `n` as element `at`, by the specification.
    ///
    /// # Safety
    /// `at` is inside the output, and no other thread writes it.
    pub unsafe fn store_one(&self, sum: i32, n: usize, at: usize) {
        // SAFETY: by the contract.
        unsafe {
            match self {
                Sink::I32(to) => *to.add(at) = sum,
                Sink::F32(to, form) => *to.add(at) = form.apply(sum, n),
                Sink::U8(to, form) => {
                    *to.add(at) = form.apply(sum, n, form.residual.map_or(0, |residual| residual.data[at]));
                }
            }
        }
    }
}

/// How many elements an [`Output`] has.
pub(crate) fn output_len(output: &Output<'_>) -> usize {
    match output {
        Output::I32(to) => to.len(),
        Output::F32(to, _) => to.len(),
        Output::U8(to, _) => to.len(),
    }
}
