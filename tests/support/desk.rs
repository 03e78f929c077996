//! Where the program is run: a folder with a model and samples.

#![allow(dead_code)]

use std::path::PathBuf;
use std::process::Command;

use jitquant::ir::Module;

use crate::support::{classifier, images, write_npy};

pub struct Desk {
    pub folder: tempfile::TempDir,
}

impl Desk {
    /// With `model.pt` and that many samples in `x.npy`.
    pub fn new(samples: i64) -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        classifier().save(desk.path("model.pt")).unwrap();
        write_npy(&desk.path("x.npy"), &images(samples, 1));
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `jitquant quantize` in the folder, on one thread.
    pub fn quantize(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
        command.arg("quantize").current_dir(&self.folder).env("OMP_NUM_THREADS", "1");
        command
    }

    /// The scores that a model gives for other samples.
    pub fn scores(&self, name: &str) -> Vec<f32> {
        let output = Module::load(self.path(name)).unwrap().forward(&[images(16, 2)]).unwrap();
        output.as_tensor().unwrap().to_f32_vec().unwrap()
    }
}
