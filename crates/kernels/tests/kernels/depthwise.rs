//! Depthwise convolutions give the bits of the definition on every instruction set, and touch no byte beyond their slices.

use crate::direct_convolution::{Case, Fill, Guarded, Side, case, check_epilogues};
use jitquant_kernels::{ConvWindow as Window, DepthwiseShape, Isa, Output, PackedDepthwise, Serial};
use proptest::prelude::*;

fn check(case: &Case) {
    let sums = case.reference();
    let shape = DepthwiseShape { channels: case.groups, multiplier: case.outputs, window: case.window };
    for isa in Isa::available() {
        for side in [Side::Begin, Side::End] {
            let weight = case.weight();
            let mut guarded = Guarded::new(weight.len(), side);
            guarded.as_mut_slice().iter_mut().zip(&weight).for_each(|(to, &from)| *to = from as u8);
            // SAFETY: u8 and i8 have one layout.
            let slice = unsafe { std::slice::from_raw_parts(guarded.as_slice().as_ptr().cast::<i8>(), weight.len()) };
            let packed = PackedDepthwise::new(isa, slice, shape, &case.weight_zero_points).expect("fits");
            assert_eq!(packed.unpack(), weight, "{} {case:?}", isa.name());
        }
        let packed = PackedDepthwise::new(isa, &case.weight(), shape, &case.weight_zero_points).expect("fits");
        let scratch = packed.scratch_len(case.spatial, case.threads).expect("fits");
        check_epilogues(case, isa, scratch, &sums, &|input, output, scratch, threads| {
            packed.run(input, case.batch, case.spatial, case.zero_point, output, scratch, threads).expect("fits");
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_instruction_set_gives_the_bits_of_the_definition(
        case in case((1..=150usize, prop_oneof![4 => Just(1usize), 1 => 2..=3usize]).prop_map(|(c, m)| (c, 1, m)))
    ) {
        check(&case);
    }
}

/// The sums of a real network's shapes and of full registers: whole blocks, a half one, overlaps, more than one line.
#[test]
fn usual_shapes() {
    for (groups, size, k, stride) in [(32, 17, 3, 1), (96, 12, 3, 2), (144, 7, 3, 1), (192, 9, 5, 1), (64, 200, 5, 2)] {
        for (fill, zero_point) in [(Fill::Random, 131), (Fill::Extreme(-128), 0), (Fill::Extreme(127), 255)] {
            check(&Case {
                batch: 1,
                spatial: [1, if size == 200 { 5 } else { size }, size],
                groups,
                inputs: 1,
                outputs: 1,
                window: Window::plane([k, k], [stride, stride], [k / 2, k / 2], [1, 1]),
                zero_point,
                weight_zero_points: vec![0],
                fill,
                seed: 5,
                threads: 3,
            });
        }
    }
}

#[test]
fn wrong_sizes_are_refused_before_anything_is_written() {
    let window = Window::plane([3, 3], [1, 1], [0, 0], [1, 1]);
    let shape = DepthwiseShape { channels: 4, multiplier: 1, window };
    let new = |weight: usize, shape, zeros: &[i32]| PackedDepthwise::new(Isa::Scalar, &vec![1; weight], shape, zeros);
    assert!(new(35, shape, &[0]).is_err_and(|e| e.to_string().contains("36")));
    assert!(new(36, shape, &[0, 0]).is_err_and(|e| e.to_string().contains("zero points")));
    assert!(new(36, shape, &[128]).is_err_and(|e| e.to_string().contains("127")));
    assert!(new(0, DepthwiseShape { channels: 0, ..shape }, &[0]).is_err());
    assert!(new(36, DepthwiseShape { multiplier: usize::MAX, ..shape }, &[0]).is_err());
    let still = Window { stride: [1, 0, 1], ..window };
    assert!(new(36, DepthwiseShape { window: still, ..shape }, &[0]).is_err_and(|e| e.to_string().contains("steps")));
    let vast = Window { kernel: [1, 200, 200], ..window };
    assert!(
        new(160_000, DepthwiseShape { window: vast, ..shape }, &[0]).is_err_and(|e| e.to_string().contains("33025"))
    );

    for isa in Isa::available() {
        let packed = PackedDepthwise::new(isa, &[1; 36], shape, &[0]).expect("fits");
        let mut scratch = vec![0; packed.scratch_len([1, 5, 5], 1).expect("fits")];
        let run = |input: usize, spatial, output: usize, scratch: &mut [u8]| {
            let mut sums = vec![77; output];
            let result = packed.run(&vec![1; input], 1, spatial, 0, Output::I32(&mut sums), scratch, &Serial);
            assert!(result.is_ok() || sums.iter().all(|&sum| sum == 77));
            result.map_err(|e| e.to_string())
        };
        assert!(run(100, [1, 5, 5], 36, &mut scratch).is_ok());
        assert!(run(99, [1, 5, 5], 36, &mut scratch).is_err_and(|e| e.contains("input has 99")));
        assert!(run(100, [1, 5, 5], 35, &mut scratch).is_err_and(|e| e.contains("output has 35")));
        assert!(run(40, [1, 5, 2], 36, &mut scratch).is_err_and(|e| e.contains("does not fit")));
        assert!(run(100, [1, usize::MAX, 5], 36, &mut scratch).is_err());
        if !scratch.is_empty() {
            assert!(run(100, [1, 5, 5], 36, &mut scratch[1..]).is_err_and(|e| e.contains("scratch")));
        }
        let mut sums: [i32; 0] = [];
        packed.run(&[], 0, [1, 5, 5], 0, Output::I32(&mut sums), &mut scratch, &Serial).expect("an empty batch");
    }
}
