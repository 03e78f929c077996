//! Reports: what becomes of a model's layers.

use std::ffi::{CString, c_char};

use super::argument;
use super::handle::{self, Handle};
use super::status::{c_text, enter, jq_status};
use crate::pass::Layer;
use crate::{Check, Report};

/// What becomes, or became, of a model's layers. It does not change. Free it with `jq_report_free`.
pub struct jq_report {
    _opaque: (),
}

impl Handle for jq_report {
    const NAME: &'static str = "jq_report";
    type Object = Contents;
}

/// A layer of a model. The texts belong to the report and go with it.
#[repr(C)]
pub struct jq_layer {
    /// The path of its module, e.g. `features.0.conv`; empty where it is not known.
    pub path: *const c_char,
    /// What it does, e.g. `conv2d`.
    pub operation: *const c_char,
    /// Its place in the TorchScript source, e.g. `resnet.py:231`; empty where that is not recorded.
    pub source: *const c_char,
    /// Why it stays in float; null where it is quantized.
    pub reason: *const c_char,
}

/// What the check at the end of a conversion measured; NaN where a figure is not known.
#[repr(C)]
pub struct jq_check {
    /// How many samples both models ran on; 0 where there were none, and nothing was checked.
    pub samples: usize,
    /// Signal to quantization noise ratio of the outputs in dB; infinite where nothing differs.
    pub sqnr_db: f64,
    /// The share of samples for which both models put the same class first.
    pub agreement: f64,
    /// The float model's time over the INT8 model's, for one sample on this machine.
    pub speed_up: f64,
}

/// A layer's texts.
struct LayerTexts {
    path: CString,
    operation: CString,
    source: CString,
    reason: Option<CString>,
}

pub(super) struct Contents {
    quantized_layers: usize,
    layers: Vec<LayerTexts>,
    operators: Vec<(CString, usize)>,
    check: Option<Check>,
}

impl Contents {
    /// Of a converted module: its float layers, and its `quantized::` operators.
    pub(super) fn of_converted(report: &Report) -> Self {
        let layer = |layer: &crate::FloatLayer| LayerTexts {
            path: c_text(&layer.path),
            operation: c_text(&layer.operator),
            source: c_text(&layer.source),
            reason: Some(c_text(&layer.reason)),
        };
        Self {
            quantized_layers: report.quantized_layers,
            layers: report.float.iter().map(layer).collect(),
            operators: report.quantized_operators.iter().map(|(name, count)| (c_text(name), *count)).collect(),
            check: report.check.clone(),
        }
    }

    /// Of a float module: all its layers, each with why it would stay in float.
    pub(super) fn of_verdicts(verdicts: &[(Layer, Option<String>)]) -> Self {
        let layer = |(layer, reason): &(Layer, Option<String>)| LayerTexts {
            path: c_text(&layer.path),
            operation: c_text(layer.operator),
            source: c_text(&layer.source),
            reason: reason.as_deref().map(c_text),
        };
        Self {
            quantized_layers: verdicts.iter().filter(|(_, reason)| reason.is_none()).count(),
            layers: verdicts.iter().map(layer).collect(),
            operators: Vec::new(),
            check: None,
        }
    }
}

/// How many layers are quantized, or would be, into `*count`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_report_quantized_layers(report: *const jq_report, count: *mut usize) -> jq_status {
    enter(|| {
        let room = argument::room(count, "count")?;
        let report = handle::resolve(report, "report")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(report.quantized_layers) };
        Ok(())
    })
}

/// How many layers the report lists, into `*count`: of `jq_quantizer_inspect` all layers, of `jq_prepared_convert` those
/// that stayed in float. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_report_layer_count(report: *const jq_report, count: *mut usize) -> jq_status {
    enter(|| {
        let room = argument::room(count, "count")?;
        let report = handle::resolve(report, "report")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(report.layers.len()) };
        Ok(())
    })
}

/// Layer `index` of the list, into `*layer`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_report_layer(report: *const jq_report, index: usize, layer: *mut jq_layer) -> jq_status {
    enter(|| {
        let room = argument::room(layer, "layer")?;
        let report = handle::resolve(report, "report")?;
        let texts = &report.layers[argument::index(index, report.layers.len(), "layers")?];
        let layer = jq_layer {
            path: texts.path.as_ptr(),
            operation: texts.operation.as_ptr(),
            source: texts.source.as_ptr(),
            reason: texts.reason.as_ref().map_or(std::ptr::null(), |reason| reason.as_ptr()),
        };
        // SAFETY: the caller's promise.
        unsafe { room.put(layer) };
        Ok(())
    })
}

/// How many kinds of `quantized::` operators a converted module has, into `*count`; 0 for `jq_quantizer_inspect`. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_report_operator_count(report: *const jq_report, count: *mut usize) -> jq_status {
    enter(|| {
        let room = argument::room(count, "count")?;
        let report = handle::resolve(report, "report")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(report.operators.len()) };
        Ok(())
    })
}

/// The name of operator kind `index` without `quantized::`, into `*name`, and how many nodes there are, into `*nodes`.
/// The name belongs to the report and goes with it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_report_operator(
    report: *const jq_report,
    index: usize,
    name: *mut *const c_char,
    nodes: *mut usize,
) -> jq_status {
    enter(|| {
        let (name_room, nodes_room) = (argument::room(name, "name")?, argument::room(nodes, "nodes")?);
        let report = handle::resolve(report, "report")?;
        let (name, nodes) = &report.operators[argument::index(index, report.operators.len(), "operators")?];
        // SAFETY: the caller's promise.
        unsafe {
            name_room.put(name.as_ptr());
            nodes_room.put(*nodes);
        }
        Ok(())
    })
}

/// What the check at the end of `jq_prepared_convert` measured, into `*check`: `samples` is 0 where nothing was checked (no
/// samples, a check that was switched off, `jq_quantizer_inspect`). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_report_check(report: *const jq_report, check: *mut jq_check) -> jq_status {
    enter(|| {
        let room = argument::room(check, "check")?;
        let report = handle::resolve(report, "report")?;
        let known = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
        let found = report.check.clone().unwrap_or_default();
        let found = jq_check {
            samples: found.samples,
            sqnr_db: known(found.sqnr_db),
            agreement: known(found.agreement),
            speed_up: known(found.speed_up),
        };
        // SAFETY: the caller's promise.
        unsafe { room.put(found) };
        Ok(())
    })
}

/// Frees the report and its texts. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_report_free(report: *mut jq_report) -> jq_status {
    enter(|| handle::release(report, "report"))
}
