//! What the operators `jitquant::linear_weight_only*` (cpp/weight_only.cpp) call.

use super::threads::{HostThreads, with_scratch};
use crate::error::{Error, Result, no_panic};
use crate::kernel::{GroupWeight, Isa, PackedWeightOnly, Parallel};

#[cxx::bridge(namespace = "jitquant")]
pub(super) mod bridge {
    extern "Rust" {
        type WeightOnlyMatrix;
        /// Packs `weight`, `[n, k]`, with a scale a row.
        fn weight_only_channels(weight: &[i8], n: usize, k: usize, scales: &[f32]) -> Result<Box<WeightOnlyMatrix>>;
        /// Packs the nibbles of a `kernel::GroupWeight`, `[n, k / 2]`; scales and offsets are bfloat16.
        fn weight_only_groups(
            weight: &[u8],
            n: usize,
            k: usize,
            scales: &[u16],
            offsets: &[u16],
        ) -> Result<Box<WeightOnlyMatrix>>;
        fn inputs(self: &WeightOnlyMatrix) -> usize;
        fn outputs(self: &WeightOnlyMatrix) -> usize;
        /// Writes the weight's bytes as they were given.
        fn unpack(self: &WeightOnlyMatrix, weight: &mut [u8]) -> Result<()>;
        fn run(self: &WeightOnlyMatrix, x: &[f32], bias: &[f32], y: &mut [f32]) -> Result<()>;
    }

    unsafe extern "C++" {
        include!("weight_only.h");

        /// Refers to the file that registers the operators, so that it is linked.
        fn keep_weight_only_operators();
    }
}

/// A linear layer's weight of 8 or 4 bits, packed for this machine.
pub(super) struct WeightOnlyMatrix(PackedWeightOnly);

fn weight_only_channels(weight: &[i8], n: usize, k: usize, scales: &[f32]) -> Result<Box<WeightOnlyMatrix>> {
    no_panic(|| Ok(Box::new(WeightOnlyMatrix(PackedWeightOnly::channels(Isa::current(), weight, n, k, scales)?))))
}

fn weight_only_groups(
    weight: &[u8],
    n: usize,
    k: usize,
    scales: &[u16],
    offsets: &[u16],
) -> Result<Box<WeightOnlyMatrix>> {
    no_panic(|| {
        let groups = scales.len().checked_div(n).unwrap_or(0);
        let group = k.checked_div(groups).unwrap_or(0);
        let weight = GroupWeight { nibbles: weight.to_vec(), scales: scales.to_vec(), offsets: offsets.to_vec() };
        Ok(Box::new(WeightOnlyMatrix(PackedWeightOnly::groups(Isa::current(), &weight, n, k, group)?)))
    })
}

impl WeightOnlyMatrix {
    fn inputs(&self) -> usize {
        self.0.k()
    }

    fn outputs(&self) -> usize {
        self.0.n()
    }

    fn unpack(&self, weight: &mut [u8]) -> Result<()> {
        no_panic(|| {
            self.0.unpack_into(weight);
            Ok(())
        })
    }

    fn run(&self, x: &[f32], bias: &[f32], y: &mut [f32]) -> Result<()> {
        no_panic(|| {
            let rows = y.len().checked_div(self.0.n()).unwrap_or(0);
            let threads = HostThreads::new();
            let wanted = self.0.scratch_len(rows, threads.threads());
            // The thread's scratch is bytes: a few more of them, so that floats find their place.
            with_scratch(wanted.saturating_add(1).saturating_mul(size_of::<f32>()), |bytes| {
                // SAFETY: any bytes are a f32.
                let (_, scratch, _) = unsafe { bytes.align_to_mut::<f32>() };
                let scratch = scratch.get_mut(..wanted).ok_or_else(|| Error::invalid("scratch is too short"))?;
                Ok(self.0.run(x, rows, bias, y, scratch, &threads)?)
            })?
        })
    }
}
