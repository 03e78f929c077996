//! Products of f32 activations and weights of 8 or 4 bits, which become f32 where they are used.
//!
//! With few rows of activations a product is bound by how fast the weight can be read, and a weight of a quarter or an
//! eighth of the bytes is read sooner: [`direct`] makes numbers of bytes in registers. With more rows, [`panel`] makes
//! them once for all rows, a block of the weight at a time.
#![allow(unsafe_code)]
// Rows and strips are counted at compile time and index several arrays at once.
#![allow(clippy::needless_range_loop)]

mod direct;
mod panel;
mod round;

pub use round::{GroupWeight, round_channels, round_groups};

use super::gemm::drive::Path;
use super::gemm::vector::{STRIP, Task, Vector};
use super::geometry::count;
use super::{Isa, Parallel};
use crate::{Error, Result};

/// A weight `[n, k]` of 8 bits with a scale a row, or of 4 bits with scale and offset a group, packed.
///
/// Rows are taken in **strips** of 16. A strip holds, one column after the other, a byte of each of its 16 rows: one
/// number, or those of columns `2 i` (low half) and `2 i + 1`. So it is read as one stream, and a vector holds one
/// column of 16 outputs.
///
/// ```
/// use jitquant_kernels::{Isa, PackedWeightOnly, Serial};
/// let weight = PackedWeightOnly::channels(Isa::current(), &[100, 50, -100, 0], 2, 2, &[0.01, 0.02])?;
/// let (mut y, mut scratch) = ([0.0; 2], vec![0.0; weight.scratch_len(1, 1)]);
/// weight.run(&[1.0, 2.0], 1, &[0.5, 0.0], &mut y, &mut scratch, &Serial)?;
/// assert_eq!(y, [1.0 + 1.0 + 0.5, -2.0]);
/// # Ok::<(), jitquant_kernels::Error>(())
/// ```
pub struct PackedWeightOnly {
    path: Path,
    n: usize,
    k: usize,
    /// `strips * strip_bytes`.
    data: Vec<u8>,
    form: Form,
}

/// What the numbers stand for, for whole strips.
enum Form {
    /// `scale[n] * q`.
    Channels { scales: Vec<f32> },
    /// `scale[n][k / group] * q + offset[n][k / group]`: of each strip, 16 bfloat16 numbers a group.
    Groups { group: usize, scales: Vec<u16>, offsets: Vec<u16> },
}

fn invalid(message: String) -> Error {
    Error(message)
}

fn check_len(what: &str, found: usize, wanted: usize) -> Result<()> {
    match found == wanted {
        true => Ok(()),
        false => Err(invalid(format!("{what}: {found} elements; {wanted} are accepted"))),
    }
}

impl PackedWeightOnly {
    /// Packs `weight`, row-major `[n, k]`, with a scale a row. Where the machine does not have `isa`, the scalar path is
    /// taken.
    ///
    /// # Errors
    /// Where lengths do not fit.
    pub fn channels(isa: Isa, weight: &[i8], n: usize, k: usize, scales: &[f32]) -> Result<Self> {
        check_len("the weight", weight.len(), count("the weight", &[n, k])?)?;
        check_len("its scales", scales.len(), n)?;
        let mut data = vec![0; n.div_ceil(STRIP) * k * STRIP];
        for (place, q) in places(n, k).zip(weight) {
            data[place] = *q as u8;
        }
        let mut padded = vec![0.0; n.next_multiple_of(STRIP)];
        padded[..n].copy_from_slice(scales);
        Ok(Self { path: Path::new(isa), n, k, data, form: Form::Channels { scales: padded } })
    }

    /// Packs a weight of 4 bits, `[n, k]` in groups of `group`, as [`round_groups`] gives it.
    ///
    /// # Errors
    /// Where lengths do not fit, `group` is odd, or a row is not a number of whole groups.
    pub fn groups(isa: Isa, weight: &GroupWeight, n: usize, k: usize, group: usize) -> Result<Self> {
        if group == 0 || !group.is_multiple_of(2) || !k.is_multiple_of(group) {
            return Err(invalid(format!(
                "rows of {k} in groups of {group}: whole groups of an even length are accepted"
            )));
        }
        check_len("the weight's bytes", weight.nibbles.len(), count("the weight", &[n, k])? / 2)?;
        check_len("its scales", weight.scales.len(), n * (k / group))?;
        check_len("its offsets", weight.offsets.len(), n * (k / group))?;
        let mut data = vec![0; n.div_ceil(STRIP) * (k / 2) * STRIP];
        for row in 0..n {
            let bytes = &weight.nibbles[row * (k / 2)..][..k / 2];
            let element = |column: usize| match column.checked_sub(k / 2) {
                None => bytes[column] & 15,
                Some(index) => bytes[index] >> 4,
            };
            let start = row / STRIP * (k / 2) * STRIP + row % STRIP;
            for pair in 0..k / 2 {
                data[start + pair * STRIP] = element(2 * pair) | element(2 * pair + 1) << 4;
            }
        }
        let in_strips = |values: &[u16]| {
            let mut strips = vec![0; n.next_multiple_of(STRIP) * (k / group)];
            for (place, value) in places(n, k / group).zip(values) {
                strips[place] = *value;
            }
            strips
        };
        let (scales, offsets) = (in_strips(&weight.scales), in_strips(&weight.offsets));
        Ok(Self { path: Path::new(isa), n, k, data, form: Form::Groups { group, scales, offsets } })
    }

    /// Outputs: rows of the weight.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs: columns of the weight.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Elements of a group; `None` where the weight has a scale a row.
    pub fn group(&self) -> Option<usize> {
        match self.form {
            Form::Channels { .. } => None,
            Form::Groups { group, .. } => Some(group),
        }
    }

    /// Writes the weight as it was given: `n * k` bytes of i8, or the nibbles of a [`GroupWeight`].
    ///
    /// # Panics
    /// Where `weight` has another length.
    pub fn unpack_into(&self, weight: &mut [u8]) {
        let (n, k) = (self.n, self.k);
        match self.form {
            Form::Channels { .. } => {
                assert_eq!(weight.len(), n * k, "bytes of the weight");
                for (place, q) in places(n, k).zip(weight) {
                    *q = self.data[place];
                }
            }
            Form::Groups { .. } => {
                assert_eq!(weight.len(), n * k / 2, "bytes of the weight");
                for row in 0..n {
                    let start = row / STRIP * (k / 2) * STRIP + row % STRIP;
                    let element = |column: usize| self.data[start + column / 2 * STRIP] >> (4 * (column % 2)) & 15;
                    let bytes = &mut weight[row * (k / 2)..][..k / 2];
                    for (index, byte) in bytes.iter_mut().enumerate() {
                        *byte = element(index) | element(index + k / 2) << 4;
                    }
                }
            }
        }
    }

    /// How many elements of scratch [`run`](Self::run) needs for so many rows on so many threads.
    pub fn scratch_len(&self, rows: usize, threads: usize) -> usize {
        match (rows <= direct::MOST_ROWS, &self.form) {
            (true, Form::Channels { .. }) => 0,
            (true, Form::Groups { group, .. }) => rows.saturating_mul(self.k / group),
            (false, _) => panel::SCRATCH * threads.max(1),
        }
    }

    /// `y[m][n] = bias[n] + sum_k x[m][k] * w[n][k]`, with `rows` rows of `x` and `y`, one after the other. `bias` has `n`
    /// elements or none.
    ///
    /// # Errors
    /// Where a length does not fit; nothing is written then.
    pub fn run(
        &self,
        x: &[f32],
        rows: usize,
        bias: &[f32],
        y: &mut [f32],
        scratch: &mut [f32],
        threads: &dyn Parallel,
    ) -> Result<()> {
        check_len("the input", x.len(), count("the input", &[rows, self.k])?)?;
        check_len("the output", y.len(), count("the output", &[rows, self.n])?)?;
        if !bias.is_empty() {
            check_len("the bias", bias.len(), self.n)?;
        }
        let wanted = self.scratch_len(rows, threads.threads());
        let Some(scratch) = scratch.get_mut(..wanted) else {
            return Err(invalid(format!("scratch of {} elements; {wanted} are needed", scratch.len())));
        };
        let is_direct = rows <= direct::MOST_ROWS;
        if let (true, Form::Groups { group, .. }) = (is_direct, &self.form) {
            for (sum, group) in scratch.iter_mut().zip(x.chunks_exact(*group)) {
                *sum = group.iter().sum();
            }
        }
        let strips = self.n.div_ceil(STRIP);
        let worth = (self.n * self.k).saturating_mul(rows.max(1)).div_ceil(PRODUCTS_A_TASK);
        let tasks = threads.threads().min(worth).min(strips).max(1);
        let shared = Shared { y: y.as_mut_ptr(), scratch: scratch.as_mut_ptr() };
        let task = |index: usize| {
            let part = Part {
                weight: self,
                x,
                rows,
                bias,
                y: shared.y(),
                sums: shared.scratch(),
                // SAFETY: there is room for each task where the product goes by panels; elsewhere it is not used.
                panel: if is_direct {
                    shared.scratch()
                } else {
                    unsafe { shared.scratch().add(index * panel::SCRATCH) }
                },
                strips: [strips * index / tasks, strips * (index + 1) / tasks],
            };
            self.path.run(part);
        };
        match tasks {
            1 => task(0),
            _ => threads.run(tasks, &task),
        }
        Ok(())
    }
}

/// Products that are worth a thread of their own.
const PRODUCTS_A_TASK: usize = 128 << 10;

/// Where the elements of a row-major `[n, columns]` lie in strips, in their order.
fn places(n: usize, columns: usize) -> impl Iterator<Item = usize> {
    (0..n).flat_map(move |row| {
        let start = row / STRIP * columns * STRIP + row % STRIP;
        (0..columns).map(move |column| start + column * STRIP)
    })
}

/// What tasks write: each its own strips of the output, and its own part of the scratch.
struct Shared {
    y: *mut f32,
    scratch: *mut f32,
}

impl Shared {
    // By reference to the whole: a closure would capture the bare pointers.
    fn y(&self) -> *mut f32 {
        self.y
    }

    fn scratch(&self) -> *mut f32 {
        self.scratch
    }
}

// SAFETY: the pointers come from exclusive borrows that outlive the tasks, which write distinct elements.
unsafe impl Sync for Shared {}

/// A task: strips `strips[0]..strips[1]` of the product. Lengths have been checked.
struct Part<'a> {
    weight: &'a PackedWeightOnly,
    /// `[rows, k]`
    x: &'a [f32],
    rows: usize,
    bias: &'a [f32],
    /// `[rows, n]`
    y: *mut f32,
    /// `[rows, k / group]`, sums of `x` over each group, where a direct product needs them.
    sums: *const f32,
    /// [`panel::SCRATCH`] elements, where the product goes by panels.
    panel: *mut f32,
    strips: [usize; 2],
}

impl Task for Part<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        // SAFETY: `PackedWeightOnly::run` checked the lengths; tasks have distinct strips and panels.
        unsafe {
            match self.rows <= direct::MOST_ROWS {
                true => direct::product(v, &self),
                false => panel::product(v, &self),
            }
        }
    }
}

impl Part<'_> {
    /// The bytes of a strip.
    #[inline(always)]
    fn strip(&self, strip: usize) -> &[u8] {
        let bytes = match self.weight.form {
            Form::Channels { .. } => self.weight.k * STRIP,
            Form::Groups { .. } => self.weight.k / 2 * STRIP,
        };
        &self.weight.data[strip * bytes..][..bytes]
    }

    /// How many outputs a strip has: 16 but for the last one.
    #[inline(always)]
    fn valid(&self, strip: usize) -> usize {
        (self.weight.n - strip * STRIP).min(STRIP)
    }

    /// The bias of a strip, zeros where there is none.
    #[inline(always)]
    fn bias<V: Vector>(&self, v: V, strip: usize) -> V::F32 {
        match self.bias.get(strip * STRIP..) {
            Some(bias) if !bias.is_empty() => {
                // SAFETY: the last strip has `valid` elements left.
                unsafe { v.load_f32(bias.as_ptr(), self.valid(strip)) }
            }
            _ => v.splat_f32(0.0),
        }
    }
}
