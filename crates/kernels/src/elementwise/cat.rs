//! Concatenation, each input brought to the output's qparams.

use super::Operand;
use crate::{Isa, QParams, Table};

/// Concatenates `inputs` along an axis: the output has `outer` rows, each the rows of the inputs one after the other.
///
/// For a concatenation of NHWC tensors along channels, `outer` is N * H * W and a row is a pixel's channels. An input
/// whose qparams are the output's is copied; the others are requantized by table, `relu` with them.
///
/// # Panics
/// If an input's length is not a multiple of `outer`, the output's length is not the sum of the inputs', or a zero
/// point is outside 0..=255.
pub fn cat(isa: Isa, inputs: &[Operand<'_>], outer: usize, qparams: QParams, relu: bool, out: &mut [u8]) {
    let total: usize = inputs.iter().map(|x| x.data.len()).sum();
    assert_eq!(total, out.len(), "lengths of the inputs and the output");
    if total == 0 {
        return;
    }
    assert!(inputs.iter().all(|x| x.data.len().is_multiple_of(outer)), "an input is not {outer} rows");
    let stride = total / outer;
    let mut first = 0;
    for x in inputs {
        let width = x.data.len() / outer;
        if width == 0 {
            continue;
        }
        let rows = x.data.chunks_exact(width);
        let out_rows = out.chunks_exact_mut(stride).map(|row| &mut row[first..first + width]);
        if x.qparams == qparams && !relu {
            for (x, out) in rows.zip(out_rows) {
                out.copy_from_slice(x);
            }
        } else {
            let table = Table::new(x.qparams, qparams, |x| if relu { x.max(0.0) } else { x });
            table.apply_rows(isa, rows, out_rows);
        }
        first += width;
    }
}
