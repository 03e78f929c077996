//! Embedding look-ups with any indices, offsets and tables: an error or the scalar path's bits.
#![no_main]

use arbitrary::Arbitrary;
use jitquant_kernels::{Bags, EmbeddingBits, EmbeddingTable, embedding, embedding_bag};
use jitquant_fuzz::{exactly, on_all};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    dim: u8,
    rows: u8,
    four: bool,
    indices: Vec<i8>,
    offsets: Vec<i8>,
    include_last_offset: bool,
    weights: Option<u32>,
    pruned: Option<Vec<i8>>,
    mean: bool,
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let bits = if input.four { EmbeddingBits::Four } else { EmbeddingBits::Eight };
    let dim = usize::from(input.dim).max(1);
    let data = exactly(usize::from(input.rows % 20) * bits.row_bytes(dim), &input.bytes);
    let table = EmbeddingTable::new(&data, dim, bits);
    let indices: Box<[i64]> = input.indices.iter().map(|index| i64::from(*index)).collect();
    let offsets: Box<[i64]> = input.offsets.iter().map(|offset| i64::from(*offset)).collect();
    let weights = input.weights.map(|bits| exactly(indices.len(), &[f32::from_bits(bits)]));
    let pruned: Option<Box<[i32]>> = input.pruned.as_ref().map(|rows| rows.iter().map(|row| i32::from(*row)).collect());
    // NaN is NaN, whatever its bits: which of two operands' it is may differ.
    let seen =
        |values: &[f32]| values.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect::<Vec<_>>();
    on_all(|isa| {
        let mut rows = exactly(indices.len() * dim, &[0f32]);
        let looked_up = embedding(isa, table, &indices, &mut rows);
        let bags = Bags {
            indices: &indices,
            offsets: &offsets,
            include_last_offset: input.include_last_offset,
            per_sample_weights: weights.as_deref(),
            pruned_rows: pruned.as_deref(),
            mean: input.mean,
        };
        let mut sums = exactly(bags.len() * dim, &[0f32]);
        let summed = embedding_bag(isa, table, bags, &mut sums);
        (looked_up.map(|()| seen(&rows)), summed.map(|()| seen(&sums)))
    });
});
