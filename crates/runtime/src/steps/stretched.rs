//! Linear layers on rows that are stretched to their own range.

use jitquant_kernels::float::{Rows, Stretched, add_lows, scratch_len, stretch_rows};
use jitquant_kernels::{Activation, Dequantize, DynamicRows, Isa, Parallel};

use super::Kernel;
use super::elements::{floats, floats_mut};
use super::layers::{linear_weight, rows_of};
use crate::arena::ALIGNMENT;
use crate::layout::{Element, Format, Layout};
use crate::plan::{OPERANDS, Placed, Planner};
use crate::program::{Weight, WeightId};
use crate::{Error, Result, refuse};

/// The layer for known sizes.
pub(crate) struct Call {
    weight: usize,
    function: Option<Activation>,
    rows: usize,
    pub products: u64,
}

/// Bytes of floats, to the next aligned place.
fn bytes_of(floats: usize) -> usize {
    (floats * size_of::<f32>()).next_multiple_of(ALIGNMENT)
}

/// Plans it on `x`, factors, bias and, where there is one, a residual.
pub(super) fn plan(
    planner: &mut Planner<'_>,
    weight: WeightId,
    function: Option<Activation>,
    operands: &[Placed],
) -> Result<Placed> {
    let (packed, ..) = linear_weight(planner.call.weights, weight.0)?;
    let sizes = rows_of(&operands[0].layout, packed)?;
    let channels = [packed.n() as i64];
    let fits = operands[1..3].iter().all(|x| x.layout.sizes == channels);
    if !fits || operands[3..].iter().any(|x| x.layout.sizes != sizes) {
        let found: Vec<_> = operands[1..].iter().map(|x| &x.layout.sizes).collect();
        return refuse(format!("a layer that gives {sizes:?}, and {found:?}"));
    }
    let mut all = Vec::new();
    for operand in operands {
        all.push(planner.dense(operand, Format::Contiguous)?);
    }
    let (k, n) = (packed.k(), packed.n());
    let rows = all[0].layout.len() / k.max(1);
    let out = planner.result(Layout::new(Element::F32, &sizes, Format::Contiguous))?;
    let threads = planner.threads.threads().max(1);
    let scratch = 2 * bytes_of(rows) + bytes_of(scratch_len(k, threads)) + rows + rows * k;
    let call = Call { weight: weight.0, function, rows, products: (rows * k) as u64 * n as u64 };
    planner.push(Kernel::Stretched(call), &all.iter().collect::<Vec<_>>(), &out, scratch);
    Ok(out)
}

impl Call {
    pub fn run(
        &self,
        isa: Isa,
        inputs: [Option<&[u8]>; OPERANDS],
        out: &mut [u8],
        scratch: &mut [u8],
        weights: &[Weight<'_>],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let operand = |index: usize| match inputs[index] {
            Some(bytes) => floats(bytes),
            None => Err(Error("a layer without an operand".to_owned())),
        };
        let (packed, weight_scales, own_bias) = linear_weight(weights, self.weight)?;
        if !own_bias.is_empty() {
            return refuse("a bias before rows are stretched back");
        }
        let (k, rows, values) = (packed.k(), self.rows, floats_mut(out)?);
        let (lows, rest) = scratch.split_at_mut(bytes_of(rows));
        let (scales, rest) = rest.split_at_mut(bytes_of(rows));
        let (own, rest) = rest.split_at_mut(bytes_of(scratch_len(k, threads.threads().max(1))));
        let (zero_points, bytes) = rest.split_at_mut(rows);
        let (lows, scales) = (&mut floats_mut(lows)?[..rows], &mut floats_mut(scales)?[..rows]);
        let to = Stretched { bytes: &mut *bytes, lows: &mut *lows, scales: &mut *scales };
        stretch_rows(isa, Rows::new(operand(0)?, k), rows, k, self.function, to, floats_mut(own)?, threads);
        zero_points.fill(0);
        let stretched = DynamicRows { bytes, stride: k, scales, zero_points };
        let form = Dequantize { scale: weight_scales, bias: &[], min: f32::NEG_INFINITY, max: f32::INFINITY };
        packed.run_rows(stretched, rows, values, form, threads)?;
        let residual = inputs[3].map(floats).transpose()?;
        add_lows(isa, values, lows, operand(1)?, operand(2)?, residual, threads);
        Ok(())
    }
}
