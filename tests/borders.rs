//! What a careless C++ program does at the library's borders gives an error: never the end of the process, and no waiting
//! for ever.

#![cfg(feature = "torch")]

mod programs;

use std::path::PathBuf;
use std::sync::LazyLock;

use programs::{build_with_torch, root, run};

static PROGRAM: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("borders");
    build_with_torch(&root().join("tests/programs/borders.cpp"), &program);
    (folder, program)
});

/// Has the program do one of its things, with more threads than one where there are several.
fn ends_well(what: &str) {
    assert_eq!(run(&PROGRAM.1, &[what], &[("OMP_NUM_THREADS", "2".as_ref())]), "ok\n");
}

#[test]
fn modules_without_an_object_are_refused() {
    ends_well("empty modules");
}

#[test]
fn names_that_are_no_utf_8_are_refused() {
    ends_well("odd names");
}

#[test]
fn objects_that_were_moved_from_are_refused() {
    ends_well("moved objects");
}

#[test]
fn callbacks_that_would_wait_for_their_own_call_are_refused() {
    ends_well("callbacks");
}

#[test]
fn calls_in_destructors_of_a_thread_may_fail() {
    ends_well("ending threads");
}

#[test]
fn a_forked_child_converts() {
    ends_well("forked children");
}

#[test]
fn what_no_batch_reached_is_not_converted() {
    ends_well("refused batches");
}
