//! Functions of one u8 tensor as tables of 256 bytes: activations, requantization, arithmetic with a scalar.
//!
//! A function from u8 to u8 has 256 values, so an exact table is cheaper than any formula: it is computed once in
//! f32 and applied at the speed of memory.

mod activation;

pub use activation::Activation;

use super::elementwise::simd::{Kernel, Simd, dispatch};
use super::{Isa, QParams};

/// A function from u8 to u8, tabulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub struct Table([u8; 256]);

impl Table {
    /// The table of `f`, which maps floats: dequantize with `input`, apply `f`, quantize with `output`.
    ///
    /// ```
    /// use jitquant_kernels::{Isa, QParams, Table};
    /// let doubled = Table::new(QParams::new(0.1, 0), QParams::new(0.2, 7), |x| 2.0 * x);
    /// let mut out = [0; 2];
    /// doubled.apply(Isa::current(), &[0, 20], &mut out);
    /// assert_eq!(out, [7, 27]);
    /// ```
    ///
    /// # Panics
    /// If a zero point is outside 0..=255.
    pub fn new(input: QParams, output: QParams, f: impl Fn(f32) -> f32) -> Self {
        input.check::<u8>();
        output.check::<u8>();
        Self(std::array::from_fn(|q| output.quantize(f(input.dequantize(q as u8)))))
    }

    /// The table of an [`Activation`].
    ///
    /// # Panics
    /// If a zero point is outside 0..=255.
    pub fn of(activation: Activation, input: QParams, output: QParams) -> Self {
        Self::new(input, output, |x| activation.eval(x))
    }

    /// The table that changes qparams and leaves the floats as near as it can.
    ///
    /// # Panics
    /// If a zero point is outside 0..=255.
    pub fn requantize(input: QParams, output: QParams) -> Self {
        Self::new(input, output, |x| x)
    }

    /// The table with these values.
    pub const fn from_bytes(values: [u8; 256]) -> Self {
        Self(values)
    }

    /// The values, `bytes()[q]` for input `q`.
    pub fn bytes(&self) -> &[u8; 256] {
        &self.0
    }

    /// The table that applies `self`, then `next`.
    pub fn then(&self, next: &Table) -> Self {
        Self(self.0.map(|q| next.0[usize::from(q)]))
    }

    /// Looks up every byte of `x`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn apply(&self, isa: Isa, x: &[u8], out: &mut [u8]) {
        assert_eq!(x.len(), out.len(), "lengths of input and output");
        self.apply_rows(isa, std::iter::once(x), std::iter::once(out));
    }

    /// Replaces every byte of `x`.
    pub fn apply_in_place(&self, isa: Isa, x: &mut [u8]) {
        dispatch(isa, ApplyInPlace { table: &self.0, x });
    }

    /// Looks up rows, each as long as its target: the table is loaded into registers once for all of them.
    pub fn apply_rows<'a>(&self, isa: Isa, x: impl Iterator<Item = &'a [u8]>, out: impl Iterator<Item = &'a mut [u8]>) {
        dispatch(isa, Apply { table: &self.0, x, out });
    }
}

struct Apply<'t, X, O> {
    table: &'t [u8; 256],
    x: X,
    out: O,
}

impl<'a, X: Iterator<Item = &'a [u8]>, O: Iterator<Item = &'a mut [u8]>> Kernel for Apply<'_, X, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let table = s.table(self.table);
        for (x, out) in self.x.zip(self.out) {
            let mut xs = x.chunks_exact(S::BYTES);
            let mut outs = out.chunks_exact_mut(S::BYTES);
            for (x, out) in xs.by_ref().zip(outs.by_ref()) {
                s.store_u8(s.lookup(&table, s.load_u8(x)), out);
            }
            if !xs.remainder().is_empty() {
                s.store_u8(s.lookup(&table, s.load_u8(xs.remainder())), outs.into_remainder());
            }
        }
    }
}

struct ApplyInPlace<'a> {
    table: &'a [u8; 256],
    x: &'a mut [u8],
}

impl Kernel for ApplyInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let table = s.table(self.table);
        let mut blocks = self.x.chunks_exact_mut(S::BYTES);
        for x in blocks.by_ref() {
            s.store_u8(s.lookup(&table, s.load_u8(x)), x);
        }
        let rest = blocks.into_remainder();
        if !rest.is_empty() {
            s.store_u8(s.lookup(&table, s.load_u8(rest)), rest);
        }
    }
}
