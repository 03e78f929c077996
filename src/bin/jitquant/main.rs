//! The command line.

#[allow(dead_code)]
mod data;

fn main() {}
