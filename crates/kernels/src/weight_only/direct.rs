//! Few rows: each number of the weight is read once, made f32 in a register, and multiplied with all rows.

use super::super::gemm::vector::{STRIP, Vector};
use super::{Form, Part};

/// The most rows that go this way.
pub(super) const MOST_ROWS: usize = 4;

/// # Safety
/// The part's lengths fit, and nobody else writes its strips of the output.
#[inline(always)]
pub(super) unsafe fn product<V: Vector>(v: V, part: &Part<'_>) {
    // SAFETY: by the contract.
    unsafe {
        match part.rows {
            1 => rows::<V, 1, 4>(v, part),
            2 => rows::<V, 2, 2>(v, part),
            3 => rows::<V, 3, 1>(v, part),
            4 => rows::<V, 4, 1>(v, part),
            _ => {}
        }
    }
}

/// `ROWS` rows; `CHAINS` sums of each, one after the other of the columns, so that an addition need not wait for the one
/// before it.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn rows<V: Vector, const ROWS: usize, const CHAINS: usize>(v: V, part: &Part<'_>) {
    for strip in part.strips[0]..part.strips[1] {
        // SAFETY: by the contract.
        let sums = unsafe {
            match &part.weight.form {
                Form::Channels { scales } => channels::<V, ROWS, CHAINS>(v, part, strip, scales),
                Form::Groups { group, scales, offsets } => {
                    groups::<V, ROWS, CHAINS>(v, part, strip, *group, scales, offsets)
                }
            }
        };
        let valid = part.valid(strip);
        for row in 0..ROWS {
            // SAFETY: `valid` outputs of the strip are in the row.
            unsafe { v.store_f32(sums[row], part.y.add(row * part.weight.n + strip * STRIP), valid) };
        }
    }
}

#[inline(always)]
fn add<V: Vector>(v: V, chains: &[V::F32]) -> V::F32 {
    let mut sum = chains[0];
    for chain in &chains[1..] {
        sum = v.mul_add(*chain, v.splat_f32(1.0), sum);
    }
    sum
}

/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn channels<V: Vector, const ROWS: usize, const CHAINS: usize>(
    v: V,
    part: &Part<'_>,
    strip: usize,
    scales: &[f32],
) -> [V::F32; ROWS] {
    let k = part.weight.k;
    let (bytes, x) = (part.strip(strip).as_ptr().cast::<i8>(), part.x.as_ptr());
    let mut sums = [[v.splat_f32(0.0); CHAINS]; ROWS];
    let mut column = 0;
    // SAFETY: the strip has `k` columns of 16 bytes, each row of `x` has `k` elements.
    unsafe {
        while column + CHAINS <= k {
            for chain in 0..CHAINS {
                let w = v.load_i8(bytes.add(column.wrapping_add(chain).wrapping_mul(STRIP)));
                for row in 0..ROWS {
                    let x = v.splat_f32(*x.add(row.wrapping_mul(k).wrapping_add(column).wrapping_add(chain)));
                    sums[row][chain] = v.mul_add(w, x, sums[row][chain]);
                }
            }
            column += CHAINS;
        }
        while column < k {
            let w = v.load_i8(bytes.add(column * STRIP));
            for row in 0..ROWS {
                sums[row][0] = v.mul_add(w, v.splat_f32(*x.add(row * k + column)), sums[row][0]);
            }
            column += 1;
        }
        let scale = v.load_f32(scales.as_ptr().add(strip * STRIP), STRIP);
        let bias = part.bias(v, strip);
        sums.map(|chains| v.mul_add(add(v, &chains), scale, bias))
    }
}

/// `sum_k x w = sum_g (scale_g sum_k x q + offset_g sum_k x)`, k over group g.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn groups<V: Vector, const ROWS: usize, const CHAINS: usize>(
    v: V,
    part: &Part<'_>,
    strip: usize,
    group: usize,
    scales: &[u16],
    offsets: &[u16],
) -> [V::F32; ROWS] {
    let k = part.weight.k;
    let (bytes, x, count) = (part.strip(strip).as_ptr(), part.x.as_ptr(), k / group);
    let mut sums = [part.bias(v, strip); ROWS];
    // SAFETY: the strip has `k / 2` pairs of columns of 16 bytes, and 16 scales and offsets for each group; each row of
    // `x` has `k` elements, and a sum for each group.
    unsafe {
        for index in 0..count {
            let mut products = [[[v.splat_f32(0.0); 2]; CHAINS]; ROWS];
            let (first, end) = (index * group / 2, (index + 1) * group / 2);
            let mut pair = first;
            while pair + CHAINS <= end {
                for chain in 0..CHAINS {
                    add_pair::<V, ROWS, CHAINS>(v, bytes, x, k, pair + chain, chain, &mut products);
                }
                pair += CHAINS;
            }
            while pair < end {
                add_pair::<V, ROWS, CHAINS>(v, bytes, x, k, pair, 0, &mut products);
                pair += 1;
            }
            let place = (strip * count + index) * STRIP;
            let (scale, offset) = (v.load_bf16(scales.as_ptr().add(place)), v.load_bf16(offsets.as_ptr().add(place)));
            for row in 0..ROWS {
                let sum_of_x = v.splat_f32(*part.sums.add(row * count + index));
                sums[row] = v.mul_add(offset, sum_of_x, sums[row]);
                sums[row] = v.mul_add(add(v, products[row].as_flattened()), scale, sums[row]);
            }
        }
    }
    sums
}

/// Adds the products of columns `2 pair` and `2 pair + 1` to the sums of `chain`.
///
/// # Safety
/// The strip at `bytes` and the rows at `x`, `k` elements apart, have the columns.
#[inline(always)]
unsafe fn add_pair<V: Vector, const ROWS: usize, const CHAINS: usize>(
    v: V,
    bytes: *const u8,
    x: *const f32,
    k: usize,
    pair: usize,
    chain: usize,
    products: &mut [[[V::F32; 2]; CHAINS]; ROWS],
) {
    // SAFETY: by the contract.
    unsafe {
        let w = v.load_nibbles(bytes.add(pair.wrapping_mul(STRIP)));
        for row in 0..ROWS {
            let x = x.add(row.wrapping_mul(k).wrapping_add(pair.wrapping_mul(2)));
            let sums = &mut products[row][chain];
            sums[0] = v.mul_add(w[0], v.splat_f32(*x), sums[0]);
            sums[1] = v.mul_add(w[1], v.splat_f32(*x.add(1)), sums[1]);
        }
    }
}
