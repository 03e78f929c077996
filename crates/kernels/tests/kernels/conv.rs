//! Convolutions: every instruction set gives the sums of the definition.

use crate::guarded::{Edge, Guarded, Path, Plain};
use crate::threads::Threads;
use jitquant_kernels::{ConvShape, Isa, Output, PackedConv, Parallel, Requantize, Serial};
use proptest::prelude::*;

/// A copy of `values` right before memory that cannot be touched.
fn at_the_edge<T: Plain>(values: &[T]) -> Guarded<T> {
    Path { isa: Isa::Scalar, edge: Edge::End }.input(values)
}

#[derive(Clone, Debug)]
struct Case {
    shape: ConvShape,
    batch: usize,
    spatial: [usize; 3],
    input: Vec<u8>,
    weight: Vec<i8>,
    zero_point: u8,
    weight_zero_points: Vec<i32>,
}

fn three(range: std::ops::Range<usize>) -> impl Strategy<Value = [usize; 3]> {
    [range.clone(), range.clone(), range]
}

/// Shapes of one to three dimensions that have an output.
fn cases() -> impl Strategy<Value = Case> {
    // More channels make segments of several tiles.
    let channels =
        (1usize..4, prop_oneof![4 => 1usize..7, 1 => if cfg!(miri) { 7usize..9 } else { 24..80 }], 1usize..20);
    let sizes = (three(1..4), three(1..4), three(0..3), three(1..3), three(0..2), three(1..8));
    (channels, sizes, 1usize..3, 1usize..4, any::<bool>(), any::<u8>(), 0..4u8, any::<u64>()).prop_filter_map(
        "no output",
        |(channels, sizes, dimensions, batch, transposed, zero_point, fill, seed)| {
            let (groups, inputs, outputs) = channels;
            let (kernel, stride, padding, dilation, output_padding, spatial) = sizes;
            // Without depth, or without depth and height.
            let flat = |values: [usize; 3], none: usize| {
                std::array::from_fn(|d| if d + dimensions < 3 { none } else { values[d] })
            };
            let (stride, dilation): ([usize; 3], [usize; 3]) = (flat(stride, 1), flat(dilation, 1));
            let added = |d: usize| output_padding[d].min(stride[d].max(dilation[d]) - 1);
            let shape = ConvShape {
                groups,
                kernel: flat(kernel, 1),
                stride,
                padding: flat(padding, 0),
                dilation,
                output_padding: if transposed { std::array::from_fn(added) } else { [0; 3] },
                transposed,
                ..ConvShape::new(groups * inputs, groups * outputs)
            };
            let spatial = flat(spatial, 1);
            shape.output_spatial(spatial).ok()?;
            let mut state = seed | 1;
            let mut random = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            };
            let elements = batch * spatial.iter().product::<usize>() * shape.input_channels;
            let input = (0..elements).map(|_| if fill == 0 { 255 } else { random() }).collect();
            let weight = (0..shape.weight_len())
                .map(|_| match (fill, random() as i8) {
                    (0, _) => -128,
                    // Most are so small that two products fit 16 bits.
                    (3, x) if random() % 64 != 0 => x / 2,
                    (_, x) => x,
                })
                .collect();
            let weight_zero_points = match fill {
                0 | 1 | 3 => vec![],
                // Every other one is 0: some groups have no zero points, others do.
                _ => (0..shape.output_channels).map(|_| i32::from(random() as i8) * i32::from(random() & 1)).collect(),
            };
            Some(Case { shape, batch, spatial, input, weight, zero_point, weight_zero_points })
        },
    )
}

impl Case {
    /// The definition, output by output of an ordinary convolution, input by input of a transposed one.
    fn sums(&self) -> Vec<i32> {
        let shape = &self.shape;
        let output = shape.output_spatial(self.spatial).unwrap();
        let mut sums = vec![0; self.batch * output.iter().product::<usize>() * shape.output_channels];
        let (inputs, outputs) = (shape.input_channels / shape.groups, shape.output_channels / shape.groups);
        for sample in 0..self.batch {
            for small in grid(if shape.transposed { self.spatial } else { output }) {
                for (tap, place) in grid(shape.kernel).enumerate() {
                    let large: [isize; 3] = std::array::from_fn(|d| {
                        (small[d] * shape.stride[d] + place[d] * shape.dilation[d]) as isize - shape.padding[d] as isize
                    });
                    let bound = if shape.transposed { output } else { self.spatial };
                    if (0..3).any(|d| large[d] < 0 || large[d] >= bound[d] as isize) {
                        continue;
                    }
                    let large = large.map(|x| x as usize);
                    let (from, to) = if shape.transposed { (small, large) } else { (large, small) };
                    for o in 0..shape.output_channels {
                        let group = o / outputs;
                        let zero = self.weight_zero_points.get(o).copied().unwrap_or(0);
                        let at = pixel(sample, output, to) * shape.output_channels + o;
                        for i in 0..inputs {
                            let x = self.input
                                [pixel(sample, self.spatial, from) * shape.input_channels + group * inputs + i];
                            let row = if shape.transposed {
                                (group * inputs + i) * outputs + o % outputs
                            } else {
                                o * inputs + i
                            };
                            let w = i32::from(self.weight[row * shape.taps() + tap]) - zero;
                            sums[at] += (i32::from(x) - i32::from(self.zero_point)) * w;
                        }
                    }
                }
            }
        }
        sums
    }

    fn run(&self, isa: Isa, output: Output<'_>, threads: &dyn Parallel) {
        let conv = PackedConv::new(isa, &at_the_edge(&self.weight), self.shape, &self.weight_zero_points).unwrap();
        let len = conv.scratch_len(self.batch, self.spatial, threads).unwrap();
        let mut scratch = Path { isa, edge: Edge::End }.output::<u8>(len);
        let input = at_the_edge(&self.input);
        conv.run(&input, self.batch, self.spatial, self.zero_point, output, &mut scratch, threads).unwrap();
    }
}

fn grid(size: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..size[0]).flat_map(move |d| (0..size[1]).flat_map(move |h| (0..size[2]).map(move |w| [d, h, w])))
}

fn pixel(sample: usize, size: [usize; 3], [d, h, w]: [usize; 3]) -> usize {
    ((sample * size[0] + d) * size[1] + h) * size[2] + w
}

/// More than elsewhere: the cases are small, and a shape has sixteen numbers.
fn many() -> ProptestConfig {
    let usual = crate::guarded::cases();
    ProptestConfig { cases: 8 * usual.cases, ..usual }
}

proptest! {
    #![proptest_config(many())]

    #[test]
    fn sums_are_exact(case in cases()) {
        let expected = case.sums();
        for isa in Isa::available() {
            for threads in [&Serial as &dyn Parallel, &Threads(2)] {
                let mut output = Path { isa, edge: Edge::End }.output::<i32>(expected.len());
                case.run(isa, Output::I32(&mut output), threads);
                prop_assert_eq!(&output[..], &expected[..], "{:?}", isa);
            }
        }
    }

    #[test]
    fn bytes_follow_the_requantization(case in cases(), per_channel in any::<bool>()) {
        let channels = case.shape.output_channels;
        let bias: Vec<f32> = (0..channels).map(|o| o as f32 - 3.5).collect();
        let scale: Vec<f32> = (0..if per_channel { channels } else { 1 }).map(|o| 1e-4 * (o + 1) as f32).collect();
        let form = Requantize {
            scale: &scale, bias: &bias, zero_point: 9, min: 9, max: 200, residual: None, table: None,
        };
        let expected: Vec<u8> = case.sums().iter().enumerate().map(|(i, sum)| form.apply(*sum, i % channels, 0)).collect();
        for isa in Isa::available() {
            let mut output = Path { isa, edge: Edge::End }.output::<u8>(expected.len());
            case.run(isa, Output::U8(&mut output, form), &Serial);
            prop_assert_eq!(&output[..], &expected[..], "{:?}", isa);
        }
    }

    #[test]
    fn a_packed_weight_gives_the_weight_back(case in cases()) {
        let mut weight = vec![0; case.weight.len()];
        PackedConv::new(Isa::current(), &case.weight, case.shape, &[]).unwrap().unpack_into(&mut weight);
        prop_assert_eq!(weight, case.weight);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let message = |result: Result<PackedConv, jitquant_kernels::Error>| result.err().unwrap().to_string();
    let shape = ConvShape { groups: 3, ..ConvShape::new(6, 4) };
    assert!(message(PackedConv::new(Isa::Scalar, &[], shape, &[])).contains("3 groups do not divide 6 and 4"));
    let shape = ConvShape { kernel: [1, 3, 3], ..ConvShape::new(2, 2) };
    assert!(message(PackedConv::new(Isa::Scalar, &[0; 35], shape, &[])).contains("36 are needed"));
    let conv = PackedConv::new(Isa::Scalar, &[0; 36], shape, &[]).unwrap();
    let refusal = conv.scratch_len(1, [1, 2, 9], &Serial).unwrap_err().to_string();
    assert!(refusal.contains("[1, 2, 9] is too small"), "{refusal}");
    let transposed = ConvShape { transposed: true, ..shape };
    let refusal = transposed.output_spatial([1, 0, 9]).unwrap_err().to_string();
    assert!(refusal.contains("[1, 0, 9] is too small"), "{refusal}");
    let mut output = [7i32; 2];
    let mut scratch = vec![0; 1000];
    let run = |input: &[u8], output: &mut [i32], scratch: &mut [u8]| {
        conv.run(input, 1, [1, 3, 3], 0, Output::I32(output), scratch, &Serial).unwrap_err().to_string()
    };
    assert!(run(&[0; 17], &mut output, &mut scratch).contains("17 elements, 18 are needed"));
    assert!(run(&[0; 18], &mut output[..1], &mut scratch).contains("1 elements, 2 are needed"));
    assert!(run(&[0; 18], &mut output, &mut []).contains("bytes of scratch"));
    assert_eq!(output, [7; 2]);
}
