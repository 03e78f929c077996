//! The check at the end of a conversion: the float model and the INT8 one, read back as a file, run on the same samples.
//!
//! What does not fit (an exception, another structure, shape or type, NaN, or outputs with more noise than a tenth of the
//! signal) is not given to the caller: [`crate::control`] finds the layers where it begins and leaves them in float.

mod fit;
mod speed;

pub(crate) use self::fit::{Fit, Misfit};
pub use self::speed::SlowLayer;
use crate::error::{Context, Result};
use crate::ir::{FORWARD, IValue, Module};
use crate::replay::samples_in;
use crate::watch::step;

/// Samples that are compared at most.
const SAMPLES: usize = 32;
/// Bytes of samples that are kept for it at most, beside the first batch.
const BYTES: usize = 64 << 20;
/// The least SQNR of an output, in dB, where nobody says another.
pub(crate) const LEAST_DB: f64 = 10.0;

/// Two runs of one model come at least this near each other, in dB, where nothing in it is random.
const SAME_DB: f64 = 60.0;

/// What the check at the end of a conversion found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Check {
    /// How many samples both models ran on.
    pub samples: usize,
    /// Signal to quantization noise ratio of the outputs in dB: infinite (`null` in JSON) where nothing differs; `None` where
    /// no output is a floating-point tensor.
    pub sqnr_db: Option<f64>,
    /// The share of samples for which both put the same class first; `None` where the first output is not `samples x
    /// classes`.
    pub agreement: Option<f64>,
    /// The float model's time over the INT8 model's, medians, for one sample on this machine; `None` where not measured.
    pub speed_up: Option<f64>,
    /// Where the INT8 model is slower: the layers that INT8 makes slower, the worst first.
    pub slower: Vec<SlowLayer>,
    /// The layers that the check left in float, with why.
    pub left_in_float: Vec<String>,
    /// Outputs that could not be compared, with why.
    pub notes: Vec<String>,
}

/// Batches for the check: the first ones, up to 32 samples.
#[derive(Clone, Debug, Default)]
pub(crate) struct CheckSamples {
    batches: Vec<Vec<IValue>>,
    samples: usize,
    bytes: usize,
}

impl CheckSamples {
    /// Keeps a copy of the batch while there are too few.
    ///
    /// # Errors
    /// Where memory is short.
    pub fn keep(&mut self, batch: &[IValue]) -> Result<()> {
        if self.samples >= SAMPLES || self.bytes >= BYTES {
            return Ok(());
        }
        self.batches.push(copies(batch)?);
        self.samples += samples_in(batch);
        self.bytes += batch.iter().flat_map(IValue::tensors).map(crate::ir::Tensor::nbytes).sum::<usize>();
        Ok(())
    }

    /// The batches.
    pub fn batches(&self) -> &[Vec<IValue>] {
        &self.batches
    }
}

/// The arguments of a run that may write into them.
fn copies(batch: &[IValue]) -> Result<Vec<IValue>> {
    batch.iter().map(IValue::deep_clone).collect()
}

/// The float model's outputs on the samples of the check.
pub(crate) struct Reference<'b> {
    float: &'b Module,
    batches: &'b [Vec<IValue>],
    outputs: Vec<IValue>,
    sizes_vary: bool,
    least_db: f64,
}

impl<'b> Reference<'b> {
    /// Runs a copy of `float`.
    ///
    /// # Errors
    /// Where it fails.
    pub fn of(float: &'b Module, batches: &'b [Vec<IValue>], least_db: f64) -> Result<Self> {
        let mut outputs = Vec::new();
        let copy = float.clone_with_own_state()?;
        for (done, batch) in batches.iter().enumerate() {
            step("checking the INT8 model", done, 2 * batches.len())?;
            outputs.push(copy.call::<IValue>(FORWARD, &copies(batch)?).context(|| "running the float model".into())?);
        }
        Ok(Self { float, batches, outputs, sizes_vary: sizes_vary(float)?, least_db })
    }

    /// What both models run on.
    pub fn batches(&self) -> &[Vec<IValue>] {
        self.batches
    }

    /// Compares `int8`, written to a file and read again, with the float model: the figures and what was read.
    ///
    /// # Errors
    /// Where it cannot be compared at all. The inner result is how the two do not fit.
    pub fn compare(&self, int8: &Module) -> Result<std::result::Result<(Fit, Module), Misfit>> {
        let fresh = match int8.save_bytes().and_then(|bytes| Module::load_bytes(&bytes)) {
            Ok(fresh) => fresh,
            Err(error) => return Ok(Err(Misfit::Fails(format!("its file cannot be loaded: {error}")))),
        };
        let mut fit = Fit::default();
        for (done, (batch, float)) in std::iter::zip(self.batches, &self.outputs).enumerate() {
            step("checking the INT8 model", self.batches.len() + done, 2 * self.batches.len())?;
            let output = match fresh.call::<IValue>(FORWARD, &copies(batch)?) {
                Ok(output) => output,
                Err(error) => return Ok(Err(Misfit::Fails(error.to_string()))),
            };
            if let Err(misfit) = fit.add(float, &output, samples_in(batch).max(1), self.sizes_vary)? {
                return Ok(Err(misfit));
            }
        }
        match fit.verdict(self.least_db) {
            Err(_) if self.is_random()? => Ok(Ok((
                Fit::incomparable("the float model gives other outputs each time (dropout, random numbers)"),
                fresh,
            ))),
            verdict => Ok(verdict.map(|()| (fit, fresh))),
        }
    }

    /// Whether two copies of the float model give different outputs for the same batch.
    fn is_random(&self) -> Result<bool> {
        let (Some(batch), Some(output)) = (self.batches.first(), self.outputs.first()) else { return Ok(false) };
        let again = self.float.clone_with_own_state()?.call::<IValue>(FORWARD, &copies(batch)?)?;
        let mut fit = Fit::default();
        let same = fit.add(output, &again, samples_in(batch).max(1), self.sizes_vary)?;
        Ok(same.and_then(|()| fit.verdict(SAME_DB)).is_err())
    }
}

/// Whether operators of the model choose sizes by values, so that rounding may change how many boxes or tokens there are.
fn sizes_vary(module: &Module) -> Result<bool> {
    for (_, part) in module.modules() {
        for method in part.method_names() {
            let graph = part.graph(&method)?;
            let chooses = |kind: &str| {
                let name = kind.rsplit("::").next().unwrap_or(kind);
                matches!(name, "nms" | "nonzero" | "nonzero_numpy" | "masked_select" | "argwhere")
                    || name.starts_with("unique")
                    || name.starts_with("_unique")
            };
            let by_mask = |node: &crate::ir::Node<'_>| matches!(node.kind(), "aten::index" | "aten::topk");
            if graph.all_nodes().iter().any(|node| chooses(node.kind()) || by_mask(node)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

impl Check {
    /// What is said of a model that fits.
    pub(crate) fn of(fit: &Fit) -> Self {
        Self {
            samples: fit.samples(),
            sqnr_db: fit.has_figures().then(|| fit.total.sqnr_db()),
            agreement: fit.total.top1_agreement(),
            notes: fit.incomparable.clone(),
            ..Self::default()
        }
    }

    /// Measures both models on one sample of the check.
    pub(crate) fn measure_speed(&mut self, float: &Module, int8: &Module, batch: &[IValue]) -> Result<()> {
        step("measuring its speed", 0, 1)?;
        let Some((speed_up, slower)) = speed::measure(float, int8, batch)? else { return Ok(()) };
        (self.speed_up, self.slower) = (Some(speed_up), slower);
        Ok(())
    }
}
