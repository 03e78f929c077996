//! Models from public bug reports (tests/cases): each is quantized in every way that goes, and its INT8 file compared with
//! the float model. What comes out is near the float model, or stands in [`EXPECTED`] with the message that is right.

#![cfg(feature = "cli")]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The least SQNR of the outputs, in dB.
const LEAST_DB: f64 = 30.0;

/// What is right where it is not an INT8 model near the float one: folder, way, a part of the message on stderr.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("15_activation_as_weight/pair", "", "must be the same everywhere"),
    ("18_double", "", "--to-float"),
    ("30_custom_operators", "", "--library"),
    ("34_unloadable_files/large", "dynamic", "--observer is for static quantization"),
    ("34_unloadable_files/no_outputs", "", "nothing to compare"),
    ("40_state/buffer_view_alias", "", "same memory"),
    ("40_state/shared_state_module", "", "same memory"),
    ("40_state/state_tied_weight_written", "", "same memory"),
];

/// A model of convolutions alone has no dynamic form.
const NO_DYNAMIC_FORM: &str = "convolutions have no dynamic INT8 form";

/// A way to quantize: its name and options.
const WAYS: &[(&str, &[&str])] =
    &[("static portable", &[]), ("static native", &["--form", "native"]), ("dynamic portable", &["--mode", "dynamic"])];

fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
    command.current_dir(folder).env("OMP_NUM_THREADS", "1");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The folders of the cases, those with the same model and options once.
fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for kind in std::fs::read_dir(root).unwrap().flatten().filter(|kind| kind.path().is_dir()) {
        for case in std::fs::read_dir(kind.path()).unwrap().flatten() {
            let model = std::fs::read(case.path().join("model.pt")).unwrap();
            let other: serde_json::Value =
                serde_json::from_slice(&std::fs::read(case.path().join("case.json")).unwrap()).unwrap();
            let has_data = case.path().join("calibrate.npz").exists();
            if seen.insert((model, options(&other), has_data)) {
                found.push(case.path());
            }
        }
    }
    found.sort();
    assert!(found.len() > 40, "{} cases", found.len());
    found
}

/// A case's own options, without those that a way says.
fn options(case: &serde_json::Value) -> Vec<String> {
    let mut kept = Vec::new();
    let mut options = case["options"].as_array().unwrap().iter().map(|option| option.as_str().unwrap().to_owned());
    while let Some(option) = options.next() {
        if matches!(option.as_str(), "--form" | "--mode") {
            options.next();
        } else {
            kept.push(option);
        }
    }
    kept
}

/// What is wrong with the case made in that way; `None` where nothing is.
fn fault(case: &Path, way: &str, flags: &[&str]) -> Option<String> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let name = format!("{}/{}", name(case.parent().unwrap()), name(case));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(case.join("case.json")).unwrap()).unwrap();
    let data = case.join("calibrate.npz");
    if way.starts_with("static") && !data.exists() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut quantize = program(folder.path());
    quantize.arg("quantize").arg(case.join("model.pt")).args(["-o", "int8.pt"]).args(flags).args(options(&json));
    if way.starts_with("static") {
        quantize.arg("--calibrate").arg(&data);
    }
    let made = quantize.output().unwrap();
    let expected = EXPECTED.iter().find(|(case, known, _)| name.starts_with(case) && way.starts_with(known));
    let failed = |what: String| Some(format!("{name}, {way}: {what}"));
    // A message that is right ends the case.
    let refused = |output: &Output| {
        let said = stderr(output);
        let is_right = expected.is_some_and(|(_, _, message)| said.contains(message))
            || (way.starts_with("dynamic") && said.contains(NO_DYNAMIC_FORM));
        if is_right && output.status.code() == Some(1) { None } else { failed(said) }
    };
    if !made.status.success() {
        return refused(&made);
    }
    let inputs = (0..).map(|k| case.join(format!("inputs_{k}.npz"))).take_while(|path| path.exists());
    for inputs in inputs {
        let mut compare = program(folder.path());
        compare.arg("compare").arg(case.join("model.pt")).arg("int8.pt").arg("--data").arg(&inputs).arg("--json");
        if let Some(at) = json["options"].as_array().unwrap().iter().position(|option| option == "--batch-size") {
            compare.args(["--batch-size", json["options"][at + 1].as_str().unwrap()]);
        }
        let compared = compare.output().unwrap();
        if !compared.status.success() {
            return refused(&compared);
        }
        let figures: serde_json::Value = serde_json::from_slice(&compared.stdout).unwrap();
        // Null is infinite: nothing differs.
        match figures["sqnr_db"].as_f64() {
            Some(sqnr) if sqnr < LEAST_DB => return failed(format!("{sqnr:.1} dB on {}", inputs.display())),
            _ => {}
        }
    }
    expected.and_then(|(_, _, message)| failed(format!("an error was expected: {message}")))
}

#[test]
fn models_from_bug_reports_come_out_right_or_are_refused_with_the_reason() {
    let cases = cases();
    let work: Vec<_> = cases.iter().flat_map(|case| WAYS.iter().map(move |way| (case, way))).collect();
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // The program has one thread: two of them at a time.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((case, (way, flags))) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(fault) = fault(case, way, flags) {
                        faults.lock().unwrap().push(fault);
                    }
                }
            });
        }
    });
    let mut faults = faults.into_inner().unwrap();
    faults.sort();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
