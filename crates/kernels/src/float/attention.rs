//! Attention: scores, softmax and product for some rows at a time.

use super::matmul::{
    Batch, BatchMut, Factors, GROUP, Left, Panels, TILE_ROWS, chunk_rows, multiply, pack, panels_len, row_chunks,
};
use super::softmax::exponentials;
use super::{Mask, Shared, split};
use crate::elementwise::simd::{Kernel, Simd, dispatch_f32};
use crate::geometry::elements;
use crate::{Isa, Parallel};

/// The sizes and options of [`attention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Sequences, or windows.
    pub batch: usize,
    /// Heads of each.
    pub heads: usize,
    /// Queries.
    pub rows: usize,
    /// Keys and values.
    pub columns: usize,
    /// The length of a query and of a key.
    pub dim: usize,
    /// The length of a value.
    pub value_dim: usize,
    /// The factor of the scores, usually `1 / sqrt(dim)`.
    pub scale: f32,
    /// Query `i` sees the keys up to `i` only.
    pub causal: bool,
    /// A query whose scores are all -inf gives zeros, as `scaled_dot_product_attention` has it, and not NaN as softmax does.
    pub blind_is_zero: bool,
}

/// Scores that are in work at a time, at most: they stay in cache.
const SCORES: usize = 1 << 14;

/// Rows whose scores are in work at a time, at most.
const MOST_ROWS: usize = 8 * TILE_ROWS;

impl Attention {
    /// Values from one row of scores to the next. Never a power of two, which would put a tile's rows in one place of the cache.
    fn stride(&self) -> usize {
        self.columns.next_multiple_of(GROUP) + GROUP
    }

    /// Rows whose scores are in work at a time.
    fn block_rows(&self) -> usize {
        (SCORES / self.stride() / TILE_ROWS * TILE_ROWS).clamp(TILE_ROWS, MOST_ROWS)
    }

    /// Values of scratch for one task: keys, values, scores.
    fn parts(&self) -> [usize; 3] {
        let scores = elements([self.block_rows(), self.stride()]).expect("a size that memory can hold");
        [panels_len(self.dim, self.columns), panels_len(self.columns, self.value_dim), scores]
    }

    fn task_len(&self) -> usize {
        self.parts().into_iter().try_fold(0usize, usize::checked_add).expect("a size that memory can hold")
    }
}

/// Values of scratch that [`attention`] needs on `threads` threads: for each the keys and values of one head and the scores of
/// some rows.
///
/// # Panics
/// If no memory could hold them.
pub fn attention_scratch_len(attention: &Attention, threads: usize) -> usize {
    elements([attention.task_len(), threads]).expect("a size that memory can hold")
}

/// `softmax(q * transpose(k) * scale + mask) * v` for each sequence and head.
///
/// `q` is `[batch, heads, rows, dim]`, `k` `[batch, heads, columns, dim]`, `v` `[batch, heads, columns, value_dim]`, each with
/// its strides; the result `[batch, heads, rows, value_dim]`, usually with those of `[batch, rows, heads * value_dim]`.
/// `mask` is added to the scores, broadcast over what has stride 0: a padding mask, or the relative position bias of a window.
///
/// The scores exist for at most 48 rows at a time. Softmax as [`softmax`](super::softmax) without the division, which is
/// made at the end, products as [`matmul`](super::matmul). With `M` the largest size of a score, `D` of the sum of
/// sizes `sum |q k| * scale`, the error of a result is at most
/// `(dim * D + 2 M + columns * 1.5 + 8) * 2^-24 * max |v|`; usually a tenth of that.
///
/// # Panics
/// If a slice is too short, or the output's rows overlap.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    isa: Isa,
    attention: &Attention,
    q: Batch<'_>,
    k: Batch<'_>,
    v: Batch<'_>,
    mask: Option<Mask<'_>>,
    out: BatchMut<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    let &Attention { batch, heads, rows, columns, dim, value_dim, .. } = attention;
    q.check("queries", [batch, heads, rows, dim]);
    k.check("keys", [batch, heads, columns, dim]);
    v.check("values", [batch, heads, columns, value_dim]);
    out.check([batch, heads, rows], value_dim);
    if let Some(mask) = mask {
        mask.check([batch, heads, rows], columns);
    }
    let most = threads.threads().max(1);
    let needed = attention_scratch_len(attention, most);
    assert!(scratch.len() >= needed, "{} values of scratch, {needed} are needed", scratch.len());
    if [batch, heads, rows, value_dim].contains(&0) {
        return;
    }
    let chunks = row_chunks(batch * heads, rows, most);
    let (out, scratch) = ((Shared(out.data.as_mut_ptr()), out.strides), Shared(scratch.as_mut_ptr()));
    let len = attention.task_len();
    let cost = (rows.div_ceil(chunks) * columns).saturating_mul(dim + value_dim + 32) / 8 + 1;
    split(threads, most, batch * heads * chunks, cost, &|task, from, to| {
        // SAFETY: the scratch has been checked for as many tasks as there are threads, and each has its number.
        let scratch = unsafe { scratch.slice(task * len, len) };
        let attention = *attention;
        dispatch_f32(isa, Units { attention, q, k, v, mask, out, units: [from, to], chunks, scratch });
    });
}

/// Parts of heads: one task's.
struct Units<'a> {
    attention: Attention,
    q: Batch<'a>,
    k: Batch<'a>,
    v: Batch<'a>,
    mask: Option<Mask<'a>>,
    out: (Shared<f32>, [usize; 3]),
    units: [usize; 2],
    chunks: usize,
    scratch: &'a mut [f32],
}

impl Kernel for Units<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { attention, q, k, v, mask, out: (out, strides), units, chunks, scratch } = self;
        let Attention { heads, rows, columns, dim, value_dim, scale, causal, blind_is_zero, .. } = attention;
        let [keys_len, values_len, _] = attention.parts();
        let (keys, rest) = scratch.split_at_mut(keys_len);
        let (values, scores) = rest.split_at_mut(values_len);
        let (stride, block) = (attention.stride(), attention.block_rows());
        let (mut packed_keys, mut packed_values) = (None, None);
        let mut factors = [0.0f32; MOST_ROWS];
        for unit in units[0]..units[1] {
            let (matrix, chunk) = (unit / chunks, unit % chunks);
            let (batch, head) = (matrix / heads, matrix % heads);
            let [first, last] = chunk_rows(rows, chunks, chunk);
            if first == last {
                continue;
            }
            let at = k.offset(batch, head);
            if packed_keys != Some(at) {
                let data = &k.data[at.min(k.data.len())..];
                pack(s, data, [dim, columns], [k.strides[3], k.strides[2]], keys);
                packed_keys = Some(at);
            }
            let at = v.offset(batch, head);
            if packed_values != Some(at) {
                let data = &v.data[at.min(v.data.len())..];
                pack(s, data, [columns, value_dim], [v.strides[2], v.strides[3]], values);
                packed_values = Some(at);
            }
            for row in (first..last).step_by(block) {
                let end = (row + block).min(last);
                // Keys that nobody in the block sees are left out.
                let seen = if causal { columns.min(end) } else { columns };
                let from = q.offset(batch, head) + row * q.strides[2];
                let query = Left { data: q.data.as_ptr().wrapping_add(from), strides: [q.strides[2], q.strides[3]] };
                let one = Factors { data: &1.0, step: 0 };
                // SAFETY: `attention` has checked that all queries are in their slice, `keys` is packed, and there are `block`
                // rows of scores of at least `columns`.
                unsafe {
                    multiply(
                        s,
                        [end - row, dim, seen],
                        query,
                        Panels { data: keys.as_ptr(), inner: dim },
                        one,
                        scores.as_mut_ptr(),
                        stride,
                    );
                }
                for i in row..end {
                    let line = &mut scores[(i - row) * stride..][..stride];
                    let visible = if causal { seen.min(i + 1) } else { seen };
                    let mask = mask.map(|mask| mask.at([batch, head, i]));
                    let sum = exponentials(s, line, visible, scale, mask, blind_is_zero);
                    if visible < seen {
                        line[visible..seen].fill(0.0);
                    }
                    factors[i - row] = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                }
                let weights = Left { data: scores.as_ptr(), strides: [stride, 1] };
                let each = Factors { data: factors.as_ptr(), step: 1 };
                let to = batch * strides[0] + head * strides[1] + row * strides[2];
                // SAFETY: as above; `values` is packed, there is a factor for each row, and the output's rows, which were checked,
                // belong to this task.
                unsafe {
                    multiply(
                        s,
                        [end - row, seen, value_dim],
                        weights,
                        Panels { data: values.as_ptr(), inner: columns },
                        each,
                        out.0.add(to),
                        strides[2],
                    );
                }
            }
        }
    }
}
