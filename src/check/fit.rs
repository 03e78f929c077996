//! Whether what an INT8 model returns fits what the float model returns, output by output.

use crate::error::Result;
use crate::ir::{IValue, Tensor};
use crate::measure::Comparison;

/// How the two models' outputs do not fit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Misfit {
    /// The INT8 model fails where the float model does not: what it says.
    Fails(String),
    /// It returns something of another structure, shape or type: what.
    Structure(String),
    /// It returns NaN or infinity where the float model returns numbers: in which output.
    NotFinite(String),
    /// The noise is too high.
    Noisy {
        /// The noisiest output.
        output: String,
        /// Its signal to quantization noise ratio in dB.
        sqnr_db: f64,
    },
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fails(why) => write!(f, "the INT8 model fails on data that the float model takes: {why}"),
            Self::Structure(what) => write!(f, "the INT8 model returns something else than the float model: {what}"),
            Self::NotFinite(output) => {
                write!(f, "{output} of the INT8 model is NaN or infinite where the float model's is not")
            }
            Self::Noisy { output, sqnr_db } => {
                write!(f, "{output} of the INT8 model is {sqnr_db:.1} dB from the float model's")
            }
        }
    }
}

/// The figures of all outputs over all batches so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fit {
    /// All floating-point outputs together.
    pub total: Comparison,
    /// Each floating-point output, in order.
    outputs: Vec<(String, Comparison)>,
    /// Outputs that could not be compared, with why.
    pub incomparable: Vec<String>,
    samples: usize,
}

impl Fit {
    /// Of outputs that cannot be compared, with why.
    pub fn incomparable(why: &str) -> Self {
        Self { incomparable: vec![why.to_owned()], ..Self::default() }
    }

    /// Takes in what both models returned for `samples` samples. `sizes_vary` says that the model's operators choose sizes by
    /// values (non-maximum suppression and its kind): outputs of other lengths are then noted, not refused.
    ///
    /// # Errors
    /// Where a tensor cannot be read. The inner result is how the two do not fit.
    pub fn add(
        &mut self,
        float: &IValue,
        int8: &IValue,
        samples: usize,
        sizes_vary: bool,
    ) -> Result<std::result::Result<(), Misfit>> {
        let mut pairs = Vec::new();
        if let Err(what) = pair(float, int8, "the output".to_owned(), &mut pairs) {
            if !sizes_vary {
                return Ok(Err(Misfit::Structure(what)));
            }
            self.note(what);
        }
        for (index, (name, float, int8)) in pairs.into_iter().enumerate() {
            if float.shape() != int8.shape() || float.dtype() != int8.dtype() {
                let what = format!("{name} is {float:?} in float and {int8:?} in INT8");
                let same_kind = float.dtype() == int8.dtype() && float.shape().len() == int8.shape().len();
                if sizes_vary && same_kind {
                    self.note(what);
                    continue;
                }
                return Ok(Err(Misfit::Structure(what)));
            }
            if !float.dtype().is_some_and(|dtype| dtype.is_floating()) {
                continue;
            }
            let (mut reference, mut other) = (float.to_f32_vec()?, int8.to_f32_vec()?);
            if std::iter::zip(&reference, &other).any(|(float, int8)| float.is_finite() && !int8.is_finite()) {
                return Ok(Err(Misfit::NotFinite(name)));
            }
            // A mask of infinities is no signal, and neither is what the float model could not compute.
            for (float, int8) in std::iter::zip(&mut reference, &mut other) {
                if !float.is_finite() {
                    (*float, *int8) = (0.0, 0.0);
                }
            }
            if reference.is_empty() {
                continue;
            }
            let rows = if reference.len().is_multiple_of(samples) { samples } else { 1 };
            self.total.add(&reference, &other, rows);
            let shape = float.shape();
            if index == 0 && shape.len() == 2 && shape[0] == samples as i64 && shape[1] > 1 {
                self.total.add_classes(&reference, &other, samples);
            }
            match self.outputs.iter_mut().find(|(known, _)| *known == name) {
                Some((_, comparison)) => comparison.add(&reference, &other, rows),
                None => {
                    let mut comparison = Comparison::default();
                    comparison.add(&reference, &other, rows);
                    self.outputs.push((name, comparison));
                }
            }
        }
        self.samples += samples;
        Ok(Ok(()))
    }

    fn note(&mut self, what: String) {
        if !self.incomparable.contains(&what) && self.incomparable.len() < 4 {
            self.incomparable.push(what);
        }
    }

    /// Whether the outputs together, and each one, come to `least` dB.
    ///
    /// An output next to which the others are a million times as large, in power, is no signal of its own.
    pub fn verdict(&self, least: f64) -> std::result::Result<(), Misfit> {
        let loudest = self.outputs.iter().map(|(_, comparison)| comparison.signal()).fold(0.0, f64::max);
        let counts = |comparison: &Comparison| comparison.signal() > loudest * 1e-6;
        let worst = self
            .outputs
            .iter()
            .filter(|(_, comparison)| counts(comparison))
            .min_by(|(_, one), (_, other)| one.sqnr_db().total_cmp(&other.sqnr_db()));
        match worst {
            Some((output, comparison)) if comparison.sqnr_db() < least => {
                Err(Misfit::Noisy { output: output.clone(), sqnr_db: comparison.sqnr_db() })
            }
            _ => Ok(()),
        }
    }

    /// How many samples were compared.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Whether there is a floating-point output.
    pub fn has_figures(&self) -> bool {
        !self.outputs.is_empty()
    }
}

/// The tensors of two outputs side by side, with their names (`the output [1].scores`).
///
/// # Errors
/// What differs, where the two are not built alike.
fn pair<'v>(
    float: &'v IValue,
    int8: &'v IValue,
    name: String,
    pairs: &mut Vec<(String, &'v Tensor, &'v Tensor)>,
) -> std::result::Result<(), String> {
    let differ = |what: String| Err(format!("{name} {what}"));
    match (float, int8) {
        (IValue::Tensor(float), IValue::Tensor(int8)) => {
            pairs.push((name, float, int8));
            Ok(())
        }
        (IValue::Tuple(one), IValue::Tuple(other))
        | (IValue::List { items: one, .. }, IValue::List { items: other, .. }) => {
            if one.len() != other.len() {
                return differ(format!("has {} items in float and {} in INT8", one.len(), other.len()));
            }
            let mut items = std::iter::zip(one, other).enumerate();
            items.try_for_each(|(index, (one, other))| pair(one, other, format!("{name} [{index}]"), pairs))
        }
        (IValue::Dict { items: one, .. }, IValue::Dict { items: other, .. }) => {
            if one.len() != other.len() {
                return differ(format!("has {} keys in float and {} in INT8", one.len(), other.len()));
            }
            for (key, value) in one {
                let words = words(key);
                let found = other.iter().find(|(known, _)| self::words(known) == words);
                let Some((_, found)) = found else { return differ(format!("has no key {words} in INT8")) };
                pair(value, found, format!("{name} [{words}]"), pairs)?;
            }
            Ok(())
        }
        (one, other) if one.kind() != other.kind() => {
            differ(format!("is a {} in float and a {} in INT8", one.kind(), other.kind()))
        }
        _ => Ok(()),
    }
}

fn words(key: &IValue) -> String {
    match key {
        IValue::Str(text) => format!("\"{text}\""),
        IValue::Int(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[i64]) -> IValue {
        IValue::Tensor(Tensor::from_slice(values, shape).unwrap())
    }

    fn misfit(float: &IValue, int8: &IValue) -> Option<Misfit> {
        let mut fit = Fit::default();
        fit.add(float, int8, 2, false).unwrap().and_then(|()| fit.verdict(10.0)).err()
    }

    #[test]
    fn outputs_fit_where_they_are_near() {
        let float = tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
        assert_eq!(misfit(&float, &tensor(&[1.1, 2.0, 3.0, 4.0], &[2, 2])), None);
        assert!(matches!(misfit(&float, &tensor(&[4.0, 2.0, 3.0, 1.0], &[2, 2])), Some(Misfit::Noisy { .. })));
        let broken = misfit(&float, &tensor(&[f32::NAN, 2.0, 3.0, 4.0], &[2, 2])).unwrap();
        assert_eq!(broken, Misfit::NotFinite("the output".into()));
        assert!(matches!(misfit(&float, &tensor(&[1.0, 2.0, 3.0, 4.0], &[4])), Some(Misfit::Structure(_))));
    }

    #[test]
    fn every_output_counts() {
        let large = tensor(&[100.0, 200.0], &[2]);
        let float = IValue::Tuple(vec![large.clone(), tensor(&[1.0, -1.0], &[2])]);
        let int8 = IValue::Tuple(vec![large.clone(), tensor(&[-1.0, 1.0], &[2])]);
        match misfit(&float, &int8) {
            Some(Misfit::Noisy { output, .. }) => assert_eq!(output, "the output [1]"),
            other => panic!("{other:?}"),
        }
        let fewer = IValue::Tuple(vec![large]);
        let what = misfit(&float, &fewer).unwrap().to_string();
        assert!(what.contains("2 items in float and 1 in INT8"), "{what}");
    }

    #[test]
    fn infinities_of_the_float_model_are_no_signal() {
        let float = tensor(&[f32::NEG_INFINITY, 2.0], &[2]);
        assert_eq!(misfit(&float, &tensor(&[f32::NEG_INFINITY, 2.0], &[2])), None);
        assert_eq!(misfit(&float, &tensor(&[-1e30, 2.0], &[2])), None);
    }

    #[test]
    fn dictionaries_are_compared_by_key() {
        let dict = |items: &[(&str, f32)]| IValue::Dict {
            key: "str".into(),
            value: "Tensor".into(),
            items: items.iter().map(|(k, v)| (IValue::Str((*k).into()), tensor(&[*v, *v], &[2]))).collect(),
        };
        assert_eq!(misfit(&dict(&[("a", 1.0), ("b", 2.0)]), &dict(&[("b", 2.0), ("a", 1.0)])), None);
        let what = misfit(&dict(&[("a", 1.0)]), &dict(&[("b", 1.0)])).unwrap().to_string();
        assert!(what.contains("no key \"a\""), "{what}");
    }

    #[test]
    fn sizes_that_depend_on_values_are_noted() {
        let (float, int8) = (tensor(&[1.0, 2.0, 3.0], &[3]), tensor(&[1.0, 2.0], &[2]));
        let mut fit = Fit::default();
        assert_eq!(fit.add(&float, &int8, 1, true).unwrap(), Ok(()));
        assert_eq!((fit.incomparable.len(), fit.has_figures()), (1, false));
    }
}
