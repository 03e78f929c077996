//! Every native operator, called with arguments that nobody means; `make sanitize` does the same under an address sanitizer.
#![cfg(feature = "torch")]

#[path = "../fuzz/operators/src/generator.rs"]
mod generator;

#[test]
fn operators_answer_whatever_they_are_given() {
    generator::run(4000, 1, false);
}
