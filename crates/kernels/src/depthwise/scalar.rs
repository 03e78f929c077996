//! The specification, in plain loops.

#![allow(unsafe_code)]

use super::window::Geometry;
use crate::Parallel;
use crate::sink::Sink;

/// Weights as they came, `[outputs][inputs][depth][height][width]`, and one zero point an output channel.
pub(crate) struct Weights<'a> {
    pub weight: &'a [i8],
    pub zero_points: &'a [i32],
    /// Output channels of a group.
    pub outputs: usize,
    /// Input channels of a group.
    pub inputs: usize,
}

/// Convolves group by group: `sum((x - zero_point) * (w - zero_points[n]))` over the window and the group's channels.
pub(crate) fn run(
    geometry: &Geometry,
    weights: &Weights<'_>,
    input: &[u8],
    zero_point: u8,
    sink: &Sink<'_>,
    threads: &dyn Parallel,
) {
    let [depth, height, width] = geometry.output;
    let outputs = weights.zero_points.len();
    // One task a row of outputs.
    threads.run(geometry.batch * depth * height, &|row| {
        let (image, z, y) = (row / (depth * height), row / height % depth, row % height);
        for x in 0..width {
            for n in 0..outputs {
                let sum = sum(geometry, weights, input, i32::from(zero_point), (image, [z, y, x], n));
                // SAFETY: this row's elements are inside the output (the geometry's sizes were checked), and only this
                // task writes them.
                unsafe { sink.store_one(sum, n, (row * width + x) * outputs + n) };
            }
        }
    });
}

/// The accumulator of output channel `n` of an image at a position.
fn sum(
    geometry: &Geometry,
    weights: &Weights<'_>,
    input: &[u8],
    zero_point: i32,
    (image, at, n): (usize, [usize; 3], usize),
) -> i32 {
    let kernel = geometry.window.kernel;
    let taps = geometry.window.taps();
    let channels = weights.zero_points.len() / weights.outputs * weights.inputs;
    let mut sum = 0i32;
    for tap in 0..taps {
        let tap_at = [tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1], tap % kernel[2]];
        let position = |axis: usize| geometry.position(axis, at[axis], tap_at[axis]);
        let (Some(z), Some(y), Some(x)) = (position(0), position(1), position(2)) else { continue };
        let pixel = ((image * geometry.input[0] + z) * geometry.input[1] + y) * geometry.input[2] + x;
        let first = pixel * channels + n / weights.outputs * weights.inputs;
        for (c, &byte) in input[first..first + weights.inputs].iter().enumerate() {
            let weight = i32::from(weights.weight[(n * weights.inputs + c) * taps + tap]);
            sum = sum.wrapping_add((i32::from(byte) - zero_point) * (weight - weights.zero_points[n]));
        }
    }
    sum
}
