//! Plain Rust: the specification, and the fallback on any machine.

use super::vector::{STRIP as LANES, Task, Vector};

/// A strip in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Vector for Scalar {
    const ACCUMULATORS: usize = 4;
    const ROWS: usize = 4;
    const STRIPS: usize = 1;
    type I32 = [i32; LANES];
    type F32 = [f32; LANES];
    type Activations = [u8; 4];
    type Weights = [[i8; 4]; LANES];

    type Wide = Self;

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }

    fn run(self, work: impl Task) {
        work.run(self);
    }

    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> [u8; 4] {
        // SAFETY: the caller's four bytes.
        unsafe { from.cast::<[u8; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> [[i8; 4]; LANES] {
        // SAFETY: the caller's `4 * LANES` bytes.
        unsafe { from.cast::<[[i8; 4]; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn dot(self, sum: [i32; LANES], a: [u8; 4], w: [[i8; 4]; LANES]) -> [i32; LANES] {
        std::array::from_fn(|lane| {
            (0..4).fold(sum[lane], |sum, i| sum.wrapping_add(i32::from(a[i]) * i32::from(w[lane][i])))
        })
    }

    #[inline(always)]
    fn splat(self, x: i32) -> [i32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32, valid: usize) -> [i32; LANES] {
        // SAFETY: only `valid` elements are read.
        std::array::from_fn(|lane| if lane < valid { unsafe { from.add(lane).read_unaligned() } } else { 0 })
    }

    #[inline(always)]
    unsafe fn store(self, x: [i32; LANES], to: *mut i32, valid: usize) {
        for (lane, x) in x.into_iter().enumerate().take(valid) {
            // SAFETY: only `valid` elements are written.
            unsafe { to.add(lane).write_unaligned(x) }
        }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8, valid: usize) -> [i32; LANES] {
        // SAFETY: only `valid` elements are read.
        std::array::from_fn(|lane| if lane < valid { i32::from(unsafe { from.add(lane).read() }) } else { 0 })
    }

    #[inline(always)]
    unsafe fn store_bytes(self, x: [i32; LANES], to: *mut u8, valid: usize) {
        for (lane, x) in x.into_iter().enumerate().take(valid) {
            // SAFETY: only `valid` elements are written.
            unsafe { to.add(lane).write(x as u8) }
        }
    }

    #[inline(always)]
    fn add(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
    }

    #[inline(always)]
    fn mul(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|lane| a[lane].wrapping_mul(b[lane]))
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32, valid: usize) -> [f32; LANES] {
        // SAFETY: only `valid` elements are read.
        std::array::from_fn(|lane| if lane < valid { unsafe { from.add(lane).read_unaligned() } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store_f32(self, x: [f32; LANES], to: *mut f32, valid: usize) {
        for (lane, x) in x.into_iter().enumerate().take(valid) {
            // SAFETY: only `valid` elements are written.
            unsafe { to.add(lane).write_unaligned(x) }
        }
    }

    #[inline(always)]
    fn to_f32(self, x: [i32; LANES]) -> [f32; LANES] {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn max_f32(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane].max(b[lane]))
    }

    #[inline(always)]
    fn min_f32(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane].min(b[lane]))
    }

    #[inline(always)]
    fn round(self, x: [f32; LANES]) -> [i32; LANES] {
        x.map(|x| x.round_ties_even() as i32)
    }
}
