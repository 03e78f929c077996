//! Pooling and upsampling: every ISA gives the bits of the scalar path, whatever the geometry; nothing outside the
//! tensors is touched, gaps between pixels included; and the scalar path follows its formula, written here the slow way.

use crate::guarded::{cases, on_all_paths};
use jitquant_kernels::{AveragePool, Isa, Pixels, Upsampling, Window, adaptive_avg_pool, avg_pool, max_pool, upsample};
use proptest::prelude::*;

/// Bytes that look random, with both extremes among them.
fn bytes(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| match (i + seed).wrapping_mul(0x9E37_79B9) >> 19 {
            x if x % 16 == 0 => 0,
            x if x % 16 == 1 => 255,
            x => (x >> 4) as u8,
        })
        .collect()
}

fn zero_point() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0), Just(255), any::<u8>()]
}

/// Images, and how far apart the pixels of input and output are beyond their channels.
fn images() -> impl Strategy<Value = (Pixels, usize)> {
    (1..3usize, 1..4usize, 1..9usize, 1..12usize, 1..140usize, 0..3usize, 0..3usize).prop_map(
        |(batch, depth, height, width, channels, gap, out_gap)| {
            let stride = channels + 5 * gap;
            (Pixels { batch, size: [depth, height, width], channels, stride }, 7 * out_gap)
        },
    )
}

fn windows() -> impl Strategy<Value = Window> {
    let three = |range: std::ops::Range<usize>| [range.clone(), range.clone(), range];
    (three(1..5), three(1..4), three(0..3), three(1..3), any::<bool>()).prop_map(
        |(kernel, stride, padding, dilation, ceil_mode)| {
            // PyTorch asks for padding of at most half a kernel.
            let padding = std::array::from_fn(|k| padding[k].min(kernel[k] / 2));
            Window { kernel, stride, padding, dilation, ceil_mode }
        },
    )
}

/// Runs a kernel on all rows, in two calls, and returns the whole output with its gaps, which must be untouched.
fn run(
    x: &[u8],
    x_shape: Pixels,
    out: Pixels,
    kernel: impl Fn(Isa, &[u8], std::ops::Range<usize>, &mut [u8]),
) -> Vec<u8> {
    assert_eq!(x.len(), x_shape.bytes(x_shape.rows()));
    let found = on_all_paths(|path| {
        let x = path.input(x);
        let (rows, mut bytes) = (out.rows(), Vec::new());
        for rows in [0..rows / 2, rows / 2..rows] {
            let mut part = path.output(out.bytes(rows.len()));
            kernel(path.isa, &x, rows, &mut part);
            bytes.extend_from_slice(&part);
            // The gap after the part's last pixel is not part of it.
            bytes.resize(bytes.len() + if part.is_empty() { 0 } else { out.stride - out.channels }, 0xA5);
        }
        bytes
    });
    for pixel in found.chunks(out.stride) {
        assert!(pixel[out.channels..].iter().all(|b| *b == 0xA5), "a gap was written");
    }
    found
}

/// The value of `f(image, depth, height, width, channel)` for every element of the output, in order.
fn each(out: Pixels, mut f: impl FnMut(usize, [usize; 3], usize) -> u8) -> Vec<u8> {
    let mut expected = Vec::new();
    for row in 0..out.rows() {
        let [depth, height, width] = out.size;
        for ox in 0..width {
            for c in 0..out.channels {
                expected.push(f(row / (depth * height), [row / height % depth, row % height, ox], c));
            }
            expected.resize(expected.len() + out.stride - out.channels, 0xA5);
        }
    }
    expected
}

/// The bytes of channel `c` in the pixels whose coordinates are all in `boxes`.
fn pixels_in(x: &[u8], shape: Pixels, image: usize, boxes: [Vec<usize>; 3], c: usize) -> Vec<u8> {
    let [depth, height, width] = shape.size;
    let mut found = Vec::new();
    for &z in &boxes[0] {
        for &y in &boxes[1] {
            for &column in &boxes[2] {
                found.push(x[(((image * depth + z) * height + y) * width + column) * shape.stride + c]);
            }
        }
    }
    found
}

/// The coordinates of window `o` along `axis`, inside the input.
fn taps(window: Window, axis: usize, o: usize, size: usize) -> Vec<usize> {
    let first = (o * window.stride[axis]) as i64 - window.padding[axis] as i64;
    (0..window.kernel[axis] as i64)
        .map(|k| first + k * window.dilation[axis] as i64)
        .filter(|i| (0..size as i64).contains(i))
        .map(|i| i as usize)
        .collect()
}

/// PyTorch's pooling_output_shape, in signed integers.
fn output_size(window: Window, input: [usize; 3]) -> [usize; 3] {
    std::array::from_fn(|k| {
        let [kernel, stride, padding, dilation] =
            [window.kernel[k], window.stride[k], window.padding[k], window.dilation[k]].map(|x| x as i64);
        let extra = if window.ceil_mode { stride - 1 } else { 0 };
        let n = (input[k] as i64 + 2 * padding - dilation * (kernel - 1) - 1 + extra).div_euclid(stride) + 1;
        let begins_outside = window.ceil_mode && (n - 1) * stride >= input[k] as i64 + padding;
        (n - i64::from(begins_outside)).max(0) as usize
    })
}

fn mean(values: &[u8], zero_point: u8, divisor: usize, zero_point_first: bool) -> u8 {
    let sum: i64 = values.iter().map(|q| i64::from(*q) - i64::from(zero_point)).sum();
    let mean = sum as f32 * (1.0 / divisor as f32);
    let zero_point = f32::from(zero_point);
    let q = if zero_point_first { (mean + zero_point).round_ties_even() } else { mean.round_ties_even() + zero_point };
    q.clamp(0.0, 255.0) as u8
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn max_pool_finds_the_largest((x_shape, gap) in images(), window in windows(), seed in any::<u32>()) {
        let x = bytes(seed, x_shape.bytes(x_shape.rows()));
        let size = window.output(x_shape.size);
        prop_assert_eq!(size, output_size(window, x_shape.size));
        let out = Pixels { size, stride: x_shape.channels + gap, ..x_shape };
        let found = run(&x, x_shape, out, |isa, x, rows, part| max_pool(isa, x, x_shape, window, out, rows, part));
        let expected = each(out, |image, o, c| {
            let boxes = std::array::from_fn(|axis| taps(window, axis, o[axis], x_shape.size[axis]));
            pixels_in(&x, x_shape, image, boxes, c).into_iter().max().unwrap_or(0)
        });
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn avg_pool_divides_by_the_window(
        (x_shape, gap) in images(),
        mut window in windows(),
        zero_point in zero_point(),
        count_include_pad in any::<bool>(),
        divisor_override in prop::option::of(1..9usize),
        seed in any::<u32>(),
    ) {
        window.dilation = [1; 3];
        let pool = AveragePool { window, count_include_pad, divisor_override };
        let x = bytes(seed, x_shape.bytes(x_shape.rows()));
        let out = Pixels { size: window.output(x_shape.size), stride: x_shape.channels + gap, ..x_shape };
        let found =
            run(&x, x_shape, out, |isa, x, rows, part| avg_pool(isa, x, x_shape, zero_point, pool, out, rows, part));
        let expected = each(out, |image, o, c| {
            let boxes = std::array::from_fn(|axis| taps(window, axis, o[axis], x_shape.size[axis]));
            let values = pixels_in(&x, x_shape, image, boxes, c);
            let padded: usize = (0..3)
                .map(|k| {
                    let start = o[k] * window.stride[k];
                    (start + window.kernel[k]).min(x_shape.size[k] + 2 * window.padding[k]) - start
                })
                .product();
            let divisor = divisor_override.unwrap_or(if count_include_pad { padded } else { values.len() });
            mean(&values, zero_point, divisor.max(1), false)
        });
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn adaptive_pooling_covers_the_input(
        (x_shape, gap) in images(),
        size in [1..4usize, 1..10usize, 1..10usize],
        zero_point in zero_point(),
        seed in any::<u32>(),
    ) {
        let x = bytes(seed, x_shape.bytes(x_shape.rows()));
        let out = Pixels { size, stride: x_shape.channels + gap, ..x_shape };
        let found =
            run(&x, x_shape, out, |isa, x, rows, part| adaptive_avg_pool(isa, x, x_shape, zero_point, out, rows, part));
        let expected = each(out, |image, o, c| {
            let boxes = std::array::from_fn(|k| {
                let (n, of) = (x_shape.size[k], size[k]);
                (o[k] * n / of..((o[k] + 1) * n).div_ceil(of)).collect::<Vec<_>>()
            });
            let values = pixels_in(&x, x_shape, image, boxes, c);
            mean(&values, zero_point, values.len(), true)
        });
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn upsampling_interpolates(
        (x_shape, gap) in images(),
        depth in 1..6usize,
        height in 1..20usize,
        width in 1..20usize,
        mode in prop::sample::select(vec![
            Upsampling::Nearest,
            Upsampling::NearestExact,
            Upsampling::Bilinear,
            Upsampling::BilinearAlignCorners,
        ]),
        seed in any::<u32>(),
    ) {
        let blends = matches!(mode, Upsampling::Bilinear | Upsampling::BilinearAlignCorners);
        let depth = if blends { x_shape.size[0] } else { depth };
        let x = bytes(seed, x_shape.bytes(x_shape.rows()));
        let out = Pixels { size: [depth, height, width], stride: x_shape.channels + gap, ..x_shape };
        let step = [0, 1, 2].map(|k| mode.step(x_shape.size[k], out.size[k], None));
        let found = run(&x, x_shape, out, |isa, x, rows, part| upsample(isa, x, x_shape, mode, step, out, rows, part));
        // The exact value in f64, at the position that f32 arithmetic gives.
        let place = |o: usize, k: usize| {
            let (step, size) = (step[k], x_shape.size[k]);
            let position = match mode {
                Upsampling::Nearest | Upsampling::BilinearAlignCorners => o as f32 * step,
                Upsampling::NearestExact => (o as f32 + 0.5) * step,
                Upsampling::Bilinear => ((o as f32 + 0.5) * step - 0.5).max(0.0),
            };
            let first = (position as usize).min(size - 1);
            let fraction = if blends { f64::from((position - first as f32).min(1.0)) } else { 0.0 };
            ([first, (first + 1).min(size - 1)], fraction)
        };
        let mut exact = Vec::new();
        let _ = each(out, |image, o, c| {
            let ((ys, v), (xs, w)) = (place(o[1], 1), place(o[2], 2));
            let z = if blends { o[0] } else { place(o[0], 0).0[0] };
            let at = |y, column| f64::from(pixels_in(&x, x_shape, image, [vec![z], vec![y], vec![column]], c)[0]);
            let line = |y| (1.0 - w) * at(y, xs[0]) + w * at(y, xs[1]);
            exact.push((1.0 - v) * line(ys[0]) + v * line(ys[1]));
            0
        });
        let values = found.chunks(out.stride).flat_map(|pixel| &pixel[..out.channels]);
        for (&q, exact) in values.zip(exact) {
            // Half a step, and what f32 loses on values of up to 255.
            prop_assert!((f64::from(q) - exact).abs() <= 0.5 + 1e-4, "{} for {}", q, exact);
        }
    }
}

#[test]
fn a_window_of_more_taps_than_are_listed_at_a_time() {
    let x_shape = Pixels::dense(1, [1, 17, 19], 70);
    let x = bytes(3, x_shape.bytes(17));
    let window = Window::d2([11, 13], [2, 3], [5, 6]);
    let out = x_shape.resized(window.output(x_shape.size));
    let found = run(&x, x_shape, out, |isa, x, rows, part| max_pool(isa, x, x_shape, window, out, rows, part));
    let expected = each(out, |image, o, c| {
        let boxes = std::array::from_fn(|axis| taps(window, axis, o[axis], x_shape.size[axis]));
        pixels_in(&x, x_shape, image, boxes, c).into_iter().max().unwrap()
    });
    assert_eq!(found, expected);
}

#[test]
fn nothing_in_gives_nothing_out() {
    let (x_shape, window) = (Pixels::dense(0, [1, 4, 4], 8), Window::d2([2, 2], [2, 2], [0, 0]));
    let out = x_shape.resized(window.output(x_shape.size));
    max_pool(Isa::current(), &[], x_shape, window, out, 0..0, &mut []);
    // A window that does not fit.
    let x_shape = Pixels::dense(1, [1, 1, 1], 8);
    assert_eq!(window.output(x_shape.size), [1, 0, 0]);
    let out = x_shape.resized([1, 0, 0]);
    max_pool(Isa::current(), &[9; 8], x_shape, window, out, 0..0, &mut []);
}

#[test]
#[should_panic(expected = "output: 15 bytes where 16 are needed")]
fn an_output_that_is_too_short_is_refused() {
    let (x_shape, window) = (Pixels::dense(1, [1, 4, 4], 4), Window::d2([2, 2], [2, 2], [0, 0]));
    let out = x_shape.resized([1, 2, 2]);
    max_pool(Isa::current(), &[0; 64], x_shape, window, out, 0..2, &mut [0; 15]);
}
