//! Geometry that breaks sums: every number at the ends of its type is refused in words, and before memory is asked for.

use jitquant_kernels::{
    AveragePool, ConvShape, ConvWindow, DepthwiseShape, GroupedShape, Isa, Output, PackedConv, PackedDepthwise,
    PackedGemm, PackedGrouped, Pixels, Serial, Window, adaptive_avg_pool, avg_pool, max_pool,
};
use proptest::prelude::*;

/// Small numbers, and those at the ends: of i64 and of i32, and where a doubled one or a product wraps.
fn number() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0usize..4,
        1 => proptest::sample::select(vec![
            usize::MAX, usize::MAX - 1, i64::MAX as usize, i64::MAX as usize - 1, (i64::MAX / 2) as usize, 1 << 62, 1 << 40,
            1 << 32, (1 << 32) - 1, 1 << 31, (1 << 31) - 1, 1 << 30, (1 << 30) - 1, 1_000_000, 1 << 16,
        ]),
        1 => any::<usize>(),
    ]
}

fn three() -> impl Strategy<Value = [usize; 3]> {
    [number(), number(), number()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_of_any_numbers_are_refused_or_right(
        channels in (number(), number(), number()),
        (kernel, stride, padding) in (three(), three(), three()),
        (dilation, output_padding, spatial) in (three(), three(), three()),
        (batch, transposed, weights) in (number(), any::<bool>(), 0usize..600),
    ) {
        let (input_channels, output_channels, groups) = channels;
        let shape = ConvShape {
            input_channels, output_channels, groups, kernel, stride, padding, dilation, output_padding, transposed,
        };
        let fits = shape.check().is_ok();
        for isa in Isa::available() {
            // As many weights as are wanted where that is possible, else some.
            let wanted = if fits { shape.weight_len() } else { weights };
            let weight = vec![3i8; wanted.min(1 << 16)];
            let Ok(conv) = PackedConv::new(isa, &weight, shape, &[]) else { continue };
            prop_assert!(fits, "{shape:?}");
            let Ok(output) = shape.output_spatial(spatial) else { continue };
            let Ok(scratch) = conv.scratch_len(batch, spatial, &Serial) else { continue };
            let elements = |sizes: [usize; 3], channels: usize| {
                sizes.iter().chain([&batch, &channels]).try_fold(1usize, |product, size| product.checked_mul(*size))
            };
            let (Some(input), Some(results)) = (elements(spatial, input_channels), elements(output, output_channels)) else {
                continue;
            };
            // Nothing larger than this has to be computed here; with less memory than is needed it is an error.
            let small = |len: usize| len.min(1 << 14);
            let x = vec![7u8; small(input)];
            let mut sums = vec![0i32; small(results)];
            let mut memory = vec![0u8; scratch.min(1 << 22)];
            let done = conv.run(&x, batch, spatial, 5, Output::I32(&mut sums), &mut memory, &Serial);
            prop_assert!(done.is_err() || (input <= x.len() && results <= sums.len()), "{shape:?} {spatial:?}");
        }
    }

    #[test]
    fn depthwise_and_grouped_kernels_of_any_numbers_are_refused_or_right(
        (groups, inputs, outputs) in (number(), number(), number()),
        (kernel, stride, padding, dilation) in (three(), three(), three(), three()),
        (spatial, batch) in (three(), number()),
    ) {
        let window = ConvWindow { kernel, stride, padding, dilation };
        let _ = window.output_spatial(spatial);
        let weight = vec![1i8; 64];
        for isa in Isa::available() {
            let shape = DepthwiseShape { channels: groups, multiplier: outputs, window };
            let mut sums = vec![0i32; 64];
            if let Ok(packed) = PackedDepthwise::new(isa, &weight[..groups.saturating_mul(outputs).min(64)], shape, &[0])
                && let Ok(len) = packed.scratch_len(spatial, 1)
            {
                let _ = packed.run(&[0; 64], batch, spatial, 0, Output::I32(&mut sums), &mut vec![0; len.min(1 << 20)], &Serial);
            }
            let shape = GroupedShape { groups, inputs, outputs, window };
            if let Ok(packed) = PackedGrouped::new(isa, &weight, shape, &[0])
                && let Ok(len) = packed.scratch_len(spatial, 1)
            {
                let _ = packed.run(&[0; 64], batch, spatial, 0, Output::I32(&mut sums), &mut vec![0; len.min(1 << 20)], &Serial);
            }
        }
    }

    #[test]
    fn windows_of_any_numbers_are_refused_or_have_a_size(
        (kernel, stride, padding, dilation) in (three(), three(), three(), three()),
        size in three(),
        ceil_mode in any::<bool>(),
    ) {
        let window = Window { kernel, stride, padding, dilation, ceil_mode };
        if window.check().is_ok() && size.iter().all(|size| *size <= i32::MAX as usize) {
            let output = window.output(size);
            prop_assert!(output.iter().all(|size| *size <= i32::MAX as usize), "{window:?} {size:?}: {output:?}");
        }
    }

    #[test]
    fn products_of_any_sizes_are_refused_or_right(sizes in three(), (lda, ldc) in (number(), number())) {
        let [m, n, k] = sizes;
        for isa in Isa::available() {
            let Ok(packed) = PackedGemm::new(isa, &vec![1; n.saturating_mul(k).min(64)], n, k, &[]) else { continue };
            let mut sums = vec![0i32; 64];
            let done = packed.run(&[1; 64], lda, m, 0, Output::I32(&mut sums), ldc, &Serial);
            prop_assert!(done.is_err() || m.saturating_mul(n) <= 64);
        }
    }
}

/// The refusal of a convolution of 4 x 4 weights of 3 x 3 taps.
fn refusal(shape: ConvShape) -> String {
    let shape = ConvShape { kernel: [1, 3, 3], ..shape };
    PackedConv::new(Isa::current(), &[1; 4 * 4 * 9], shape, &[]).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn padding_and_dilation_of_2_to_the_63_less_1_are_refused() {
    let huge = i64::MAX as usize;
    for transposed in [false, true] {
        let shape = ConvShape { transposed, ..ConvShape::new(4, 4) };
        for shape in [
            ConvShape { padding: [0, huge, huge], ..shape },
            ConvShape { dilation: [1, huge, 1], ..shape },
            ConvShape { stride: [1, 1, huge], ..shape },
            ConvShape { padding: [0, 0, 1 << 62], ..shape },
        ] {
            let refusal = refusal(shape);
            assert!(refusal.contains("should be at most"), "{refusal}");
            // A shape that was never checked has no output either.
            assert!(shape.output_spatial([1, 8, 8]).is_err());
        }
    }
}

#[test]
fn a_transposed_convolution_of_stride_a_million_is_refused_before_it_is_packed() {
    let shape = ConvShape { transposed: true, stride: [1, 1, 1_000_000], ..ConvShape::new(4, 4) };
    let refusal = refusal(shape);
    assert!(refusal.contains("at most 65536 groups times strides"), "{refusal}");
    // A hop of a vocoder is not.
    let shape = ConvShape { kernel: [1, 1, 2048], stride: [1, 1, 512], transposed: true, ..ConvShape::new(1, 1) };
    assert!(PackedConv::new(Isa::current(), &[1; 2048], shape, &[]).is_ok());
}

#[test]
fn padding_out_of_proportion_is_refused_before_memory_is_asked_for() {
    let far = 1 << 28;
    let shape =
        ConvShape { padding: [0, far, far], stride: [1, far, far], kernel: [1, 3, 3], ..ConvShape::new(33, 33) };
    for isa in Isa::available() {
        let conv = PackedConv::new(isa, &vec![1; 33 * 33 * 9], shape, &[]).unwrap();
        let refusal = conv.scratch_len(1, [1, 4, 4], &Serial).unwrap_err().to_string();
        assert!(refusal.contains("pixels of memory"), "{refusal}");
    }
}

#[test]
fn sums_of_more_than_eight_million_pixels_do_not_wrap() {
    // 255 times 9 million is above 2^31, and so is the zero point as often.
    let pixels = 9_000_000;
    let x = vec![250u8; pixels];
    let shape = Pixels::dense(1, [1, 1, pixels], 1);
    let output = shape.resized([1, 1, 1]);
    for isa in Isa::available() {
        for zero_point in [0, 255, 7] {
            let mut out = [0];
            adaptive_avg_pool(isa, &x, shape, zero_point, output, 0..1, &mut out);
            assert_eq!(out, [250], "adaptive, zero point {zero_point}");
            let pool =
                AveragePool { window: Window::d1(pixels, 1, 0), count_include_pad: true, divisor_override: None };
            avg_pool(isa, &x, shape, zero_point, pool, output, 0..1, &mut out);
            assert_eq!(out, [250], "zero point {zero_point}");
        }
    }
}

#[test]
fn pooling_refuses_dilations_that_wrap() {
    let window = Window { dilation: [1, 1, i64::MAX as usize], ..Window::d1(3, 1, 0) };
    assert!(window.check().unwrap_err().to_string().contains("dilations"));
    let shape = Pixels::dense(1, [1, 1, 8], 1);
    let refused = std::panic::catch_unwind(|| {
        max_pool(Isa::current(), &[0; 8], shape, window, shape.resized([1, 1, 1]), 0..1, &mut [0; 1]);
    });
    assert!(refused.is_err());
}
