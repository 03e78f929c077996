//! Which observer for which part of a model: as modules for the passes ([`QConfigDict`]), and as a user writes it down
//! ([`QConfigSpec`], in Rust or in TOML).
//!
//! ```
//! use jitquant::qconfig::QConfigSpec;
//! let spec: QConfigSpec = r#"
//!     [default]
//!     activation = { observer = "histogram", dtype = "u8" }
//!     weight = { observer = "per-channel-min-max", dtype = "i8" }
//!
//!     [modules]
//!     fc = "float"                                          # leave this part in float
//!     layer1.activation = { observer = "min-max" }          # the weight's observer is inherited
//!
//!     [classes]
//!     "torch.nn.modules.linear.Linear" = "float"
//! "#.parse()?;
//! assert_eq!(spec.modules.len(), 2);
//! # Ok::<(), jitquant::Error>(())
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ir::{Module, join_path};
use crate::methods::Methods;
use crate::observer::{ObserverConfig, ObserverKind, QRange};

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 24;

/// When activations are quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantType {
    /// With ranges that calibration found.
    #[default]
    Static,
    /// With the range of each input as it comes.
    Dynamic,
}

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

/// What an observer watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Activation,
    Weight,
}

/// Makes the module that observes.
pub(crate) type MakeObserver<'a> = &'a dyn Fn(&ObserverConfig, Role) -> Result<Module>;

/// The observers of a part of a model; what is not given is inherited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observers {
    /// Watches activations.
    pub activation: Option<ObserverConfig>,
    /// Watches weights.
    pub weight: Option<ObserverConfig>,
}

/// What a part of a model becomes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Part {
    /// `"float"`: it stays in float.
    Float(FloatMarker),
    /// It is quantized, with these observers.
    Quantized(Observers),
}

/// The word `float`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatMarker {
    /// Leave it in float.
    Float,
}

impl<'de> Deserialize<'de> for Part {
    /// The word or the table; an error says what is wrong inside of the table.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Part;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"float\", or a table with `activation`, `weight` or both")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> std::result::Result<Part, E> {
                match word {
                    "float" => Ok(Part::FLOAT),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(&crate::error::brief(other)), &self)),
                }
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, table: A) -> std::result::Result<Part, A::Error> {
                Observers::deserialize(serde::de::value::MapAccessDeserializer::new(table)).map(Part::Quantized)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Part {
    /// A part that stays in float.
    pub const FLOAT: Self = Self::Float(FloatMarker::Float);
}

/// Which observers for which part of a model, as a user writes it down. `docs/configuration.md` has an example of
/// every option.
///
/// The nearest entry decides: a submodule's own path, then its class, then what the module above it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QConfigSpec {
    /// What holds for the whole model; the observers not given here are those of [`Observers::defaults`].
    pub default: Observers,
    /// By submodule path, e.g. `features.0.conv`.
    pub modules: BTreeMap<String, Part>,
    /// By class, e.g. `torch.nn.modules.linear.Linear`, or its last part, `Linear`.
    pub classes: BTreeMap<String, Part>,
    /// What is done for accuracy besides.
    pub methods: Methods,
}

impl Observers {
    /// The observers that a quantization of type `quant_type` takes where nothing else is said.
    ///
    /// Static: a histogram for activations (u8, affine; all of it or a part, whichever loses less) and a range a channel for
    /// weights (i8, symmetric, -127 to 127), all eight bits in use. Dynamic: the activation's range is taken when the model
    /// runs; weights as in static.
    ///
    /// Without -128 a channel's largest weight is 127 steps; with it 127.5, of which half a step is lost if it is positive,
    /// and where the last bit of a float decides if it is negative.
    pub fn defaults(quant_type: QuantType) -> (ObserverConfig, ObserverConfig) {
        let activation = match quant_type {
            QuantType::Static => ObserverKind::Auto,
            QuantType::Dynamic => ObserverKind::Placeholder,
        };
        let weight = ObserverConfig {
            quant_min: Some(-127),
            quant_max: Some(127),
            ..ObserverConfig::weight(ObserverKind::PerChannelMinMax)
        };
        (ObserverConfig::new(activation), weight)
    }

    fn or(&self, above: &Self) -> Self {
        Self {
            activation: self.activation.clone().or_else(|| above.activation.clone()),
            weight: self.weight.clone().or_else(|| above.weight.clone()),
        }
    }
}

/// A class name without `__torch__.` and without the mangling of types that share a name:
/// `__torch__.torch.nn.modules.conv.___torch_mangle_3.Conv2d` is `torch.nn.modules.conv.Conv2d`.
pub fn plain_class_name(qualified: &str) -> String {
    let parts = qualified.split('.').filter(|part| *part != "__torch__" && !part.starts_with("___torch_mangle_"));
    parts.collect::<Vec<_>>().join(".")
}

impl std::str::FromStr for QConfigSpec {
    type Err = Error;

    /// Reads TOML.
    fn from_str(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| Error::invalid(crate::error::brief(&e.to_string())))
    }
}

impl QConfigSpec {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// Where it cannot be read, is not TOML, or has a key or a value that is not known; the message shows the line.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = crate::file::read_text(path, LONGEST)?;
        text.parse().map_err(|e: Error| Error::file(path, e.to_string()))
    }

    /// The entry that decides for the submodule at `path` of class `class`, if it has one of its own.
    fn own_part(&self, path: &str, class: &str) -> Option<&Part> {
        let short = class.rsplit('.').next().unwrap_or(class);
        self.modules.get(path).or_else(|| self.classes.get(class)).or_else(|| self.classes.get(short))
    }

    /// The observers for each submodule of `module` that decides for itself, and for the whole.
    ///
    /// # Errors
    /// Where a path or a class does not occur in the model (the message lists what does), or an observer's options
    /// contradict each other.
    pub fn resolve(&self, module: &Module, quant_type: QuantType) -> Result<QConfigDict> {
        self.resolve_with(module, quant_type, &|observer, _| observer.module())
    }

    /// As [`QConfigSpec::resolve`], with the modules that `make` makes of activations' and weights' observers.
    pub(crate) fn resolve_with(
        &self,
        module: &Module,
        quant_type: QuantType,
        make: MakeObserver<'_>,
    ) -> Result<QConfigDict> {
        let modules = module.modules();
        let classes: Vec<String> = modules.iter().map(|(_, m)| plain_class_name(&m.class_name())).collect();
        for path in self.modules.keys() {
            if !modules.iter().any(|(known, _)| known == path) {
                return Err(Error::invalid(format!("modules.\"{path}\": {}", unknown_path(path, &modules))));
            }
        }
        for class in self.classes.keys() {
            if !classes.iter().any(|known| known == class || known.rsplit('.').next() == Some(class)) {
                let mut known = classes.clone();
                known.sort();
                known.dedup();
                return Err(Error::invalid(format!(
                    "classes.\"{class}\": the model has no module of that class; it has {}",
                    known.join(", ")
                )));
            }
        }
        let (activation, weight) = Observers::defaults(quant_type);
        let above = self.default.or(&Observers { activation: Some(activation), weight: Some(weight) });
        let mut dict = QConfigDict::new();
        self.resolve_below(module, "", &Part::Quantized(above), quant_type, make, &mut dict)?;
        Ok(dict)
    }

    fn resolve_below(
        &self,
        module: &Module,
        path: &str,
        above: &Part,
        quant_type: QuantType,
        make: MakeObserver<'_>,
        dict: &mut QConfigDict,
    ) -> Result<()> {
        let own = self.own_part(path, &plain_class_name(&module.class_name()));
        let part = match (own, above) {
            (None, above) => above.clone(),
            (Some(Part::Quantized(own)), Part::Quantized(above)) => Part::Quantized(own.or(above)),
            (Some(Part::Quantized(own)), Part::Float(_)) => {
                let (activation, weight) = Observers::defaults(quant_type);
                let default = self.default.or(&Observers { activation: Some(activation), weight: Some(weight) });
                Part::Quantized(own.or(&default))
            }
            (Some(float), _) => float.clone(),
        };
        if own.is_some() || path.is_empty() {
            dict.insert(path.to_owned(), part.qconfig(path, quant_type, make)?);
        }
        for (name, child) in module.children() {
            self.resolve_below(&child, &join_path(path, &name), &part, quant_type, make, dict)?;
        }
        Ok(())
    }
}

impl Part {
    fn qconfig(&self, path: &str, quant_type: QuantType, make: MakeObserver<'_>) -> Result<Option<QConfig>> {
        let Self::Quantized(observers) = self else { return Ok(None) };
        let (activation, weight) = Observers::defaults(quant_type);
        let activation = observers.activation.as_ref().unwrap_or(&activation);
        let weight = observers.weight.as_ref().unwrap_or(&weight);
        let place = if path.is_empty() { "the model" } else { path };
        let wants_placeholder = quant_type == QuantType::Dynamic;
        if (activation.kind == ObserverKind::Placeholder) != wants_placeholder {
            let mode = if wants_placeholder { "dynamic" } else { "static" };
            return Err(Error::invalid(format!(
                "{place}: {mode} quantization does not go with the activation observer '{}'",
                activation.kind.name()
            )));
        }
        if weight.kind == ObserverKind::Placeholder {
            return Err(Error::invalid(format!("{place}: a weight needs an observer that looks at it")));
        }
        // torch.ao's smallest scale is meant for activations: weights of 1e-7 would be 0 and 1 step.
        let eps = if weight.eps == QRange::EPS { f32::MIN_POSITIVE } else { weight.eps };
        let weight = &ObserverConfig { eps, ..weight.clone() };
        Ok(Some(QConfig { activation: make(activation, Role::Activation)?, weight: make(weight, Role::Weight)? }))
    }
}

/// The observers for `path`: those of its own entry or of the nearest module above; `None` where that stays in float.
pub(crate) fn qconfig_for<'a>(qconfigs: &'a QConfigDict, path: &str) -> Option<&'a QConfig> {
    let mut path = path;
    loop {
        if let Some(decision) = qconfigs.get(path) {
            return decision.as_ref();
        }
        path = match (path.rsplit_once('.'), path.is_empty()) {
            (_, true) => return None,
            (Some((above, _)), _) => above,
            (None, _) => "",
        };
    }
}

/// What to say of a path that does not occur, with the paths that come nearest.
pub(crate) fn unknown_path(path: &str, modules: &[(String, Module)]) -> String {
    let mut paths: Vec<&str> = modules.iter().map(|(known, _)| known.as_str()).filter(|p| !p.is_empty()).collect();
    let shared = |known: &str| known.chars().zip(path.chars()).take_while(|(a, b)| a == b).count();
    paths.sort_by_key(|known| std::cmp::Reverse(shared(known)));
    paths.truncate(6);
    match paths.is_empty() {
        true => "the model has no submodules".to_owned(),
        false => format!("the model has no such submodule; near it are {}", paths.join(", ")),
    }
}
