//! The calibration of `jitquant quantize`, on this process or on several.

use std::num::NonZeroUsize;

use anyhow::Result;
use jitquant::Prepared;
use jitquant::distributed::{Calibration, Group};
use jitquant::ir::IValue;

use crate::feed::Feed;
use crate::output;

/// How many samples are run one by one where a model joins them.
const ALONE: usize = 32;

/// Whether no output of a batch has a dimension of its samples.
fn is_joined(output: &IValue, samples: usize) -> bool {
    output.tensors().iter().all(|tensor| tensor.shape().first() != Some(&(samples as i64)))
}

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
    calibration.agree(&[
        ("--batch-size", size.to_string()),
        ("how many samples there are", limit.to_string()),
        ("what a sample is", feed.form()),
    ])?;
    let wanted: Vec<bool> = (0..count).map(|number| calibration.wants(number)).collect();
    let mut joins_samples = false;
    for batch in feed.batches_where(size, limit, |number| wanted[number]) {
        let (number, samples, inputs) = batch?;
        let first = number * size.get();
        let output = calibration.run(number, &inputs).map_err(|refusal| {
            let what = match refusal.to_string().starts_with("the observer of ") {
                true => format!("the samples from {first} on cannot be calibrated with"),
                false => feed.refusal(first, &inputs),
            };
            anyhow::Error::from(refusal).context(what)
        })?;
        joins_samples |= number == 0 && samples > 1 && output.is_some_and(|output| is_joined(&output, samples));
        bar.set_position((first + samples).min(limit) as u64);
    }
    if joins_samples && group.is_none() {
        // Its values depend on how many samples come at once: the mean of 32 is much nearer to 0 than that of two.
        eprintln!("note: the model joins the samples of a batch; it is calibrated with some of them one by one, too");
        for batch in feed.batches_where(NonZeroUsize::MIN, limit.min(ALONE), |_| true) {
            let (number, _, inputs) = batch?;
            // A model that needs several samples has seen batches.
            if calibration.run(count + number, &inputs).is_err() {
                break;
            }
        }
    }
    calibration.merge()?;
    bar.finish_and_clear();
    Ok((count * size.get()).min(feed.len()))
}
