//! What came of a goal, for people and as JSON.

use jitquant::Converted;
use jitquant::control::{Figures, Goal, Latency, LayerShare, ModelTimes, Outcome, Remedy, Runs};
use serde::Serialize;

use crate::output;

/// What was done to control the model; empty where nothing was asked for.
#[derive(Default, Serialize)]
pub struct ControlReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<AccuracyReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// What came of a goal for the accuracy.
#[derive(Serialize)]
pub struct AccuracyReport {
    reached: bool,
    out_of_time: bool,
    min_agreement: Option<f64>,
    min_sqnr_db: Option<f64>,
    max_drop: Option<f64>,
    figures: Figures,
    /// With all layers in INT8 that can be.
    all_int8: Figures,
    float_layers: Vec<LayerShare>,
    remedies: Vec<Remedy>,
    shares: Vec<LayerShare>,
    times: Vec<ModelTimes>,
    trials: usize,
    notes: Vec<String>,
}

impl ControlReport {
    /// Whether the accuracy was measured.
    pub fn is_measured(&self) -> bool {
        self.accuracy.is_some()
    }
}

impl AccuracyReport {
    /// The report, and the model.
    pub fn of(goal: Goal, outcome: Outcome) -> (Self, Converted) {
        let report = Self {
            reached: outcome.reached,
            out_of_time: outcome.out_of_time,
            min_agreement: goal.min_agreement,
            min_sqnr_db: goal.min_sqnr_db,
            max_drop: goal.max_drop,
            figures: outcome.figures,
            all_int8: outcome.all_int8,
            float_layers: outcome.float_layers,
            remedies: outcome.remedies,
            shares: outcome.shares,
            times: outcome.times,
            trials: outcome.trials,
            notes: outcome.notes,
        };
        (report, outcome.converted)
    }

    /// Figures, each beside what was wanted.
    pub fn words(goal: &Goal, figures: &Figures) -> String {
        let wanted = |goal: Option<String>| goal.map_or(String::new(), |goal| format!(" (goal {goal})"));
        let mut words = Vec::new();
        if let Some(agreement) = figures.agreement {
            words.push(format!(
                "agreement {}{}",
                output::percent(agreement),
                wanted(goal.min_agreement.map(output::percent))
            ));
        }
        if let Some(drop) = figures.drop() {
            let most = goal.max_drop.map(|drop| format!("{:+.2}", -drop * 100.0));
            words.push(format!("{:+.2} points of accuracy{}", -drop * 100.0, wanted(most)));
        }
        let least = goal.min_sqnr_db.map(|db| format!("{db} dB"));
        words.push(format!("SQNR {:.1} dB{}", figures.sqnr_db, wanted(least)));
        words.join(", ")
    }

    fn goal(&self) -> Goal {
        Goal { min_agreement: self.min_agreement, min_sqnr_db: self.min_sqnr_db, max_drop: self.max_drop }
    }

    fn print(&self) {
        let verdict = if self.reached { "goal reached" } else { "GOAL NOT REACHED" };
        let samples = self.figures.samples;
        println!("{verdict} on {samples} samples: {}", Self::words(&self.goal(), &self.figures));
        println!("all layers in INT8: {}", Self::words(&Goal::default(), &self.all_int8));
        for Remedy { place, what } in &self.remedies {
            println!("remedy: {what} ({place})");
        }
        println!("{} layers in float for it, {} models tried", self.float_layers.len(), self.trials);
        println!("{}", times_table(&self.times));
        self.notes.iter().for_each(|note| println!("note: {note}"));
    }
}

impl ControlReport {
    pub fn print(&self) {
        if let Some(latency) = &self.latency {
            print_latency(latency);
        }
        if let Some(accuracy) = &self.accuracy {
            accuracy.print();
        }
    }
}

fn print_latency(latency: &Latency) {
    let slower: Vec<_> = latency.layers.iter().filter(|layer| layer.in_float).collect();
    if slower.is_empty() {
        println!("all {} layers that were timed stay in INT8", latency.layers.len());
    } else {
        let mut table = output::table(&["no faster in INT8", "float", "INT8", "conversions"]);
        for layer in slower {
            let place = if layer.path.is_empty() { &layer.source } else { &layer.path };
            table.add_row([
                format!("{place} ({})", layer.operator),
                output::seconds(layer.float_seconds),
                output::seconds(layer.int8_seconds),
                output::seconds(layer.conversion_seconds),
            ]);
        }
        output::align_numbers(&mut table);
        println!("{table}");
    }
    println!("{}", times_table(std::slice::from_ref(&latency.model)));
    latency.notes.iter().for_each(|note| println!("note: {note}"));
}

fn times_table(times: &[ModelTimes]) -> comfy_table::Table {
    let mut table = output::table(&["time of the model", "float", "all in INT8", "this model", "of float"]);
    for time in times {
        let kernels = match time.kernels {
            Runs::Stock => "libtorch's kernels",
            Runs::Accelerated => "jitquant's kernels",
            Runs::Native => "native form",
        };
        table.add_row([
            format!("{kernels}, {} at once, {} threads", time.samples, time.threads),
            output::seconds(time.float),
            output::seconds(time.all_int8),
            output::seconds(time.chosen),
            format!("{:.2}", time.chosen / time.float),
        ]);
    }
    output::align_numbers(&mut table);
    table
}
