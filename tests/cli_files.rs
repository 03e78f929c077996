//! Files by name, bounds, exit codes: what goes wrong around the models.

#![cfg(all(feature = "cli", target_os = "linux"))]

#[path = "support/desk.rs"]
mod desk;
mod support;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use desk::Desk;

fn command(desk: &Desk, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
    command.args(arguments).current_dir(&desk.folder).env("OMP_NUM_THREADS", "1");
    command
}

/// Exit code and stderr.
fn ended(desk: &Desk, arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(desk, arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn names(desk: &Desk) -> Vec<String> {
    let entries = std::fs::read_dir(&desk.folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn no_file_is_written_over_by_a_slip() {
    let desk = Desk::new(8);
    let before = std::fs::read(desk.path("model.pt")).unwrap();
    let over = ["quantize", "model.pt", "-o", "model.pt", "--mode", "dynamic"];
    let (code, said) = ended(&desk, &over);
    assert!(code == Some(1) && said.contains("--overwrite-input"), "{said}");
    let (_, said) = ended(&desk, &["quantize", "model.pt", "-o", "x.npy", "--calibrate", "x.npy"]);
    assert!(said.contains("data of --calibrate"), "{said}");
    assert_eq!(std::fs::read(desk.path("model.pt")).unwrap(), before);
    std::fs::set_permissions(desk.path("model.pt"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let (code, said) = ended(&desk, &[&over[..], &["--overwrite-input"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_ne!(std::fs::read(desk.path("model.pt")).unwrap(), before);
    assert_eq!(std::fs::metadata(desk.path("model.pt")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(&desk), ["model.pt", "x.npy"]);
}

#[test]
fn outputs_are_checked_before_work_begins() {
    let desk = Desk::new(8);
    for (output, why) in [("none/out.pt", "no folder"), (".", "folder"), ("/dev/full", "not a regular file")] {
        // The model does not exist: what is said first was looked at first.
        let (code, said) = ended(&desk, &["quantize", "missing.pt", "-o", output, "--mode", "dynamic"]);
        assert!(code == Some(1) && said.contains(why) && !said.contains("missing.pt"), "{said}");
    }
    let long = format!("{}.pt", "n".repeat(247));
    let (code, said) = ended(&desk, &["quantize", "model.pt", "-o", &long, "--mode", "dynamic"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn pipes_and_devices_are_not_read_for_ever() {
    let desk = Desk::new(8);
    let pipe = desk.path("pipe.npy");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/zero", desk.path("zero.npy")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", desk.path("zero.toml")).unwrap();
    for data in ["pipe.npy", "zero.npy"] {
        let (code, said) = ended(&desk, &["quantize", "model.pt", "-o", "out.pt", "--calibrate", data]);
        assert!(code == Some(1) && said.contains(data) && said.contains("regular file"), "{said}");
    }
    for model in ["pipe.npy", "/dev/zero"] {
        let (code, said) = ended(&desk, &["inspect", model]);
        assert!(code == Some(1) && said.contains("not a file"), "{said}");
    }
    let with = |option: &str| {
        ended(&desk, &["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy", option, "zero.toml"])
    };
    for option in ["--config", "--ranges"] {
        let (code, said) = with(option);
        assert!(code == Some(1) && said.contains("regular file"), "{said}");
    }
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    let desk = Desk::new(8);
    let bench = ["bench", "model.pt", "--data", "x.npy"];
    for (option, value) in
        [("--threads", "10000"), ("--threads", "1000000"), ("--seconds", "inf"), ("--batch-size", "9999999999")]
    {
        let (code, said) = ended(&desk, &[&bench[..], &[option, value]].concat());
        assert!(code == Some(2) && said.contains(option), "{option} {value}: {said}");
    }
    let quantize = ["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy"];
    for (option, value) in [
        ("--control-minutes", "inf"),
        ("--min-sqnr", "nan"),
        ("--smooth", "nan"),
        ("--batch-size", "18446744073709551615"),
        ("--samples", "99999999999999999999"),
    ] {
        let (code, said) = ended(&desk, &[&quantize[..], &[option, value]].concat());
        assert!(code == Some(2) && said.contains(option), "{option} {value}: {said}");
    }
}

#[test]
fn arguments_that_are_no_text_work() {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new(8);
    let name = std::ffi::OsStr::from_bytes(b"mod\xffel.pt");
    std::fs::rename(desk.path("model.pt"), desk.folder.path().join(name)).unwrap();
    let output = command(&desk, &["quantize", "-o", "out.pt", "--mode", "dynamic"]).arg(name).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reader_that_has_enough_and_a_full_disk_are_no_panic() {
    let desk = Desk::new(8);
    for arguments in
        [&["inspect", "model.pt"][..], &["inspect", "model.pt", "--json"], &["inspect", "model.pt", "--graph"]]
    {
        let mut child = command(&desk, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(&desk, arguments).stdout(full()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("stdout"), "{said}");
        assert_eq!(command(&desk, &["inspect", "none.pt"]).stderr(full()).status().unwrap().code(), Some(1));
    }
}

#[test]
fn signals_end_it_with_their_codes_and_leave_nothing() {
    let desk = Desk::new(64);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let arguments = ["bench", "model.pt", "--data", "x.npy", "--seconds", "600"];
        let mut child = command(&desk, &arguments).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    assert_eq!(names(&desk), ["model.pt", "x.npy"]);
}

#[test]
fn a_kill_at_any_time_leaves_the_old_file_or_the_new_one_and_nothing_else() {
    let kills: u32 = if std::env::var_os("JITQUANT_LONG").is_some() { 200 } else { 16 };
    let desk = Desk::new(16);
    let quantize = ["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy", "--ranges", "r.toml"];
    let start = Instant::now();
    let (code, said) = ended(&desk, &quantize);
    assert_eq!(code, Some(0), "{said}");
    let whole = start.elapsed();
    let files = names(&desk);
    let scores = desk.scores("out.pt");
    let mut ends = 0;
    for kill in 0..kills {
        std::fs::write(desk.path("out.pt"), "an older file").unwrap();
        std::fs::remove_file(desk.path("r.toml")).ok();
        let mut child = command(&desk, &quantize).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * kill / kills);
        child.kill().unwrap();
        child.wait().unwrap();
        let left = names(&desk);
        assert!(left.iter().all(|name| files.contains(name)), "{left:?}");
        match std::fs::read(desk.path("out.pt")).unwrap() == b"an older file" {
            true => {}
            false => {
                ends += 1;
                assert_eq!(desk.scores("out.pt"), scores);
            }
        }
        if left.contains(&"r.toml".to_owned()) {
            assert_eq!(ended(&desk, &quantize).0, Some(0), "the ranges are whole");
        }
    }
    assert!(ends < kills, "none was killed before its end");
}

#[test]
fn messages_are_short_and_in_words() {
    let desk = Desk::new(8);
    let long = "x".repeat(100_000);
    for text in [
        format!("[modules]\nfc = {{ activation = \"{long}\" }}\n"),
        format!("[{long}"),
        "[modules]\nfc = 3\n".to_owned(),
    ] {
        std::fs::write(desk.path("q.toml"), &text).unwrap();
        let quantize = ["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy", "--config", "q.toml"];
        let (code, said) = ended(&desk, &quantize);
        assert!(code == Some(1) && said.contains("q.toml") && said.len() < 5000, "{} {said:.500}", said.len());
        assert!(!said.contains("untagged"), "{said}");
    }
    std::fs::write(desk.path("r.toml"), "").unwrap();
    let (code, said) =
        ended(&desk, &["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy", "--ranges", "r.toml"]);
    assert!(code == Some(1) && said.contains("r.toml") && said.contains("empty"), "{said}");
}
