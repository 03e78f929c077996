//! examples/zero-touch: a plain libtorch program, quantized without a change through LD_PRELOAD.

#![cfg(feature = "torch")]

mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use jitquant::ir::{IValue, Module, Type};
use programs::{alone, build, build_with_libtorch, library_folder, root};

/// The program, and an installation.
static INSTALLED: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let installed = Command::new(root().join("scripts/install.sh")).arg(folder.path()).arg(library_folder()).output();
    let installed = installed.unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let program = folder.path().join("app");
    build_with_libtorch(&root().join("examples/zero-touch/app.cpp"), &program, &[]);
    (folder, program)
});

/// Runs the program on `model`, preloaded and with JITQUANT set where `mode` says so: its answers with the score of the last,
/// and stderr.
fn app(model: &Path, shape: [&str; 4], mode: Option<&str>) -> (Vec<String>, String) {
    let mut command = alone(&INSTALLED.1);
    command.arg(model).args(shape).arg("3");
    if let Some(mode) = mode {
        command.env("LD_PRELOAD", INSTALLED.0.path().join("lib/libjitquant_preload.so")).env("JITQUANT", mode);
    }
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let after = |name: &str| {
        out.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{out}\n{err}")).to_owned()
    };
    let answers = after("answers: ");
    (answers.split(' ').map(str::to_owned).chain([after("score: ")]).collect(), err.into_owned())
}

fn digits() -> PathBuf {
    root().join("examples/digits/digits.pt")
}

const SHAPE: [&str; 4] = ["64", "1", "28", "28"];

#[test]
fn a_program_is_observed_and_then_quantized() {
    let folder = tempfile::tempdir().unwrap();
    let calib = folder.path().join("calib.jq");
    let (observe, quantize) = (format!("observe:{}", calib.display()), format!("quantize:{}", calib.display()));
    let (float, _) = app(&digits(), SHAPE, None);

    let (observed, said) = app(&digits(), SHAPE, Some(&observe));
    assert_eq!(observed, float, "observers change nothing");
    assert_eq!(said, "");
    let once = std::fs::read_to_string(&calib).unwrap();
    // A second run adds up.
    app(&digits(), SHAPE, Some(&observe));
    let twice = std::fs::read_to_string(&calib).unwrap();
    let total = |text: &str| -> f64 {
        let counts = text.split("counts = [").skip(1).filter_map(|rest| rest.split(']').next());
        counts.flat_map(|counts| counts.split(',')).filter_map(|count| count.trim().parse::<f64>().ok()).sum()
    };
    assert!(total(&once) > 10_000.0);
    // Counts move between bins in f32 when a range grows.
    assert!((total(&twice) / total(&once) - 2.0).abs() < 1e-6, "{} and {}", total(&once), total(&twice));

    let (int8, said) = app(&digits(), SHAPE, Some(&quantize));
    assert!(!said.contains("jitquant"), "{said}");
    // What ran was INT8.
    assert_ne!(int8.last(), float.last());
    let agree = std::iter::zip(&float, &int8).filter(|(a, b)| a == b).count();
    assert!(agree * 100 >= 95 * float.len(), "{agree} of {} answers are those of float", float.len());
    let answers: std::collections::BTreeSet<_> = float.iter().collect();
    assert!(answers.len() > 2, "the samples are told apart: {answers:?}");
}

#[test]
fn what_does_not_fit_runs_in_float_and_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let calib = folder.path().join("calib.jq");
    let quantize = format!("quantize:{}", calib.display());
    let (float, _) = app(&digits(), SHAPE, None);
    let says = |mode: &str, what: &str| {
        let (answers, said) = app(&digits(), SHAPE, Some(mode));
        assert_eq!(answers, float);
        assert_eq!(said.matches("jitquant:").count(), 1, "{said}");
        assert!(said.contains(what), "{said}");
    };
    says(&quantize, "runs in float: ");
    says("nonsense", "JITQUANT=nonsense: observe:FILE and quantize:FILE are accepted");
    says("observe:/nowhere/at/all/calib.jq", "ranges are not recorded: /nowhere/at/all/calib.jq: ");

    // Recorded for a model with other weights.
    let other = Module::load(digits()).unwrap();
    let path = folder.path().join("other.pt");
    let weight = |(_, part): &(String, Module)| match part.attribute("weight") {
        Ok(jitquant::ir::IValue::Tensor(tensor)) => Some((part.clone(), tensor.shape())),
        _ => None,
    };
    let (part, shape) = other.modules().iter().find_map(weight).unwrap();
    let weights = vec![0.1f32; shape.iter().product::<i64>() as usize];
    let weights = jitquant::ir::Tensor::from_slice(&weights, &shape).unwrap();
    part.set_attribute("weight", &weights.into()).unwrap();
    other.save(&path).unwrap();
    app(&path, SHAPE, Some(&format!("observe:{}", calib.display())));
    says(&quantize, "nothing is recorded there for it");

    // A model that cannot be quantized: nothing in it can.
    let plain = Module::new("Plain").unwrap();
    plain.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.flatten(x, 1)\n").unwrap();
    let path = folder.path().join("plain.pt");
    plain.save(&path).unwrap();
    let (answers, said) = app(&path, SHAPE, Some(&format!("observe:{}", calib.display())));
    assert_eq!(answers, app(&path, SHAPE, None).0);
    assert!(said.contains("runs in float: 'forward' has no layer"), "{said}");
}

#[test]
fn methods_attributes_and_modes_of_a_replaced_model_are_still_there() {
    let folder = tempfile::tempdir().unwrap();
    let (program, model) = (folder.path().join("touched"), folder.path().join("model.pt"));
    build_with_libtorch(&root().join("tests/programs/touched.cpp"), &program, &[]);
    let classifier = support::classifier();
    let list =
        IValue::List { element: "str".into(), items: vec![IValue::Str("cat".into()), IValue::Str("dog".into())] };
    classifier.register_attribute("classes", &Type::parse("List[str]").unwrap(), &list).unwrap();
    classifier.register_attribute("scale", &Type::parse("float").unwrap(), &IValue::Double(0.5)).unwrap();
    classifier.register_attribute("training", &Type::parse("bool").unwrap(), &IValue::Bool(false)).unwrap();
    classifier.define("def version(self) -> int:\n    return 7\n").unwrap();
    classifier.save(&model).unwrap();
    let calib = folder.path().join("calib.jq");
    let run = |mode: Option<&str>, what: &str| {
        let mut command = alone(&program);
        command.arg(&model).arg(what);
        if let Some(mode) = mode {
            command.env("LD_PRELOAD", INSTALLED.0.path().join("lib/libjitquant_preload.so"));
            command.env("JITQUANT", format!("{mode}:{}", calib.display()));
        }
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !err.contains("jitquant:"), "{mode:?}: {out}\n{err}");
        out.into_owned()
    };
    let float = run(None, "some");
    assert!(float.starts_with("training 0\ntrain 1\neval 0\nclasses 2, scale 0.5\nversion 7\n"), "{float}");
    assert_eq!(run(Some("observe"), "some"), float);
    assert_eq!(run(Some("quantize"), "some"), float);
    // A model that is observed stands in for itself in all else, too.
    assert_eq!(run(Some("observe"), "all"), run(None, "all"));
}

#[test]
fn a_host_that_opens_libtorch_for_itself_alone_runs_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let (plugin, host) = (folder.path().join("plugin.so"), folder.path().join("host"));
    let source = |name: &str| root().join("tests/programs").join(name);
    build_with_libtorch(&source("private_plugin.cpp"), &plugin, &["-shared", "-fPIC"]);
    build("c++", &[], &source("private_host.cpp"), &host, &["-ldl"]);
    let calib = folder.path().join("calib.jq");
    let run = |mode: Option<String>| {
        let mut command = alone(&host);
        command.args([&plugin, &digits()]);
        command.env("LD_PRELOAD", INSTALLED.0.path().join("lib/libjitquant_preload.so"));
        let output = command.envs(mode.map(|mode| ("JITQUANT", mode))).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !err.contains("jitquant:"), "{:?}\n{out}\n{err}", output.status);
        out.into_owned()
    };
    let float = run(None);
    assert!(float.trim().parse::<u32>().is_ok(), "{float}");
    assert_eq!(run(Some(format!("observe:{}", calib.display()))), float);
    assert!(calib.exists());
    run(Some(format!("quantize:{}", calib.display())));
}

#[test]
fn programs_without_libtorch_are_left_alone() {
    let preload = INSTALLED.0.path().join("lib/libjitquant_preload.so");
    let output = alone("sh").args(["-c", "echo fine"]).env("LD_PRELOAD", preload).env("JITQUANT", "observe:x").output();
    let output = output.unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"fine\n"[..], &b""[..]));
}

#[test]
fn many_threads_share_one_replaced_model() {
    // About a minute for each of the five runs with JITQUANT_LONG=1.
    let rounds = if std::env::var_os("JITQUANT_LONG").is_some() { "2000" } else { "20" };
    let folder = tempfile::tempdir().unwrap();
    let calib = folder.path().join("calib.jq");
    let (program, install) = (folder.path().join("executor"), INSTALLED.0.path().join("lib"));
    build_with_libtorch(&root().join("tests/programs/executor.cpp"), &program, &["-ldl", "-pthread"]);
    // The largest difference between two runs relative to the largest answer, and how many native operators ran.
    let run = |mode: &str, flavour: &str| {
        let mut command = alone(&program);
        command.arg(install.join("libjitquant.so")).arg(digits()).args([flavour, "32", rounds]);
        command.env("LD_PRELOAD", install.join("libjitquant_preload.so"));
        command.env("JITQUANT", format!("{mode}:{}", calib.display()));
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{mode}, {flavour}: {:?}\n{out}\n{err}", output.status);
        assert!(!err.contains("jitquant:"), "{err}");
        let numbers: Vec<f64> = out.split([' ', ',', '\n']).filter_map(|word| word.parse().ok()).collect();
        (numbers[0] / numbers[1], numbers[2] as usize)
    };
    // While all of them observe: the answers are float's.
    let (difference, _) = run("observe", "plain");
    assert!(difference < 1e-5, "{difference}");
    for flavour in ["plain", "frozen", "simple", "inference"] {
        let (difference, native) = run("quantize", flavour);
        assert!(difference == 0.0 && native > 5, "{flavour}: {difference}, {native} native operators");
    }
}
