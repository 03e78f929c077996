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

mod layer;
mod matching;
mod tap;

pub use layer::{Channel, Histogram, LayerFigures, OutputFigures, OutputRange, WeightFigures};

use crate::error::{Context, Error, Result};
use crate::ir::{IValue, Module};
use crate::pass::prepare::{canonicalize, flatten, prepare};
use crate::pass::stock_operators;

/// The method that is compared.
const METHOD: &str = "forward";

/// A float model and an INT8 one made from it, layer beside layer.
#[derive(Debug)]
pub struct LayerComparison {
    float: tap::Tapped,
    int8: tap::Tapped,
    layers: Vec<LayerFigures>,
    unmatched: Vec<String>,
}

impl LayerComparison {
    /// Pairs the layers of both models.
    ///
    /// The float model is flattened and its batch norms are folded, as [`Quantizer`](crate::Quantizer) does it; they stay
    /// where the INT8 model has batch norms too. A layer's partner is the first one of the same kind and shape whose
    /// weight is the same but for rounding, so that a file made by libtorch's own passes is understood as well.
    ///
    /// # Errors
    /// Where a model cannot be flattened, `int8` is in native form, or no layer of one has a partner in the other.
    pub fn new(float: &Module, int8: &Module) -> Result<Self> {
        crate::init()?;
        let int8 = evaluating(int8).and_then(|int8| flatten(&int8, &[])).context(|| "reading the INT8 model".into())?;
        let kinds = kinds(&int8)?;
        if stock_operators(&int8)?.is_empty() && kinds.iter().any(|kind| kind.starts_with("jitquant::")) {
            return Err(Error::invalid(
                "the INT8 model is in native form, whose layers are fused with what stands around them; compare layers \
                 with the portable form (quantize --form portable)",
            ));
        }
        let float = evaluating(float)?;
        let float = match kinds.iter().any(|kind| kind.contains("batch_norm")) {
            true => {
                let flat = flatten(&float, &[])?;
                canonicalize(&mut flat.graph(METHOD)?)?;
                flat
            }
            false => prepare(&float, METHOD, &[])?.0,
        };
        let matched = matching::pair(&float, &int8)?;
        if matched.layers.is_empty() {
            return Err(Error::invalid(
                "no layer of the INT8 model has the kind and the weight shape of one of the float model: they are not \
                 the same model",
            ));
        }
        Ok(Self {
            float: tap::Tapped::new(float, METHOD, &matched.float_values)?,
            int8: tap::Tapped::new(int8, METHOD, &matched.int8_values)?,
            layers: matched.layers,
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
        for ((layer, float), int8) in self.layers.iter_mut().zip(&float).zip(&int8) {
            let (float, int8) = (float.to_f32_vec()?, int8.to_f32_vec()?);
            if float.len() != int8.len() {
                return Err(Error::invalid(format!(
                    "layer '{}' gives {} values in float and {} in INT8",
                    layer.path,
                    float.len(),
                    int8.len()
                )));
            }
            layer.output.add(&float, &int8, layer.range.as_ref());
        }
        Ok(())
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
    Ok(module.graph(METHOD)?.all_nodes().into_iter().map(|node| node.kind().to_owned()).collect())
}
