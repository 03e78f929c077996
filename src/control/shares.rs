//! Which layers the loss comes from, and other ranges around the worst of them.

use super::evaluation::Part;
use super::outcome::LayerShare;
use super::search::{Search, TAKEN_BELOW};
use super::variants::{Observed, Plan};
use crate::error::Result;
use crate::observer::ObserverKind;

/// Layers whose tensors get other ranges tried, and the least share of the loss that makes it worth while.
const WORST: usize = 4;
const WORTH_A_REMEDY: f64 = 0.02;

impl Search<'_, '_> {
    /// The layers with their shares of the loss, the largest first, those not measured last.
    pub(super) fn shares(&mut self) -> Result<Vec<LayerShare>> {
        let layers = self.layers.clone();
        let mut shares: Vec<_> = layers.iter().map(|(number, layer)| LayerShare::new(*number, layer)).collect();
        let plan = Plan::default();
        let base = self.tried(&plan, Part::Few)?.map(|figures| figures.noise());
        let Some(base) = base.filter(|base| *base > 0.0 && layers.len() > 1) else { return Ok(shares) };
        let total = layers.len();
        for (done, share) in shares.iter_mut().enumerate() {
            self.tell("measuring each layer's share of the loss", done, total, None);
            let figures = self.tried(&plan.with_float([share.number]), Part::Few)?;
            share.share = figures.map(|figures| (1.0 - figures.noise() / base).max(0.0));
        }
        let unknown = shares.iter().filter(|layer| layer.share.is_none()).count();
        if unknown > 0 {
            self.notes.push(format!("the shares of {unknown} of {total} layers are not known"));
        }
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for tensor in self.variants.tensors()? {
            let group: Vec<_> = tensor.producers.union(&tensor.consumers).copied().collect();
            if group.len() > 1 && group.len() < total && !groups.contains(&group) {
                groups.push(group);
            }
        }
        for (done, group) in groups.iter().enumerate() {
            self.tell("measuring the share of each tensor between layers", done, groups.len(), None);
            let Some(figures) = self.tried(&plan.with_float(group.iter().copied()), Part::Few)? else { continue };
            let together = (1.0 - figures.noise() / base).max(0.0);
            for layer in shares.iter_mut().filter(|layer| group.contains(&layer.number)) {
                let others: Vec<_> = group.iter().copied().filter(|number| *number != layer.number).collect();
                let part = |(others, share): &(Vec<usize>, f64)| share / (others.len() + 1) as f64;
                if layer.together.as_ref().is_none_or(|known| part(known) < part(&(others.clone(), together))) {
                    layer.together = Some((others, together));
                }
            }
        }
        shares.sort_by(|a, b| b.blame().total_cmp(&a.blame()));
        if let Some(worst) = shares.first() {
            let found = format!("layer {} ({}) is the worst: {}", worst.number, worst.path, worst.reason());
            self.tell("measured", total, total, Some(found));
        }
        Ok(shares)
    }

    /// Other ranges around the worst layers; the plan with what helps.
    pub(super) fn try_ranges(&mut self, plan: Plan, shares: &[LayerShare]) -> Result<Plan> {
        const KINDS: [ObserverKind; 5] = [
            ObserverKind::SquaredError,
            ObserverKind::Percentile,
            ObserverKind::Entropy,
            ObserverKind::MinMax,
            ObserverKind::Histogram,
        ];
        let tensors = self.variants.tensors()?;
        let worst: Vec<_> = shares.iter().take(WORST).filter(|layer| layer.blame() >= WORTH_A_REMEDY).collect();
        // The methods that fit layers to the data take longer than all else: without them here.
        let mut tried = Plan::default();
        let Some(mut noise) = self.tried(&tried, Part::Few)?.map(|figures| figures.noise()) else { return Ok(plan) };
        for (done, layer) in worst.iter().enumerate() {
            let touches = |tensor: &&Observed| {
                tensor.consumers.contains(&layer.number) || tensor.producers.contains(&layer.number)
            };
            for Observed { key: tensor, search: own, .. } in tensors.iter().filter(touches) {
                if tried.searches.contains_key(tensor) || own.is_none() {
                    continue;
                }
                let before = tried.clone();
                for kind in KINDS.into_iter().filter(|kind| Some(*kind) != *own) {
                    self.tell("trying other ranges around the worst layers", done, worst.len(), None);
                    let mut other = before.clone();
                    other.searches.insert(tensor.clone(), kind);
                    let Some(figures) = self.tried(&other, Part::Few)? else { continue };
                    if figures.noise() < noise * TAKEN_BELOW {
                        (tried, noise) = (other, figures.noise());
                    }
                }
            }
        }
        if tried.searches.is_empty() {
            return Ok(plan);
        }
        let with_ranges = Plan { searches: tried.searches, ..plan.clone() };
        // The samples that chose them were few: all decide.
        match (self.tried(&with_ranges, Part::All)?, self.tried(&plan, Part::All)?) {
            (Some(new), Some(old)) => {
                let found = format!("other ranges of {} tensors: {}", with_ranges.searches.len(), self.in_words(&new));
                self.tell("tried", worst.len(), worst.len(), Some(found));
                let (a, b) = (self.goal.shortfall(&new), self.goal.shortfall(&old));
                Ok(if a < b || (a == b && new.noise() < old.noise()) { with_ranges } else { plan })
            }
            _ => Ok(plan),
        }
    }
}
