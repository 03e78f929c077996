//! Passes in libtorch's pass manager, and the ranges that one of them collects.

use std::ffi::{CString, c_char};

use super::argument;
use super::handle::{self, Handle};
use super::status::{c_text, enter, jq_status};
use crate::plugin;

/// The pass `prepack`: in every graph that libtorch executes, weights that are packed at each run are packed once
pub const JQ_PASS_PREPACK: u32 = 1;
/// The pass `observe`: in every graph that libtorch executes, what static quantization would observe is observed
pub const JQ_PASS_OBSERVE: u32 = 2;
/// The pass `accelerate`: in every graph that libtorch executes, `quantized::` operators become jitquant's own
pub const JQ_PASS_ACCELERATE: u32 = 4;

/// The ranges that the pass `observe` collected. It does not change. Free it with `jq_ranges_free`.
pub struct jq_ranges {
    _opaque: (),
}

/// The range of a tensor in an executed graph. The text belongs to the `jq_ranges` and goes with it.
#[repr(C)]
pub struct jq_range {
    /// Which graph it is in: a number that equal graphs share, in every process.
    pub graph: u64,
    /// The name of the value in the graph.
    pub value: *const c_char,
    /// The smallest value.
    pub min: f32,
    /// The largest value.
    pub max: f32,
    /// How many tensors were observed.
    pub count: u64,
}

pub(super) struct Range {
    value: CString,
    range: plugin::ObservedRange,
}

impl Handle for jq_ranges {
    const NAME: &'static str = "jq_ranges";
    type Object = Vec<Range>;
}

/// Registers the passes of `mask` (a sum of `JQ_PASS_…`) with libtorch's pass manager; those that are registered already
/// stay so. The environment variable `JITQUANT_PASSES` (`prepack,observe,accelerate`) does the same when the library is loaded.
///
/// libtorch runs a pass when it optimizes a graph, on the third run of a model by default. Its list of passes has no lock:
/// no other thread may run models during the call.
#[unsafe(no_mangle)]
pub extern "C" fn jq_register_passes(mask: u32) -> jq_status {
    enter(|| Ok(plugin::register(&plugin::from_mask(mask)?)?))
}

/// Takes the passes away from libtorch. What they did to graphs stays. No other thread may run models during the call.
#[unsafe(no_mangle)]
pub extern "C" fn jq_clear_passes() -> jq_status {
    enter(|| Ok(plugin::clear()?))
}

/// The ranges that the pass `observe` has collected in this process until now, into `*ranges`, to be freed with
/// `jq_ranges_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_ranges_collect(ranges: *mut *mut jq_ranges) -> jq_status {
    enter(|| {
        let room = argument::room(ranges, "ranges")?;
        let range = |range: plugin::ObservedRange| Range { value: c_text(&range.value), range };
        // SAFETY: the caller's promise.
        unsafe { room.put(handle::issue(plugin::observed_ranges().into_iter().map(range).collect())) };
        Ok(())
    })
}

/// How many ranges there are, into `*count`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_ranges_count(ranges: *const jq_ranges, count: *mut usize) -> jq_status {
    enter(|| {
        let room = argument::room(count, "count")?;
        let ranges = handle::resolve(ranges, "ranges")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(ranges.len()) };
        Ok(())
    })
}

/// Range `index`, into `*range`; they are ordered by graph and value. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_ranges_get(ranges: *const jq_ranges, index: usize, range: *mut jq_range) -> jq_status {
    enter(|| {
        let room = argument::room(range, "range")?;
        let ranges = handle::resolve(ranges, "ranges")?;
        let Range { value, range } = &ranges[argument::index(index, ranges.len(), "ranges")?];
        let (graph, min, max, count) = (range.graph, range.min, range.max, range.count);
        // SAFETY: the caller's promise.
        unsafe { room.put(jq_range { graph, value: value.as_ptr(), min, max, count }) };
        Ok(())
    })
}

/// Frees the ranges. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_ranges_free(ranges: *mut jq_ranges) -> jq_status {
    enter(|| handle::release(ranges, "ranges"))
}

/// Writes what the pass `observe` has collected in this process until now to `path`, as TOML: a table for each graph, and in
/// it `value = [min, max, count]`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_ranges_save(path: *const c_char) -> jq_status {
    enter(|| {
        // SAFETY: the caller's promise.
        Ok(plugin::save_ranges(unsafe { argument::path(path, "path")? })?)
    })
}
