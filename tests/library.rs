//! libjitquant.so as a file among others: what it shows, its name, what it needs, how it is installed and taken away.

#![cfg(all(feature = "torch", target_os = "linux"))]

mod programs;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use jitquant::capi::JQ_ABI_VERSION;
use programs::{build_with_libtorch, install, library_folder, root, run, said};

fn library() -> PathBuf {
    library_folder().join("libjitquant.so")
}

/// What a tool says of a file.
fn ask(tool: &str, options: &[&str], file: &Path) -> String {
    let output = Command::new(tool).args(options).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of the dynamic section that are of this kind, e.g. `SONAME`.
fn dynamic(file: &Path, kind: &str) -> Vec<String> {
    let all = ask("readelf", &["-dW"], file);
    let lines = all.lines().filter(|line| line.contains(&format!("({kind})")));
    lines.map(|line| line.split_once(')').unwrap().1.trim().to_owned()).collect()
}

#[test]
fn it_shows_the_c_abi_and_nothing_else() {
    let shown = ask("nm", &["-D", "--defined-only", "-P"], &library());
    let shown: BTreeSet<&str> = shown.lines().filter_map(|line| line.split(' ').next()).collect();
    let other: Vec<_> = shown.iter().filter(|name| !name.starts_with("jq_")).collect();
    assert!(other.is_empty(), "{} more: {other:?}", other.len());
    let header = std::fs::read_to_string(root().join("include/jitquant.h")).unwrap();
    for name in &shown {
        assert!(header.contains(&format!("{name}(")), "jitquant.h does not declare {name}");
    }
    assert!(shown.len() > 100, "{shown:?}");
}

#[test]
fn its_name_tells_the_abi_and_no_path_of_the_build_is_in_it() {
    let name = format!("Library soname: [libjitquant.so.{JQ_ABI_VERSION}]");
    assert_eq!(dynamic(&library(), "SONAME"), [name]);
    assert_eq!(dynamic(&library(), "RUNPATH"), ["Library runpath: [$ORIGIN]"]);
    assert!(dynamic(&library(), "RPATH").is_empty());
}

#[test]
fn it_can_be_opened_closed_and_opened_again() {
    assert!(dynamic(&library(), "FLAGS_1").concat().contains("NODELETE"));
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("reopen");
    build_with_libtorch(&root().join("tests/programs/reopen.cpp"), &program, &["-ldl"]);
    assert_eq!(run(&program, &[library()], &[]), "ok\n");
}

/// The files and links below `folder`, and what they hold.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => drop(found.insert(entry.path())),
        }
    }
    found
}

#[test]
fn it_is_installed_below_a_folder_for_packages_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let script = |arguments: &[&str]| {
        let output = Command::new(root().join("scripts/install.sh"))
            .args(arguments)
            .env("DESTDIR", folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    script(&["/opt/jitquant", library_folder().to_str().unwrap()]);
    let installed = files(folder.path());
    assert!(installed.iter().all(|file| file.starts_with(folder.path().join("opt/jitquant"))));
    for file in ["share/licenses/jitquant/LICENSE-MIT", "lib/libjitquant.so", "lib/pkgconfig/jitquant.pc"] {
        assert!(installed.contains(&folder.path().join("opt/jitquant").join(file)), "{file}: {installed:?}");
    }
    let others = folder.path().join("opt/jitquant/lib/other.so");
    std::fs::write(&others, "").unwrap();
    script(&["--remove", "/opt/jitquant"]);
    assert_eq!(files(folder.path()), BTreeSet::from([others]), "what is not ours stays");
}

#[test]
fn an_installed_library_is_stripped_with_what_debuggers_need_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    install(folder.path());
    let lib = folder.path().join("lib");
    let name = format!("libjitquant.so.{JQ_ABI_VERSION}");
    assert_eq!(std::fs::read_link(lib.join("libjitquant.so")).unwrap(), Path::new(&name));
    let sections = ask("readelf", &["-SW"], &lib.join(&name));
    assert!(sections.contains(".gnu_debuglink") && !sections.contains(".debug_info"), "{sections}");
    assert!(ask("readelf", &["-SW"], &lib.join(format!("{name}.debug"))).contains(".symtab"));
    for file in [&name[..], "libjitquant_preload.so"] {
        let paths = [dynamic(&lib.join(file), "RUNPATH"), dynamic(&lib.join(file), "RPATH")].concat();
        assert!(paths.iter().all(|path| path.ends_with("[$ORIGIN]")), "{file}: {paths:?}");
    }
}
