//! Fake quantization's arithmetic: every instruction set and number of threads gives the same bits, and the gradients
//! are those of their definition.

use jitquant_kernels::{Channels, FakeQuantize, Isa, Parallel, Serial};

fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// In f64, element by element, from the definition.
fn reference(q: &FakeQuantize<'_>, dy: &[f32], x: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f64>, Vec<f64>) {
    let Channels { channels, inner, .. } = q.channels;
    let (mut y, mut dx) = (Vec::new(), Vec::new());
    let (mut dscale, mut dzero) = (vec![0.0; channels], vec![0.0; channels]);
    for (i, (x, dy)) in x.iter().zip(dy).enumerate() {
        let channel = i / inner % channels;
        let (s, z) = (q.scale[channel], q.zero_point[channel]);
        let divided = x * (1.0 / s);
        let integer = divided.round_ties_even() + z;
        let clamped = integer.clamp(q.quant_min as f32, q.quant_max as f32);
        y.push((clamped - z) * s);
        let inside = clamped == integer;
        dx.push(if inside { *dy } else { 0.0 });
        let slope = if inside { divided.round_ties_even() - divided } else { clamped - z };
        dscale[channel] += f64::from(*dy) * f64::from(slope);
        dzero[channel] -= if inside { 0.0 } else { f64::from(s) * f64::from(*dy) };
    }
    (y, dx, dscale, dzero)
}

#[test]
fn every_path_and_any_number_of_threads_gives_the_same_bits() {
    for (outer, channels, inner) in
        [(1, 1, 1), (1, 1, 100_003), (1, 64, 147), (1, 7, 9000), (3, 5, 1), (2, 3, 4096), (1, 1, 4096), (8, 64, 49)]
    {
        let layout = Channels { outer, channels, inner };
        let len = outer * channels * inner;
        let (x, dy) = (noise(len, 3), noise(len, 4));
        let scale: Vec<f32> = noise(channels, 5).iter().map(|v| 0.004 + 0.002 * v).collect();
        let zero_point: Vec<f32> = (0..channels).map(|c| (100 + c % 50) as f32).collect();
        let q = FakeQuantize { scale: &scale, zero_point: &zero_point, channels: layout, quant_min: 0, quant_max: 255 };
        let (y, dx, dscale, dzero) = reference(&q, &dy, &x);
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for isa in Isa::available() {
            for parallel in [&Serial as &dyn Parallel, &crate::threads::Threads(3)] {
                let (mut got_y, mut got_dx, mut learned_dx) = (vec![9.0; len], vec![9.0; len], vec![9.0; len]);
                let (mut got_scale, mut got_zero) = (vec![0.0; channels], vec![0.0; channels]);
                q.forward(isa, &x, &mut got_y, parallel).unwrap();
                q.backward(isa, &dy, &x, &mut got_dx, parallel).unwrap();
                q.backward_learned(isa, &dy, &x, &mut learned_dx, &mut got_scale, &mut got_zero, parallel).unwrap();
                assert_eq!(y, got_y, "{isa:?} {layout:?}");
                assert_eq!(dx, got_dx, "{isa:?} {layout:?}");
                assert_eq!(dx, learned_dx, "{isa:?} {layout:?}");
                for channel in 0..channels {
                    let close = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-4 * (1.0 + want.abs());
                    assert!(close(got_scale[channel], dscale[channel]), "{} {}", got_scale[channel], dscale[channel]);
                    assert!(close(got_zero[channel], dzero[channel]), "{} {}", got_zero[channel], dzero[channel]);
                }
                let found = (got_scale, got_zero);
                assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{isa:?} {layout:?}");
            }
        }
    }
}

#[test]
fn values_that_are_no_numbers_show() {
    let q = FakeQuantize {
        scale: &[0.5],
        zero_point: &[3.0],
        channels: Channels { outer: 1, channels: 1, inner: 3 },
        quant_min: 0,
        quant_max: 15,
    };
    for isa in Isa::available() {
        let mut y = [0.0; 3];
        q.forward(isa, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &mut y, &Serial).unwrap();
        assert!(y[0].is_nan());
        assert_eq!(y[1..], [6.0, -1.5]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let channels = Channels { outer: 1, channels: 1, inner: 2 };
    let good = FakeQuantize { scale: &[0.5], zero_point: &[0.0], channels, quant_min: -8, quant_max: 7 };
    let refusal =
        |q: FakeQuantize<'_>| q.forward(Isa::Scalar, &[0.0; 2], &mut [0.0; 2], &Serial).unwrap_err().to_string();
    assert!(good.forward(Isa::Scalar, &[0.0; 2], &mut [0.0; 2], &Serial).is_ok());
    assert!(refusal(FakeQuantize { scale: &[0.0], ..good }).contains("positive"));
    assert!(refusal(FakeQuantize { scale: &[f32::NAN], ..good }).contains("positive"));
    assert!(refusal(FakeQuantize { zero_point: &[9.0], ..good }).contains("zero point 9"));
    assert!(refusal(FakeQuantize { quant_max: -8, ..good }).contains("less than"));
    assert!(refusal(FakeQuantize { scale: &[0.5, 0.5], ..good }).contains("2 scales"));
}
