//! Fake quantization, for training: `y = (clamp(round_half_even(x / s) + z, lo, hi) - z) * s` in f32, and its gradients.
//!
//! The forward pass multiplies by `1 / s` in f32 as `torch.fake_quantize_per_tensor_affine` does, and gives its bits for
//! finite `x`. NaN stays NaN, so that a diverging training shows; infinities saturate.
//!
//! Gradients are those of the straight-through estimator: rounding counts as the identity.
//! - for `x`: `dy` where `x` was not clamped, else 0;
//! - for `s` (learned step size, <https://arxiv.org/abs/1902.08153>): the sum of `dy * (round(x / s) - x / s)` where `x`
//!   was not clamped, of `dy * (lo - z)` or `dy * (hi - z)` where it was;
//! - for `z`: the sum of `-s * dy` where `x` was clamped.
//!
//! Sums are taken in blocks of a fixed size, each in lanes: the bits depend neither on the instruction set nor on the
//! number of threads.

#![allow(unsafe_code)]

use super::{Channels, Isa, Parallel};
use crate::{Error, Result};

/// A scale and a zero point for each channel, or one of each, and the integers in use.
#[derive(Clone, Copy, Debug)]
pub struct FakeQuantize<'a> {
    /// Distance of two steps, more than 0.
    pub scale: &'a [f32],
    /// The integer that 0.0 becomes; whole numbers.
    pub zero_point: &'a [f32],
    /// Where the channels lie; one channel for the whole tensor where there is one scale.
    pub channels: Channels,
    /// The smallest integer.
    pub quant_min: i32,
    /// The largest integer.
    pub quant_max: i32,
}

/// One channel's numbers.
#[derive(Clone, Copy)]
struct Steps {
    scale: f32,
    inverse: f32,
    zero_point: f32,
    low: f32,
    high: f32,
}

impl Steps {
    #[inline(always)]
    fn integer(&self, x: f32) -> f32 {
        (x * self.inverse).round_ties_even() + self.zero_point
    }
}

/// What the scale and the zero point of a block contribute to.
#[derive(Clone, Copy, Default)]
struct Sums {
    scale: f64,
    zero_point: f64,
}

/// Elements of a block; a task takes whole blocks.
const BLOCK: usize = 4096;

/// Blocks that are worth a thread's while.
const GRAIN: usize = 8;

/// Lanes of a sum.
const LANES: usize = 16;

multiversion! {
    fn forward(x: &[f32], y: &mut [f32], steps: Steps) = forward_of;
}

multiversion! {
    fn backward(dy: &[f32], x: &[f32], dx: &mut [f32], steps: Steps) = backward_of;
}

multiversion! {
    fn backward_learned(dy: &[f32], x: &[f32], dx: &mut [f32], steps: Steps) -> Sums = backward_learned_of;
}

#[inline(always)]
fn forward_of(x: &[f32], y: &mut [f32], steps: Steps) {
    for (y, x) in y.iter_mut().zip(x) {
        let integer = steps.integer(*x);
        // Comparisons and not min/max: NaN goes through.
        let integer = if integer < steps.low { steps.low } else { integer };
        let integer = if integer > steps.high { steps.high } else { integer };
        *y = (integer - steps.zero_point) * steps.scale;
    }
}

#[inline(always)]
fn backward_of(dy: &[f32], x: &[f32], dx: &mut [f32], steps: Steps) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        let integer = steps.integer(*x);
        *dx = if integer >= steps.low && integer <= steps.high { *dy } else { 0.0 };
    }
}

#[inline(always)]
fn backward_learned_of(dy: &[f32], x: &[f32], dx: &mut [f32], steps: Steps) -> Sums {
    let mut scale = [0.0f32; LANES];
    let mut zero_point = [0.0f32; LANES];
    let mut take = |lane: usize, dy: f32, x: f32, dx: &mut f32| {
        let divided = x * steps.inverse;
        let rounded = divided.round_ties_even();
        let integer = rounded + steps.zero_point;
        let (below, above) = (integer < steps.low, integer > steps.high);
        let slope = if below { steps.low - steps.zero_point } else { rounded - divided };
        let slope = if above { steps.high - steps.zero_point } else { slope };
        let clamped = below || above;
        scale[lane] += dy * slope;
        zero_point[lane] += if clamped { -steps.scale * dy } else { 0.0 };
        *dx = if clamped { 0.0 } else { dy };
    };
    let (dy_chunks, dy_rest) = dy.as_chunks::<LANES>();
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (dx_chunks, dx_rest) = dx.as_chunks_mut::<LANES>();
    for ((dx, dy), x) in dx_chunks.iter_mut().zip(dy_chunks).zip(x_chunks) {
        for lane in 0..LANES {
            take(lane, dy[lane], x[lane], &mut dx[lane]);
        }
    }
    for (lane, ((dx, dy), x)) in dx_rest.iter_mut().zip(dy_rest).zip(x_rest).enumerate() {
        take(lane, *dy, *x, dx);
    }
    let sum = |lanes: [f32; LANES]| lanes.iter().map(|value| f64::from(*value)).sum();
    Sums { scale: sum(scale), zero_point: sum(zero_point) }
}

/// Memory that tasks write disjoint parts of.
struct Shared<T>(*mut T);

// SAFETY: the pointer comes from an exclusive borrow that outlives the tasks, and each task writes its own elements.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// `at..at + len` lies inside the memory and no other task takes any of it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

impl FakeQuantize<'_> {
    /// Checks that everything fits a tensor of `len` elements.
    ///
    /// # Errors
    /// What does not fit, and what would.
    pub fn check(&self, len: usize) -> Result<()> {
        let invalid = |message: String| Err(Error(message));
        if self.channels.len() != len {
            return invalid(format!("{:?} is not the layout of {len} elements", self.channels));
        }
        if self.scale.len() != self.channels.channels || self.zero_point.len() != self.channels.channels {
            return invalid(format!(
                "{} scales and {} zero points for {} channels",
                self.scale.len(),
                self.zero_point.len(),
                self.channels.channels
            ));
        }
        if self.quant_min >= self.quant_max {
            return invalid(format!("quant_min {} should be less than quant_max {}", self.quant_min, self.quant_max));
        }
        // In f32 every integer up to here is exact.
        if self.quant_min.unsigned_abs().max(self.quant_max.unsigned_abs()) > 1 << 22 {
            return invalid(format!("quant_min {} and quant_max {}: at most 22 bits", self.quant_min, self.quant_max));
        }
        let in_range = |z: &f32| *z >= self.quant_min as f32 && *z <= self.quant_max as f32;
        if let Some(zero_point) = self.zero_point.iter().find(|z| !in_range(z)) {
            let (low, high) = (self.quant_min, self.quant_max);
            return invalid(format!("zero point {zero_point} is not within quant_min {low} and quant_max {high}"));
        }
        match self.scale.iter().find(|scale| !(**scale > 0.0 && scale.is_finite())) {
            Some(scale) => invalid(format!("scale {scale} should be positive and finite")),
            None => Ok(()),
        }
    }

    fn steps(&self, channel: usize) -> Steps {
        let scale = self.scale[channel];
        Steps {
            scale,
            inverse: 1.0 / scale,
            zero_point: self.zero_point[channel].round_ties_even(),
            low: self.quant_min as f32,
            high: self.quant_max as f32,
        }
    }

    /// Calls `work(block, channel, from, len)` for each run of elements of one channel within each block.
    fn blocks(&self, parallel: &dyn Parallel, work: impl Fn(usize, usize, usize, usize) + Sync) {
        let Channels { channels, inner, .. } = self.channels;
        let len = self.channels.len();
        let blocks = len.div_ceil(BLOCK);
        let tasks = parallel.threads().min(blocks.div_ceil(GRAIN)).max(1);
        let per_task = blocks.div_ceil(tasks);
        parallel.run(tasks, &|task| {
            for block in task * per_task..((task + 1) * per_task).min(blocks) {
                let end = ((block + 1) * BLOCK).min(len);
                let mut at = block * BLOCK;
                while at < end {
                    let row = at / inner;
                    let run = ((row + 1) * inner).min(end) - at;
                    work(block, row % channels, at, run);
                    at += run;
                }
            }
        });
    }

    /// `y` for `x`.
    ///
    /// # Errors
    /// Those of [`FakeQuantize::check`].
    pub fn forward(&self, isa: Isa, x: &[f32], y: &mut [f32], parallel: &dyn Parallel) -> Result<()> {
        self.check(x.len())?;
        self.check(y.len())?;
        let y = Shared(y.as_mut_ptr());
        self.blocks(parallel, |_, channel, at, len| {
            // SAFETY: runs lie inside `y`, which is as long as `x`, and do not overlap.
            let y = unsafe { y.part(at, len) };
            forward(isa, &x[at..at + len], y, self.steps(channel));
        });
        Ok(())
    }

    /// The gradient `dx` for that of the result, `dy`.
    ///
    /// # Errors
    /// Those of [`FakeQuantize::check`].
    pub fn backward(&self, isa: Isa, dy: &[f32], x: &[f32], dx: &mut [f32], parallel: &dyn Parallel) -> Result<()> {
        [dy.len(), x.len(), dx.len()].into_iter().try_for_each(|len| self.check(len))?;
        let dx = Shared(dx.as_mut_ptr());
        self.blocks(parallel, |_, channel, at, len| {
            // SAFETY: runs lie inside `dx`, which is as long as `x`, and do not overlap.
            let dx = unsafe { dx.part(at, len) };
            backward(isa, &dy[at..at + len], &x[at..at + len], dx, self.steps(channel));
        });
        Ok(())
    }

    /// As [`FakeQuantize::backward`], and the gradients of each channel's scale and zero point.
    ///
    /// # Errors
    /// Those of [`FakeQuantize::check`], or where `dscale` or `dzero_point` have not an element for each channel.
    #[allow(clippy::too_many_arguments)]
    pub fn backward_learned(
        &self,
        isa: Isa,
        dy: &[f32],
        x: &[f32],
        dx: &mut [f32],
        dscale: &mut [f32],
        dzero_point: &mut [f32],
        parallel: &dyn Parallel,
    ) -> Result<()> {
        [dy.len(), x.len(), dx.len()].into_iter().try_for_each(|len| self.check(len))?;
        let channels = self.channels.channels;
        if dscale.len() != channels || dzero_point.len() != channels {
            return Err(Error(format!("gradients of scale and zero point need {channels} elements each")));
        }
        let inner = self.channels.inner.max(1);
        // Each run of a channel within a block begins in the block and within a row: it has a place of its own.
        let place = |block: usize, at: usize| block + at / inner;
        let places = x.len().div_ceil(BLOCK) + x.len() / inner + 1;
        let mut sums = vec![Sums::default(); places];
        let (dx, shared) = (Shared(dx.as_mut_ptr()), Shared(sums.as_mut_ptr()));
        self.blocks(parallel, |block, channel, at, len| {
            // SAFETY: runs lie inside `dx` and do not overlap.
            let dx = unsafe { dx.part(at, len) };
            let found = backward_learned(isa, &dy[at..at + len], &x[at..at + len], dx, self.steps(channel));
            // SAFETY: a run has a place of its own.
            unsafe { shared.part(place(block, at), 1)[0] = found };
        });
        let mut totals = vec![Sums::default(); channels];
        let mut at = 0;
        while at < x.len() {
            let (block, row) = (at / BLOCK, at / inner);
            let total = &mut totals[row % channels];
            let part = sums[place(block, at)];
            total.scale += part.scale;
            total.zero_point += part.zero_point;
            at = ((block + 1) * BLOCK).min((row + 1) * inner).min(x.len());
        }
        for (channel, total) in totals.into_iter().enumerate() {
            (dscale[channel], dzero_point[channel]) = (total.scale as f32, total.zero_point as f32);
        }
        Ok(())
    }
}
