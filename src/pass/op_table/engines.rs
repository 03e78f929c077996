//! What libtorch's engines for quantized operators do not compute exactly: one list, which the rows' forms name by their
//! operators. Measured on libtorch 2.13.0 by `tests/engines.rs`, on machines with VNNI, against sums in 64 bits: what is not
//! listed is at most one step from the exact result on every engine.
//!
//! Machines without VNNI: FBGEMM adds up each pair of products in 16 bits in every layer, oneDNN in all but depthwise ones.
//! That is no property of a form, and not listed: weights or activations of 7 bits (`--reduce-range`) avoid it.

/// Which of libtorch's engines for quantized operators a portable model is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StockEngine {
    /// All of them, on x86 and on ARM.
    #[default]
    Any,
    /// `x86`, libtorch's default on x86.
    X86,
    /// `fbgemm`.
    Fbgemm,
    /// `onednn`.
    Onednn,
    /// `qnnpack`, libtorch's engine on ARM.
    Qnnpack,
}

use StockEngine::{Fbgemm, Onednn, Qnnpack, X86};

impl StockEngine {
    /// The engines by themselves.
    pub const ALL: [Self; 4] = [X86, Fbgemm, Onednn, Qnnpack];

    /// libtorch's name of one engine.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            X86 => "x86",
            Fbgemm => "fbgemm",
            Onednn => "onednn",
            Qnnpack => "qnnpack",
        }
    }

    /// Whether a model for `self` runs on `engine`.
    pub fn includes(self, engine: Self) -> bool {
        self == Self::Any || self == engine
    }
}

/// The most groups with which engine `x86` hands a convolution to oneDNN (on a machine with VNNI); with more it is FBGEMM's.
pub const MOST_GROUPS_OF_ONEDNN: i64 = 100;

/// Where an operator is not exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Whatever its arguments are.
    Always,
    /// A layer for which FBGEMM takes its kernels for depthwise convolutions, where the weights of two neighbouring taps (0 and
    /// 1, 2 and 3, …) add up to more than [`MOST_OF_A_PAIR`].
    DepthwisePairs,
    /// A layer for which FBGEMM takes its kernels for groups of 2 or 4 channels, where the groups are no multiple of how many it
    /// computes together. (The test does not try it.)
    UnevenGroups,
    /// Groups of 17 to 31 channels, with padding. (Of 17, 20, 24 and 29 channels all but 20 were wrong.)
    MiddleGroups,
    /// A transposed convolution that FBGEMM computes directly: two rows in the kernel, no padding, one group, channels in
    /// eights.
    DirectTransposed,
    /// Output channels in another number than input channels.
    UnequalChannels,
    /// Average pooling with padding that does not count.
    UncountedPadding,
    /// A tensor whose channels come last in memory, as those of convolutions do.
    ChannelsLast,
}

/// What some engines do not compute exactly.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Operators of the portable form.
    pub kinds: &'static [&'static str],
    /// Engines.
    pub engines: &'static [StockEngine],
    /// For which arguments.
    pub when: When,
    /// What they do instead.
    pub what: &'static str,
}

/// The most that two neighbouring weights of one sign may add up to where products are added in 16 bits: with inputs of 255
/// that is 32,640.
pub const MOST_OF_A_PAIR: i32 = 128;

/// The list.
#[rustfmt::skip]
pub static LIMITS: &[Limit] = &[
    Limit { kinds: &["quantized::conv2d", "quantized::conv2d_relu", "quantized::conv3d", "quantized::conv3d_relu"],
        engines: &[X86, Fbgemm], when: When::DepthwisePairs,
        what: "FBGEMM's depthwise kernels add two products in 16 bits, which saturate" },
    Limit { kinds: &["quantized::conv2d", "quantized::conv2d_relu", "quantized::conv3d", "quantized::conv3d_relu"],
        engines: &[X86, Fbgemm], when: When::UnevenGroups,
        what: "FBGEMM's kernels for small groups write past the end of their memory" },
    Limit { kinds: &["quantized::conv1d", "quantized::conv1d_relu", "quantized::conv2d", "quantized::conv2d_relu", "quantized::conv3d", "quantized::conv3d_relu"],
        engines: &[X86, Onednn], when: When::MiddleGroups,
        what: "oneDNN gets padded convolutions with 17 to 31 channels in a group wrong" },
    Limit { kinds: &["quantized::conv_transpose2d"],
        engines: &[Fbgemm], when: When::DirectTransposed,
        what: "FBGEMM's direct kernel for transposed convolutions computes something else" },
    Limit { kinds: &["quantized::conv_transpose1d", "quantized::conv_transpose2d", "quantized::conv_transpose3d"],
        engines: &[X86, Onednn], when: When::UnequalChannels,
        what: "oneDNN's transposed convolutions compute something else" },
    Limit { kinds: &["quantized::conv_transpose3d"],
        engines: &[Qnnpack], when: When::Always,
        what: "QNNPACK computes something else" },
    Limit { kinds: &["aten::max_pool3d"],
        engines: &[Qnnpack], when: When::Always,
        what: "there is no kernel" },
    Limit { kinds: &["aten::avg_pool2d"],
        engines: &[Qnnpack], when: When::UncountedPadding,
        what: "QNNPACK counts the padding" },
    Limit { kinds: &["aten::clamp", "aten::hardtanh", "aten::hardtanh_"],
        engines: &[Qnnpack], when: When::ChannelsLast,
        what: "QNNPACK mixes up the channels" },
    Limit { kinds: &["quantized::linear_with_input_q_dq_qweight_dq_output_fp32", "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32"],
        engines: &[Onednn, Qnnpack], when: When::Always,
        what: "there is no kernel" },
];

impl Limit {
    /// What is known of the operator `kind`.
    pub fn of(kind: &str) -> impl Iterator<Item = &'static Self> + use<'_> {
        LIMITS.iter().filter(move |limit| limit.kinds.contains(&kind))
    }

    /// What it is, in words for a report.
    pub fn reason(&self) -> String {
        let names: Vec<_> = self.engines.iter().map(|engine| engine.name()).collect();
        format!("{} (libtorch 2.13, {})", self.what, names.join(" and "))
    }

    /// Whether a model for `engine` may meet it.
    pub fn concerns(&self, engine: StockEngine) -> bool {
        self.engines.iter().any(|own| engine.includes(*own))
    }
}

/// What a convolution's weight and arguments say of the kernel that an engine takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Of the inputs.
    pub inputs: i64,
    /// Of the outputs.
    pub outputs: i64,
    /// Groups.
    pub groups: i64,
    /// The kernel's sizes, one for each spatial dimension; of one dimension as an image of one row.
    pub kernel: Vec<i64>,
    /// Stride.
    pub stride: Vec<i64>,
    /// Padding.
    pub padding: Vec<i64>,
    /// Dilation.
    pub dilation: Vec<i64>,
    /// Whether it is transposed.
    pub transposed: bool,
}

impl Geometry {
    /// Whether each input channel has outputs of its own.
    pub fn is_depthwise(&self) -> bool {
        !self.transposed && self.groups > 1 && self.inputs == self.groups
    }

    /// Whether FBGEMM takes its kernels for depthwise convolutions.
    pub fn is_fbgemm_depthwise(&self) -> bool {
        let is_plane = matches!(self.kernel[..], [.., height, width] if height == width);
        let is_kept = std::iter::zip(&self.padding, &self.kernel).all(|(padding, size)| *padding == (size - 1) / 2);
        self.is_depthwise()
            && self.groups % 8 == 0
            && (self.outputs == self.groups || self.outputs == 2 * self.groups)
            && is_plane
            && is_kept
            && self.kernel.iter().all(|size| matches!(size, 3 | 5 | 7))
            && self.stride.iter().all(|stride| matches!(stride, 1 | 2))
            && self.dilation.iter().all(|dilation| *dilation == 1)
    }

    /// Whether FBGEMM computes it directly, as a transposed convolution.
    pub fn is_fbgemm_direct(&self) -> bool {
        self.transposed
            && self.groups == 1
            && self.inputs % 8 == 0
            && self.outputs % 8 == 0
            && matches!(self.kernel[..], [2, 1..=6])
            && self.stride.iter().all(|stride| matches!(stride, 1 | 2))
            && self.padding.iter().all(|padding| *padding == 0)
            && self.dilation.iter().all(|dilation| *dilation == 1)
    }

    /// Whether FBGEMM has fast kernels for such a layer with 2, 4, 8 or 16 channels in a group, as many inputs as outputs.
    pub fn is_fbgemm_groupwise(&self) -> bool {
        !self.transposed
            && self.inputs == self.outputs
            && self.kernel.iter().all(|size| *size == 3)
            && self.padding.iter().all(|padding| *padding == 1)
            && self.dilation.iter().all(|dilation| *dilation == 1)
            && (self.stride.iter().all(|stride| *stride == 1) || self.stride.iter().all(|stride| *stride == 2))
    }

    /// Whether it has a number of channels in its groups, and padding, that oneDNN gets wrong.
    pub fn has_middle_groups(&self) -> bool {
        let own = self.inputs / self.groups.max(1);
        !self.transposed && self.groups > 1 && (17..32).contains(&own) && self.padding.iter().any(|size| *size > 0)
    }

    /// Whether FBGEMM takes a kernel for groups of 2 or 4 channels that computes more groups than there are: 8 or 4 at a time.
    pub fn has_uneven_groups(&self) -> bool {
        let together = match self.inputs / self.groups.max(1) {
            2 => 8,
            4 => 4,
            _ => 1,
        };
        self.is_fbgemm_groupwise() && self.groups >= together && self.groups % together != 0
    }
}

/// The most that two neighbouring taps of one sign add up to, of weights of which each has `taps` behind one another.
pub fn largest_pair(weights: &[i8], taps: usize) -> i32 {
    let of_pair = |pair: &[i8]| {
        let positive: i32 = pair.iter().map(|weight| i32::from(*weight).max(0)).sum();
        let negative: i32 = pair.iter().map(|weight| i32::from(*weight).min(0)).sum();
        positive.max(-negative)
    };
    weights.chunks(taps.max(1)).flat_map(|channel| channel.chunks(2)).map(of_pair).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_of_one_channel_and_one_sign() {
        assert_eq!(largest_pair(&[100, 28, 0, 100, -100, 3, 1, 1], 4), 128);
        assert_eq!(largest_pair(&[1, 2, 100, 100, 2, 1], 3), 102);
        assert_eq!(largest_pair(&[127, -127], 2), 127);
        assert_eq!(largest_pair(&[-100, -29], 2), 129);
    }

    #[test]
    fn kernels_of_fbgemm_are_known_by_their_geometry() {
        let depthwise = Geometry {
            inputs: 16,
            outputs: 16,
            groups: 16,
            kernel: vec![3, 3],
            stride: vec![1, 1],
            padding: vec![1, 1],
            dilation: vec![1, 1],
            transposed: false,
        };
        assert!(depthwise.is_fbgemm_depthwise() && depthwise.is_fbgemm_groupwise());
        let others = [
            Geometry { padding: vec![0, 0], ..depthwise.clone() },
            Geometry { inputs: 17, outputs: 17, groups: 17, ..depthwise.clone() },
            Geometry { groups: 8, ..depthwise.clone() },
            Geometry { kernel: vec![1, 3], padding: vec![0, 1], ..depthwise.clone() },
            Geometry { dilation: vec![2, 2], ..depthwise.clone() },
        ];
        assert!(others.iter().all(|other| !other.is_fbgemm_depthwise()));
        let grouped =
            |channels: i64, groups: i64| Geometry { inputs: channels, outputs: channels, groups, ..depthwise.clone() };
        assert!(grouped(116, 29).has_uneven_groups() && grouped(58, 29).has_uneven_groups());
        assert!(!grouped(112, 28).has_uneven_groups() && !grouped(232, 29).has_uneven_groups());
    }
}
