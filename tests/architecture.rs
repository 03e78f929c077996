//! The folders of `src/` depend on each other in one direction (ARCHITECTURE.md), and what ARCHITECTURE.md names is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What the root of the crate hands on, and where it lies.
const HANDED_ON: &[(&str, &str)] = &[
    ("Quantizer", "quantizer"),
    ("Prepared", "quantizer"),
    ("Converted", "quantizer"),
    ("ModelForm", "quantizer"),
    ("Report", "quantizer"),
    ("FloatLayer", "quantizer"),
    ("StockEngine", "quantizer"),
    ("Methods", "methods"),
    ("Rounding", "methods"),
    ("Check", "check"),
    ("SlowLayer", "check"),
    ("WeightOnly", "pass"),
    ("Error", "error"),
    ("Result", "error"),
];

/// Functions of the root itself: setting up the process, which every part may ask for.
const ROOT: &[&str] = &["init", "load_library", "set_threads", "threads", "most_threads", "torch_version"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file, without comments and without its unit tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The names behind `crate::`, those in braces each.
fn named(code: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => _ = found.insert(name(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut starts = true;
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => starts = true,
                        c if starts && !c.is_whitespace() => {
                            found.insert(name(&list[at..]));
                            starts = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

/// For each folder (or file) of `src/`, those that it uses, and a file that does.
fn dependencies() -> BTreeMap<String, BTreeMap<String, String>> {
    let source = root().join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for file in files {
        let inside = file.strip_prefix(&source).unwrap();
        let folder = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if folder == "lib" || folder == "bin" {
            continue;
        }
        let uses = all.entry(folder.clone()).or_default();
        for name in named(&code(&file)) {
            let place = HANDED_ON.iter().find(|(item, _)| *item == name).map_or(name.as_str(), |(_, place)| place);
            if place != folder && place != "kernel" && !place.is_empty() && !ROOT.contains(&place) {
                uses.entry(place.to_owned()).or_insert_with(|| inside.display().to_string());
            }
        }
    }
    all
}

/// A way from `folder` back to itself.
fn circle(folder: &str, all: &BTreeMap<String, BTreeMap<String, String>>) -> Option<Vec<String>> {
    let mut ways = vec![vec![folder.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for (next, file) in all.get(way.last().unwrap()).into_iter().flatten() {
            let mut longer = way.clone();
            *longer.last_mut().unwrap() = format!("{} ({file})", way.last().unwrap());
            longer.push(next.clone());
            if next == folder {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                let mut plain = way.clone();
                plain.push(next.clone());
                ways.push(plain);
            }
        }
    }
    None
}

#[test]
fn folders_depend_in_one_direction() {
    let all = dependencies();
    assert!(all.len() > 15 && all["quantizer"].contains_key("pass"), "the folders were not read: {all:?}");
    for folder in all.keys() {
        if let Some(way) = circle(folder, &all) {
            panic!("a circle: {}", way.join(" -> "));
        }
    }
}

#[test]
fn every_folder_is_in_the_map() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let missing: Vec<_> = dependencies()
        .into_keys()
        .filter(|folder| !map.contains(&format!("`src/{folder}/`")) && !map.contains(&format!("`src/{folder}.rs`")))
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not say what these are for: {missing:?}");
}

#[test]
fn what_the_map_and_the_recipes_name_is_there() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut named = 0;
    // Between backquotes, every second part of a line.
    for word in map.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
        let is_path = word.contains('/') && !word.contains([' ', '*', '<', ':', '(']);
        if is_path {
            named += 1;
            assert!(root().join(word).exists(), "ARCHITECTURE.md names {word}, which is not there");
        }
    }
    assert!(named > 40, "only {named} files and folders were found in ARCHITECTURE.md");
}
