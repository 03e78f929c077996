//! A tensor observed in parts, on the threads of the host.

use std::sync::OnceLock;

/// A parallel loop of the host (`at::parallel_for`, rayon): `run(n, task)` calls `task(i)` once for each `i` in `0..n`,
/// on any threads and in any order, and returns when all have returned.
pub type ParallelFor<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync));

/// The least number of values that are worth a thread's while, as in ATen (`at::internal::GRAIN_SIZE`).
const GRAIN: usize = 32_768;

/// `map` of at most `threads` parts of `x`, in the order of the parts; of none if `x` is empty.
pub(super) fn map_parts<T: Send + Sync>(
    x: &[f32],
    threads: usize,
    run: ParallelFor<'_>,
    map: impl Fn(&[f32]) -> T + Sync,
) -> Vec<T> {
    let parts: Vec<&[f32]> = x.chunks(x.len().div_ceil(threads.max(1)).max(GRAIN)).collect();
    if let [part] = parts[..] {
        return vec![map(part)];
    }
    let results: Vec<OnceLock<T>> = parts.iter().map(|_| OnceLock::new()).collect();
    run(parts.len(), &|part| {
        results[part].get_or_init(|| map(parts[part]));
    });
    // A loop that left a part out is made up for.
    results.into_iter().zip(parts).map(|(result, part)| result.into_inner().unwrap_or_else(|| map(part))).collect()
}

/// Runs the parts one after the other on the calling thread.
pub(super) fn serially(parts: usize, task: &(dyn Fn(usize) + Sync)) {
    (0..parts).for_each(task);
}
