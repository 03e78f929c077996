//! What the tests of the direct convolutions share: cases, a reference from the definition, guarded memory, threads.

use crate::threads::Threads;
use jitquant_kernels::{ConvWindow as Window, Dequantize, Isa, Output, Parallel, Requantize, Residual};
use proptest::prelude::*;

/// A convolution in groups with its operands.
#[derive(Clone, Debug)]
pub struct Case {
    pub batch: usize,
    pub spatial: [usize; 3],
    pub groups: usize,
    /// Input and output channels of a group.
    pub inputs: usize,
    pub outputs: usize,
    pub window: Window,
    pub zero_point: u8,
    pub weight_zero_points: Vec<i32>,
    pub fill: Fill,
    pub seed: u64,
    pub threads: usize,
}

/// What the operands hold.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    Random,
    /// Every activation 255, every weight -128 or 127.
    Extreme(i8),
}

/// A pseudo-random word: splitmix64 of the seed and an index.
pub fn random(seed: u64, index: usize) -> u64 {
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Case {
    pub fn channels(&self) -> (usize, usize) {
        (self.groups * self.inputs, self.groups * self.outputs)
    }

    pub fn output_spatial(&self) -> [usize; 3] {
        self.window.output_spatial(self.spatial).expect("the window fits")
    }

    pub fn output_len(&self) -> usize {
        self.batch * self.output_spatial().iter().product::<usize>() * self.channels().1
    }

    pub fn input(&self) -> Vec<u8> {
        let len = self.batch * self.spatial.iter().product::<usize>() * self.channels().0;
        match self.fill {
            Fill::Random => (0..len).map(|n| random(self.seed, n) as u8).collect(),
            Fill::Extreme(_) => vec![255; len],
        }
    }

    pub fn weight(&self) -> Vec<i8> {
        let len = self.channels().1 * self.inputs * self.window.taps();
        match self.fill {
            Fill::Random => (0..len).map(|n| random(!self.seed, n) as i8).collect(),
            Fill::Extreme(weight) => vec![weight; len],
        }
    }

    /// The accumulators, from the definition: every tap of every output visited on its own, padding as zero points.
    pub fn reference(&self) -> Vec<i32> {
        let (input, weight) = (self.input(), self.weight());
        let (channels, outputs) = self.channels();
        let Window { kernel, stride, padding, dilation } = self.window;
        let [depth, height, width] = self.output_spatial();
        let mut sums = Vec::with_capacity(self.output_len());
        for (b, z, y, x) in grid([self.batch, depth, height, width]) {
            for n in 0..outputs {
                let weight_zero = self.weight_zero_points[n % self.weight_zero_points.len()] as i64;
                let mut sum = 0i64;
                for (c, kz, ky, kx) in grid([self.inputs, kernel[0], kernel[1], kernel[2]]) {
                    let mut at = b;
                    let mut inside = true;
                    for (axis, (out, k)) in [(z, kz), (y, ky), (x, kx)].into_iter().enumerate() {
                        let position = (out * stride[axis] + k * dilation[axis]) as i64 - padding[axis] as i64;
                        inside &= (0..self.spatial[axis] as i64).contains(&position);
                        at = at * self.spatial[axis] + position.max(0) as usize;
                    }
                    let value = if inside {
                        input[at * channels + n / self.outputs * self.inputs + c]
                    } else {
                        self.zero_point
                    };
                    let tap = ((n * self.inputs + c) * kernel[0] + kz) * kernel[1] + ky;
                    let weight = i64::from(weight[tap * kernel[2] + kx]) - weight_zero;
                    sum += (i64::from(value) - i64::from(self.zero_point)) * weight;
                }
                sums.push(i32::try_from(sum).expect("fits an i32"));
            }
        }
        sums
    }
}

fn grid(sizes: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..sizes.iter().product()).map(move |n: usize| {
        let (n, d) = (n / sizes[3], n % sizes[3]);
        let (n, c) = (n / sizes[2], n % sizes[2]);
        (n / sizes[1], n % sizes[1], c, d)
    })
}

/// Windows of every kind; with padding beyond the kernel too.
pub fn window() -> impl Strategy<Value = Window> {
    let plane = (1..=5usize, 1..=5usize, 1..=3usize, 1..=3usize, 0..=6usize, 0..=6usize, 1..=3usize, 1..=3usize);
    let flat = plane.prop_map(|(kh, kw, sh, sw, ph, pw, dh, dw)| Window::plane([kh, kw], [sh, sw], [ph, pw], [dh, dw]));
    let deep = (1..=3usize, 1..=2usize, 0..=2usize, 1..=2usize, flat.clone()).prop_map(|(k, s, p, d, mut window)| {
        (window.kernel[0], window.stride[0], window.padding[0], window.dilation[0]) = (k, s, p, d);
        window
    });
    let line = flat.clone().prop_map(|mut window| {
        (window.kernel[1], window.stride[1], window.padding[1], window.dilation[1]) = (1, 1, 0, 1);
        window
    });
    let usual = (prop_oneof![Just(3usize), Just(5usize)], 1..=2usize)
        .prop_map(|(k, stride)| Window::plane([k, k], [stride, stride], [k / 2, k / 2], [1, 1]));
    prop_oneof![4 => flat, 1 => deep, 1 => line, 4 => usual]
}

/// Cases around windows and groups.
pub fn case(groups: impl Strategy<Value = (usize, usize, usize)>) -> impl Strategy<Value = Case> {
    let zero_point = prop_oneof![Just(0u8), Just(255u8), any::<u8>()];
    let weight_zero = prop_oneof![3 => Just(None), 1 => any::<i8>().prop_map(Some)];
    let fill = prop_oneof![6 => Just(Fill::Random), 1 => Just(Fill::Extreme(-128)), 1 => Just(Fill::Extreme(127))];
    (
        window(),
        groups,
        (1..=2usize, 1..=13usize, 1..=19usize),
        (zero_point, weight_zero, any::<bool>()),
        fill,
        any::<u64>(),
    )
        .prop_map(
            |(window, (groups, inputs, outputs), (batch, height, width), (zero, weight_zero, each), fill, seed)| {
                let spatial = match window.kernel {
                    [1, 1, _] if window.padding[1] == 0 && window.stride[1] == 1 => [1, 1, width],
                    [1, ..] => [1, height, width],
                    _ => [1 + (seed % 4) as usize, height, width],
                };
                // Sizes that the window does not fit grow until it does.
                let mut grown = spatial;
                for axis in 0..3 {
                    let reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
                    grown[axis] = spatial[axis].max(reach.saturating_sub(2 * window.padding[axis]));
                }
                let weight_zero_points = match (weight_zero, each) {
                    (None, false) => vec![0],
                    (None, true) => vec![0; groups * outputs],
                    (Some(zero), false) => vec![i32::from(zero)],
                    (Some(zero), true) => {
                        (0..groups * outputs).map(|n| i32::from(random(seed ^ zero as u64, n) as i8)).collect()
                    }
                };
                let threads = 1 + (seed >> 8) as usize % 4;
                Case {
                    batch,
                    spatial: grown,
                    groups,
                    inputs,
                    outputs,
                    window,
                    zero_point: zero,
                    weight_zero_points,
                    fill,
                    seed,
                    threads,
                }
            },
        )
}

/// Runs a case on one instruction set: input, scratch, output and threads are given.
pub type Run<'a> = &'a dyn Fn(&[u8], Output<'_>, &mut [u8], &dyn Parallel);

/// Runs a case through every epilogue in guarded memory, and compares each with the specification.
pub fn check_epilogues(case: &Case, isa: Isa, scratch_len: usize, sums: &[i32], run: Run<'_>) {
    let (len, channels) = (case.output_len(), case.channels().1);
    let seed = case.seed;
    let threads = Threads(case.threads);
    let context = format!("{} {case:?}", isa.name());
    for side in [Side::Begin, Side::End] {
        let mut input = Guarded::new(case.input().len(), side);
        input.as_mut_slice().copy_from_slice(&case.input());
        let mut scratch = Guarded::new(scratch_len, side);

        let mut output = Guarded::new(4 * len, side);
        run(input.as_slice(), Output::I32(output.as_mut_i32()), scratch.as_mut_slice(), &threads);
        assert_eq!(output.as_mut_i32(), sums, "{context}");

        // A typical sum becomes a few dozen steps, so that results lie on both sides of both bounds.
        let size = (sums.iter().map(|sum| sum.unsigned_abs()).max().unwrap_or(0).max(1)) as f32;
        let scales: Vec<f32> = (0..channels).map(|n| (1 + random(seed, n) % 400) as f32 / size).collect();
        let biases: Vec<f32> = (0..channels).map(|n| (random(seed ^ 1, n) % 4000) as f32 / 100.0 - 20.0).collect();
        for (scale, bias) in [(&scales[..], &biases[..]), (&scales[..1], &[][..])] {
            let infinite = (f32::NEG_INFINITY, f32::INFINITY);
            for (min, max) in [infinite, (0.0, 60.0)] {
                let form = Dequantize { scale, bias, min, max };
                let mut output = Guarded::new(4 * len, side);
                run(input.as_slice(), Output::F32(output.as_mut_f32(), form), scratch.as_mut_slice(), &threads);
                for (at, (&got, &sum)) in output.as_mut_f32().iter().zip(sums).enumerate() {
                    assert_eq!(got, form.apply(sum, at % channels), "{context} f32 {at}");
                }
            }
        }

        let mut residual = Guarded::new(len, side);
        residual.as_mut_slice().iter_mut().enumerate().for_each(|(n, byte)| *byte = random(seed ^ 2, n) as u8);
        let table: [u8; 256] = std::array::from_fn(|n| random(seed ^ 3, n) as u8);
        let zero_point = random(seed, 7) as u8;
        let huge: Vec<f32> = scales.iter().map(|scale| scale * 3e9).collect();
        let negative: Vec<f32> = huge.iter().map(|scale| -scale).collect();
        for (n, scale) in [&scales[..], &scales[..1], &huge[..], &negative[..]].into_iter().enumerate() {
            for form in 0..8 {
                let form = Requantize {
                    scale,
                    bias: if form & 1 == 0 { &biases } else { &[] },
                    zero_point: if n == 0 { zero_point } else { [0, 255][form & 1] },
                    min: if form & 2 == 0 { 0 } else { zero_point },
                    max: if form & 2 == 0 { 255 } else { zero_point.saturating_add(100) },
                    residual: (form & 4 != 0).then(|| Residual {
                        data: residual.as_slice(),
                        scale: 0.37,
                        zero_point: random(seed, 8) as u8,
                    }),
                    table: (form & 3 == 3).then_some(&table),
                };
                let mut output = Guarded::new(len, side);
                run(input.as_slice(), Output::U8(output.as_mut_slice(), form), scratch.as_mut_slice(), &threads);
                for (at, (&got, &sum)) in output.as_slice().iter().zip(sums).enumerate() {
                    let byte = form.residual.map_or(0, |residual| residual.data[at]);
                    assert_eq!(got, form.apply(sum, at % channels, byte), "{context} u8 {at} {scale:?}");
                }
            }
        }
    }
}

/// Which end of the memory lies at a page that must not be touched. The other end has such a page within 4 KiB.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    Begin,
    End,
}

/// Memory between two pages that fault when they are touched.
pub struct Guarded {
    mapping: *mut u8,
    mapped: usize,
    begin: *mut u8,
    len: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    pub fn new(len: usize, side: Side) -> Self {
        let usable = len.div_ceil(PAGE) * PAGE;
        let mapped = usable + 2 * PAGE;
        // SAFETY: a new anonymous mapping; only the pages between the first and the last become accessible.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let mapping = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0).cast::<u8>();
            assert_ne!(mapping.cast(), libc::MAP_FAILED);
            let first = mapping.add(PAGE);
            if usable > 0 {
                assert_eq!(libc::mprotect(first.cast(), usable, libc::PROT_READ | libc::PROT_WRITE), 0);
            }
            let begin = match side {
                Side::Begin => first,
                Side::End => first.add(usable - len),
            };
            Self { mapping, mapped, begin, len }
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` accessible bytes from `begin` on, zeroed by the system.
        unsafe { std::slice::from_raw_parts(self.begin, self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.begin, self.len) }
    }

    pub fn as_mut_i32(&mut self) -> &mut [i32] {
        // SAFETY: as above; pages end at multiples of 4, and `len` is one.
        unsafe { std::slice::from_raw_parts_mut(self.begin.cast(), self.len / 4) }
    }

    pub fn as_mut_f32(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.begin.cast(), self.len / 4) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.mapping.cast(), self.mapped) };
    }
}
