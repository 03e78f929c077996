//! Products of two activations, as attention has them.

use super::bridge::ffi::{Affine, ProductSizes};
use super::elementwise::qparams;
use super::threads::{HostThreads, in_parts};
use crate::error::{Error, Result, no_panic};
use crate::kernel::{Isa, Output, PackedGemm, Parallel, Requantize, Serial};
use std::sync::Mutex;

/// One matrix of the second operand as the kernels take weights: i8, `[n, k]`.
struct Operand {
    weight: Vec<i8>,
    n: usize,
    k: usize,
    /// Whether it is `[n, k]` in memory already.
    transposed: bool,
    zero_point: i32,
}

impl Operand {
    /// The matrix `b`, packed.
    fn pack(&mut self, b: &[u8]) -> Result<PackedGemm> {
        // u8 is i8 and 128 more; so is its zero point.
        let signed = |byte: u8| (byte ^ 0x80) as i8;
        if self.transposed {
            self.weight.iter_mut().zip(b).for_each(|(to, from)| *to = signed(*from));
        } else {
            for (column, row) in self.weight.chunks_exact_mut(self.k).enumerate() {
                row.iter_mut().zip(b[column..].iter().step_by(self.n)).for_each(|(to, from)| *to = signed(*from));
            }
        }
        Ok(PackedGemm::new(Isa::current(), &self.weight, self.n, self.k, &[self.zero_point - 128])?)
    }
}

/// Products of `[m, k]` and `[k, n]` matrices, as many as `out` has room for: each output is the clamped
/// `round(sum (a - a_zero) (b - b_zero) a_scale b_scale / scale) + zero_point`.
#[allow(clippy::too_many_arguments)]
pub(super) fn matmul_u8(
    a: &[u8],
    a_affine: Affine,
    b: &[u8],
    b_affine: Affine,
    transposed: bool,
    sizes: ProductSizes,
    to: Affine,
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let [m, k, n] = [sizes.m, sizes.k, sizes.n].map(|size| size as usize);
        let (left, right, to) =
            (qparams(&a_affine, "first input")?, qparams(&b_affine, "second input")?, qparams(&to, "output")?);
        if out.is_empty() {
            return Ok(());
        }
        if k == 0 {
            out.fill(to.zero_point as u8);
            return Ok(());
        }
        let matrices = out.len() / (m * n);
        if a.len() != matrices * m * k || b.len() != matrices * k * n {
            let lengths = [a.len(), b.len(), out.len()];
            return Err(Error::invalid(format!(
                "{lengths:?} elements are no products of {m}x{k} and {k}x{n} matrices"
            )));
        }
        let scale = [left.scale * right.scale / to.scale];
        let epilogue = Requantize {
            scale: &scale,
            bias: &[],
            zero_point: to.zero_point as u8,
            min: 0,
            max: 255,
            residual: None,
            table: None,
        };
        let run = |first: usize, out: &mut [u8], threads: &dyn Parallel| {
            let mut operand = Operand { weight: vec![0; n * k], n, k, transposed, zero_point: right.zero_point };
            for (number, out) in out.chunks_exact_mut(m * n).enumerate() {
                let gemm = operand.pack(&b[(first + number) * k * n..][..k * n])?;
                let a = &a[(first + number) * m * k..][..m * k];
                gemm.run(a, k, m, left.zero_point as u8, Output::U8(out, epilogue), n, threads)?;
            }
            Ok(())
        };
        if matrices == 1 {
            return run(0, out, &HostThreads::new());
        }
        let failure = Mutex::new(None);
        in_parts(out, m * n, m * n + k * n + m * n * k / 32, &|first, part| {
            if let Err(error) = run(first, part, &Serial)
                && let Ok(mut failure) = failure.lock()
            {
                *failure = Some(error);
            }
        });
        failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    })
}
