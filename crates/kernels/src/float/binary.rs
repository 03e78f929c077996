//! Arithmetic of two f32 tensors with broadcasting.

use super::activate::InPlace;
use super::{Shared, split};
use crate::elementwise::simd::{Kernel, Simd, dispatch_f32};
use crate::geometry::elements;
use crate::{Activation, Isa, Parallel};

/// An operation of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
}

/// Dimensions that a tensor here can have.
pub const DIMENSIONS: usize = 6;

/// A tensor as an operand: its values, and how many of them lie from one place of each dimension of the result to the next; 0
/// where it has but one value along it, so that a scalar has zeros only.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// The values.
    pub data: &'a [f32],
    /// A stride for each dimension of the result.
    pub strides: &'a [usize],
}

/// `function(a op b)` into `out`, contiguous of `sizes`; each operation is one of f32, rounded once, `function` as
/// [`activate`](super::activate()) has it. An operand may be any view of its slice: broadcast, cut, permuted.
///
/// ```
/// use jitquant_kernels::float::{Arithmetic, Strided, arithmetic};
/// use jitquant_kernels::{Isa, Serial};
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [10.0, 20.0]);
/// let (a, b) = (Strided { data: &a, strides: &[2, 1] }, Strided { data: &b, strides: &[0, 1] });
/// let mut out = [0.0; 4];
/// arithmetic(Isa::current(), Arithmetic::Add, a, b, &[2, 2], None, &mut out, &Serial);
/// assert_eq!(out, [11.0, 22.0, 13.0, 24.0]);
/// ```
///
/// # Panics
/// If a slice is too short, or there are more than [`DIMENSIONS`] dimensions that can not be taken together.
#[allow(clippy::too_many_arguments)]
pub fn arithmetic(
    isa: Isa,
    op: Arithmetic,
    a: Strided<'_>,
    b: Strided<'_>,
    sizes: &[usize],
    function: Option<Activation>,
    out: &mut [f32],
    threads: &dyn Parallel,
) {
    let len = elements(sizes.iter().copied()).expect("a number of values");
    assert!(out.len() >= len, "output: {} values, {len} are needed", out.len());
    a.check("left", sizes);
    b.check("right", sizes);
    if len == 0 {
        return;
    }
    let most = threads.threads().max(1);
    let nest = Nest::new(sizes, a.strides, b.strides);
    let out = Shared(out.as_mut_ptr());
    // Along the innermost dimension if it is all there is, else along the others.
    let inner = nest.sizes[DIMENSIONS - 1];
    let lines = len / inner;
    if lines == 1 {
        split(threads, most, inner.div_ceil(BLOCK), BLOCK, &|_, from, to| {
            let (from, to) = (from * BLOCK, (to * BLOCK).min(inner));
            dispatch_f32(
                isa,
                Lines { isa, op, a: a.data, b: b.data, nest, function, out, lines: [0, 1], part: [from, to] },
            );
        });
    } else {
        split(threads, most, lines, inner, &|_, from, to| {
            let lines = [from, to];
            dispatch_f32(isa, Lines { isa, op, a: a.data, b: b.data, nest, function, out, lines, part: [0, inner] });
        });
    }
}

/// Values of a long line that stay together.
const BLOCK: usize = 4096;

impl Strided<'_> {
    fn check(&self, what: &str, sizes: &[usize]) {
        assert_eq!(self.strides.len(), sizes.len(), "{what}: a stride for each dimension");
        if sizes.contains(&0) {
            return;
        }
        let last = sizes.iter().zip(self.strides).try_fold(0usize, |sum, (size, stride)| {
            (size - 1).checked_mul(*stride).and_then(|offset| offset.checked_add(sum))
        });
        let fits = last.is_some_and(|last| last < self.data.len());
        assert!(fits, "{what}: {sizes:?} with strides {:?} do not fit {} values", self.strides, self.data.len());
    }
}

/// A nest of loops, the innermost one last: sizes, and the strides of both operands.
#[derive(Clone, Copy)]
struct Nest {
    sizes: [usize; DIMENSIONS],
    strides: [[usize; DIMENSIONS]; 2],
}

impl Nest {
    /// Neighbouring dimensions that both operands can walk as one are one loop.
    fn new(sizes: &[usize], a: &[usize], b: &[usize]) -> Self {
        let mut nest = Self { sizes: [1; DIMENSIONS], strides: [[0; DIMENSIONS]; 2] };
        let mut at = DIMENSIONS;
        for d in (0..sizes.len()).rev().filter(|&d| sizes[d] != 1) {
            let strides = [a[d], b[d]];
            let joins = at < DIMENSIONS && (0..2).all(|i| strides[i] == nest.strides[i][at] * nest.sizes[at]);
            if joins {
                nest.sizes[at] *= sizes[d];
                continue;
            }
            at = at.checked_sub(1).expect("no more than six dimensions that can not be taken together");
            nest.sizes[at] = sizes[d];
            for i in 0..2 {
                nest.strides[i][at] = strides[i];
            }
        }
        nest
    }

    /// Where line `line` begins in operand `i`.
    #[inline(always)]
    fn offset(&self, i: usize, mut line: usize) -> usize {
        let mut offset = 0;
        for d in (0..DIMENSIONS - 1).rev() {
            offset += line % self.sizes[d] * self.strides[i][d];
            line /= self.sizes[d];
        }
        offset
    }
}

struct Lines<'a> {
    isa: Isa,
    op: Arithmetic,
    a: &'a [f32],
    b: &'a [f32],
    nest: Nest,
    function: Option<Activation>,
    out: Shared<f32>,
    lines: [usize; 2],
    part: [usize; 2],
}

impl Kernel for Lines<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.op {
            Arithmetic::Add => self.each::<S, ADD>(s),
            Arithmetic::Sub => self.each::<S, SUB>(s),
            Arithmetic::Mul => self.each::<S, MUL>(s),
            Arithmetic::Div => self.each::<S, DIV>(s),
        }
    }
}

const ADD: u8 = 0;
const SUB: u8 = 1;
const MUL: u8 = 2;
const DIV: u8 = 3;

#[inline(always)]
fn combine<S: Simd, const OP: u8>(s: S, a: S::F32, b: S::F32) -> S::F32 {
    match OP {
        ADD => s.add(a, b),
        SUB => s.sub(a, b),
        MUL => s.mul(a, b),
        _ => s.div(a, b),
    }
}

impl Lines<'_> {
    #[inline(always)]
    fn each<S: Simd, const OP: u8>(self, s: S) {
        let [from, to] = self.part;
        let inner = self.nest.sizes[DIMENSIONS - 1];
        let [a_step, b_step] = self.nest.strides.map(|strides| strides[DIMENSIONS - 1]);
        for line in self.lines[0]..self.lines[1] {
            let a = &self.a[self.nest.offset(0, line) + from * a_step..];
            let b = &self.b[self.nest.offset(1, line) + from * b_step..];
            // SAFETY: lines, and parts of a line, are each one task's, and `arithmetic` has checked the output's length.
            let out = unsafe { self.out.slice(line * inner + from, to - from) };
            // What the function reads again is still in cache.
            for (i, out) in out.chunks_mut(BLOCK).enumerate() {
                let (a, b) = (&a[i * BLOCK * a_step..], &b[i * BLOCK * b_step..]);
                match [a_step, b_step] {
                    [1, 1] => vectors::<S, OP>(s, &a[..out.len()], &b[..out.len()], out),
                    [1, 0] => with_right::<S, OP>(s, &a[..out.len()], b[0], out),
                    [0, 1] => with_left::<S, OP>(s, a[0], &b[..out.len()], out),
                    steps => strided::<S, OP>(s, [a, b], steps, out),
                }
                if let Some(function) = self.function {
                    dispatch_f32(self.isa, InPlace { function, values: out });
                }
            }
        }
    }
}

#[inline(always)]
fn vectors<S: Simd, const OP: u8>(s: S, a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((a, b), out) in a.chunks(S::BYTES).zip(b.chunks(S::BYTES)).zip(out.chunks_mut(S::BYTES)) {
        let (mut x, y) = (s.load_f32x4(a), s.load_f32x4(b));
        for k in 0..4 {
            x[k] = combine::<S, OP>(s, x[k], y[k]);
        }
        s.store_f32x4(x, out);
    }
}

#[inline(always)]
fn with_right<S: Simd, const OP: u8>(s: S, a: &[f32], b: f32, out: &mut [f32]) {
    let b = s.splat(b);
    for (a, out) in a.chunks(S::BYTES).zip(out.chunks_mut(S::BYTES)) {
        let mut x = s.load_f32x4(a);
        for x in &mut x {
            *x = combine::<S, OP>(s, *x, b);
        }
        s.store_f32x4(x, out);
    }
}

#[inline(always)]
fn with_left<S: Simd, const OP: u8>(s: S, a: f32, b: &[f32], out: &mut [f32]) {
    let a = s.splat(a);
    for (b, out) in b.chunks(S::BYTES).zip(out.chunks_mut(S::BYTES)) {
        let mut x = s.load_f32x4(b);
        for x in &mut x {
            *x = combine::<S, OP>(s, a, *x);
        }
        s.store_f32x4(x, out);
    }
}

#[inline(always)]
fn strided<S: Simd, const OP: u8>(s: S, [a, b]: [&[f32]; 2], [a_step, b_step]: [usize; 2], out: &mut [f32]) {
    const GATHERED: usize = 64;
    let mut gathered = [[0.0; GATHERED]; 2];
    for (i, out) in out.chunks_mut(GATHERED).enumerate() {
        let [x, y] = &mut gathered;
        for (k, (x, y)) in x.iter_mut().zip(y).take(out.len()).enumerate() {
            let place = i * GATHERED + k;
            (*x, *y) = (a[place * a_step], b[place * b_step]);
        }
        let [x, y] = &gathered;
        vectors::<S, OP>(s, &x[..out.len()], &y[..out.len()], out);
    }
}
