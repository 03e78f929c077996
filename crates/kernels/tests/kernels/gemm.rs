//! Matrix products: every instruction set gives the bits of the definition.

use crate::guarded::{Edge, Guarded, Path, Plain};
use crate::threads::Threads;
use jitquant_kernels::{
    Dequantize, DynamicRows, DynamicScheme, Isa, Output, PackedGemm, Parallel, Requantize, Residual, Serial,
    dynamic_qparams, quantize,
};
use proptest::prelude::*;

/// A copy of `values` right before memory that cannot be touched.
fn at_the_edge<T: Plain>(values: &[T]) -> Guarded<T> {
    Path { isa: Isa::Scalar, edge: Edge::End }.input(values)
}

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    lda: usize,
    ldc: usize,
    a: Vec<u8>,
    weight: Vec<i8>,
    zero_point: u8,
    weight_zero_points: Vec<i32>,
}

/// Shapes from 1 on; activations and weights random, or the extremes everywhere, or most weights so small that two products fit
/// 16 bits.
fn cases() -> impl Strategy<Value = Case> {
    // Miri takes a second for some ten thousand products.
    let [m, n, k]: [usize; 3] = if cfg!(miri) { [8, 40, 20] } else { [40, 90, 150] };
    let sizes = (1..m, 1..n, 1..k, 0usize..3, 0usize..3);
    let zeros = (prop_oneof![Just(0u8), Just(255), any::<u8>()], 0..3u8);
    (sizes, zeros, 0..6u8, any::<u64>()).prop_map(|((m, n, k, more_a, more_c), (zero_point, zeros), fill, seed)| {
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        let lda = k + more_a;
        let a = (0..(m - 1) * lda + k).map(|_| if fill == 0 { 255 } else { random() }).collect();
        let weight = (0..n * k)
            .map(|_| match (fill, random() as i8) {
                (0 | 1, _) => -128,
                (4, x) if random() % 64 != 0 => x / 2,
                (5, _) => [64, -64, 127, -128][usize::from(random() % 64 / 21)],
                (_, x) => x,
            })
            .collect();
        let weight_zero_points = match zeros {
            0 => vec![],
            1 => vec![i32::from(random() as i8)],
            _ => (0..n).map(|_| i32::from(random() as i8)).collect(),
        };
        Case { m, n, k, lda, ldc: n + more_c, a, weight, zero_point, weight_zero_points }
    })
}

impl Case {
    /// The definition.
    fn sum(&self, zero_point: u8, row: usize, channel: usize) -> i32 {
        let zero = match self.weight_zero_points.len() {
            0 => 0,
            1 => self.weight_zero_points[0],
            _ => self.weight_zero_points[channel],
        };
        (0..self.k)
            .map(|k| {
                let x = i32::from(self.a[row * self.lda + k]) - i32::from(zero_point);
                x * (i32::from(self.weight[channel * self.k + k]) - zero)
            })
            .sum()
    }

    fn output_len(&self) -> usize {
        (self.m - 1) * self.ldc + self.n
    }

    fn elements(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..self.m).flat_map(move |row| (0..self.n).map(move |n| (row, n, row * self.ldc + n)))
    }

    fn pack(&self, isa: Isa) -> PackedGemm {
        let weight = at_the_edge(&self.weight);
        PackedGemm::new(isa, &weight, self.n, self.k, &self.weight_zero_points).unwrap()
    }

    fn run(&self, isa: Isa, output: Output<'_>, threads: &dyn Parallel) {
        let a = at_the_edge(&self.a);
        self.pack(isa).run(&a, self.lda, self.m, self.zero_point, output, self.ldc, threads).unwrap();
    }

    /// One number a channel that depends on it.
    fn per_channel(&self, scale: f32) -> Vec<f32> {
        (0..self.n).map(|n| scale * (1.0 + n as f32 / 7.0)).collect()
    }
}

proptest! {
    #![proptest_config(crate::guarded::cases())]

    #[test]
    fn sums_are_exact(case in cases()) {
        for isa in Isa::available() {
            for threads in [&Serial as &dyn Parallel, &Threads(3)] {
                let mut output = at_the_edge(&vec![7i32; case.output_len()]);
                case.run(isa, Output::I32(&mut output), threads);
                for (row, n, at) in case.elements() {
                    prop_assert_eq!(output[at], case.sum(case.zero_point, row, n), "{:?} row {} channel {}", isa, row, n);
                }
                for row in 1..case.m {
                    prop_assert!(output[(row - 1) * case.ldc + case.n..row * case.ldc].iter().all(|x| *x == 7));
                }
            }
        }
    }

    #[test]
    fn bytes_follow_the_requantization(
        case in cases(),
        scale in prop_oneof![Just(1e-4f32), Just(3.7e-5), Just(1e9)],
        (per_channel, biased) in any::<(bool, bool)>(),
        (zero_point, min, max) in any::<(u8, u8, u8)>(),
        extras in 0..4u8,
    ) {
        let scales = at_the_edge(&if per_channel { case.per_channel(scale) } else { vec![scale] });
        let bias = at_the_edge(&if biased { case.per_channel(-3.3) } else { vec![] });
        let residual: Vec<u8> = (0..case.output_len()).map(|i| (i * 37) as u8).collect();
        let residual = at_the_edge(&residual);
        let table: [u8; 256] = std::array::from_fn(|i| (i as u8).wrapping_mul(31));
        let form = Requantize {
            scale: &scales,
            bias: &bias,
            zero_point,
            min: min.min(max),
            max: min.max(max),
            residual: (extras & 1 != 0).then_some(Residual { data: &residual, scale: 0.37, zero_point: 19 }),
            table: (extras & 2 != 0).then_some(&table),
        };
        for isa in Isa::available() {
            let mut output = at_the_edge(&vec![0u8; case.output_len()]);
            case.run(isa, Output::U8(&mut output, form), &Serial);
            for (row, n, at) in case.elements() {
                let expected = form.apply(case.sum(case.zero_point, row, n), n, residual[at]);
                prop_assert_eq!(output[at], expected, "{:?} row {} channel {}", isa, row, n);
            }
        }
    }

    #[test]
    fn floats_follow_the_dequantization(case in cases(), relu in any::<bool>(), per_row in any::<bool>()) {
        let (scale, bias) = (at_the_edge(&case.per_channel(0.013)), at_the_edge(&case.per_channel(-0.5)));
        let form = Dequantize {
            scale: &scale,
            bias: &bias,
            min: if relu { 0.0 } else { f32::NEG_INFINITY },
            max: f32::INFINITY,
        };
        let values: Vec<f32> = (0..case.m * case.k).map(|i| f32::from(case.a[i % case.a.len()]) * 0.1 - 7.0).collect();
        for isa in Isa::available() {
            let mut output = at_the_edge(&vec![0f32; case.output_len()]);
            case.run(isa, Output::F32(&mut output, form), &Serial);
            for (row, n, at) in case.elements() {
                let expected = form.apply(case.sum(case.zero_point, row, n), n);
                prop_assert_eq!(output[at].to_bits(), expected.to_bits(), "{:?} row {} channel {}", isa, row, n);
            }

            // Quantized on the fly: as if it had been quantized before.
            let mut found = at_the_edge(&vec![0f32; case.m * case.n]);
            let weight = case.pack(isa);
            let scheme = if per_row { DynamicScheme::PerRow } else { DynamicScheme::PerTensor { reduce_range: false } };
            let mut scratch = at_the_edge(&vec![0u8; weight.dynamic_scratch_len(case.m)]);
            weight.run_dynamic(&values, case.m, scheme, &mut found, form, &mut scratch, &Threads(2)).unwrap();
            if per_row {
                // The same, quantized by who made the rows.
                let stride = case.k + 3;
                let (mut bytes, mut scales, mut zero_points) = (vec![0; case.m * stride], vec![], vec![]);
                for (row, bytes) in values.chunks(case.k).zip(bytes.chunks_mut(stride)) {
                    let qparams = dynamic_qparams::<u8>(isa, row, false);
                    quantize(isa, row, qparams, &mut bytes[..case.k]);
                    scales.push(qparams.scale);
                    zero_points.push(qparams.zero_point as u8);
                }
                let mut other = at_the_edge(&vec![0f32; case.m * case.n]);
                let rows = DynamicRows { bytes: &bytes, stride, scales: &scales, zero_points: &zero_points };
                weight.run_rows(rows, case.m, &mut other, form, &Threads(2)).unwrap();
                prop_assert_eq!(&other[..], &found[..]);
                prop_assert!(weight.run_rows(rows, case.m + 1, &mut other, form, &Threads(2)).is_err());
            }
            for (i, row) in values.chunks(case.k).enumerate() {
                let qparams = dynamic_qparams::<u8>(Isa::Scalar, if per_row { row } else { &values }, false);
                let mut bytes = vec![0u8; case.k];
                quantize(Isa::Scalar, row, qparams, &mut bytes);
                let quantized = Case { a: bytes, m: 1, lda: case.k, ..case.clone() };
                let scales: Vec<f32> = scale.iter().map(|scale| scale * qparams.scale).collect();
                let form = Dequantize { scale: &scales, ..form };
                for n in 0..case.n {
                    let expected = form.apply(quantized.sum(qparams.zero_point as u8, 0, n), n);
                    prop_assert_eq!(found[i * case.n + n].to_bits(), expected.to_bits(), "{:?} row {}", isa, i);
                }
            }
        }
    }

    #[test]
    fn a_packed_weight_gives_the_weight_back(case in cases()) {
        let mut weight = vec![0; case.weight.len()];
        case.pack(Isa::current()).unpack_into(&mut weight);
        prop_assert_eq!(weight, case.weight);
    }
}

/// Two products of 255 with weights of a sum of 128 fit 16 bits, with 129 they do not.
#[test]
fn two_products_at_the_limit_of_16_bits_are_exact() {
    let (m, n, k) = (6, 16, 32);
    for sum in [-129, -128, 128, 129] {
        // The other groups are small, so that small ones are multiplied apart from this one.
        let weight = (0..n * k).map(|i| match (i / k, i % k) {
            (channel, 12) => (sum / 2 + channel as i32) as i8,
            (channel, 13) => (sum - sum / 2 - channel as i32) as i8,
            (channel, column) => (channel + column) as i8,
        });
        let weight = weight.collect();
        let a = vec![255; m * k];
        let case = Case { m, n, k, lda: k, ldc: n, a, weight, zero_point: 0, weight_zero_points: vec![] };
        for isa in Isa::available() {
            let mut output = vec![0; m * n];
            case.run(isa, Output::I32(&mut output), &Serial);
            for (row, channel, at) in case.elements() {
                assert_eq!(output[at], case.sum(0, row, channel), "{isa:?}, {sum}");
            }
        }
    }
}

#[test]
fn many_rows_and_channels_are_shared_out() {
    let (m, n, k) = if cfg!(miri) { (19, 35, 9) } else { (517, 211, 67) };
    let a: Vec<u8> = (0..m * k).map(|i| (i * 7 % 251) as u8).collect();
    let weight: Vec<i8> = (0..n * k).map(|i| (i * 13 % 255) as u8 as i8).collect();
    let case = Case { m, n, k, lda: k, ldc: n, a, weight, zero_point: 3, weight_zero_points: vec![] };
    for isa in Isa::available() {
        for threads in 1..6 {
            let mut output = vec![0; m * n];
            case.run(isa, Output::I32(&mut output), &Threads(threads));
            for (row, channel, at) in case.elements() {
                assert_eq!(output[at], case.sum(3, row, channel), "{isa:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let weight = PackedGemm::new(Isa::current(), &[1; 6], 2, 3, &[]).unwrap();
    let mut output = [9i32; 4];
    let run = |a: &[u8], lda, m, output: &mut [i32], ldc| {
        weight.run(a, lda, m, 0, Output::I32(output), ldc, &Serial).unwrap_err().to_string()
    };
    assert!(run(&[0; 5], 3, 2, &mut output, 2).contains("5 elements, 6 are needed"));
    assert!(run(&[0; 6], 2, 2, &mut output, 2).contains("rows of 2"));
    assert!(run(&[0; 6], 3, 2, &mut output[..3], 2).contains("3 elements, 4 are needed"));
    assert_eq!(output, [9; 4]);
    let message = |result: Result<PackedGemm, jitquant_kernels::Error>| result.err().unwrap().to_string();
    assert!(message(PackedGemm::new(Isa::current(), &[0; 5], 2, 3, &[])).contains("5 elements"));
    assert!(message(PackedGemm::new(Isa::current(), &[0; 6], 2, 3, &[200])).contains("200"));
    assert!(message(PackedGemm::new(Isa::current(), &[0; 6], 2, 3, &[0; 3])).contains("3 zero points"));
    assert!(message(PackedGemm::new(Isa::current(), &[0; 70_000], 1, 70_000, &[])).contains("65793"));
    weight.run(&[], 3, 0, 0, Output::I32(&mut []), 2, &Serial).unwrap();
}
