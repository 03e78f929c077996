//! Matrix products of u8 activations and packed i8 weights.
#![allow(unsafe_code)]
// Rows, strips and registers are counted at compile time and index several arrays at once.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod drive;
mod dynamic;
pub(crate) mod finish;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod panels;
mod scalar;
pub(crate) mod tile;
pub(crate) mod vector;

pub use dynamic::{DynamicRows, DynamicScheme};

use drive::{Lines, Path, product};
use finish::{ActivationScale, Finish};
use panels::Panels;
use tile::Operands;

use super::geometry::count;
use super::sink::Sink;
use super::{Isa, Output, Parallel};
use crate::{Error, Result};

/// An i8 weight `[n, k]`, packed for one instruction set.
///
/// The product with activations `x` `[m, k]` is `sum_k (x[m][k] - zero_x) * (w[n][k] - zero_w[n])`, exact in i32 for any
/// operands, and goes through an epilogue: see [`Output`].
///
/// ```
/// use jitquant_kernels::{Isa, Output, PackedGemm, Serial};
///
/// let weight = PackedGemm::new(Isa::current(), &[1, 2, 3, -4, 5, -6], 2, 3, &[])?;
/// let mut sums = [0; 2];
/// weight.run(&[10, 20, 30], 3, 1, 10, Output::I32(&mut sums), 2, &Serial)?;
/// assert_eq!(sums, [1 * 0 + 2 * 10 + 3 * 20, -4 * 0 + 5 * 10 - 6 * 20]);
/// # Ok::<(), jitquant_kernels::Error>(())
/// ```
pub struct PackedGemm {
    path: Path,
    panels: Panels,
}

impl PackedGemm {
    /// Packs `weight`, row-major `[n, k]` as libtorch's linear layers have it. `zero_points` has one entry, one for each of
    /// the `n` channels, or none (all 0). Where the machine does not have `isa`, the scalar path is taken.
    ///
    /// # Errors
    /// Where lengths do not fit, a zero point is not an i8, or `k` is above 65,793, from where on a sum could overflow.
    pub fn new(isa: Isa, weight: &[i8], n: usize, k: usize, zero_points: &[i32]) -> Result<Self> {
        let path = Path::new(isa);
        Ok(Self { path, panels: path.pack(weight, n, 1, k, zero_points)? })
    }

    /// Output channels.
    pub fn n(&self) -> usize {
        self.panels.channels()
    }

    /// Products in a sum.
    pub fn k(&self) -> usize {
        self.panels.columns()
    }

    /// Writes the weight as it was given, row-major `[n, k]`.
    ///
    /// # Panics
    /// Where `weight` is shorter than `n * k`.
    pub fn unpack_into(&self, weight: &mut [i8]) {
        self.panels.unpack(weight);
    }

    /// Multiplies: `a` is `[m, k]` with rows `lda` elements apart, the output `[m, n]` with rows `ldc` elements apart.
    ///
    /// # Errors
    /// Where a slice is too short or a leading dimension smaller than a row; nothing is written then.
    pub fn run(
        &self,
        a: &[u8],
        lda: usize,
        m: usize,
        zero_point: u8,
        output: Output<'_>,
        ldc: usize,
        threads: &dyn Parallel,
    ) -> Result<()> {
        self.multiply(a, lda, m, zero_point, None, output, ldc, threads)
    }

    fn multiply(
        &self,
        a: &[u8],
        lda: usize,
        m: usize,
        zero_point: u8,
        activation_scale: Option<ActivationScale<'_>>,
        output: Output<'_>,
        ldc: usize,
        threads: &dyn Parallel,
    ) -> Result<()> {
        let (n, k) = (self.n(), self.k());
        if lda < k || ldc < n {
            return Err(Error(format!("rows of {lda} and {ldc} elements for a product with k = {k}, n = {n}")));
        }
        // Rows and the gaps between them; none behind the last one.
        let spanned = |what: &str, row: usize, step: usize| {
            count(what, &[m, step]).map(|all| if m == 0 { 0 } else { all - (step - row) })
        };
        let (needed, written) = (spanned("the input", k, lda)?, spanned("the output", n, ldc)?);
        if a.len() < needed {
            return Err(Error(format!("the input has {} elements, {needed} are needed", a.len())));
        }
        let sink = Sink::new(output, written, n)?;
        let operands = Operands { panels: &self.panels, segments: &[0], slack: false, zero_point };
        let finish = Finish { sink, activation_scale };
        let lines = Lines::matrix(a.as_ptr(), m, lda, ldc);
        // SAFETY: the lengths are checked above, rows of the output are disjoint because `ldc >= n`.
        unsafe { product(self.path, &operands, &finish, &lines, threads) };
        Ok(())
    }
}
