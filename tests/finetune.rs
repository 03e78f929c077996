//! `jitquant quantize --finetune`: what it says, when it ends, what it needs after a kill, and labels.

#![cfg(feature = "tch")]

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use desk::Desk;

impl Desk {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.quantize();
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it says on stderr.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }
}

/// A look at the held-out samples: step, loss of training, loss held out, agreement in percent.
#[derive(Debug)]
struct Look {
    step: usize,
    training: Option<f64>,
    held_out: f64,
    agreement: f64,
}

fn looks(said: &str) -> Vec<Look> {
    let after = |line: &str, word: &str| -> Option<f64> {
        let rest = line.split_once(word)?.1.trim_start();
        rest.split([',', ' ', ':']).next()?.parse().ok()
    };
    let read = |line: &str| Look {
        step: after(line, "step").unwrap() as usize,
        training: after(line, ": loss"),
        held_out: after(line, "held out").unwrap(),
        agreement: after(line, "agreement").unwrap(),
    };
    said.lines().filter(|line| line.starts_with("step ")).map(read).collect()
}

#[test]
fn it_says_how_it_goes() {
    let desk = Desk::new(64);
    let said = desk.succeed(&["model.pt", "-o", "out.pt", "--calibrate", "x.npy", "--finetune", "50"]);
    let looks = looks(&said);
    assert_eq!(looks.iter().map(|look| look.step).collect::<Vec<_>>(), [0, 20, 40, 50], "{said}");
    assert!(looks[0].training.is_none() && looks[1..].iter().all(|look| look.training.is_some_and(|loss| loss > 0.0)));
    assert!(looks.iter().all(|look| look.held_out > 0.0 && (0.0..=100.0).contains(&look.agreement)), "{said}");
    assert!(desk.path("out.pt").exists() && !desk.path("out.checkpoint").exists());
}

#[test]
fn what_is_better_by_chance_is_not_taken() {
    // Eight held-out samples, and eight bits leave next to nothing to train.
    let desk = Desk::new(64);
    let trained = |output, steps| {
        let said = desk.succeed(&["model.pt", "-o", output, "--calibrate", "x.npy", "--finetune", steps]);
        assert!(said.contains("not better on the held-out samples than what it began with, which is kept"), "{said}");
        desk.scores(output)
    };
    assert_eq!(trained("few.pt", "20"), trained("more.pt", "60"));
}

#[test]
fn tensors_on_the_way_are_targets_too() {
    let desk = Desk::new(64);
    // Weights of three bits: eight leave nothing to train.
    let weight =
        "[default]\nweight = { observer = \"per-channel-min-max\", dtype = \"i8\", quant-min = -4, quant-max = 3 }";
    std::fs::write(desk.path("q.toml"), weight).unwrap();
    let base = ["model.pt", "-o", "out.pt", "--config", "q.toml", "--calibrate", "x.npy"];
    let base = [&base[..], &["--finetune", "20", "--finetune-targets"]].concat();
    let with = |targets: &str| looks(&desk.succeed(&[&base[..], &[targets]].concat()));
    let (outputs, both) = (with("outputs"), with("conv1, conv2"));
    assert!(both[0].held_out > outputs[0].held_out * 1.01, "their loss is added: {outputs:?} and {both:?}");
    assert!(both[1].held_out < both[0].held_out, "and falls: {both:?}");
    assert!(with("sums")[0].held_out > outputs[0].held_out, "the model has a residual sum");
    let output = desk.run(&[&base[..], &["con"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("'con'") && said.contains("the layers are at conv1, conv2"), "{said}");
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn nothing_is_lost_with_a_kill() {
    let desk = Desk::new(1024);
    let training = |output, steps| {
        ["model.pt", "-o", output, "--calibrate", "x.npy", "--finetune", steps, "--finetune-batch-size", "128"]
    };
    let whole = desk.succeed(&training("whole.pt", "50"));
    let mut child = desk.command(&training("parts.pt", "50")).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&desk.path("parts.checkpoint"));
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!desk.path("parts.pt").exists());

    // Another plan would not come to the same.
    let other = desk.run(&training("parts.pt", "60"));
    let refusal = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(1), "{refusal}");
    assert!(refusal.contains("parts.checkpoint is the checkpoint of a run with other options or data"), "{refusal}");

    let rest = desk.succeed(&training("parts.pt", "50"));
    assert!(rest.contains("goes on from step 20 (parts.checkpoint)"), "{rest}");
    let (whole, rest) = (looks(&whole), looks(&rest));
    assert_eq!(format!("{:?}", &whole[2..]), format!("{rest:?}"), "the looks after the kill");
    assert_eq!(desk.scores("parts.pt"), desk.scores("whole.pt"));
    assert!(!desk.path("parts.checkpoint").exists());
}

#[test]
fn a_file_that_is_no_checkpoint_is_refused_and_kept() {
    let desk = Desk::new(32);
    std::fs::write(desk.path("out.checkpoint"), "my notes").unwrap();
    let output = desk.run(&["model.pt", "-o", "out.pt", "--calibrate", "x.npy", "--finetune", "20"]);
    let refusal = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{refusal}");
    assert!(refusal.contains("out.checkpoint is no checkpoint of this model: delete it"), "{refusal}");
    assert_eq!(std::fs::read_to_string(desk.path("out.checkpoint")).unwrap(), "my notes");
}

/// Four-bit weights for the demo's digits: there training has something to do.
const FOUR_BITS: &str = "[default.weight]
observer = \"per-channel-min-max\"
dtype = \"i8\"
quant-min = -8
quant-max = 7
[default.activation]
observer = \"min-max\"
";

fn digits(name: &str) -> String {
    format!("{}/examples/digits/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn labels_are_trained_for() {
    let desk = Desk::new(2);
    std::fs::write(desk.path("q.toml"), FOUR_BITS).unwrap();
    let (model, data) = (digits("digits.pt"), digits("calibration.npz"));
    let base = [&model, "-o", "out.pt", "--config", "q.toml", "--calibrate", &data, "--finetune", "60"];
    let with = |more: &[&'static str]| looks(&desk.succeed(&[&base[..], more].concat()));
    let labelled = with(&["--finetune-labels", "labels"]);
    let unlabelled = with(&[]);
    // The cross entropy of labels is another loss than the distance to the float model's outputs.
    assert_ne!(labelled[0].held_out, unlabelled[0].held_out);
    for looks in [&labelled, &unlabelled] {
        let least = looks[1..].iter().map(|look| look.held_out).fold(f64::INFINITY, f64::min);
        assert!(least < looks[0].held_out, "{looks:?}");
    }

    let output = desk.run(&[&base[..], &["--finetune-labels", "classes"]].concat());
    let refusal = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(refusal.contains("no array is called `classes`") && refusal.contains("labels"), "{refusal}");
}

#[test]
fn training_ends_early_where_the_held_out_loss_falls_no_more() {
    let desk = Desk::new(2);
    // Labels that have nothing to do with the digits: what is learned of them is no use for others.
    let x = tch::Tensor::read_npz(digits("calibration.npz")).unwrap();
    let x = &x.iter().find(|(name, _)| name == "x").unwrap().1;
    let x = x.narrow(0, 0, 64);
    tch::manual_seed(3);
    let labels = tch::Tensor::randint(10, [64], (tch::Kind::Int64, tch::Device::Cpu));
    tch::Tensor::write_safetensors(&[("x", x), ("labels", labels)], desk.path("wrong.safetensors")).unwrap();
    let model = digits("digits.pt");
    let arguments = [&model, "-o", "out.pt", "--calibrate", "wrong.safetensors", "--finetune", "5000"];
    let said = desk.succeed(&[&arguments[..], &["--finetune-labels", "labels"]].concat());
    let looks = looks(&said);
    let last = looks.last().unwrap();
    assert!(last.step < 5000, "{said}");
    let best = looks.iter().min_by(|a, b| a.held_out.total_cmp(&b.held_out)).unwrap();
    assert_eq!(last.step, best.step + 8 * 20, "eight looks after the best one: {said}");
    assert!(desk.path("out.pt").exists() && !desk.path("out.checkpoint").exists());
}
