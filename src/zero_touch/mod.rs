//! Quantization of applications that do not know of it: each model that one loads is replaced by one that records its
//! ranges, or by an INT8 one made with recorded ranges. docs/zero-touch.md is the guide.

#[allow(unsafe_code)]
mod recorder;
mod stand_in;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::engine;
use crate::error::{Error, Result};
use crate::ir::ffi::bridge::leave_inference_mode;
use crate::ir::{AttributeInfo, Module};
use crate::quantizer::{ModelForm, Quantizer};
use crate::ranges::{Model, Recorded, fingerprint, key, restore, watched};

/// The environment variable that says what to do.
const VARIABLE: &str = "JITQUANT";

/// What to do with models.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    /// Record ranges in this file.
    Observe(PathBuf),
    /// Make INT8 models with the ranges in this file.
    Quantize(PathBuf),
}

impl Mode {
    fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("observe", path)) if !path.is_empty() => Ok(Self::Observe(path.into())),
            Some(("quantize", path)) if !path.is_empty() => Ok(Self::Quantize(path.into())),
            _ => Err(Error::invalid(format!("{VARIABLE}={text}: observe:FILE and quantize:FILE are accepted"))),
        }
    }
}

/// What the environment asks for; an error is said once.
static MODE: LazyLock<Option<Mode>> = LazyLock::new(|| {
    let text = std::env::var(VARIABLE).ok()?;
    Mode::parse(&text).map_err(|e| say(&e.to_string())).ok()
});

/// Tells the user: the application has no other way to hear of it.
fn say(text: &str) {
    eprintln!("jitquant: {text}");
}

/// Says of a model why it is left alone, once.
fn say_once(fingerprint: u64, why: &str) {
    static SAID: Mutex<Option<HashSet<u64>>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.get_or_insert_default().insert(fingerprint) {
        say(&format!("model {} runs in float: {why}", key(fingerprint)));
    }
}

/// What `module`, just loaded, is to be replaced by; `None` where it stays.
///
/// # Errors
/// Where libtorch refuses to let it be read.
pub(crate) fn replacement(module: &Module) -> Result<Option<Module>> {
    let Some(mode) = &*MODE else { return Ok(None) };
    // A model that an application saved while it was observed.
    if stand_in::has_forward_of_another(module) {
        return Ok(None);
    }
    // The application may be in inference mode now and not when it runs the model.
    let _normal = leave_inference_mode();
    let fingerprint = fingerprint(module)?;
    let replaced = match mode {
        Mode::Observe(path) => observed(module, fingerprint, path),
        Mode::Quantize(path) => Recorded::load(path).and_then(|recorded| match recorded.model(fingerprint) {
            Some(model) => quantized(module, model),
            None => Err(Error::file(path, "nothing is recorded there for it; run it with observe first")),
        }),
    };
    match replaced {
        Ok(module) => Ok(Some(module)),
        Err(why) => {
            say_once(fingerprint, &why.to_string());
            Ok(None)
        }
    }
}

/// A module that records its ranges in the file at `path`; all else that it was is still there.
fn observed(module: &Module, fingerprint: u64, path: &std::path::Path) -> Result<Module> {
    let prepared = Quantizer::static_ptq().check(false).prepare(module)?;
    let replacement = stand_in::with_forward_of(prepared.module(), module)?;
    crate::observer::observe_leniently();
    recorder::record(fingerprint, watched(prepared.module())?, path);
    Ok(replacement)
}

/// Gives `replacement` the attributes of `module` itself that it lacks and that `wanted` takes, with their values. `training`
/// is one of them: a module without it is in training mode to libtorch.
fn give_attributes(replacement: &Module, module: &Module, wanted: impl Fn(&AttributeInfo) -> bool) -> Result<()> {
    let ty = module.type_of();
    for attribute in module.attributes().iter().filter(|attribute| wanted(attribute)) {
        let AttributeInfo { name, is_parameter, is_buffer, .. } = attribute;
        if !replacement.has_attribute(name) {
            let value = module.attribute(name)?;
            replacement.register(name, &ty.attribute(name)?, &value, *is_parameter, *is_buffer)?;
        }
    }
    if let Ok(training) = module.attribute("training") {
        replacement.set_attribute("training", &training)?;
    }
    Ok(())
}

/// The INT8 module that the recorded ranges give; every method is still there, and every attribute that is no tensor.
fn quantized(module: &Module, recorded: &Model) -> Result<Module> {
    let others = module.method_names().into_iter().filter(|method| method != "forward");
    let quantizer = others.fold(Quantizer::static_ptq().form(ModelForm::Native), Quantizer::preserve);
    let prepared = quantizer.prepare(module)?;
    let missing = restore(prepared.module(), recorded)?;
    if let Some(tensor) = missing.first() {
        let count = missing.len();
        return Err(Error::invalid(format!(
            "nothing was recorded for {count} tensors ({tensor}, …): record again with this version of jitquant"
        )));
    }
    let native = prepared.convert()?.module;
    // Operators of libtorch's that have no native form run on our kernels too, where they call them.
    engine::accelerate(&native)?;
    // Float weights would be kept in memory.
    give_attributes(&native, module, |attribute| !attribute.is_module && attribute.type_name != "Tensor")?;
    Ok(native)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_a_mode_and_a_file() {
        assert_eq!(Mode::parse("observe:a:b.jq").unwrap(), Mode::Observe("a:b.jq".into()));
        assert_eq!(Mode::parse("quantize:/x/calib.jq").unwrap(), Mode::Quantize("/x/calib.jq".into()));
        for wrong in ["", "observe", "observe:", "record:x"] {
            assert!(Mode::parse(wrong).unwrap_err().to_string().contains("observe:FILE"));
        }
    }
}
