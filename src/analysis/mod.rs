//! Where an INT8 model loses accuracy: the float model and the INT8 one run on the same data, and each layer's output
//! is compared.
//!
//! ```no_run
//! use jitquant::{analysis::LayerComparison, ir::{Module, Tensor}};
//! let (float, int8) = (Module::load("model.pt")?, Module::load("model.int8.pt")?);
//! let mut comparison = LayerComparison::new(&float, &int8)?;
//! let batch = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 3.0], &[2, 2])?;
//! comparison.add(&[batch])?;
//! for layer in comparison.layers() {
//!     println!("{} {:.1} dB", layer.path, layer.output.sqnr_db());
//! }
//! # Ok::<(), jitquant::Error>(())
//! ```

mod int8_layer;
mod layer;
mod matching;
mod outline;
mod tap;
mod timing;

pub(crate) use self::tap::add_tap;
pub use layer::{Channel, FloatNorm, Histogram, LayerFigures, OutputFigures, OutputRange, WeightFigures};
pub use outline::OutlineNode;
pub use timing::LayerTime;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Context, Error, Result};
use crate::ir::{FORWARD, IValue, Module};
use crate::pass::for_fbgemm;
use crate::pass::prepare::{canonicalize, flatten, prepare};
use matching::Place;
use timing::Known;

/// A float model and an INT8 one made from it, layer beside layer.
#[derive(Debug)]
pub struct LayerComparison {
    float: tap::Tapped,
    int8: tap::Tapped,
    layers: Vec<LayerFigures>,
    places: Vec<Place>,
    outline: Vec<OutlineNode>,
    float_norms: Vec<FloatNorm>,
    unmatched: Vec<String>,
}

impl LayerComparison {
    /// Pairs the layers of both models, in whichever form the second one is.
    ///
    /// The float model is flattened and its batch norms are folded, as [`Quantizer`](crate::Quantizer) does it; they stay
    /// where the INT8 model has batch norms too. A layer's partner is the first one of the same kind and shape whose
    /// weight is the same but for rounding, so that a file made by libtorch's own passes is understood as well.
    ///
    /// # Errors
    /// Where a model cannot be flattened, or no layer of one has a partner in the other.
    pub fn new(float: &Module, int8: &Module) -> Result<Self> {
        crate::init()?;
        let int8 = evaluating(int8).and_then(|int8| flatten(&int8, &[])).context(|| "reading the INT8 model".into())?;
        for_fbgemm(&mut int8.graph(FORWARD)?)?;
        let float = evaluating(float)?;
        let float = match kinds(&int8)?.iter().any(|kind| kind.contains("batch_norm")) {
            true => {
                let flat = flatten(&float, &[])?;
                canonicalize(&mut flat.graph(FORWARD)?)?;
                flat
            }
            false => prepare(&float, FORWARD, &[])?.0,
        };
        let matched = matching::pair(&float, &int8)?;
        if matched.layers.is_empty() {
            return Err(Error::invalid(
                "no layer of the INT8 model has the kind and the weight shape of one of the float model: they are not \
                 the same model",
            ));
        }
        let places = matched.places;
        let results =
            |side: fn(&Place) -> &timing::Span| places.iter().map(|place| side(place).result.clone()).collect();
        let (in_float, in_int8): (Vec<_>, Vec<_>) = (results(|place| &place.float), results(|place| &place.int8));
        Ok(Self {
            float: tap::Tapped::new(float, FORWARD, "_jitquant_results", &in_float)?,
            int8: tap::Tapped::new(int8, FORWARD, "_jitquant_results", &in_int8)?,
            layers: matched.layers,
            places,
            outline: matched.outline,
            float_norms: matched.float_norms,
            unmatched: matched.unmatched,
        })
    }

    /// Runs both models on a batch and takes each layer's outputs in.
    ///
    /// # Errors
    /// Where one of the models refuses the inputs, or a layer's two outputs differ in size.
    pub fn add<'a, T>(&mut self, inputs: &'a [T]) -> Result<()>
    where
        IValue: From<&'a T>,
    {
        let float = self.float.run(inputs).context(|| "the float model".into())?;
        let int8 = self.int8.run(inputs).context(|| "the INT8 model".into())?;
        let layers = self.layers.iter_mut().zip(&self.places);
        for ((layer, place), (float, int8)) in layers.zip(float.iter().zip(&int8)) {
            let (float, mut int8) = (float.to_f32_vec()?, int8.to_f32_vec()?);
            if float.len() != int8.len() {
                return Err(Error::invalid(format!(
                    "layer '{}' gives {} values in float and {} in INT8",
                    layer.path,
                    float.len(),
                    int8.len()
                )));
            }
            if let Some(range) = layer.range.filter(|_| place.is_bytes) {
                int8.iter_mut().for_each(|q| *q = ((f64::from(*q) - range.zero_point as f64) * range.scale) as f32);
            }
            layer.output.add(&float, &int8, layer.range.as_ref());
        }
        Ok(())
    }

    /// How long each layer takes in both models: its operators are run by themselves, in turns, on the tensors that the
    /// layer takes for `inputs`. `None` where a layer cannot be run by itself.
    ///
    /// # Errors
    /// Where one of the models refuses the inputs.
    pub fn times<'a, T>(&self, inputs: &'a [T]) -> Result<Vec<Option<LayerTime>>>
    where
        IValue: From<&'a T>,
    {
        let known = |tapped: &tap::Tapped, side: fn(&Place) -> &timing::Span| -> Result<Known> {
            let module = tapped.module();
            let names = timing::starts(module, self.places.iter().map(side))?;
            // The graph's arguments need no tap.
            let graph = module.graph(FORWARD)?;
            let arguments = graph.inputs().into_iter().skip(1).map(|value| value.debug_name());
            let mut known: Known = arguments.zip(inputs.iter().map(IValue::from)).collect();
            if !names.is_empty() {
                // The method stays with the module's class: each call needs one of its own.
                static CALLS: AtomicUsize = AtomicUsize::new(0);
                let tap = format!("_jitquant_starts_{}", CALLS.fetch_add(1, Ordering::Relaxed));
                let tensors = tap::Tapped::new(module.clone(), FORWARD, &tap, &names)?.run(inputs)?;
                known.extend(names.into_iter().zip(tensors.into_iter().map(IValue::Tensor)));
            }
            Ok(known)
        };
        let (in_float, in_int8) = (known(&self.float, |place| &place.float)?, known(&self.int8, |place| &place.int8)?);
        let (float, int8) = (self.float.module(), self.int8.module());
        let graphs = (float.graph(FORWARD)?, int8.graph(FORWARD)?);
        let time = |place: &Place| {
            let in_int8 = (&graphs.1, int8, &place.int8, &in_int8);
            timing::in_turns((&graphs.0, float, &place.float, &in_float), in_int8)
        };
        self.places.iter().map(time).collect()
    }

    /// The float model's layers and what joins them, in the order of execution.
    pub fn outline(&self) -> &[OutlineNode] {
        &self.outline
    }

    /// The norms that the INT8 model computes in float.
    pub fn float_norms(&self) -> &[FloatNorm] {
        &self.float_norms
    }

    /// The layers in the order in which the INT8 model runs them.
    pub fn layers(&self) -> &[LayerFigures] {
        &self.layers
    }

    /// Layers of the INT8 model that are not compared, each with why.
    pub fn unmatched(&self) -> &[String] {
        &self.unmatched
    }
}

fn evaluating(module: &Module) -> Result<Module> {
    let copy = module.deep_clone().context(|| "cloning the module".into())?;
    if copy.is_training() {
        copy.train(false)?;
    }
    Ok(copy)
}

fn kinds(module: &Module) -> Result<Vec<String>> {
    Ok(module.graph(FORWARD)?.all_nodes().into_iter().map(|node| node.kind().to_owned()).collect())
}
