//! The calibration of `jitquant quantize`, on this process or on several.

use std::num::NonZeroUsize;

use anyhow::Result;
use jitquant::Prepared;
use jitquant::distributed::{Calibration, Group};

use crate::feed::Feed;
use crate::output;

/// Runs the first `limit` samples, `size` at a time; how many there were on all processes.
pub fn run(
    feed: &Feed,
    prepared: &mut Prepared,
    size: NonZeroUsize,
    limit: Option<NonZeroUsize>,
    group: Option<&Group>,
) -> Result<usize> {
    let limit = limit.map_or(feed.len(), |limit| limit.get().min(feed.len()));
    let count = limit.div_ceil(size.get());
    if let Some(group) = group.filter(|group| group.rank() == 0 && count < group.world()) {
        eprintln!(
            "note: {limit} samples are {count} batches of {size} for {} processes; a smaller --batch-size would give all \
             of them work",
            group.world()
        );
    }
    let bar = output::progress(limit, "calibrating");
    let mut calibration = Calibration::new(prepared, group)?;
    let wanted: Vec<bool> = (0..count).map(|number| calibration.wants(number)).collect();
    for batch in feed.batches_where(size, limit, |number| wanted[number]) {
        let (number, samples, inputs) = batch?;
        let first = number * size.get();
        calibration.run(number, &inputs).map_err(|refusal| {
            let what = match refusal.to_string().starts_with("the observer of ") {
                true => format!("the samples from {first} on cannot be calibrated with"),
                false => feed.refusal(first, &inputs),
            };
            anyhow::Error::from(refusal).context(what)
        })?;
        bar.set_position((first + samples).min(limit) as u64);
    }
    calibration.merge()?;
    bar.finish_and_clear();
    Ok((count * size.get()).min(feed.len()))
}
