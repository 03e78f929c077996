//! What a matrix product needs of an instruction set: one small trait, filled in by a file each.
//!
//! Everything above it (tiles, blocking, epilogues) is written once, and inlined into one function an instruction set
//! that has its `#[target_feature]`.

/// Channels in a strip: what a vector of the trait holds, in as many registers as it takes.
pub(crate) const STRIP: usize = 16;

/// Vectors of [`STRIP`] lanes in an instruction set. A value of an implementing type is proof that the machine has the
/// instructions.
///
/// All loads and stores take any alignment. `valid` counts the lanes that exist in memory: lanes beyond it are loaded as
/// zero and not stored.
///
/// # Safety
/// The unsafe methods read or write `valid` elements, or what their comment says, at the address they are given.
pub(crate) trait Vector: Copy + Send + Sync {
    /// Rows times strips of a tile whose accumulators fit the registers.
    const ACCUMULATORS: usize;
    /// The most rows of a tile.
    const ROWS: usize;
    /// The most strips of a tile.
    const STRIPS: usize;

    /// Whether [`dot`](Self::dot) takes only small groups, of panels that are [sorted](super::panels::Panels::sort);
    /// [`Wide`](Self::Wide) takes the others.
    const SORTED: bool = false;

    /// What [`activations`](Self::activations) subtracts, for instructions that take signed bytes only: an activation and
    /// its zero point both lose it, so that sums stay the same.
    const OFFSET: i32 = 0;

    /// Accumulators.
    type I32: Copy;
    type F32: Copy;
    /// Four activations, in the form that [`dot`](Self::dot) takes.
    type Activations: Copy;
    /// Four weights of each channel of a strip, in the form that [`dot`](Self::dot) takes.
    type Weights: Copy;

    /// The instruction set that takes any group: usually this one.
    type Wide: Vector<I32 = Self::I32>;

    fn wide(self) -> Self::Wide;

    /// Runs `work` in a function with the instruction set enabled.
    fn run(self, work: impl Task);

    /// Four bytes.
    unsafe fn activations(self, from: *const u8) -> Self::Activations;
    /// `4 * STRIP` bytes: four of each channel in turn.
    unsafe fn weights(self, from: *const i8) -> Self::Weights;
    /// `sum + a[0] w[0] + a[1] w[1] + a[2] w[2] + a[3] w[3]` in each lane, exactly, with activations less [`OFFSET`](Self::OFFSET).
    fn dot(self, sum: Self::I32, a: Self::Activations, w: Self::Weights) -> Self::I32;

    fn splat(self, x: i32) -> Self::I32;
    unsafe fn load(self, from: *const i32, valid: usize) -> Self::I32;
    unsafe fn store(self, x: Self::I32, to: *mut i32, valid: usize);
    /// Bytes, widened.
    unsafe fn load_bytes(self, from: *const u8, valid: usize) -> Self::I32;
    /// The low byte of each lane.
    unsafe fn store_bytes(self, x: Self::I32, to: *mut u8, valid: usize);
    fn add(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn mul(self, a: Self::I32, b: Self::I32) -> Self::I32;

    fn splat_f32(self, x: f32) -> Self::F32;
    unsafe fn load_f32(self, from: *const f32, valid: usize) -> Self::F32;
    unsafe fn store_f32(self, x: Self::F32, to: *mut f32, valid: usize);
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// `STRIP` signed bytes.
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::F32 {
        // SAFETY: the caller's `STRIP` bytes.
        let bytes = unsafe { from.cast::<[i8; STRIP]>().read_unaligned() };
        let values: [f32; STRIP] = std::array::from_fn(|lane| f32::from(bytes[lane]));
        // SAFETY: the array holds as many.
        unsafe { self.load_f32(values.as_ptr(), STRIP) }
    }
    /// `STRIP` bytes of two numbers of four bits: the low ones, and the high ones.
    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8) -> [Self::F32; 2] {
        // SAFETY: the caller's `STRIP` bytes.
        let bytes = unsafe { from.cast::<[u8; STRIP]>().read_unaligned() };
        let low: [f32; STRIP] = std::array::from_fn(|lane| f32::from(bytes[lane] & 15));
        let high: [f32; STRIP] = std::array::from_fn(|lane| f32::from(bytes[lane] >> 4));
        // SAFETY: the arrays hold as many.
        unsafe { [self.load_f32(low.as_ptr(), STRIP), self.load_f32(high.as_ptr(), STRIP)] }
    }
    /// The bits of `STRIP` bfloat16 numbers.
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::F32 {
        // SAFETY: the caller's `STRIP` numbers.
        let bits = unsafe { from.cast::<[u16; STRIP]>().read_unaligned() };
        let values: [f32; STRIP] = std::array::from_fn(|lane| f32::from_bits(u32::from(bits[lane]) << 16));
        // SAFETY: the array holds as many.
        unsafe { self.load_f32(values.as_ptr(), STRIP) }
    }
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    fn max_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn min_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Rounds half to even; the argument fits an i32.
    fn round(self, x: Self::F32) -> Self::I32;

    /// Stores `clamp(round(x) + zero_point)` of four vectors as bytes: vector `i` at `to[i / RUN] + STRIP * (i % RUN)`, for
    /// the first `runs` runs of `RUN` (1, 2 or 4) vectors. What an instruction set can pack together costs less than this.
    #[inline(always)]
    unsafe fn store_requantized<const RUN: usize>(
        self,
        x: [Self::F32; 4],
        limits: &Limits,
        to: [*mut u8; 4],
        runs: usize,
    ) {
        let (low, high, zero) =
            (self.splat_f32(limits.low()), self.splat_f32(limits.high()), self.splat(i32::from(limits.zero_point)));
        for run in 0..runs {
            for i in 0..RUN {
                let value = self.min_f32(self.max_f32(x[run * RUN + i], low), high);
                let byte = self.add(self.round(value), zero);
                // SAFETY: by the contract, `RUN` strips lie at each address.
                unsafe { self.store_bytes(byte, to[run].add(STRIP * i), STRIP) };
            }
        }
    }
}

/// A requantized value's zero point and bounds.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub zero_point: u8,
    pub min: u8,
    pub max: u8,
}

impl Limits {
    /// The lower bound before the zero point is added.
    #[inline(always)]
    pub fn low(&self) -> f32 {
        (i32::from(self.min) - i32::from(self.zero_point)) as f32
    }

    /// The upper bound before the zero point is added.
    #[inline(always)]
    pub fn high(&self) -> f32 {
        (i32::from(self.max) - i32::from(self.zero_point)) as f32
    }
}

/// What [`Vector::run`] runs: a closure that is generic over the instruction set.
pub(crate) trait Task {
    /// Must be `#[inline(always)]`, and so must all that it calls.
    fn run<V: Vector>(self, vector: V);
}
