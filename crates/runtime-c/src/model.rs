//! Models: opened, described, run.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;

use jitquant_runtime::{Described, Dim, Model, Tensor, TensorRef};

use crate::status::{Outcome, c_text, enter, jqr_status};
use crate::tensor::{all, jqr_description, jqr_memory, jqr_tensor, number_of};

/// A model that was opened. It may be used from any number of threads at once.
pub struct jqr_model {
    model: Model,
    inputs: Vec<Text>,
    outputs: Vec<Text>,
}

/// The results of a run.
pub struct jqr_results(Vec<Tensor>);

/// A description as C reads it.
struct Text {
    name: CString,
    text: CString,
    element: i32,
    sizes: Option<Vec<i64>>,
}

impl Text {
    fn of(described: &Described) -> Self {
        let size = |dim: &Dim| match dim {
            Dim::Known(size) => *size,
            Dim::Named(_) => -1,
        };
        Self {
            name: c_text(&described.name),
            text: c_text(&described.to_string()),
            element: number_of(described.element),
            sizes: described.sizes.as_ref().map(|sizes| sizes.iter().map(size).collect()),
        }
    }

    fn description(&self) -> jqr_description {
        let sizes = self.sizes.as_ref();
        jqr_description {
            name: self.name.as_ptr(),
            text: self.text.as_ptr(),
            element: self.element,
            rank: sizes.map_or(0, Vec::len),
            sizes: sizes.map_or(std::ptr::null(), |sizes| sizes.as_ptr()),
        }
    }
}

/// What a pointer is on.
///
/// # Safety
/// It is null, or one that this library gave and that was not closed or freed.
unsafe fn borrowed<'a, T>(what: &str, handle: *const T) -> Outcome<&'a T> {
    // SAFETY: the contract.
    unsafe { handle.as_ref() }.ok_or_else(|| format!("{what} is null"))
}

/// Writes what a function gives.
///
/// # Safety
/// The pointer is null, or may be written.
unsafe fn give<T>(what: &str, to: *mut T, value: T) -> Outcome<()> {
    if to.is_null() {
        return Err(format!("{what} is null"));
    }
    // SAFETY: not null, and the contract.
    unsafe { to.write(value) };
    Ok(())
}

#[cfg(unix)]
fn path_of(text: &CStr) -> Outcome<&Path> {
    use std::os::unix::ffi::OsStrExt;
    Ok(Path::new(std::ffi::OsStr::from_bytes(text.to_bytes())))
}

#[cfg(not(unix))]
fn path_of(text: &CStr) -> Outcome<&Path> {
    text.to_str().map(Path::new).map_err(|_| "path is no UTF-8".to_owned())
}

fn opened(model: Model) -> *mut jqr_model {
    let texts = |all: &[Described]| all.iter().map(Text::of).collect();
    let (inputs, outputs) = (texts(model.inputs()), texts(model.outputs()));
    Box::into_raw(Box::new(jqr_model { model, inputs, outputs }))
}

/// Opens the file at `path`, which `jitquant export` wrote: checks it as a whole and packs its weights for this machine.
/// The file is not needed afterwards; it must not be written into during the call. `*model` is freed by `jqr_close`.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_open(path: *const c_char, model: *mut *mut jqr_model) -> jqr_status {
    enter(|| {
        if path.is_null() || model.is_null() {
            return Err("path or model is null".to_owned());
        }
        // SAFETY: the caller's text ends with a zero byte.
        let path = path_of(unsafe { CStr::from_ptr(path) })?;
        let found = Model::open(path).map_err(|why| why.to_string())?;
        // SAFETY: the caller's pointer may be written.
        unsafe { give("model", model, opened(found)) }
    })
}

/// As `jqr_open`, of the `size` bytes of a file at `bytes`, which are not needed afterwards.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_open_bytes(bytes: *const c_void, size: usize, model: *mut *mut jqr_model) -> jqr_status {
    enter(|| {
        if model.is_null() {
            return Err("model is null".to_owned());
        }
        // SAFETY: the caller's bytes are there during the call.
        let bytes: &[u8] = unsafe { all("bytes", bytes.cast(), size)? };
        let found = Model::from_bytes(bytes).map_err(|why| why.to_string())?;
        // SAFETY: the caller's pointer may be written.
        unsafe { give("model", model, opened(found)) }
    })
}

/// Frees a model, which no call uses any more; null is left alone. Results that it gave stay.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_close(model: *mut jqr_model) {
    enter(|| {
        if !model.is_null() {
            // SAFETY: this library made it of a box, and the caller closes it once.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// How many tensors a model takes; 0 where `model` is null.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_inputs(model: *const jqr_model) -> usize {
    // SAFETY: the caller's model is open.
    unsafe { model.as_ref() }.map_or(0, |model| model.inputs.len())
}

/// How many tensors a model gives; 0 where `model` is null.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_outputs(model: *const jqr_model) -> usize {
    // SAFETY: the caller's model is open.
    unsafe { model.as_ref() }.map_or(0, |model| model.outputs.len())
}

/// Writes what input `index` is into `*description`, whose pointers belong to the model.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_input(
    model: *const jqr_model,
    index: usize,
    description: *mut jqr_description,
) -> jqr_status {
    enter(|| {
        // SAFETY: the caller's model is open.
        let model = unsafe { borrowed("model", model)? };
        let text = model.inputs.get(index).ok_or_else(|| format!("no input {index}"))?;
        // SAFETY: the caller's pointer may be written.
        unsafe { give("description", description, text.description()) }
    })
}

/// Writes what output `index` is into `*description`, whose pointers belong to the model.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_output(
    model: *const jqr_model,
    index: usize,
    description: *mut jqr_description,
) -> jqr_status {
    enter(|| {
        // SAFETY: the caller's model is open.
        let model = unsafe { borrowed("model", model)? };
        let text = model.outputs.get(index).ok_or_else(|| format!("no output {index}"))?;
        // SAFETY: the caller's pointer may be written.
        unsafe { give("description", description, text.description()) }
    })
}

/// Has a model run on `threads` threads of its own from now on; on the caller's alone until this is called. Results are the
/// same bits with any number.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_set_threads(model: *const jqr_model, threads: usize) -> jqr_status {
    enter(|| {
        // SAFETY: the caller's model is open.
        let model = unsafe { borrowed("model", model)? };
        model.model.set_threads(threads).map_err(|why| why.to_string())
    })
}

/// The tensors of a call, borrowed.
///
/// # Safety
/// Those of the header's first lines.
unsafe fn views<'a>(inputs: *const jqr_tensor, count: usize) -> Outcome<Vec<TensorRef<'a>>> {
    // SAFETY: the contract.
    let inputs = unsafe { all("inputs", inputs, count)? };
    // SAFETY: the contract.
    inputs.iter().enumerate().map(|(index, input)| unsafe { input.view(&format!("input {index}")) }).collect()
}

/// Runs a model on `count` tensors, in the order of its inputs. `*results` is freed by `jqr_results_free`.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_run(
    model: *const jqr_model,
    inputs: *const jqr_tensor,
    count: usize,
    results: *mut *mut jqr_results,
) -> jqr_status {
    enter(|| {
        if results.is_null() {
            return Err("results is null".to_owned());
        }
        // SAFETY: the caller's model is open, and its tensors are there during the call.
        let (model, inputs) = unsafe { (borrowed("model", model)?, views(inputs, count)?) };
        let found = model.model.run(&inputs).map_err(|why| why.to_string())?;
        // SAFETY: the caller's pointer may be written.
        unsafe { give("results", results, Box::into_raw(Box::new(jqr_results(found)))) }
    })
}

/// Writes result `index` into `*tensor`, whose pointers belong to the results.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_result(results: *const jqr_results, index: usize, tensor: *mut jqr_tensor) -> jqr_status {
    enter(|| {
        // SAFETY: the caller's results were not freed.
        let results = unsafe { borrowed("results", results)? };
        let found = results.0.get(index).ok_or_else(|| format!("no result {index}"))?.view();
        let data = match found.values {
            jitquant_runtime::Values::U8(values) => values.as_ptr().cast(),
            jitquant_runtime::Values::F32(values) => values.as_ptr().cast(),
        };
        let (element, rank, sizes) = (number_of(found.values.element()), found.sizes.len(), found.sizes.as_ptr());
        // SAFETY: the caller's pointer may be written.
        unsafe { give("tensor", tensor, jqr_tensor { element, rank, sizes, data }) }
    })
}

/// Frees results; null is left alone.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_results_free(results: *mut jqr_results) {
    enter(|| {
        if !results.is_null() {
            // SAFETY: this library made it of a box, and the caller frees it once.
            drop(unsafe { Box::from_raw(results) });
        }
        Ok(())
    });
}

/// The sizes that output `index` has for these inputs; nothing is computed. Up to `capacity` of them are written to `sizes`,
/// which may be null where `capacity` is 0, and how many there are to `*rank`.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_output_sizes(
    model: *const jqr_model,
    inputs: *const jqr_tensor,
    count: usize,
    index: usize,
    sizes: *mut i64,
    capacity: usize,
    rank: *mut usize,
) -> jqr_status {
    enter(|| {
        // SAFETY: the caller's model is open, and its tensors are there during the call.
        let (model, inputs) = unsafe { (borrowed("model", model)?, views(inputs, count)?) };
        if sizes.is_null() && capacity > 0 {
            return Err("sizes is null".to_owned());
        }
        let found = model.model.output_sizes(&inputs).map_err(|why| why.to_string())?;
        let (_, found) = found.get(index).ok_or_else(|| format!("no output {index}"))?;
        // SAFETY: the caller's pointer may be written.
        unsafe { give("rank", rank, found.len())? };
        for (place, size) in found.iter().take(capacity).enumerate() {
            // SAFETY: not null, and the caller has room for `capacity` sizes there.
            unsafe { sizes.add(place).write(*size) };
        }
        Ok(())
    })
}

/// Runs a model on `count` tensors into the caller's memory: one for each output, as long as the output is for these inputs,
/// apart from the inputs and from one another.
///
/// # Safety
/// As the header's first lines say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jqr_run_into(
    model: *const jqr_model,
    inputs: *const jqr_tensor,
    count: usize,
    outputs: *const jqr_memory,
    output_count: usize,
) -> jqr_status {
    enter(|| {
        // SAFETY: the caller's model is open, and its tensors are there during the call.
        let (model, inputs) = unsafe { (borrowed("model", model)?, views(inputs, count)?) };
        // SAFETY: the caller's structures are there during the call.
        let outputs = unsafe { all("outputs", outputs, output_count)? };
        // SAFETY: the caller's memory is apart from all else.
        let lend = |(index, output): (usize, &jqr_memory)| unsafe { output.lend(&format!("output {index}")) };
        let mut outputs = outputs.iter().enumerate().map(lend).collect::<Outcome<Vec<_>>>()?;
        model.model.run_into(&inputs, &mut outputs).map_err(|why| why.to_string())
    })
}
