//! Grouped convolutions give the bits of the definition on every instruction set, and touch no byte beyond their slices.

use crate::direct_convolution::{Case, Fill, Guarded, Side, case, check_epilogues};
use jitquant_kernels::{ConvWindow as Window, GroupedShape, Isa, Output, PackedGrouped, Serial};
use proptest::prelude::*;

fn check(case: &Case) {
    let sums = case.reference();
    let shape = GroupedShape { groups: case.groups, inputs: case.inputs, outputs: case.outputs, window: case.window };
    for isa in Isa::available() {
        for side in [Side::Begin, Side::End] {
            let weight = case.weight();
            let mut guarded = Guarded::new(weight.len(), side);
            guarded.as_mut_slice().iter_mut().zip(&weight).for_each(|(to, &from)| *to = from as u8);
            // SAFETY: u8 and i8 have one layout.
            let slice = unsafe { std::slice::from_raw_parts(guarded.as_slice().as_ptr().cast::<i8>(), weight.len()) };
            let packed = PackedGrouped::new(isa, slice, shape, &case.weight_zero_points).expect("fits");
            assert_eq!(packed.unpack(), weight, "{} {case:?}", isa.name());
        }
        let packed = PackedGrouped::new(isa, &case.weight(), shape, &case.weight_zero_points).expect("fits");
        let scratch = packed.scratch_len(case.spatial, case.threads).expect("fits");
        check_epilogues(case, isa, scratch, &sums, &|input, output, scratch, threads| {
            packed.run(input, case.batch, case.spatial, case.zero_point, output, scratch, threads).expect("fits");
        });
    }
}

/// Groups and their channels: those that shuffles serve, in few and in many groups, and any others.
fn groups() -> impl Strategy<Value = (usize, usize, usize)> {
    let even = (1..=20usize, prop_oneof![Just(4usize), Just(8), Just(16), Just(32)])
        .prop_map(|(groups, each)| (groups.min(160 / each), each, each));
    let any = (1..=7usize, 1..=11usize, 1..=11usize);
    prop_oneof![1 => even, 1 => any]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_instruction_set_gives_the_bits_of_the_definition(
        case in case(groups())
    ) {
        check(&case);
    }
}

/// ResNeXt's groups, with as many columns as the kernels compute at once and more than a line holds.
#[test]
fn usual_shapes() {
    for (groups, each, width) in [(32, 4, 14), (32, 8, 9), (8, 16, 7), (6, 32, 7), (32, 4, 150), (3, 32, 40)] {
        for (fill, zero_point) in [(Fill::Random, 131), (Fill::Extreme(-128), 0), (Fill::Extreme(127), 255)] {
            check(&Case {
                batch: 1,
                spatial: [1, 5, width],
                groups,
                inputs: each,
                outputs: each,
                window: Window::plane([3, 3], [1, 1], [1, 1], [1, 1]),
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
    let shape = GroupedShape { groups: 2, inputs: 4, outputs: 8, window };
    let new = |weight: usize, shape, zeros: &[i32]| PackedGrouped::new(Isa::Scalar, &vec![1; weight], shape, zeros);
    assert!(new(575, shape, &[0]).is_err_and(|e| e.to_string().contains("576")));
    assert!(new(576, shape, &[0; 2]).is_err_and(|e| e.to_string().contains("zero points")));
    assert!(new(0, GroupedShape { inputs: 0, ..shape }, &[0]).is_err());
    assert!(new(0, GroupedShape { outputs: 0, ..shape }, &[0]).is_err());
    assert!(new(0, GroupedShape { groups: usize::MAX, ..shape }, &[0]).is_err());

    for isa in Isa::available() {
        let packed = PackedGrouped::new(isa, &[1; 576], shape, &[0]).expect("fits");
        let mut scratch = vec![0; packed.scratch_len([1, 5, 5], 1).expect("fits")];
        let run = |input: usize, spatial, output: usize, scratch: &mut [u8]| {
            let mut sums = vec![77; output];
            let result = packed.run(&vec![1; input], 1, spatial, 0, Output::I32(&mut sums), scratch, &Serial);
            assert!(result.is_ok() || sums.iter().all(|&sum| sum == 77));
            result.map_err(|e| e.to_string())
        };
        assert!(run(200, [1, 5, 5], 144, &mut scratch).is_ok());
        assert!(run(199, [1, 5, 5], 144, &mut scratch).is_err_and(|e| e.contains("input has 199")));
        assert!(run(200, [1, 5, 5], 143, &mut scratch).is_err_and(|e| e.contains("output has 143")));
        if !scratch.is_empty() {
            assert!(run(200, [1, 5, 5], 144, &mut scratch[1..]).is_err_and(|e| e.contains("scratch")));
        }
    }
}
