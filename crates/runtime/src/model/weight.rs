//! Weights as files have them, packed for no instruction set, and as kernels take them.

use std::collections::BTreeMap;

use jitquant_kernels::{ConvShape, Isa, PackedConv, PackedGemm};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::program::{Op, Weight};
use crate::{Error, Result, refuse};

/// What a layer's weight is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WeightForm {
    /// A convolution.
    Conv {
        /// Its sizes.
        shape: ConvShape,
        /// 1, 2 or 3 spatial dimensions, as the tensors have them.
        dimensions: usize,
    },
    /// A linear layer.
    Linear {
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
    },
}

impl WeightForm {
    /// Whether a step takes a weight of this form. A step of an unknown kind is asked when it is planned.
    pub(super) fn suits(&self, op: &Op) -> bool {
        match op {
            Op::Conv(_) => matches!(self, Self::Conv { .. }),
            Op::Linear(_) | Op::LinearDynamic { .. } => matches!(self, Self::Linear { .. }),
            _ => true,
        }
    }

    /// Output channels, and elements of the weight.
    fn lengths(&self) -> Result<(usize, usize)> {
        let too_large = || Error("a weight that is larger than memory".to_owned());
        match self {
            Self::Conv { shape, dimensions } => {
                shape.check()?;
                if !(1..=3).contains(dimensions) {
                    return refuse(format!("a convolution of {dimensions} dimensions"));
                }
                Ok((shape.output_channels, shape.weight_len()))
            }
            // Without elements the file would not bound the channels.
            Self::Linear { n: 0, .. } | Self::Linear { k: 0, .. } => refuse("a linear layer without elements"),
            Self::Linear { n, k } => Ok((*n, n.checked_mul(*k).ok_or_else(too_large)?)),
        }
    }
}

/// A layer's weight in libtorch's order: `[outputs, inputs / groups, ...]`, transposed `[inputs, outputs / groups, ...]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainWeight {
    /// What it is of.
    pub form: WeightForm,
    /// Its values.
    pub values: Vec<i8>,
    /// One scale, or one for each output channel.
    pub scales: Vec<f32>,
    /// None (all are 0), one, or one for each output channel.
    pub zero_points: Vec<i32>,
    /// None, or one for each output channel.
    pub bias: Vec<f32>,
}

/// The names of a weight's tensors in a file.
fn name(weight: usize, part: &str) -> String {
    format!("{weight}.{part}")
}

/// A tensor of a file: its type, sizes and bytes.
pub(super) type Stored = (Dtype, Vec<usize>, Vec<u8>);

impl PlainWeight {
    /// Its tensors, by their names in a file. Those without elements are left out.
    pub(super) fn tensors(&self, number: usize, to: &mut BTreeMap<String, Stored>) {
        let mut add = |part: &str, dtype: Dtype, bytes: Vec<u8>, len: usize| {
            if len > 0 {
                to.insert(name(number, part), (dtype, vec![len], bytes));
            }
        };
        let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        add("weight", Dtype::I8, bytemuck::cast_slice(&self.values).to_vec(), self.values.len());
        add("scales", Dtype::F32, floats(&self.scales), self.scales.len());
        add("bias", Dtype::F32, floats(&self.bias), self.bias.len());
        if self.zero_points.iter().any(|zero| *zero != 0) {
            let bytes = self.zero_points.iter().flat_map(|value| value.to_le_bytes()).collect();
            add("zero_points", Dtype::I32, bytes, self.zero_points.len());
        }
    }
}

/// A layer's weight as a model keeps it.
pub(super) struct OwnedWeight {
    packed: Packed,
    scales: Vec<f32>,
    bias: Vec<f32>,
}

enum Packed {
    Conv(Box<PackedConv>, usize),
    Linear(PackedGemm),
}

impl OwnedWeight {
    /// Packs the weight of this number for this machine.
    pub fn read(file: &SafeTensors<'_>, number: usize, form: &WeightForm) -> Result<Self> {
        let (channels, len) = form.lengths()?;
        let part = |part: &str, dtype: Dtype| bytes(file, &name(number, part), dtype);
        let values: &[i8] = bytemuck::cast_slice(part("weight", Dtype::I8)?);
        let scales = floats(part("scales", Dtype::F32)?);
        let bias = floats(part("bias", Dtype::F32)?);
        let words = part("zero_points", Dtype::I32)?.chunks_exact(4);
        let zero_points: Vec<i32> =
            words.map(|word| i32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        let one_or_each = |len: usize| len == 1 || len == channels;
        let fits = values.len() == len
            && one_or_each(scales.len())
            && (zero_points.is_empty() || one_or_each(zero_points.len()))
            && (bias.is_empty() || bias.len() == channels);
        if !fits {
            return refuse(format!(
                "weight {number}: {} values, {} scales, {} zero points and {} biases for {form:?}",
                values.len(),
                scales.len(),
                zero_points.len(),
                bias.len()
            ));
        }
        if scales.iter().chain(&bias).any(|value| !value.is_finite()) {
            return refuse(format!("weight {number}: a scale or bias that is no finite number"));
        }
        let isa = Isa::current();
        let packed = match form {
            WeightForm::Conv { shape, dimensions } => {
                Packed::Conv(Box::new(PackedConv::new(isa, values, *shape, &zero_points)?), *dimensions)
            }
            WeightForm::Linear { n, k } => Packed::Linear(PackedGemm::new(isa, values, *n, *k, &zero_points)?),
        };
        Ok(Self { packed, scales, bias })
    }

    /// The weight as a call takes it.
    pub fn weight(&self) -> Weight<'_> {
        let (scales, bias) = (&self.scales[..], &self.bias[..]);
        match &self.packed {
            Packed::Conv(packed, dimensions) => Weight::Conv { packed, dimensions: *dimensions, scales, bias },
            Packed::Linear(packed) => Weight::Linear { packed, scales, bias },
        }
    }
}

/// A tensor's bytes; none where the file does not have it.
fn bytes<'a>(file: &SafeTensors<'a>, name: &str, dtype: Dtype) -> Result<&'a [u8]> {
    match file.tensor(name) {
        Ok(tensor) if tensor.dtype() == dtype => Ok(tensor.data()),
        Ok(tensor) => refuse(format!("tensor {name} is of {:?}, not {dtype:?}", tensor.dtype())),
        Err(_) => Ok(&[]),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}
