//! One row: the same operator by each of libtorch's engines and by jitquant, in turns.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jitquant::engine::{accelerate, stock_engines, with_stock_engine};
use jitquant::ir::{IValue, Module, Tensor, Type};
use jitquant::measure::quantile;
use serde::Serialize;

use crate::rows::{Row, Side};

/// How long to measure.
pub struct Settings {
    /// Turns that each contestant has.
    pub turns: usize,
    /// Seconds that a turn lasts, at least.
    pub turn: f64,
}

/// What a row came to.
#[derive(Serialize)]
pub struct Outcome {
    pub group: String,
    pub name: String,
    /// Multiplications and additions of a call; 0 where they are not what counts.
    pub operations: f64,
    /// Median seconds a call, by engine.
    pub stock: BTreeMap<String, f64>,
    /// Median seconds a call.
    pub jitquant: f64,
    /// The best engine's time over ours.
    pub ratio: f64,
}

/// Someone who runs the operator.
struct Contestant {
    name: String,
    module: Module,
    input: IValue,
    calls: usize,
    times: Vec<f64>,
}

impl Contestant {
    /// Packs the row's weight and prepares its input.
    fn new(name: &str, row: &Row, side: &Side) -> Result<Self> {
        let module = Module::new("Row")?;
        if let Some(pack) = &row.pack {
            let packer = Module::new("Packer")?;
            packer.define(&format!("def pack(self, w: Tensor, b: Tensor):\n    {pack}\n"))?;
            let weight = Tensor::from_slice(&weights(product(&row.weight)), &row.weight)?;
            let bias = Tensor::from_slice(&noise(row.outputs as usize, 2), &[row.outputs])?;
            let packed = packer.call("pack", &[weight, bias])?;
            let IValue::Other(object) = &packed else { anyhow::bail!("the weight was not packed") };
            module.register_attribute("packed", &object.type_of()?, &packed)?;
        } else {
            module.register_attribute("packed", &Type::parse("int")?, &IValue::Int(0))?;
        }
        let x = Tensor::from_slice(&noise(product(&row.input), 3), &row.input)?;
        for (name, value) in &row.buffers {
            let maker = Module::new("Maker")?;
            maker.define(&format!("def make(self, x: Tensor):\n    return {value}\n"))?;
            module.register_buffer(name, maker.call("make", std::slice::from_ref(&x))?)?;
        }
        if !side.methods.is_empty() {
            module.define(&side.methods)?;
        }
        module.define(&format!("def prepare(self, x: Tensor):\n    return {}\n", side.prepare))?;
        let call = &side.call;
        // The interpreter calls the operator in a loop: what is measured is the operator and the interpreter's share. A
        // `for` loop would be unrolled, and a second call outside the loop would be merged with the one inside.
        module.define(&format!(
            "def run(self, x: Tensor, n: int):\n    y = x\n    i = 0\n    while i < n:\n        y = {call}\n        i = i + 1\n    \
             return y\n"
        ))?;
        let input = module.call("prepare", &[x])?;
        Ok(Self { name: name.to_owned(), module, input, calls: 1, times: Vec::new() })
    }

    /// Seconds a call, over `calls` calls.
    fn turn(&self, calls: usize) -> Result<f64> {
        let inputs = [self.input.clone(), IValue::Int(calls as i64)];
        let begin = Instant::now();
        self.module.call("run", &inputs)?;
        Ok(begin.elapsed().as_secs_f64() / calls as f64)
    }
}

/// Fails where the executor leaves calls out: then twice as many would not take longer.
fn check_that_calls_count(contestant: &Contestant) -> Result<()> {
    // The least of several tries, and more of them where a busy machine interrupts many.
    let calls = contestant.calls.clamp(4, 1 << 16);
    let (mut once, mut twice) = (f64::INFINITY, f64::INFINITY);
    for tries in 1..=100 {
        once = once.min(contestant.turn(calls)?);
        twice = twice.min(2.0 * contestant.turn(2 * calls)?);
        if tries > 10 && twice > 1.4 * once {
            return Ok(());
        }
    }
    anyhow::bail!("{}: twice as many calls take only {} times as long", contestant.name, twice / once)
}

/// Measures a row.
pub fn hold(group: &str, row: &Row, settings: &Settings) -> Result<Outcome> {
    let mut contestants = Vec::new();
    if row.pack.is_some() {
        for engine in stock_engines().iter().filter(|engine| *engine != "qnnpack") {
            let contestant = with_stock_engine(engine, || Ok(Contestant::new(engine, row, &row.stock)));
            contestants.push(contestant?.with_context(|| format!("libtorch's {engine}"))?);
        }
    } else {
        contestants.push(Contestant::new("libtorch", row, &row.stock)?);
    }
    let ours = Contestant::new("jitquant", row, &row.ours)?;
    if row.pack.is_some() {
        ensure!(accelerate(&ours.module)?.replaced == 1, "jitquant did not replace the packed weight");
    }
    contestants.push(ours);
    for contestant in &mut contestants {
        // The executor profiles and optimizes in the first runs.
        for _ in 0..3 {
            contestant.turn(2)?;
        }
        let once = contestant.turn(4)?.min(contestant.turn(4)?);
        contestant.calls = ((settings.turn / once).ceil() as usize).clamp(1, 1 << 20);
        check_that_calls_count(contestant)?;
    }
    for _ in 0..settings.turns {
        for contestant in &mut contestants {
            contestant.times.push(contestant.turn(contestant.calls)?);
        }
    }
    let ours = contestants.pop().map(|ours| quantile(&ours.times, 0.5)).context("jitquant takes part")?;
    let stock: BTreeMap<String, f64> =
        contestants.into_iter().map(|stock| (stock.name, quantile(&stock.times, 0.5))).collect();
    let best = stock.values().copied().fold(f64::INFINITY, f64::min);
    Ok(Outcome {
        group: group.to_owned(),
        name: row.name.clone(),
        operations: row.operations,
        stock,
        jitquant: ours,
        ratio: best / ours,
    })
}

fn product(sizes: &[i64]) -> usize {
    sizes.iter().product::<i64>() as usize
}

/// Weights as trained ones are distributed, roughly normal; their range of -1 to 1 is four standard deviations. Kernels whose
/// sums of two products saturate are nearly exact on them.
fn weights(count: usize) -> Vec<f32> {
    let parts = [4, 5, 6, 7].map(|seed| noise(count, seed));
    let deviation = 0.25 / (4.0f32 / 3.0).sqrt();
    (0..count).map(|n| deviation * parts.iter().map(|part| part[n]).sum::<f32>()).collect()
}

/// Numbers that look random and are the same everywhere: -1 to 1.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x2545_F491_4F6C_DD1D);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
