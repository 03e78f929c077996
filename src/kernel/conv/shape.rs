//! What a convolution is.

use crate::{Error, Result};

/// The sizes of a convolution over up to three spatial dimensions, in the order depth, height, width. A 2d convolution has
/// depth 1, a 1d one height 1 as well.
///
/// ```
/// use jitquant::kernel::ConvShape;
///
/// let shape = ConvShape { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1], ..ConvShape::new(64, 128) };
/// assert_eq!(shape.output_spatial([1, 56, 56])?, [1, 28, 28]);
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

    /// Checks that the numbers fit one another.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::Invalid(message));
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
        for d in 0..3 {
            let added = self.output_padding[d];
            if added > 0 && (!self.transposed || added >= self.stride[d].max(self.dilation[d])) {
                return invalid(format!(
                    "output padding {:?} should be smaller than stride or dilation",
                    self.output_padding
                ));
            }
        }
        Ok(())
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
    /// Where there is no output: the kernel does not fit the padded input.
    pub fn output_spatial(&self, input: [usize; 3]) -> Result<[usize; 3]> {
        let mut output = [0; 3];
        for d in 0..3 {
            let reach = self.dilation[d] * (self.kernel[d] - 1) + 1;
            output[d] = if self.transposed {
                input[d]
                    .checked_sub(1)
                    .and_then(|last| {
                        (last * self.stride[d] + reach + self.output_padding[d]).checked_sub(2 * self.padding[d])
                    })
                    .filter(|size| *size > 0)
            } else {
                (input[d] + 2 * self.padding[d]).checked_sub(reach).map(|room| room / self.stride[d] + 1)
            }
            .ok_or_else(|| {
                Error::Invalid(format!(
                    "an input of {input:?} is too small for kernel {:?}, dilation {:?}, padding {:?}",
                    self.kernel, self.dilation, self.padding
                ))
            })?;
        }
        Ok(output)
    }
}
