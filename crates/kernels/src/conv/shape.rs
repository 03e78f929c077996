//! What a convolution is.

use crate::geometry::{LONGEST, MOST, MOST_EMPTY, Sliding, count, elements};
use crate::{Error, Result};

/// The sizes of a convolution over up to three spatial dimensions, in the order depth, height, width. A 2d convolution has
/// depth 1, a 1d one height 1 as well.
///
/// ```
/// use jitquant_kernels::ConvShape;
///
/// let shape = ConvShape { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1], ..ConvShape::new(64, 128) };
/// assert_eq!(shape.output_spatial([1, 56, 56])?, [1, 28, 28]);
/// # Ok::<(), jitquant_kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct ConvShape {
    /// Channels of the input.
    pub input_channels: usize,
    /// Channels of the output.
    pub output_channels: usize,
    /// Groups of channels; an output depends on the inputs of its own group only.
    pub groups: usize,
    /// Taps.
    pub kernel: [usize; 3],
    /// Inputs from one output to the next; of a transposed convolution outputs from one input to the next.
    pub stride: [usize; 3],
    /// Inputs added at both ends (outputs taken away, of a transposed convolution).
    pub padding: [usize; 3],
    /// Inputs from one tap to the next (outputs, of a transposed convolution).
    pub dilation: [usize; 3],
    /// Outputs added at the far end of a transposed convolution; else 0.
    pub output_padding: [usize; 3],
    /// Whether this is a transposed convolution.
    pub transposed: bool,
}

impl ConvShape {
    /// A 1 x 1 x 1 convolution.
    pub fn new(input_channels: usize, output_channels: usize) -> Self {
        Self {
            input_channels,
            output_channels,
            groups: 1,
            kernel: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            dilation: [1; 3],
            output_padding: [0; 3],
            transposed: false,
        }
    }

    /// Checks that the numbers fit one another, and that none is so large that what follows from it would not fit.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error(message));
        let divides = |channels: usize| channels.is_multiple_of(self.groups);
        if self.groups == 0 || !divides(self.input_channels) || !divides(self.output_channels) {
            return invalid(format!(
                "{} groups do not divide {} and {} channels",
                self.groups, self.input_channels, self.output_channels
            ));
        }
        if self.kernel.contains(&0) || self.stride.contains(&0) || self.dilation.contains(&0) {
            return invalid(format!(
                "kernel {:?}, stride {:?} and dilation {:?} should be at least 1",
                self.kernel, self.stride, self.dilation
            ));
        }
        let channels = self.input_channels.max(self.output_channels);
        if channels > MOST || !(0..3).all(|d| self.sliding(d).is_plausible()) {
            return invalid(format!(
                "kernel {:?}, stride {:?}, padding {:?}, dilation {:?} and {channels} channels should be at most {MOST}",
                self.kernel, self.stride, self.padding, self.dilation
            ));
        }
        for d in 0..3 {
            let added = self.output_padding[d];
            if added > 0 && (!self.transposed || added >= self.stride[d].max(self.dilation[d])) {
                return invalid(format!(
                    "output padding {:?} should be smaller than stride or dilation",
                    self.output_padding
                ));
            }
        }
        let weight = [self.output_channels, self.group_inputs(), self.kernel[0], self.kernel[1], self.kernel[2]];
        // Without elements the weight would not bound the channels.
        if count("a weight", &weight)? == 0 && channels > MOST_EMPTY {
            return invalid(format!("{channels} channels and no weights; at most {MOST_EMPTY} are accepted"));
        }
        if self.transposed {
            let phases = elements(self.stride);
            let packed = phases.and_then(|phases| phases.checked_mul(self.groups)).filter(|n| *n <= MOST_PHASES);
            let looks = phases.and_then(|phases| phases.checked_mul(self.taps())).filter(|n| *n <= MOST_LOOKS);
            if packed.is_none() || looks.is_none() {
                return invalid(format!(
                    "a transposed convolution of stride {:?}, {} groups and kernel {:?}: at most {MOST_PHASES} groups times \
                     strides, and {MOST_LOOKS} taps times strides, are accepted",
                    self.stride, self.groups, self.kernel
                ));
            }
        }
        Ok(())
    }

    /// Its window along dimension `d`.
    fn sliding(&self, d: usize) -> Sliding {
        let (kernel, stride) = (self.kernel[d], self.stride[d]);
        Sliding { kernel, stride, padding: self.padding[d], dilation: self.dilation[d] }
    }

    /// Input channels of a group.
    pub fn group_inputs(&self) -> usize {
        self.input_channels / self.groups
    }

    /// Output channels of a group.
    pub fn group_outputs(&self) -> usize {
        self.output_channels / self.groups
    }

    /// Taps in all.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Elements of the weight: `[output_channels, taps, group_inputs]`, of a transposed one
    /// `[input_channels, taps, group_outputs]`, which are as many.
    pub fn weight_len(&self) -> usize {
        self.output_channels * self.taps() * self.group_inputs()
    }

    /// The output's spatial sizes for an input's.
    ///
    /// # Errors
    /// Where there is no output: the kernel does not fit the padded input. Where a number is too large.
    pub fn output_spatial(&self, input: [usize; 3]) -> Result<[usize; 3]> {
        let mut output = [0; 3];
        for d in 0..3 {
            let (window, size) = (self.sliding(d), input[d]);
            let found = match self.transposed {
                true => window.covered(size, self.output_padding[d]),
                false => window.windows(size, 0),
            };
            output[d] = found.ok_or_else(|| {
                let (kernel, dilation, padding) = (self.kernel, self.dilation, self.padding);
                let why = if size > LONGEST { "large" } else { "small" };
                Error(format!(
                    "an input of {input:?} is too {why} for kernel {kernel:?}, dilation {dilation:?}, padding {padding:?}"
                ))
            })?;
        }
        Ok(output)
    }

    /// The sizes of a call, checked.
    ///
    /// # Errors
    /// As [`output_spatial`](Self::output_spatial), and where a tensor would be larger than memory.
    pub(super) fn call(&self, batch: usize, spatial: [usize; 3]) -> Result<Call> {
        let output = self.output_spatial(spatial)?;
        let of = |what: &str, [d, h, w]: [usize; 3], channels: usize| -> Result<(usize, usize)> {
            let sample = count(what, &[d, h, w, channels])?;
            Ok((sample, count(what, &[batch, sample])?))
        };
        let (sample, input_len) = of("an input", spatial, self.input_channels)?;
        let (result, output_len) = of("an output", output, self.output_channels)?;
        Ok(Call { output, sample, input_len, result, output_len })
    }
}

/// The lengths of a call's tensors.
#[derive(Clone, Copy)]
pub(super) struct Call {
    /// Spatial sizes of the output.
    pub output: [usize; 3],
    /// Elements of a sample of the input.
    pub sample: usize,
    /// Of all of them.
    pub input_len: usize,
    /// Elements of a sample of the output.
    pub result: usize,
    /// Of all of them.
    pub output_len: usize,
}

/// Strides of a transposed convolution (outputs fall into as many phases) times groups, at most: each is packed by itself, some
/// kilobytes large.
const MOST_PHASES: usize = 1 << 16;

/// Strides of a transposed convolution times taps, at most: so many are looked at when it is packed.
const MOST_LOOKS: usize = 1 << 26;
