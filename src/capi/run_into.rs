//! Running a model into the caller's memory.

use std::ffi::{c_char, c_void};

use super::argument;
use super::buffer::{dense_bytes, jq_dtype};
use super::module::{self, jq_module};
use super::status::{Failure, Outcome, enter, jq_status};
use super::value::{self, jq_value};
use crate::ir::{DType, Tensor};

/// The caller's memory for a tensor: row-major, without gaps. It owns nothing.
#[repr(C)]
pub struct jq_output {
    /// The type of the elements.
    pub dtype: jq_dtype,
    /// How many dimensions there are; 0 for a single number.
    pub dims: usize,
    /// The size of each dimension; may be null where `dims` is 0.
    pub shape: *const i64,
    /// Where the first element goes; may be null where a size is 0.
    pub data: *mut c_void,
}

/// Memory that was looked at.
struct Place<'a> {
    name: String,
    dtype: DType,
    shape: &'a [i64],
    bytes: usize,
    data: *mut u8,
}

impl<'a> Place<'a> {
    /// # Safety
    /// `shape` is null or points to `dims` numbers that stay for `'a`.
    unsafe fn of(output: &'a jq_output, name: String) -> Outcome<Self> {
        // SAFETY: the caller's promise.
        let (dtype, shape, bytes) = unsafe { dense_bytes(output.dtype, output.dims, output.shape, &name)? };
        if output.data.is_null() && bytes > 0 {
            return Err(Failure::argument(format!("'{name}': data is null, but shape {shape:?} has {bytes} bytes")));
        }
        Ok(Self { name, dtype, shape, bytes, data: output.data.cast() })
    }

    /// The elements of a result as they go into this place, which has to be for such a tensor.
    fn elements(&self, result: &Tensor) -> Outcome<Tensor> {
        let plain = result.plain()?;
        if plain.dtype() == Some(self.dtype) && plain.shape() == self.shape {
            return Ok(plain);
        }
        let found = plain.dtype().map_or_else(|| "of another type".to_owned(), |dtype| format!("of {dtype:?}"));
        Err(Failure::argument(format!(
            "'{}' is for a tensor of {:?} {:?}; the result is one {found} {:?}",
            self.name,
            self.dtype,
            self.shape,
            plain.shape()
        )))
    }
}

/// Runs method `method` on the `count` values at `inputs`, as `jq_module_run` does, and writes the tensors of its result, in
/// order, through tuples, lists and the values of dictionaries, into the `output_count` places at `outputs`. Types and sizes
/// have to be those of the results (of quantized tensors the integers are written); where one is not, or their number is
/// another, nothing is written. The places do not overlap, and nothing else uses them during the call. Threads are as for
/// `jq_module_run`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_run_into(
    module: *const jq_module,
    method: *const c_char,
    inputs: *const *const jq_value,
    count: usize,
    outputs: *const jq_output,
    output_count: usize,
) -> jq_status {
    enter(|| {
        let module = module::resolve(module, "module")?;
        // SAFETY: the caller's promise.
        let method = unsafe { argument::text(method, "method")? };
        // SAFETY: the caller's promise.
        let inputs = value::resolve_all(unsafe { argument::items(inputs, count, "inputs")? }, "inputs")?;
        // SAFETY: the caller's promise.
        let outputs = unsafe { argument::items(outputs, output_count, "outputs")? };
        let mut places = Vec::new();
        for (index, output) in outputs.iter().enumerate() {
            // SAFETY: the caller's promise: each shape is as its place says.
            places.push(unsafe { Place::of(output, format!("outputs[{index}]"))? });
        }
        let result = module.call(method, &inputs)?;
        let tensors = result.tensors();
        if tensors.len() != places.len() {
            return Err(Failure::argument(format!(
                "'outputs' has {} places; the result, a {}, holds {} tensors",
                places.len(),
                result.kind(),
                tensors.len()
            )));
        }
        let elements =
            places.iter().zip(tensors).map(|(place, tensor)| place.elements(tensor)).collect::<Outcome<Vec<_>>>()?;
        for (place, tensor) in places.iter().zip(&elements).filter(|(place, _)| place.bytes > 0) {
            // SAFETY: `elements` compared type and sizes, so that `tensor` holds `bytes` bytes, row-major; the caller promises as
            // many at `data`. A model's result may be a tensor over the caller's memory: `copy` takes overlaps.
            unsafe { std::ptr::copy(tensor.data().cast::<u8>(), place.data, place.bytes) };
        }
        Ok(())
    })
}
