//! The search for an INT8 model that reaches a goal.
//!
//! 1. All layers in INT8: often that is enough.
//! 2. The methods that fit layers to the data (bias correction, learned rounding): they cost no speed.
//! 3. Each layer's share of the loss: by how much the noise of the outputs falls where that layer alone is in float.
//! 4. For the worst layers, other ways to choose the ranges around them from the histograms that calibration left.
//! 5. The fewest layers in float that reach the goal: the worst 1, 2, 4, … until it is reached, the number by bisection,
//!    and then each layer that turns out not to be needed goes back to INT8.
//!
//! What comes next follows from the figures so far alone, so that a killed run goes on by looking them up ([`State`]).

use std::time::{Duration, Instant};

use super::evaluation::{Evaluation, Figures, Part};
use super::outcome::{LayerShare, Outcome, Remedy};
use super::ranges::hash_of_batches;
use super::state::State;
use super::timing::{ModelTimes, Runs, medians};
use super::variants::{Plan, Variants};
use super::{Budget, Clock, Data, Goal, Progress};
use crate::engine;
use crate::error::{Error, Result};
use crate::ir::Module;
use crate::methods::Rounding;
use crate::pass::Layer;
use crate::quantizer::{ModelForm, Quantizer};
use crate::ranges::{Fnv, fingerprint};
use crate::replay::{first_samples, samples_of};
use crate::watch::step;

/// A remedy is taken where it leaves so much of the noise at most.
pub(super) const TAKEN_BELOW: f64 = 0.97;
/// Which share of the time each phase may have ended at: what is left is for the choice of layers.
const METHODS_END: f64 = 0.4;
const SHARES_END: f64 = 0.65;
const RANGES_END: f64 = 0.75;
/// How long the models' times are measured, all together.
const TIMING: Duration = Duration::from_secs(1);

/// Makes an INT8 module of `float` that reaches `goal` on the evaluation data, with as few layers in float as can be found
/// in the time given. `progress` is told where it is.
///
/// A goal out of reach is no error: [`Outcome::reached`] says so. All data is held in memory.
///
/// # Errors
/// Those of [`Quantizer::prepare`] and [`Prepared::convert`](crate::Prepared::convert) for the model with all layers in
/// INT8; where the goal is none, or one that the model's outputs cannot be measured by; where the state file cannot be read
/// or written; and [`Error::Cancelled`] ([`crate::watch`]).
pub fn tune(
    quantizer: &Quantizer,
    float: &Module,
    data: &Data,
    goal: &Goal,
    budget: &Budget,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Outcome> {
    goal.check()?;
    let start = Instant::now();
    let (state, known) = State::open(budget.state.as_deref(), identity(quantizer, float, data)?)?;
    if known > 0 {
        let found = Some(format!("goes on where an earlier run was: {known} measurements are known"));
        progress(&Progress { stage: "reading the state", done: 0, total: 0, found });
    }
    let variants = Variants::open(quantizer, float, data, budget.ranges.as_ref(), progress)?;
    let reference = float.deep_clone()?.copy_instance()?;
    if reference.is_training() {
        reference.train(false)?;
    }
    let evaluation = Evaluation::of(&reference, data, |done, total| {
        progress(&Progress { stage: "running the float model", done, total, found: None });
    })?;
    evaluation.check(goal)?;
    let mut search = Search {
        form: quantizer.model_form(),
        layers: variants.layers()?,
        variants,
        evaluation,
        state,
        goal: *goal,
        start,
        time: budget.time,
        clock: Clock::until(start + budget.time),
        best: None,
        trials: 0,
        notes: Vec::new(),
        progress,
    };
    let found = search.run()?;
    search.finish(found, &reference, data)
}

/// What the figures in a state file depend on.
fn identity(quantizer: &Quantizer, float: &Module, data: &Data) -> Result<String> {
    let mut hash = Fnv::default();
    hash.text(&format!("{} {:?} {:?}", quantizer.identity(), engine::stock_engines(), data.labels));
    hash.bytes(&fingerprint(float)?.to_le_bytes());
    hash.bytes(&hash_of_batches(&data.calibration)?.to_le_bytes());
    hash.bytes(&hash_of_batches(&data.evaluation)?.to_le_bytes());
    Ok(format!("{:016x} by {}", hash.0, env!("CARGO_PKG_VERSION")))
}

/// What [`Search::run`] found.
struct Found {
    plan: Plan,
    figures: Figures,
    all_int8: Figures,
    reached: bool,
    shares: Vec<LayerShare>,
}

/// The nearest to the goal so far.
struct Best {
    plan: Plan,
    figures: Figures,
}

pub(super) struct Search<'d, 'p> {
    form: ModelForm,
    pub(super) variants: Variants<'d>,
    evaluation: Evaluation<'d>,
    state: State,
    pub(super) goal: Goal,
    pub(super) layers: Vec<(usize, Layer)>,
    start: Instant,
    time: Duration,
    /// When the phase that runs has to end.
    clock: Clock,
    best: Option<Best>,
    trials: usize,
    pub(super) notes: Vec<String>,
    progress: &'p mut dyn FnMut(&Progress<'_>),
}

impl Search<'_, '_> {
    fn run(&mut self) -> Result<Found> {
        let mut plan = Plan::default();
        self.tell("measuring with all layers in INT8", 0, 0, None);
        let all_int8 = self.measured(&plan, Part::All, Clock::endless())?;
        self.tell("measured", 0, 0, Some(format!("all layers in INT8: {}", self.in_words(&all_int8))));
        let found = |search: &Self, plan: Plan, figures, shares| Found {
            reached: search.goal.is_reached(&figures),
            plan,
            figures,
            all_int8,
            shares,
        };
        if let Some(figures) = self.accepted(&plan)? {
            return Ok(found(self, plan, figures, Vec::new()));
        }
        self.phase(METHODS_END);
        plan = self.try_methods(plan, &all_int8)?;
        if let Some(figures) = self.accepted(&plan)? {
            return Ok(found(self, plan, figures, Vec::new()));
        }
        self.phase(SHARES_END);
        let shares = self.shares()?;
        self.phase(RANGES_END);
        plan = self.try_ranges(plan, &shares)?;
        self.phase(1.0);
        if let Some(figures) = self.accepted(&plan)? {
            return Ok(found(self, plan, figures, shares));
        }
        if let Some(chosen) = self.fewest(&plan, &shares)? {
            plan = chosen;
            // libtorch's kernels may differ by a step from those that the search ran on.
            let mut next = shares.iter().map(|layer| layer.number);
            loop {
                if let Some(figures) = self.accepted(&plan)? {
                    return Ok(found(self, plan, figures, shares));
                }
                match next.by_ref().find(|number| !plan.float.contains(number)) {
                    Some(number) if plan.float.len() + 2 < self.layers.len() => plan = plan.with_float([number]),
                    _ => break,
                }
            }
        }
        let Best { plan, figures } = self.best.take().unwrap_or(Best { plan: Plan::default(), figures: all_int8 });
        Ok(Found { plan, figures, all_int8, reached: false, shares })
    }

    /// Has the next phase end at that share of the time.
    fn phase(&mut self, end: f64) {
        self.clock = Clock::until(self.start + self.time.mul_f64(end));
    }

    pub(super) fn tell(&mut self, stage: &str, done: usize, total: usize, found: Option<String>) {
        (self.progress)(&Progress { stage, done, total, found });
    }

    pub(super) fn in_words(&self, figures: &Figures) -> String {
        let mut words = vec![format!("SQNR {:.1} dB", figures.sqnr_db)];
        words.extend(figures.agreement.map(|share| format!("agreement {:.1} %", share * 100.0)));
        words.extend(figures.drop().map(|drop| format!("{:+.2} points of accuracy", -drop * 100.0)));
        words.join(", ")
    }

    /// The figures of a plan's model, on the fastest kernels there are.
    fn measured(&mut self, plan: &Plan, part: Part, clock: Clock) -> Result<Figures> {
        let kernels = if self.form == ModelForm::Native { Runs::Native } else { Runs::Accelerated };
        self.measured_on(plan, part, kernels, clock)
    }

    fn measured_on(&mut self, plan: &Plan, part: Part, kernels: Runs, clock: Clock) -> Result<Figures> {
        let key = format!("{plan}; {part:?}; {kernels:?}");
        let figures = match self.state.figures(&key) {
            Some(figures) => figures,
            None => {
                clock.check()?;
                // Lets whoever watches the whole call end it.
                step("trying an INT8 model", self.trials, 0)?;
                let module = self.variants.convert(plan, clock)?.module;
                if kernels == Runs::Accelerated {
                    engine::accelerate(&module)?;
                }
                let figures = self.evaluation.measure(&module, part, &clock)?;
                self.trials += 1;
                self.state.keep(&key, figures)?;
                figures
            }
        };
        if part == Part::All {
            self.consider(plan, figures);
        }
        Ok(figures)
    }

    /// The figures of a plan's model; `None` where there is no time for it or it cannot be made.
    pub(super) fn tried(&mut self, plan: &Plan, part: Part) -> Result<Option<Figures>> {
        let key = format!("{plan}; {part:?}");
        if self.state.failure(&key).is_some() {
            return Ok(None);
        }
        match self.measured(plan, part, self.clock) {
            Ok(figures) => Ok(Some(figures)),
            Err(Error::Cancelled) if self.clock.is_over() => Ok(None),
            Err(error @ (Error::Cancelled | Error::Io { .. } | Error::File { .. })) => Err(error),
            Err(error) => {
                self.state.keep_failure(&key, error.to_string())?;
                self.notes.push(format!("not tried: {plan}: {error}"));
                Ok(None)
            }
        }
    }

    fn consider(&mut self, plan: &Plan, figures: Figures) {
        let rank = |plan: &Plan, figures: &Figures| {
            let float = if self.goal.is_reached(figures) { plan.float.len() } else { 0 };
            (self.goal.shortfall(figures), float, figures.noise())
        };
        let is_better = self.best.as_ref().is_none_or(|best| {
            let (old, new) = (rank(&best.plan, &best.figures), rank(plan, &figures));
            new.partial_cmp(&old).is_some_and(std::cmp::Ordering::is_lt)
        });
        if is_better {
            self.best = Some(Best { plan: plan.clone(), figures });
        }
    }

    /// The figures of a plan that reaches the goal, also where libtorch's own kernels run the model.
    fn accepted(&mut self, plan: &Plan) -> Result<Option<Figures>> {
        let figures = match self.tried(plan, Part::All)? {
            Some(figures) if self.goal.is_reached(&figures) => figures,
            _ => return Ok(None),
        };
        if self.form == ModelForm::Native {
            return Ok(Some(figures));
        }
        self.tell("measuring on libtorch's kernels", 0, 0, None);
        let figures = self.measured_on(plan, Part::All, Runs::Stock, Clock::endless())?;
        if let Some(best) = self.best.as_mut().filter(|best| best.plan == *plan) {
            best.figures = figures;
        }
        Ok(self.goal.is_reached(&figures).then_some(figures))
    }

    /// Methods for the whole model; the plan with the best of them, where one helps.
    fn try_methods(&mut self, plan: Plan, base: &Figures) -> Result<Plan> {
        let mut best = (plan.clone(), *base);
        let methods = self.variants.other_methods();
        for (done, methods) in methods.iter().enumerate() {
            let name = if methods.rounding == Rounding::Learned { "learned rounding" } else { "bias correction" };
            self.tell("trying methods", done, 2, None);
            let tried = Plan { methods: Some(methods.clone()), ..plan.clone() };
            let Some(figures) = self.tried(&tried, Part::All)? else { continue };
            self.tell("tried", done + 1, 2, Some(format!("{name}: {}", self.in_words(&figures))));
            let (new, old) = (self.goal.shortfall(&figures), self.goal.shortfall(&best.1));
            if new < old || (new == old && figures.noise() < best.1.noise() * TAKEN_BELOW) {
                best = (tried, figures);
            }
            if self.goal.is_reached(&figures) {
                break;
            }
        }
        Ok(best.0)
    }

    /// The plan with the fewest layers in float found to reach the goal; `None` where none was found.
    fn fewest(&mut self, plan: &Plan, shares: &[LayerShare]) -> Result<Option<Plan>> {
        // Layers that share a tensor go together, where it is the tensor that hurts.
        let mut order: Vec<usize> = Vec::new();
        let mut steps: Vec<usize> = Vec::new();
        for layer in shares {
            let others = layer.together.iter().filter(|(_, together)| *together > layer.share.unwrap_or(0.0));
            let new = std::iter::once(layer.number).chain(others.flat_map(|(others, _)| others.iter().copied()));
            let new: Vec<_> = new.filter(|number| !order.contains(number)).collect();
            if order.len() + new.len() < shares.len() && !new.is_empty() {
                order.extend(new);
                steps.push(order.len());
            }
        }
        let most = steps.len();
        let in_step = |count: usize| count.checked_sub(1).map_or(0, |last| steps[last]);
        let worst = |count: usize| plan.with_float(order[..in_step(count)].iter().copied());
        let (mut failing, mut reaching) = (0, None);
        let mut count = 1.min(most);
        while count > failing && reaching.is_none() && !self.clock.is_over() {
            self.tell("leaving layers in float", count, most, None);
            match self.tried(&worst(count), Part::All)? {
                Some(figures) => {
                    self.tell(
                        "tried",
                        count,
                        most,
                        Some(format!("{} in float: {}", in_step(count), self.in_words(&figures))),
                    );
                    if self.goal.is_reached(&figures) {
                        reaching = Some(count);
                        break;
                    }
                }
                None if self.clock.is_over() => return Ok(None),
                None => {}
            }
            failing = count;
            count = (count * 2).min(most);
        }
        let Some(mut reaching) = reaching else { return Ok(None) };
        while reaching - failing > 1 {
            let middle = failing.midpoint(reaching);
            self.tell("leaving fewer layers in float", middle, most, None);
            match self.tried(&worst(middle), Part::All)? {
                Some(figures) if self.goal.is_reached(&figures) => reaching = middle,
                None if self.clock.is_over() => break,
                _ => failing = middle,
            }
        }
        let mut plan = worst(reaching);
        for number in order[..in_step(reaching)].iter().rev() {
            if plan.float.len() < 2 {
                break;
            }
            self.tell("taking layers back to INT8", in_step(reaching) - plan.float.len(), in_step(reaching), None);
            let smaller = plan.without_float(*number);
            if self.tried(&smaller, Part::All)?.is_some_and(|figures| self.goal.is_reached(&figures)) {
                plan = smaller;
            }
        }
        Ok(Some(plan))
    }

    /// Makes the model that was found and measures its speed.
    fn finish(mut self, found: Found, float: &Module, data: &Data) -> Result<Outcome> {
        let Found { plan, figures, all_int8, reached, shares } = found;
        let float_layers: Vec<_> = self.left_in_float(&plan, &shares);
        self.variants.reasons.extend(float_layers.iter().map(|layer| (layer.number, layer.reason())));
        self.tell("making the model", 0, 0, None);
        let converted = self.variants.convert(&plan, Clock::endless())?;
        let all = match plan == Plan::default() {
            true => converted.module.clone(),
            false => self.variants.convert(&Plan::default(), Clock::endless())?.module,
        };
        self.tell("measuring its speed", 0, 0, None);
        let times = self.times(float, &all, &converted.module, data)?;
        if reached {
            self.state.delete()?;
        }
        let samples = self.evaluation.samples();
        let step = 100.0 / samples as f64;
        if self.goal.min_agreement.is_some_and(|goal| (1.0 - goal) * 100.0 < 2.0 * step) {
            self.notes.push(format!(
                "one of {samples} evaluation samples is {step:.1} % of agreement: give more of them for a figure to rely on"
            ));
        }
        Ok(Outcome {
            remedies: self.remedies(&plan)?,
            reached,
            out_of_time: !reached && self.clock.is_over(),
            figures,
            all_int8,
            float_layers,
            shares: shares.into_iter().filter(|layer| layer.blame() >= 0.0).collect(),
            times,
            trials: self.trials,
            ranges: self.variants.ranges().clone(),
            notes: self.notes,
            converted,
        })
    }

    fn left_in_float(&self, plan: &Plan, shares: &[LayerShare]) -> Vec<LayerShare> {
        shares.iter().filter(|layer| plan.float.contains(&layer.number)).cloned().collect()
    }

    fn remedies(&self, plan: &Plan) -> Result<Vec<Remedy>> {
        let mut remedies = Vec::new();
        if let Some(methods) = &plan.methods {
            let what = if methods.rounding == Rounding::Learned { "learned rounding" } else { "bias correction" };
            remedies.push(Remedy { place: "the model".to_owned(), what: what.to_owned() });
        }
        let tensors = self.variants.tensors()?;
        for (key, kind) in &plan.searches {
            let tensor = tensors.iter().find(|tensor| tensor.key == *key);
            let path = |numbers: &std::collections::BTreeSet<usize>| {
                let number = numbers.first()?;
                let (_, layer) = self.layers.iter().find(|(known, _)| known == number)?;
                Some(if layer.path.is_empty() { format!("layer {number}") } else { layer.path.clone() })
            };
            let result = tensor.and_then(|tensor| Some((path(&tensor.producers)?, "result")));
            let input = || tensor.and_then(|tensor| Some((path(&tensor.consumers)?, "input")));
            let (place, side) = result.or_else(input).unwrap_or_else(|| (key.clone(), "tensor"));
            remedies.push(Remedy { place, what: format!("range of the {side} by {}", kind.name()) });
        }
        Ok(remedies)
    }

    fn times(&self, float: &Module, all: &Module, chosen: &Module, data: &Data) -> Result<Vec<ModelTimes>> {
        let Some(batch) = data.evaluation.first() else { return Ok(Vec::new()) };
        let inputs = first_samples(batch, 1)?;
        let mut times = Vec::new();
        for kernels in Runs::of(self.form) {
            let (all, chosen) = (kernels.ready(all)?, kernels.ready(chosen)?);
            let medians = medians(&[float, &all, &chosen], &inputs, TIMING)?;
            times.push(ModelTimes {
                kernels: *kernels,
                float: medians[0],
                all_int8: medians[1],
                chosen: medians[2],
                samples: samples_of(&inputs),
                threads: crate::threads(),
            });
        }
        Ok(times)
    }
}
