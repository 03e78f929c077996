//! How channels are cut into blocks, and where a weight lies in a block's registers.

#![allow(unsafe_code)]

/// Consecutive channels that one register of bytes covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Its first channel.
    pub start: usize,
    /// Channels that count: `width`, or fewer where the convolution has fewer channels than a register.
    pub count: usize,
    /// Bytes of the register.
    pub width: usize,
}

/// Blocks in the order of their channels, and how many of them may run at the same time as another.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    pub blocks: Vec<Block>,
    /// Blocks that different threads may take. Where the last block overlaps the one before, both belong to one unit:
    /// no byte is written by two threads.
    pub units: usize,
}

impl Blocks {
    /// Cuts `channels` into blocks of the `widths` of an instruction set, widest first. The last block begins early
    /// enough to be a full one, and computes some channels a second time: cheaper than masks.
    pub fn new(channels: usize, widths: &[usize]) -> Self {
        let mut blocks = Vec::new();
        let (mut start, mut overlap) = (0, false);
        while start < channels {
            let left = channels - start;
            // The narrowest register that holds all that is left, else the widest that fits before or after `start`.
            let width = widths.iter().copied().filter(|&w| w >= left && w <= channels).min();
            let width = width.or_else(|| widths.iter().copied().filter(|&w| w <= channels).max());
            let width =
                width.unwrap_or_else(|| widths.iter().copied().min().expect("an instruction set has registers"));
            let from = if channels < width { 0 } else { start.min(channels - width) };
            overlap = from < start;
            blocks.push(Block { start: from, count: width.min(channels), width });
            start = from + width;
        }
        let units = blocks.len() - usize::from(overlap);
        Self { blocks, units }
    }

    /// The blocks of one unit.
    pub fn unit(&self, unit: usize) -> std::ops::Range<usize> {
        unit..if unit + 1 == self.units { self.blocks.len() } else { unit + 1 }
    }
}

/// Where the weights of four taps of each channel of a block lie: a *quad*, four registers in block order.
///
/// A lane of a register holds the four i8 of a channel; or, for an instruction set without an 8-bit dot product, a lane
/// of one register holds taps 0 and 2 as i16, and a lane of the next one taps 1 and 3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuadLayout {
    /// Bytes of a register.
    pub width: usize,
    /// Weights are i16.
    pub widened: bool,
}

impl QuadLayout {
    /// Bytes of a quad.
    pub fn quad_bytes(self) -> usize {
        4 * self.width * if self.widened { 2 } else { 1 }
    }

    /// Where tap `tap` (0 to 3) of channel `channel` of the block is, in bytes from the quad's begin.
    fn offset(self, channel: usize, tap: usize) -> usize {
        let (register, lane) = block_order(channel);
        let begin = register * self.quad_bytes() / 4 + 4 * lane;
        if self.widened { begin + self.width * (tap % 2) + 2 * (tap / 2) } else { begin + tap }
    }

    /// Stores a weight.
    pub fn put(self, quad: &mut [u8], channel: usize, tap: usize, weight: i8) {
        let at = self.offset(channel, tap);
        if self.widened {
            quad[at..at + 2].copy_from_slice(&i16::from(weight).to_ne_bytes());
        } else {
            quad[at] = weight as u8;
        }
    }

    /// The weight that [`Self::put`] stored.
    pub fn get(self, quad: &[u8], channel: usize, tap: usize) -> i8 {
        // x86 and AArch64 are little-endian: the low byte of an i16 within i8's range is the i8.
        quad[self.offset(channel, tap)] as i8
    }
}

/// The register (0 to 3) and its 32-bit lane that hold channel `channel` of a block.
pub(crate) fn block_order(channel: usize) -> (usize, usize) {
    (channel % 16 / 4, channel / 16 * 4 + channel % 4)
}

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

/// Zeroed bytes that begin at a cache line, so that no register of weights crosses one.
#[derive(Clone, Debug)]
pub(crate) struct AlignedBytes(Vec<CacheLine>);

impl AlignedBytes {
    pub fn zeroed(bytes: usize) -> Self {
        Self(vec![CacheLine([0; 64]); bytes.div_ceil(64)])
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the cache lines are contiguous and made of initialized bytes.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), 64 * self.0.len()) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), 64 * self.0.len()) }
    }
}
