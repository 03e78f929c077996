//! f32 between INT8 layers: functions of one value, arithmetic with broadcasting, norms and softmax of rows, matrix
//! products, attention.
//!
//! Every kernel takes an [`Isa`](crate::Isa) and gives the bits of [`Isa::Scalar`](crate::Isa::Scalar) on each, whatever the number of threads: lanes do
//! not meet but in sums, and a sum has 32 lanes on every instruction set, value `i` in lane `i % 32`. A multiply-add rounds
//! once everywhere, which without the instruction is a slow library call: [`Isa::Scalar`](crate::Isa::Scalar) on x86-64 is for tests. A NaN is
//! a NaN: its sign and its bits are nobody's.
//!
//! Results go to a [`Target`]: as they are, or rounded to bytes on the way.
#![allow(unsafe_code)]
// Loops over a fixed number of vectors run in registers, as they are written.
#![allow(clippy::needless_range_loop)]

mod activate;
mod attention;
mod binary;
mod math;
mod matmul;
mod norm;
mod output;
mod softmax;
mod stretch;

pub use activate::activate;
pub use attention::{Attention, attention, attention_scratch_len};
pub use binary::{Arithmetic, DIMENSIONS, Strided, arithmetic};
pub use matmul::{Batch, BatchMut, Product, matmul, matmul_scratch_len};
pub use norm::{Norm, layer_norm, rms_norm};
pub use output::{Target, scratch_len};
pub use softmax::{Mask, log_softmax, softmax};
pub use stretch::{LEAST_SPAN, Stretched, add_lows, stretch_rows};

use crate::Parallel;
use crate::elementwise::simd::Simd;

/// Lanes of a sum.
const LANES: usize = 32;

/// Values that are worth a thread of their own where each costs a few operations.
const VALUES_A_TASK: usize = 1 << 14;

/// A matrix in memory, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The first row's first value and all behind it.
    pub data: &'a [f32],
    /// Values from one row's first to the next one's; 0 where all rows are the same.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `columns` values that follow each other.
    pub fn new(data: &'a [f32], columns: usize) -> Self {
        Self { data, stride: columns }
    }

    /// Row `row`, `columns` long.
    #[inline(always)]
    fn row(&self, row: usize, columns: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..columns]
    }

    fn check(&self, what: &str, rows: usize, columns: usize) {
        let needed = span(rows, columns, self.stride);
        assert!(
            needed.is_some_and(|needed| needed <= self.data.len()),
            "{what}: {rows} rows of {columns}, {} apart, do not fit {} values",
            self.stride,
            self.data.len()
        );
    }
}

/// Values from the first of `rows` rows to the end of the last one.
fn span(rows: usize, columns: usize, stride: usize) -> Option<usize> {
    if rows == 0 || columns == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(stride)?.checked_add(columns)
}

/// The end of the last row of those numbered by `sizes`, each `columns` long.
fn end(sizes: [usize; 3], strides: [usize; 3], columns: usize) -> Option<usize> {
    if sizes.contains(&0) || columns == 0 {
        return Some(0);
    }
    sizes.iter().zip(strides).try_fold(columns, |sum, (size, stride)| {
        (size - 1).checked_mul(stride).and_then(|offset| offset.checked_add(sum))
    })
}

/// A pointer that tasks share, each with elements of its own behind it.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: the pointer comes from an exclusive borrow that outlives the tasks, and each task takes its own elements.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// `len` elements from `from` on.
    ///
    /// # Safety
    /// They are within the slice that the pointer is of, and no one else uses them as long as the result lives.
    #[inline(always)]
    unsafe fn slice<'a>(self, from: usize, len: usize) -> &'a mut [T] {
        // SAFETY: by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), len) }
    }
}

/// Calls `task(number, from, to)` for ranges that together are `0..items`: at most `most`, for which there is scratch, and none
/// worth less than a thread; `values` is what one item costs.
fn split(
    threads: &dyn Parallel,
    most: usize,
    items: usize,
    values: usize,
    task: &(dyn Fn(usize, usize, usize) + Sync),
) {
    let worth = (items.saturating_mul(values) / VALUES_A_TASK).max(1);
    let tasks = most.max(1).min(worth).min(items);
    match tasks {
        0 => {}
        1 => task(0, 0, items),
        _ => threads.run(tasks, &|i| {
            // As many items each, the first ones one more.
            let (whole, more) = (items / tasks, items % tasks);
            let from = i * whole + i.min(more);
            task(i, from, from + whole + usize::from(i < more));
        }),
    }
}

/// Runs `$body` with `$n` as the constant number of vectors of `$s` in [`LANES`] lanes.
macro_rules! with_vectors {
    ($s:ty, $call:ident::<$($generic:ty),*; N>($($arg:expr),* $(,)?)) => {
        match <$s>::LANES {
            16 => $call::<$($generic,)* 2>($($arg),*),
            8 => $call::<$($generic,)* 4>($($arg),*),
            _ => $call::<$($generic,)* 32>($($arg),*),
        }
    };
}
use with_vectors;

/// The sum of all lanes: the upper half is added to the lower one until one is left.
#[inline(always)]
fn sum_lanes<S: Simd, const N: usize>(s: S, mut lanes: [S::F32; N]) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for k in 0..half {
            lanes[k] = s.add(lanes[k], lanes[k + half]);
        }
        half /= 2;
    }
    s.sum_lanes(lanes[0])
}
