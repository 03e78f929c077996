//! Every native operator, called with arguments that nobody means; `make sanitize` does the same under an address sanitizer.
#![cfg(feature = "torch")]

#[path = "../fuzz/operators/src/generator.rs"]
mod generator;

#[test]
fn operators_answer_whatever_they_are_given() {
    // So many that each operator, whose arguments fit together in some ten of 4,000 cases, gives a result.
    generator::run(20_000, 1, false);
}
