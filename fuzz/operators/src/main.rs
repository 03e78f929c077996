//! `operators [CASES [SEED]]`: calls every native operator with arguments that nobody means, each printed before it is tried.
//! Meant for a build with an address sanitizer: see scripts/sanitize.sh.

mod generator;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().expect("a number of cases and a seed"));
    let (cases, seed) = (numbers.next().unwrap_or(6000), numbers.next().unwrap_or(1));
    generator::run(cases, seed, true);
}
