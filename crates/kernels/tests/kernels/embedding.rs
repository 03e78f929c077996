//! Embeddings and bags of 8 and 4 bits: every ISA gives the bits of the scalar path, which follows the order of
//! operations that its documentation states; nothing outside the slices is touched; bad indices and offsets are errors.

use crate::guarded::{cases, on_all_paths};
use jitquant_kernels::{
    Bags, EmbeddingBits, EmbeddingError, EmbeddingTable, Isa, embedding, embedding_bag, quantize_embedding,
};
use proptest::prelude::*;

fn bits() -> impl Strategy<Value = EmbeddingBits> {
    prop::sample::select(vec![EmbeddingBits::Eight, EmbeddingBits::Four])
}

/// Quantized rows of `dim` floats.
fn packed(x: &[f32], dim: usize, bits: EmbeddingBits) -> Vec<u8> {
    let mut bytes = vec![0; x.len() / dim * bits.row_bytes(dim)];
    quantize_embedding(x, dim, bits, &mut bytes);
    bytes
}

/// Rows of one magnitude each, some of them constant.
fn floats(rows: usize, dim: usize) -> impl Strategy<Value = Vec<f32>> {
    let row = (prop::collection::vec(-1.0f32..1.0, dim), prop::sample::select(vec![0.0f32, 1e-3, 1.0, 300.0]));
    let row = row.prop_map(|(row, magnitude)| row.into_iter().map(|x| x * magnitude).collect::<Vec<_>>());
    prop::collection::vec(row, rows).prop_map(|rows| rows.concat())
}

/// The 16-bit float, from its definition.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * if exponent == 0 { fraction * 2f32.powi(-24) } else { (1024.0 + fraction) * 2f32.powi(exponent - 25) }
}

/// The quantized values of a row, its scale and its bias.
fn unpacked(bytes: &[u8], dim: usize, bits: EmbeddingBits, row: usize) -> (Vec<f32>, f32, f32) {
    let bytes = &bytes[row * bits.row_bytes(dim)..][..bits.row_bytes(dim)];
    let (values, rest) = bytes.split_at(bits.value_bytes(dim));
    match bits {
        EmbeddingBits::Eight => (
            values.iter().map(|q| f32::from(*q)).collect(),
            f32::from_le_bytes(rest[..4].try_into().unwrap()),
            f32::from_le_bytes(rest[4..].try_into().unwrap()),
        ),
        EmbeddingBits::Four => (
            (0..dim).map(|c| f32::from(values[c / 2] >> (4 * (c % 2)) & 15)).collect(),
            half(u16::from_le_bytes(rest[..2].try_into().unwrap())),
            half(u16::from_le_bytes(rest[2..].try_into().unwrap())),
        ),
    }
}

fn float_bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[derive(Clone, Debug)]
struct Case {
    dim: usize,
    x: Vec<f32>,
    bits: EmbeddingBits,
    indices: Vec<i64>,
    offsets: Vec<i64>,
    weights: Option<Vec<f32>>,
    pruned: Option<Vec<i32>>,
    include_last_offset: bool,
    mean: bool,
}

fn bag_cases() -> impl Strategy<Value = Case> {
    (1..12usize, 1..200usize, 0..25usize, 0..6usize, any::<bool>()).prop_flat_map(|(rows, dim, count, bags, pruned)| {
        // Twice as many rows before pruning; the odd ones are gone.
        let known = if pruned { 2 * rows } else { rows };
        let map = (0..known as i32).map(|k| if k % 2 == 0 { k / 2 } else { -1 }).collect::<Vec<_>>();
        (
            (floats(rows, dim), bits(), prop::collection::vec(0..known as i64, count)),
            prop::collection::vec(0..=count as i64, bags),
            prop::option::of(prop::collection::vec(-2.0f32..2.0, count)),
            (any::<bool>(), any::<bool>()),
        )
            .prop_map(move |((x, bits, indices), mut offsets, weights, (include_last_offset, mean))| {
                offsets.sort_unstable();
                let pruned = pruned.then(|| map.clone());
                Case { dim, x, bits, indices, offsets, weights, pruned, include_last_offset, mean }
            })
    })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn bags_are_sums_of_rows(case in bag_cases()) {
        let Case { dim, x, bits, indices, offsets, weights, pruned, include_last_offset, mean } = case;
        let table = packed(&x, dim, bits);
        let bags = offsets.len() - usize::from(include_last_offset && !offsets.is_empty());
        let found = on_all_paths(|path| {
            let (table, indices, offsets) = (path.input(&table), path.input(&indices), path.input(&offsets));
            let (weights, pruned) = (weights.as_ref().map(|w| path.input(w)), pruned.as_ref().map(|p| path.input(p)));
            let bags_of = Bags {
                indices: &indices[..],
                offsets: &offsets[..],
                include_last_offset,
                per_sample_weights: weights.as_deref(),
                pruned_rows: pruned.as_deref(),
                mean,
            };
            let mut out = path.output(bags * dim);
            embedding_bag(path.isa, EmbeddingTable::new(&table, dim, bits), bags_of, &mut out).unwrap();
            float_bits(&out)
        });
        for bag in 0..bags {
            let start = offsets[bag] as usize;
            let end = offsets.get(bag + 1).map_or(indices.len(), |end| *end as usize);
            let mut sum = vec![0.0f32; dim];
            for position in start..end {
                let index = indices[position] as usize;
                let row = pruned.as_ref().map_or(index as i32, |map| map[index]);
                let Ok(row) = usize::try_from(row) else { continue };
                let (q, scale, bias) = unpacked(&table, dim, bits, row);
                let weight = weights.as_ref().map_or(1.0, |w| w[position]);
                for (sum, q) in sum.iter_mut().zip(q) {
                    *sum = q.mul_add(weight * scale, *sum + weight * bias);
                }
            }
            let factor = if mean && end > start { 1.0 / (end - start) as f32 } else { 1.0 };
            let expected: Vec<f32> = sum.iter().map(|sum| sum * factor).collect();
            prop_assert_eq!(&found[bag * dim..(bag + 1) * dim], &float_bits(&expected)[..], "bag {}", bag);
        }
    }

    #[test]
    fn embeddings_are_rows(
        (dim, x, bits, indices) in (1..12usize, 1..200usize, 0..20usize).prop_flat_map(|(rows, dim, count)| {
            (Just(dim), floats(rows, dim), bits(), prop::collection::vec(0..rows as i32, count))
        }),
    ) {
        let table = packed(&x, dim, bits);
        let found = on_all_paths(|path| {
            let (table, indices) = (path.input(&table), path.input(&indices));
            let mut out = path.output(indices.len() * dim);
            embedding(path.isa, EmbeddingTable::new(&table, dim, bits), &indices, &mut out).unwrap();
            float_bits(&out)
        });
        let expected: Vec<f32> = indices
            .iter()
            .flat_map(|row| {
                let (q, scale, bias) = unpacked(&table, dim, bits, *row as usize);
                q.into_iter().map(move |q| q.mul_add(scale, bias))
            })
            .collect();
        prop_assert_eq!(found, float_bits(&expected));
    }

    #[test]
    fn rows_are_quantized_by_their_own_range(
        (dim, x, bits) in (1..9usize, 1..100usize).prop_flat_map(|(rows, dim)| (Just(dim), floats(rows, dim), bits())),
    ) {
        let table = packed(&x, dim, bits);
        for (row, x) in x.chunks(dim).enumerate() {
            let (q, scale, bias) = unpacked(&table, dim, bits, row);
            let (min, max) = x.iter().fold((f32::MAX, f32::MIN), |(min, max), x| (min.min(*x), max.max(*x)));
            for (q, x) in q.into_iter().zip(x) {
                // Half a step; for 4 bits scale and bias are rounded to f16, 2^-11 of their size.
                let rounded = if bits == EmbeddingBits::Four { (max - min) / 1024.0 + min.abs() / 1024.0 } else { 0.0 };
                let bound = 0.501 * (max - min) / if bits == EmbeddingBits::Four { 15.0 } else { 255.0 } + rounded;
                prop_assert!((q * scale + bias - x).abs() <= bound + 1e-6 * x.abs() + 2e-8, "{} {} {} {}", q, scale, bias, x);
            }
        }
    }
}

/// Bags of rows 0 and 1, which hold 0 and 1.
fn bag_of(indices: &[i32], offsets: &[i32], include_last_offset: bool) -> Result<Vec<f32>, EmbeddingError> {
    let table = packed(&[0.0, 1.0], 1, EmbeddingBits::Eight);
    let mut out = vec![0.0; offsets.len() - usize::from(include_last_offset)];
    let bags = Bags { indices, offsets, include_last_offset, per_sample_weights: None, pruned_rows: None, mean: false };
    embedding_bag(Isa::current(), EmbeddingTable::new(&table, 1, EmbeddingBits::Eight), bags, &mut out)?;
    Ok(out)
}

#[test]
fn bags_may_be_empty_and_indices_unused() {
    assert_eq!(bag_of(&[1, 1, 0], &[0, 0, 1], false), Ok(vec![0.0, 1.0, 1.0]));
    assert_eq!(bag_of(&[1, 1, 1], &[1, 3], true), Ok(vec![2.0]));
    assert_eq!(bag_of(&[], &[0, 0], true), Ok(vec![0.0]));
    assert_eq!(bag_of(&[], &[], false), Ok(vec![]));
}

#[test]
fn bad_indices_and_offsets_are_errors() {
    let message = |result: Result<Vec<f32>, EmbeddingError>| result.unwrap_err().to_string();
    assert_eq!(message(bag_of(&[0, 2], &[0], false)), "index 2 at position 1 is not a row of a table of 2");
    assert_eq!(message(bag_of(&[-1], &[0], false)), "index -1 at position 0 is not a row of a table of 2");
    let offsets = "offsets must not decrease, nor exceed the 1 indices";
    assert_eq!(message(bag_of(&[0], &[1, 0], false)), format!("offset 0 at position 1: {offsets}"));
    assert_eq!(message(bag_of(&[0], &[0, 2], true)), format!("offset 2 at position 1: {offsets}"));
    assert_eq!(message(bag_of(&[0], &[2], false)), format!("offset 2 at position 0: {offsets}"));
    assert_eq!(message(bag_of(&[0], &[-1], false)), format!("offset -1 at position 0: {offsets}"));
    let table = packed(&[0.0, 1.0], 1, EmbeddingBits::Eight);
    let bags = Bags {
        indices: &[1i64],
        offsets: &[0],
        include_last_offset: false,
        per_sample_weights: None,
        pruned_rows: Some(&[0, 2]),
        mean: false,
    };
    let table = EmbeddingTable::new(&table, 1, EmbeddingBits::Eight);
    let error = embedding_bag(Isa::current(), table, bags, &mut [0.0]).unwrap_err();
    assert_eq!(error.to_string(), "index 1 of a pruned table stands for row 2, but it has 2");
    let error = embedding(Isa::current(), table, &[0, 5], &mut [0.0; 2]).unwrap_err();
    assert_eq!(error, EmbeddingError::Index { position: 1, index: 5, rows: 2 });
}

#[test]
#[should_panic(expected = "are not rows of 12")]
fn a_table_of_broken_rows_is_refused() {
    EmbeddingTable::new(&[0; 25], 4, EmbeddingBits::Eight);
}
