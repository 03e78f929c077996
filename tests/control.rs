//! A goal for the accuracy, layers that INT8 slows down, and ranges in a file.

#![cfg(feature = "torch")]

mod support;

use jitquant::control::{Budget, Data, Goal, Outcome, Progress, Ranges, Runs, only_faster, tune};
use jitquant::ir::{IValue, Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::qconfig::QConfigSpec;
use jitquant::{Methods, ModelForm, Quantizer, Rounding};
use support::{classifier, conv2d, images, noise};

fn batches(count: u64, seed: u64) -> Vec<Vec<IValue>> {
    (0..count).map(|index| vec![IValue::Tensor(images(8, seed + index))]).collect()
}

fn data() -> Data {
    // Small tensors; and tests run beside each other.
    jitquant::set_threads(1);
    Data { calibration: batches(3, 1), evaluation: batches(3, 50), labels: None }
}

/// Multiplies output channel 0 of one convolution by `scale` and divides input channel 0 of the next one: what the model
/// computes stays, but the tensor between them has a channel that takes the range from all others.
fn move_range(first: &Module, second: &Module, scale: f32) {
    let change = |module: &Module, name: &str, change: &dyn Fn(usize, &mut f32)| {
        let tensor = Tensor::try_from(module.attribute(name).unwrap()).unwrap();
        let mut values = tensor.to_vec::<f32>().unwrap();
        values.iter_mut().enumerate().for_each(|(index, value)| change(index, value));
        module.set_attribute(name, &Tensor::from_slice(&values, &tensor.shape()).unwrap().into()).unwrap();
    };
    let size = |module: &Module| Tensor::try_from(module.attribute("weight").unwrap()).unwrap().shape()[1] as usize;
    let (inputs, channels) = (size(first), size(second));
    change(first, "weight", &|index, w| *w *= if index / inputs == 0 { scale } else { 1.0 });
    change(first, "bias", &|index, b| *b *= if index == 0 { scale } else { 1.0 });
    change(second, "weight", &|index, w| *w /= if index % channels == 0 { scale } else { 1.0 });
}

/// Five 1x1 convolutions in a row, with a channel of outliers between the third and the fourth.
fn with_outliers() -> Module {
    let module = Module::new("Outliers").unwrap();
    let mut body = String::from("def forward(self, x: Tensor) -> Tensor:\n");
    let parts: Vec<_> = (0..5).map(|index| conv2d(if index == 0 { 1 } else { 8 }, 8, 1, 1, index * 7)).collect();
    move_range(&parts[2], &parts[3], 3000.0);
    for (index, part) in parts.iter().enumerate() {
        module.register_submodule(&format!("conv{index}"), part).unwrap();
        body += &format!("    x = torch.relu(self.conv{index}.forward(x))\n");
    }
    module.define(&(body + "    return torch.flatten(x, 1)\n")).unwrap();
    module
}

fn search(module: &Module, quantizer: &Quantizer, goal: Goal) -> Outcome {
    tune(quantizer, module, &data(), &goal, &Budget::minutes(10.0), &mut |_| {}).unwrap()
}

fn sqnr(float: &Module, int8: &Module, seed: u64) -> f64 {
    let run = |module: &Module| {
        let output = module.forward(&[images(8, seed)]).unwrap();
        output.as_tensor().unwrap().to_f32_vec().unwrap()
    };
    let mut comparison = Comparison::default();
    comparison.add(&run(float), &run(int8), 8);
    comparison.sqnr_db()
}

#[test]
fn the_layers_around_the_tensor_that_loses_accuracy_stay_in_float() {
    let float = with_outliers();
    for form in [ModelForm::Portable, ModelForm::Native] {
        let goal = Goal { min_sqnr_db: Some(25.0), ..Goal::default() };
        let outcome = search(&float, &Quantizer::static_ptq().form(form), goal);
        assert!(outcome.reached && outcome.figures.sqnr_db >= 25.0, "{:?}", outcome.figures);
        assert!(outcome.all_int8.sqnr_db < 20.0, "the outliers cost something: {:?}", outcome.all_int8);
        let mut left: Vec<_> = outcome.float_layers.iter().map(|layer| layer.path.as_str()).collect();
        left.sort_unstable();
        // In native form conv2 gives float to a float layer without a step in between: the tensor is float with conv3 alone.
        let native = form == ModelForm::Native && left.contains(&"conv3") && left.len() <= 2;
        assert!(native || left == ["conv2", "conv3"], "{:?}", outcome.shares);
        let report = &outcome.converted.report;
        assert_eq!((report.quantized_layers, report.float.len()), (5 - left.len(), left.len()), "{report:?}");
        assert!(report.float.iter().all(|layer| layer.reason.contains("of the loss")), "{report:?}");
        assert!(sqnr(&float, &outcome.converted.module, 99) >= 22.0, "also on samples that it has not seen");
        assert_eq!(outcome.times.len(), Runs::of(form).len());
        assert!(outcome.times.iter().all(|time| time.float > 0.0 && time.all_int8 > 0.0 && time.chosen > 0.0));
        // Leaving these two in float by number gives the same model.
        let skip = |quantizer: Quantizer, layer: &jitquant::control::LayerShare| quantizer.skip_layer(layer.number, "");
        let quantizer = outcome.float_layers.iter().fold(Quantizer::static_ptq(), skip);
        let mut prepared = quantizer.prepare(&float).unwrap();
        data().calibration.iter().for_each(|batch| drop(prepared.calibrate(batch).unwrap()));
        assert_eq!(prepared.convert().unwrap().report.quantized_layers, 5 - left.len());
    }
}

#[test]
fn a_goal_that_int8_reaches_costs_no_layer() {
    let outcome = search(&classifier(), &Quantizer::static_ptq(), Goal { min_sqnr_db: Some(20.0), ..Goal::default() });
    assert!(outcome.reached && outcome.float_layers.is_empty() && outcome.remedies.is_empty());
    assert_eq!(outcome.converted.report.quantized_layers, 4);
    assert_eq!(outcome.figures.samples, 24);
}

/// This observer for all activations.
fn observed_by(observer: &str) -> QConfigSpec {
    format!("[default]\nactivation = {{ observer = \"{observer}\" }}").parse().unwrap()
}

#[test]
fn remedies_that_cost_no_speed_come_before_layers_in_float() {
    let float = classifier();
    // As little done beforehand as leaves something to gain.
    let methods = Methods { float_results: false, ..Methods::default() };
    let quantizer = Quantizer::static_ptq().qconfig(observed_by("histogram")).methods(methods);
    let all = search(&float, &quantizer, Goal { min_sqnr_db: Some(20.0), ..Goal::default() });
    // A little more than plain INT8 gives: the methods that fit layers to data reach it.
    let goal = Goal { min_sqnr_db: Some(all.figures.sqnr_db + 0.5), ..Goal::default() };
    let outcome = search(&float, &quantizer, goal);
    assert!(outcome.reached, "{:?} after {:?}", outcome.figures, all.figures);
    assert!(!outcome.remedies.is_empty(), "{:?}", outcome.float_layers);
    assert!(outcome.float_layers.is_empty(), "{:?}", outcome.float_layers);
}

#[test]
fn a_range_that_one_value_ruins_gets_another_one() {
    // The first convolution pays no attention to the second channel of its input, where one value in 34,560 is far out.
    let float = Module::new("Careless").unwrap();
    let first = conv2d(2, 8, 3, 1, 4);
    let mut weight = Tensor::try_from(first.attribute("weight").unwrap()).unwrap().to_vec::<f32>().unwrap();
    weight.iter_mut().enumerate().filter(|(index, _)| index / 9 % 2 == 1).for_each(|(_, w)| *w = 0.0);
    first.set_attribute("weight", &Tensor::from_slice(&weight, &[8, 2, 3, 3]).unwrap().into()).unwrap();
    float.register_submodule("first", &first).unwrap();
    float.register_submodule("second", &conv2d(8, 8, 1, 1, 5)).unwrap();
    let code = "    return self.second.forward(torch.relu(self.first.forward(x)))\n";
    float.define(&format!("def forward(self, x: Tensor) -> Tensor:\n{code}")).unwrap();
    let pixels = |seed: u64, outlier: f32| {
        let mut values = noise(8 * 288, seed);
        values[200] += outlier;
        vec![IValue::Tensor(Tensor::from_slice(&values, &[8, 2, 12, 12]).unwrap())]
    };
    let calibration = (0..15).map(|seed| pixels(seed, if seed == 0 { 400.0 } else { 0.0 })).collect();
    let data = Data { calibration, evaluation: (90..93).map(|seed| pixels(seed, 0.0)).collect(), labels: None };
    let spec = "[default]\nactivation = { observer = \"percentile\", percentile = 100.0 }".parse().unwrap();
    let quantizer = Quantizer::static_ptq().qconfig(spec);
    let goal = Goal { min_sqnr_db: Some(25.0), ..Goal::default() };
    let outcome = tune(&quantizer, &float, &data, &goal, &Budget::minutes(10.0), &mut |_| {}).unwrap();
    assert!(outcome.all_int8.sqnr_db < 10.0, "{:?}", outcome.all_int8);
    assert!(outcome.reached && outcome.float_layers.is_empty(), "{:?}: {:?}", outcome.figures, outcome.shares);
    let ranges: Vec<_> = outcome.remedies.iter().filter(|remedy| remedy.what.contains("range of the input")).collect();
    assert!(ranges.iter().any(|remedy| remedy.place == "first"), "{:?}", outcome.remedies);
}

#[test]
fn a_goal_out_of_reach_gives_the_nearest_model() {
    let outcome = search(&classifier(), &Quantizer::static_ptq(), Goal { min_sqnr_db: Some(150.0), ..Goal::default() });
    assert!(!outcome.reached && !outcome.out_of_time, "{:?}", outcome.figures);
    assert!(outcome.figures.sqnr_db > outcome.all_int8.sqnr_db);
    assert!(outcome.converted.report.quantized_layers >= 1);
}

#[test]
fn goals_that_make_no_sense_are_refused_in_words() {
    let refusal = |module: &Module, goal: Goal| {
        tune(&Quantizer::static_ptq(), module, &data(), &goal, &Budget::minutes(1.0), &mut |_| {})
            .unwrap_err()
            .to_string()
    };
    assert!(refusal(&classifier(), Goal::default()).contains("a goal is needed"));
    let labelled = Goal { max_drop: Some(0.01), ..Goal::default() };
    assert!(refusal(&classifier(), labelled).contains("needs labels"));
    let image = Module::new("Image").unwrap();
    image.register_submodule("conv", &conv2d(1, 2, 3, 1, 3)).unwrap();
    image.define("def forward(self, x: Tensor) -> Tensor:\n    return self.conv.forward(x)\n").unwrap();
    let agreement = Goal { min_agreement: Some(0.9), ..Goal::default() };
    assert!(refusal(&image, agreement).contains("class scores"));
}

#[test]
fn accuracy_on_labels_is_a_goal() {
    let float = classifier();
    let mut data = data();
    let run = |batch: &Vec<IValue>| float.forward(batch).unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap();
    let classes = data.evaluation.iter().flat_map(|batch| jitquant::measure::top_classes(&run(batch), 8));
    data.labels = Some(classes.map(|class| class as i64).collect());
    let goal = Goal { max_drop: Some(0.05), min_agreement: Some(0.95), ..Goal::default() };
    let outcome = tune(&Quantizer::static_ptq(), &float, &data, &goal, &Budget::minutes(10.0), &mut |_| {}).unwrap();
    assert_eq!(outcome.figures.float_accuracy, Some(1.0));
    assert!(outcome.reached && outcome.figures.drop().unwrap() <= 0.05, "{:?}", outcome.figures);
    data.labels.as_mut().unwrap().truncate(5);
    let refusal =
        tune(&Quantizer::static_ptq(), &float, &data, &goal, &Budget::minutes(10.0), &mut |_| {}).unwrap_err();
    assert!(refusal.to_string().contains("fewer labels"), "{refusal}");
}

#[test]
fn no_time_tries_nothing_and_a_later_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("out.control");
    let float = with_outliers();
    let goal = Goal { min_sqnr_db: Some(25.0), ..Goal::default() };
    let run = |minutes: f64, quantizer: &Quantizer| {
        let budget = Budget { state: Some(state.clone()), ..Budget::minutes(minutes) };
        let mut found = Vec::new();
        let outcome = tune(quantizer, &float, &data(), &goal, &budget, &mut |progress: &Progress<'_>| {
            found.extend(progress.found.clone());
        });
        (outcome.unwrap(), found)
    };
    let quantizer = Quantizer::static_ptq();
    let (outcome, _) = run(0.0, &quantizer);
    assert!(!outcome.reached && outcome.out_of_time);
    assert_eq!(outcome.trials, 1, "the model with all layers in INT8 is measured in any case");
    assert!(state.exists(), "it is not deleted before the goal is reached");
    // With the time that there is now.
    let (outcome, found) = run(10.0, &quantizer);
    assert!(outcome.reached && found.iter().any(|line| line.contains("1 measurements are known")), "{found:?}");
    assert!(!state.exists(), "all is done");
    let whole = search(&float, &quantizer, goal);
    assert_eq!(outcome.trials + 1, whole.trials, "what was measured is not measured again");
    let names = |outcome: &Outcome| outcome.float_layers.iter().map(|layer| layer.number).collect::<Vec<_>>();
    assert_eq!(names(&outcome), names(&whole));
    // Another quantizer has other figures.
    run(0.0, &quantizer);
    let (_, found) = run(0.0, &Quantizer::static_ptq().skip("conv0"));
    assert!(!found.iter().any(|line| line.contains("known")), "{found:?}");
}

#[test]
fn a_cancelled_search_is_an_error_and_keeps_what_it_measured() {
    use std::ops::ControlFlow::{Break, Continue};
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget { state: Some(folder.path().join("state")), ..Budget::minutes(10.0) };
    let goal = Goal { min_sqnr_db: Some(60.0), ..Goal::default() };
    let float = with_outliers();
    let outcome = jitquant::watch::watched(
        |step| if step.stage == "trying an INT8 model" && step.done == 3 { Break(()) } else { Continue(()) },
        || tune(&Quantizer::static_ptq(), &float, &data(), &goal, &budget, &mut |_| {}),
    );
    assert!(matches!(outcome, Err(jitquant::Error::Cancelled)), "{outcome:?}");
    let text = std::fs::read_to_string(folder.path().join("state")).unwrap();
    assert_eq!(text.matches("sqnr_db").count(), 3, "{text}");
}

#[test]
fn one_of_two_calls_of_a_layer_can_stay_in_float() {
    let twice = Module::new("Twice").unwrap();
    twice.register_submodule("conv", &conv2d(8, 8, 3, 1, 5)).unwrap();
    twice.register_submodule("first", &conv2d(1, 8, 3, 1, 6)).unwrap();
    twice
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    \
             x = torch.relu(self.first.forward(x))\n    \
             return self.conv.forward(torch.relu(self.conv.forward(x)))\n",
        )
        .unwrap();
    let verdicts = Quantizer::static_ptq().verdicts(&twice).unwrap();
    let paths: Vec<_> = verdicts.iter().map(|(layer, _)| layer.path.as_str()).collect();
    assert_eq!(paths, ["first", "conv", "conv"]);
    let quantizer = Quantizer::static_ptq().skip_layer(1, "as a test");
    let mut prepared = quantizer.prepare(&twice).unwrap();
    prepared.calibrate(&[images(4, 1)]).unwrap();
    let converted = prepared.convert().unwrap();
    assert_eq!(converted.report.quantized_layers, 2);
    let [left] = &converted.report.float[..] else { panic!("{:?}", converted.report) };
    assert_eq!((left.path.as_str(), left.reason.as_str()), ("conv", "as a test"));
    assert!(sqnr(&twice, &converted.module, 9) > 20.0);
    let refusal = Quantizer::static_ptq().skip_layer(3, "").prepare(&twice).unwrap_err().to_string();
    assert!(refusal.contains("layer 3") && refusal.contains("3 layers"), "{refusal}");
}

fn linear(module: &Module, name: &str, inputs: i64, outputs: i64) {
    let layer = Module::new("torch.nn.modules.linear.Linear").unwrap();
    let weight: Vec<f32> = noise((inputs * outputs) as usize, inputs as u64).iter().map(|w| w * 0.05).collect();
    layer.register_parameter("weight", Tensor::from_slice(&weight, &[outputs, inputs]).unwrap()).unwrap();
    layer.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n").unwrap();
    module.register_submodule(name, &layer).unwrap();
}

#[test]
fn a_layer_that_int8_slows_down_stays_in_float() {
    let model = Module::new("Uneven").unwrap();
    linear(&model, "large", 1536, 1536);
    linear(&model, "larger", 1536, 2048);
    linear(&model, "tiny", 2048, 2);
    // Softmax is float: to run the tiny layer in INT8 takes more operators than to run it.
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    \
             x = self.larger.forward(torch.relu(self.large.forward(x)))\n    \
             return torch.softmax(self.tiny.forward(torch.softmax(x, -1)), -1)\n",
        )
        .unwrap();
    jitquant::set_threads(1);
    let inputs = |seed: u64| vec![IValue::Tensor(Tensor::from_slice(&noise(16 * 1536, seed), &[16, 1536]).unwrap())];
    let data = Data { calibration: vec![inputs(1), inputs(2)], ..Data::default() };
    for (form, kernels) in [(ModelForm::Portable, Runs::Accelerated), (ModelForm::Native, Runs::Native)] {
        let quantizer = Quantizer::static_ptq().form(form);
        let latency = only_faster(&quantizer, &model, &data, None, (1, kernels), &mut |_| {}).unwrap();
        let of = |path: &str| latency.layers.iter().find(|layer| layer.path == path).expect(path);
        assert!(!of("large").in_float && !of("larger").in_float, "{latency:?}");
        assert!(of("large").int8_seconds < of("large").float_seconds, "{latency:?}");
        assert!(of("tiny").int8_seconds > of("tiny").float_seconds, "{latency:?}");
        assert!(of("large").conversion_seconds > 0.0);
        let is_left = of("tiny").in_float;
        // The whole model decides in the end; both answers are said.
        assert!(is_left || latency.notes.iter().any(|note| note.contains("no faster")), "{latency:?}");
        let mut prepared = latency.apply(quantizer.clone()).prepare(&model).unwrap();
        assert!(latency.ranges.restore(&mut prepared).unwrap().is_empty(), "no data is run for it");
        let report = prepared.convert().unwrap().report;
        assert_eq!(report.quantized_layers, if is_left { 2 } else { 3 }, "{report:?}");
        if is_left {
            assert!(report.float[0].reason.contains("no faster in INT8 here"), "{report:?}");
        }
    }
    let wrong = only_faster(&Quantizer::static_ptq(), &model, &data, None, (1, Runs::Native), &mut |_| {});
    assert!(wrong.unwrap_err().to_string().contains("form"));
}

#[test]
fn ranges_from_a_file_make_the_same_models_without_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ranges.jq");
    let float = Module::load_bytes(&classifier().save_bytes().unwrap()).unwrap();
    let calibrated = |quantizer: &Quantizer| {
        let mut prepared = quantizer.prepare(&float).unwrap();
        data().calibration.iter().for_each(|batch| drop(prepared.calibrate(batch).unwrap()));
        prepared
    };
    Ranges::of(&calibrated(&Quantizer::static_ptq())).unwrap().with_source("pictures").save(&path, &float).unwrap();
    let loaded = Module::load_bytes(&float.save_bytes().unwrap()).unwrap();
    let ranges = Ranges::load(&path, &loaded).unwrap().unwrap();
    assert_eq!(ranges.source(), "pictures");
    for quantizer in [
        Quantizer::static_ptq(),
        Quantizer::static_ptq().form(ModelForm::Native),
        // What the outputs of the whole model chose, those of a part may not.
        Quantizer::static_ptq().qconfig(observed_by("histogram")).skip("conv2"),
        Quantizer::static_ptq().qconfig(observed_by("squared-error")).skip_layer(0, "").skip_layer(3, ""),
        Quantizer::static_ptq().qconfig(observed_by("entropy")),
        // A histogram has the smallest and the largest value.
        Quantizer::static_ptq().qconfig(observed_by("min-max")),
    ] {
        // Without data weights are rounded by sums.
        let methods = Methods { rounding: Rounding::Sums, ..Methods::default() };
        let quantizer = quantizer.methods(methods);
        let mut prepared = quantizer.prepare(&loaded).unwrap();
        assert_eq!(ranges.restore(&mut prepared).unwrap(), Vec::<String>::new(), "{quantizer:?}");
        let run =
            |module: &Module| module.forward(&[images(8, 30)]).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
        let restored = run(&prepared.convert().unwrap().module);
        assert_eq!(restored, run(&calibrated(&quantizer).convert().unwrap().module), "{quantizer:?}");
    }
    // Other observers keep something else.
    let mut prepared = Quantizer::static_ptq().qconfig(observed_by("moving-average-min-max")).prepare(&loaded).unwrap();
    let missing = ranges.restore(&mut prepared).unwrap();
    assert!(missing.iter().any(|tensor| tensor.contains("argument 'x")), "{missing:?}");
    assert_eq!(Ranges::load(&path, &with_outliers()).unwrap(), None, "another model");
    assert_eq!(Ranges::load(folder.path().join("none.jq"), &loaded).unwrap(), None);
}

#[cfg(feature = "cli")]
mod command_line {
    use std::path::PathBuf;
    use std::process::{Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use support::write_npy;

    struct Desk {
        folder: tempfile::TempDir,
    }

    impl Desk {
        fn new(model: &Module) -> Self {
            let desk = Self { folder: tempfile::tempdir().unwrap() };
            model.save(desk.path("model.pt")).unwrap();
            write_npy(&desk.path("x.npy"), &images(32, 1));
            write_npy(&desk.path("more.npy"), &images(24, 60));
            desk
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn command(&self, arguments: &[&str]) -> Command {
            let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
            let common = ["quantize", "model.pt", "-o", "out.pt"];
            command.args([&common[..], arguments].concat()).current_dir(&self.folder).env("OMP_NUM_THREADS", "1");
            command
        }

        fn run(&self, arguments: &[&str]) -> Output {
            self.command(arguments).output().unwrap()
        }

        fn json(&self, arguments: &[&str]) -> (serde_json::Value, String) {
            let output = self.run(&[arguments, &["--json"]].concat());
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{said}");
            (serde_json::from_slice(&output.stdout).unwrap(), said)
        }
    }

    #[test]
    fn a_goal_on_the_command_line() {
        let desk = Desk::new(&with_outliers());
        let goal = ["--calibrate", "x.npy", "--evaluate", "more.npy", "--min-sqnr", "25"];
        let (report, _) = desk.json(&goal);
        let control = &report["accuracy"];
        assert_eq!((&control["reached"], &control["float_layers"].as_array().unwrap().len()), (&true.into(), &2));
        assert_eq!(control["figures"]["samples"], 24);
        assert!(!desk.path("out.control").exists());
        // Without data of its own a fourth of the calibration data is held out.
        let (report, _) = desk.json(&["--calibrate", "x.npy", "--min-sqnr", "20"]);
        assert_eq!(
            (&report["calibration_samples"], &report["accuracy"]["figures"]["samples"]),
            (&24.into(), &8.into())
        );
        let text = String::from_utf8(desk.run(&goal).stdout).unwrap();
        assert!(text.contains("goal reached") && text.contains("of the loss"), "{text}");
    }

    #[test]
    fn a_missed_goal_writes_nothing_unless_asked() {
        let desk = Desk::new(&classifier());
        let goal = ["--calibrate", "x.npy", "--min-sqnr", "150", "--control-minutes", "0"];
        let output = desk.run(&goal);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        for wanted in ["not reached", "goal 150 dB", "--control-minutes 0", "--best-effort", "out.control"] {
            assert!(said.contains(wanted), "'{wanted}' is missing in: {said}");
        }
        assert!(!desk.path("out.pt").exists() && desk.path("out.control").exists());
        let (report, _) = desk.json(&[&goal[..], &["--best-effort"]].concat());
        assert_eq!((&report["accuracy"]["reached"], &report["accuracy"]["out_of_time"]), (&false.into(), &true.into()));
        assert!(desk.path("out.pt").exists());
        let refusal = String::from_utf8(desk.run(&["--calibrate", "x.npy", "--min-agreement", "99"]).stderr).unwrap();
        assert!(refusal.contains("99% or 0.99"), "{refusal}");
        let unlabelled = String::from_utf8(desk.run(&["--calibrate", "x.npy", "--max-drop", "1%"]).stderr).unwrap();
        assert!(unlabelled.contains("--labels"), "{unlabelled}");
    }

    #[test]
    fn a_killed_run_goes_on() {
        let desk = Desk::new(&with_outliers());
        let goal = ["--calibrate", "x.npy", "--evaluate", "more.npy", "--min-sqnr", "60"];
        let mut child = desk.command(&goal).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let known = || std::fs::read_to_string(desk.path("out.control")).unwrap_or_default().matches("sqnr_db").count();
        let start = Instant::now();
        while known() < 4 && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let measured = known();
        assert!(measured >= 4 && !desk.path("out.pt").exists(), "{measured} after {:?}", start.elapsed());
        let (report, said) = desk.json(&[&goal[..], &["--best-effort"]].concat());
        assert!(said.contains(&format!("{measured} measurements are known")), "{said}");
        assert_eq!(report["accuracy"]["reached"], false);
    }

    #[test]
    fn ranges_are_kept_and_what_does_not_fit_is_said() {
        let desk = Desk::new(&classifier());
        let bytes = |name: &str| std::fs::read(desk.path(name)).unwrap();
        let ranges = ["--rounding", "sums", "--ranges", "r.jq"];
        let (report, said) = desk.json(&[&["--calibrate", "x.npy"], &ranges[..]].concat());
        assert_eq!((report["calibration_samples"].as_u64(), said.as_str()), (Some(32), ""));
        let (kept, portable) = (bytes("r.jq"), std::fs::read(desk.path("out.pt")).unwrap());
        let (report, said) = desk.json(&ranges);
        assert_eq!((report["calibration_samples"].as_u64(), said.as_str()), (Some(0), ""));
        assert_eq!(bytes("out.pt").len(), portable.len());
        desk.json(&[&["--form", "native", "--skip", "fc"], &ranges[..]].concat());
        desk.json(&[&["--calibrate", "x.npy"], &ranges[..]].concat());
        assert_eq!(bytes("r.jq"), kept, "nothing new");

        let failure = |arguments: &[&str]| {
            let output = desk.run(arguments);
            assert_eq!(output.status.code(), Some(1));
            String::from_utf8(output.stderr).unwrap()
        };
        let said = failure(&[&["--observer", "moving-average-min-max"], &ranges[..]].concat());
        assert!(said.contains("not in the file") && said.contains("--calibrate"), "{said}");
        let said = failure(&["--rounding", "learned", "--ranges", "r.jq"]);
        assert!(said.contains("--calibrate"), "{said}");
        let (_, said) = desk.json(&["--ranges", "r.jq"]);
        assert!(said.contains("rounded by sums"), "{said}");
        let (_, said) =
            desk.json(&[&["--calibrate", "x.npy", "--observer", "moving-average-min-max"], &ranges[..]].concat());
        assert!(said.contains("calibrating again"), "{said}");
        let (_, said) = desk.json(&[&["--calibrate", "more.npy"], &ranges[..]].concat());
        assert!(said.contains("other data") && said.contains("x.npy"), "{said}");
        with_outliers().save(desk.path("model.pt")).unwrap();
        assert!(failure(&ranges).contains("no ranges of this model"));
        let (_, said) = desk.json(&[&["--calibrate", "x.npy"], &ranges[..]].concat());
        assert!(said.contains("other models only"), "{said}");
        std::fs::write(desk.path("r.jq"), "my notes").unwrap();
        assert!(failure(&ranges).contains("no file of recorded ranges"));
    }

    #[test]
    fn only_faster_prints_what_it_measured() {
        let desk = Desk::new(&classifier());
        let output = desk.run(&["--calibrate", "x.npy", "--only-faster", "--latency-batch-size", "4", "--json"]);
        let said = String::from_utf8(output.stderr).unwrap();
        // On a machine where no layer of so small a model gains, that is said and nothing is written.
        if !output.status.success() {
            assert!(said.contains("no layer of the model is faster in INT8"), "{said}");
            assert!(!desk.path("out.pt").exists());
            return;
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let layers = report["latency"]["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 4, "{report}");
        assert!(layers.iter().all(|layer| layer["float_seconds"].as_f64().unwrap() > 0.0), "{report}");
        let left = layers.iter().filter(|layer| layer["in_float"] == true).count() as u64;
        assert_eq!(report["quantized_layers"].as_u64().unwrap() + left, 4);
        assert_eq!(report["latency"]["model"]["samples"], 4);
    }
}
