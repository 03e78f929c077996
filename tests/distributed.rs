//! Several processes at one piece of work: `jitquant quantize` under the variables of torchrun, and the library's group.

#![cfg(feature = "tch")]

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use desk::Desk;
use jitquant::Quantizer;
use jitquant::distributed::{Calibration, Environment, Group};
use jitquant::ir::{IValue, Module, Tensor};
use support::{classifier, images, linear, noise};

/// A port that nobody uses at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Desk {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.quantize();
        command.arg("model.pt").args(arguments).env("JITQUANT_JOIN_SECONDS", "30");
        for variable in ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"] {
            command.env_remove(variable);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts one process of a group.
    fn start(&self, rank: usize, world: usize, port: u16, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        let set = [("RANK", rank.to_string()), ("WORLD_SIZE", world.to_string()), ("MASTER_PORT", port.to_string())];
        command.env("MASTER_ADDR", "127.0.0.1").envs(set).spawn().unwrap()
    }

    /// What all processes of a group say; they have to succeed.
    fn together(&self, world: usize, arguments: &[&str]) -> Vec<String> {
        let port = free_port();
        let started: Vec<Child> = (0..world).map(|rank| self.start(rank, world, port, arguments)).collect();
        let outputs = started.into_iter().map(|child| child.wait_with_output().unwrap());
        outputs
            .map(|output| {
                assert!(output.status.success(), "{arguments:?}: {}", said(&output));
                said(&output)
            })
            .collect()
    }

    fn alone(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        said(&output)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// How much of `a`'s power is in its difference to `b`, in decibels.
fn noise_ratio(a: &[f32], b: &[f32]) -> f64 {
    let power = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
    10.0 * (power(&mut a.iter().copied()) / power(&mut a.iter().zip(b).map(|(a, b)| a - b))).log10()
}

#[test]
fn two_and_four_processes_calibrate_as_one() {
    let desk = Desk::new(22);
    // Six batches, the last of two samples; --bias-correction runs them again in process 0.
    for options in [&["--observer", "min-max", "--bias-correction"][..], &["--observer", "moving-average-min-max"]] {
        let with = |output: &str, options: &[&str]| -> Vec<String> {
            let all = [&["-o", output, "--calibrate", "x.npy", "--batch-size", "4"], options].concat();
            all.into_iter().map(str::to_owned).collect()
        };
        let run = |world: usize, output: &str| {
            let arguments = with(output, options);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            if world == 1 { vec![desk.alone(&arguments)] } else { desk.together(world, &arguments) }
        };
        run(1, "one.pt");
        let one = desk.scores("one.pt");
        for world in [2, 4] {
            let said = run(world, "many.pt");
            assert!(said[0].contains("22 samples") && said[0].contains("wrote many.pt"), "{}", said[0]);
            assert!(said[1..].iter().all(|said| !said.contains("wrote")), "{said:?}");
            assert_eq!(desk.scores("many.pt"), one, "{options:?} in {world} processes");
            std::fs::remove_file(desk.path("many.pt")).unwrap();
        }
    }
}

#[test]
fn processes_that_do_not_fit_together_are_refused() {
    let desk = Desk::new(22);
    let port = free_port();
    let start =
        |rank, size| desk.start(rank, 2, port, &["-o", "many.pt", "--calibrate", "x.npy", "--batch-size", size]);
    for child in [start(0, "4"), start(1, "8")] {
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{}", said(&output));
        let what = "agree on --batch-size: it is 4 for rank 0 and 8 for rank 1";
        assert!(said(&output).contains(what), "{}", said(&output));
    }
    assert!(!desk.path("many.pt").exists());

    let turn = Mutex::new(());
    let refusal = |what: &str, differs: &(dyn Fn(&Module, &mut Quantizer, &mut Tensor) + Sync)| {
        let refusals = group(2, |group| {
            let held = turn.lock().unwrap();
            let (model, mut quantizer, mut x) = (linear(12, 10, 1), Quantizer::static_ptq(), images(4, 1));
            if group.rank() == 1 {
                differs(&model, &mut quantizer, &mut x);
            }
            let mut prepared = quantizer.prepare(&model).unwrap();
            let mut calibration = Calibration::new(&mut prepared, Some(group)).unwrap();
            calibration.run(group.rank(), &[x]).unwrap();
            drop(held);
            calibration.merge().unwrap_err().to_string()
        });
        let message = format!("the processes have to agree on {what}: ");
        assert!(refusals.iter().all(|refusal| refusal.starts_with(&message)), "{what}: {refusals:?}");
    };
    refusal("the model", &|model, _, _| {
        let bias = Tensor::from_slice(&[0.5f32; 10], &[10]).unwrap();
        model.set_attribute("bias", &bias.into()).unwrap();
    });
    refusal("the options", &|_, quantizer, _| *quantizer = quantizer.clone().check(false));
    refusal("the form of the batches", &|_, _, x| *x = Tensor::from_slice(&noise(144, 2), &[12, 12]).unwrap());
}

#[test]
fn two_processes_train_as_one_with_steps_twice_as_large() {
    let desk = Desk::new(64);
    let arguments = |output, batch| {
        [
            "-o",
            output,
            "--calibrate",
            "x.npy",
            "--finetune",
            "25",
            "--finetune-batch-size",
            batch,
            "--observer",
            "min-max",
        ]
    };
    desk.alone(&arguments("one.pt", "8"));
    let said = desk.together(2, &arguments("two.pt", "4"));
    assert!(said[0].contains("step    25: loss") && said[0].contains("agreement"), "{}", said[0]);
    assert!(!said[1].contains("step"), "{}", said[1]);
    let ratio = noise_ratio(&desk.scores("one.pt"), &desk.scores("two.pt"));
    assert!(ratio > 35.0, "{ratio} dB");
}

/// Waits until the file is there.
fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_worker_ends_the_others_and_training_goes_on_from_the_checkpoint() {
    let desk = Desk::new(2048);
    let training = |batch| ["-o", "out.pt", "--calibrate", "x.npy", "--finetune", "60", "--finetune-batch-size", batch];
    for victim in [1, 0] {
        let port = free_port();
        let mut children: Vec<Child> = (0..2).map(|rank| desk.start(rank, 2, port, &training("128"))).collect();
        wait_for(&desk.path("out.checkpoint"));
        children[victim].kill().unwrap();
        let killed = Instant::now();
        children.remove(victim).wait().unwrap();
        let output = children.remove(0).wait_with_output().unwrap();
        let (said, seconds) = (said(&output), killed.elapsed().as_secs());
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(seconds < 20, "{seconds} s");
        let why =
            if victim == 1 { "rank 1 of 2 has ended: no sign of life since" } else { "rank 0, which serves the store" };
        assert!(said.contains(why) && said.contains(" UTC"), "{said}");
        assert!(said.contains("out.checkpoint on rank 0 is that of step 20"), "{said}");
        assert!(!desk.path("out.pt").exists());
        if victim == 1 {
            std::fs::remove_file(desk.path("out.checkpoint")).unwrap();
        }
    }
    // One process goes on with what two began.
    let said = desk.alone(&training("256"));
    assert!(said.contains("goes on from step 20") && said.contains("step    60: loss"), "{said}");
    assert!(desk.path("out.pt").exists() && !desk.path("out.checkpoint").exists());
}

#[test]
fn a_worker_that_fails_tells_the_others_why() {
    let desk = Desk::new(8);
    let port = free_port();
    let first = desk.start(0, 2, port, &["-o", "out.pt", "--calibrate", "x.npy", "--batch-size", "4"]);
    let second = desk.start(1, 2, port, &["-o", "out.pt", "--calibrate", "y.npy", "--batch-size", "4"]);
    let (first, second) = (first.wait_with_output().unwrap(), second.wait_with_output().unwrap());
    assert!(said(&second).contains("y.npy"), "{}", said(&second));
    assert_eq!(first.status.code(), Some(1));
    let said = said(&first);
    assert!(said.contains("rank 1 failed: ") && said.contains("y.npy"), "{said}");
    assert!(!desk.path("out.pt").exists());
}

#[test]
fn variables_that_do_not_fit_are_refused() {
    let desk = Desk::new(8);
    let refusal = |variables: &[(&str, &str)]| {
        let mut command = desk.command(&["-o", "out.pt", "--calibrate", "x.npy"]);
        let output = command.envs(variables.iter().copied()).env("JITQUANT_JOIN_SECONDS", "1").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{variables:?}: {}", said(&output));
        assert!(!desk.path("out.pt").exists());
        said(&output)
    };
    let port = free_port().to_string();
    let two = [("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")];
    let with = |more: &[(&'static str, &str)]| -> String { refusal(&[&two[..], more].concat()) };
    assert!(with(&[("RANK", "2"), ("MASTER_PORT", &port)]).contains("RANK=2 with WORLD_SIZE=2"));
    assert!(with(&[("RANK", "0")]).contains("MASTER_PORT is not set"));
    let told = with(&[("RANK", "1"), ("MASTER_PORT", &port)]);
    assert!(told.contains("nobody answers at MASTER_ADDR:MASTER_PORT 127.0.0.1:"), "{told}");
    let told =
        refusal(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "no.such.host.invalid"), ("MASTER_PORT", &port)]);
    assert!(told.contains("no.such.host.invalid"), "{told}");
    let told = with(&[("RANK", "0"), ("MASTER_PORT", &port)]);
    assert!(told.contains("rank 1 of 2 did not join within 1 s"), "{told}");
    let occupied = TcpListener::bind("0.0.0.0:0").unwrap();
    let told = with(&[("RANK", "0"), ("MASTER_PORT", &occupied.local_addr().unwrap().port().to_string())]);
    assert!(told.contains("serving the store at 127.0.0.1:"), "{told}");
}

/// Runs `work` as each process of a group of `world`, on threads.
fn group<T: Send>(world: usize, work: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    let port = free_port();
    let join = |rank| {
        let environment = Environment {
            rank,
            world,
            address: "127.0.0.1".into(),
            port,
            is_served: false,
            attempt: "0".into(),
            join: Duration::from_secs(30),
        };
        work(&Group::join(environment).unwrap())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || join(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn sums_have_the_same_bits_everywhere() {
    // More than the store takes at once, and not divisible by three.
    let count = 4_000_001;
    let values = |rank: usize| noise(count, rank as u64 + 3);
    let sums = group(3, |group| {
        assert_eq!(group.all_gather(&vec![group.rank() as u8; group.rank()]).unwrap(), [vec![], vec![1], vec![2, 2]]);
        let (mut many, mut few) = (values(group.rank()), [group.rank() as f64, 0.5]);
        group.all_reduce(&mut many).unwrap();
        group.all_reduce(&mut few).unwrap();
        assert_eq!(few, [3.0, 1.5]);
        assert_eq!(group.broadcast(&[group.rank() as u8 + 7]).unwrap(), [7]);
        group.barrier().unwrap();
        many
    });
    let (a, b, c) = (values(0), values(1), values(2));
    let wanted: Vec<f32> = a.iter().zip(&b).zip(&c).map(|((a, b), c)| a + b + c).collect();
    assert!(sums.iter().all(|sum| sum.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits())));
}

#[test]
fn different_numbers_of_values_are_refused() {
    let refusals = group(2, |group| {
        let mut values = vec![1.0f32; 3 + group.rank()];
        let refusal = group.all_reduce(&mut values).unwrap_err().to_string();
        group.abandon(&refusal);
        refusal
    });
    assert!(refusals[0].contains("rank 1 has 16 bytes where rank 0 has 12"), "{refusals:?}");
}

#[test]
fn gradients_are_the_means_over_all_samples() {
    use jitquant::qat::prepare_qat;
    use jitquant::qconfig::QConfigSpec;
    let shared = tempfile::tempdir().unwrap();
    let path = shared.path().join("model.pt");
    classifier().save(&path).unwrap();
    // Threads stand for processes here; libtorch's graphs are for one of them at a time.
    let turn = Mutex::new(());
    let gradients = |first: i64, samples: i64, group: Option<&Group>| {
        let held = turn.lock().unwrap();
        let mut qat = prepare_qat(&Module::load(&path).unwrap(), &QConfigSpec::default()).unwrap();
        let x = tch::Tensor::from(&images(12, 1));
        qat.calibrate(&[x.shallow_clone()]).unwrap();
        qat.fake_quantize(true).unwrap();
        qat.observe(false).unwrap();
        if samples > 0 {
            let inputs = [x.narrow(0, first, samples)];
            let y = tch::Tensor::try_from(qat.module().call_with_gradients("forward", &inputs).unwrap()).unwrap();
            (y.square().sum(tch::Kind::Float) / samples as f64).backward();
        }
        drop(held);
        if let Some(group) = group {
            qat.average_gradients(group, samples as usize).unwrap();
        }
        let parameters = qat.parameters().unwrap();
        let gradient = |tensor: &Tensor| Vec::<f32>::try_from(tch::Tensor::from(tensor).grad().reshape(-1)).unwrap();
        parameters.iter().flat_map(|(_, tensor)| gradient(tensor)).collect::<Vec<f32>>()
    };
    let alone = gradients(0, 12, None);
    // Unequal shares, one of them none.
    let shares = [(0, 4), (0, 0), (4, 8)];
    let averaged = group(3, |group| gradients(shares[group.rank()].0, shares[group.rank()].1, Some(group)));
    assert_eq!(averaged[0], averaged[1]);
    assert_eq!(averaged[0], averaged[2]);
    let ratio = noise_ratio(&alone, &averaged[0]);
    // A value between two steps may be rounded the other way where sums of another batch differ in their last bit.
    assert!(ratio > 60.0, "{ratio} dB");
}

/// The ranges and counts of all histogram observers of the classifier, calibrated with six batches.
fn histograms(turn: &Mutex<()>, path: &Path, group: Option<&Group>) -> Vec<[Vec<f32>; 3]> {
    let held = turn.lock().unwrap();
    let mut prepared = Quantizer::static_ptq().prepare(&Module::load(path).unwrap()).unwrap();
    let mut calibration = Calibration::new(&mut prepared, group).unwrap();
    for number in (0..6).filter(|number| calibration.wants(*number)).collect::<Vec<_>>() {
        // Ranges grow from batch to batch.
        let x = tch::Tensor::from(&images(4, number as u64)) * (1.0 + number as f64);
        calibration.run(number, &[x]).unwrap();
    }
    drop(held);
    calibration.merge().unwrap();
    let modules = prepared.module().modules().into_iter().filter(|(_, module)| module.has_attribute("histogram"));
    let values = |module: &Module, name: &str| match module.attribute(name).unwrap() {
        IValue::Tensor(tensor) => tensor.to_vec::<f32>().unwrap(),
        other => panic!("{other:?}"),
    };
    modules.map(|(_, module)| ["min_val", "max_val", "histogram"].map(|name| values(&module, name))).collect()
}

#[test]
fn histograms_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    classifier().save(&path).unwrap();
    let turn = Mutex::new(());
    let alone = histograms(&turn, &path, None);
    assert!(alone.len() >= 4);
    let together = group(2, |group| histograms(&turn, &path, Some(group)));
    assert_eq!(together[0], together[1]);
    for ([min, max, counts], [other_min, other_max, others]) in alone.iter().zip(&together[0]) {
        assert_eq!((min, max), (other_min, other_max));
        let (all, others_all) = (counts.iter().sum::<f32>(), others.iter().sum::<f32>());
        assert!((all - others_all).abs() < 1e-4 * all, "{all} and {others_all} values");
        // Moved by a bin at most: as many values lie below each edge, but for those of the bins beside it.
        let below = |counts: &[f32], edge: usize| counts[..edge].iter().sum::<f32>();
        for edge in 2..counts.len() - 2 {
            let (low, high) = (below(counts, edge - 2), below(counts, edge + 2));
            let other = below(others, edge);
            assert!(low - 1.0 <= other && other <= high + 1.0, "below {edge}: {other}, not {low} to {high}");
        }
    }
}
