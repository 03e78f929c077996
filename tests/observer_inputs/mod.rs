//! The inputs of `scripts/record_observers.py`, computed alike: exact integer arithmetic, then single f32 operations.

/// splitmix64's output function over a counter.
fn hash(seed: u64, index: usize) -> u64 {
    let z = (index as u64 + 1).wrapping_add(seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `[0, 1)`, 24 bits.
fn uniform(seed: u64, index: usize) -> f32 {
    (hash(seed, index) >> 40) as f32 * 2f32.powi(-24)
}

/// Nearly normal, deviation 1.15, within +-4: the sum of four 16-bit parts of a hash.
fn normal(seed: u64, index: usize) -> f32 {
    let hash = hash(seed, index);
    let parts: i64 = (0..4).map(|part| ((hash >> (16 * part)) & 0xffff) as i64).sum();
    (parts - 131_070) as f32 * 2f32.powi(-15)
}

/// `2^x`, linear between whole `x`.
fn exp2_linear(x: f32) -> f32 {
    let whole = x.floor();
    (1.0 + (x - whole)) * 2f32.powi(whole as i32)
}

/// `len` values of a distribution.
pub fn values(distribution: &str, seed: u64, len: usize) -> Vec<f32> {
    let value = |index: usize| match distribution {
        "normal" => normal(seed, index) * 0.7318,
        "normal_grid" => normal(seed, index),
        "uniform" => uniform(seed, index) * 6.25 - 2.5,
        "lognormal" => exp2_linear(normal(seed, index) * 1.5),
        "relu" => normal(seed, index).max(0.0),
        "relu6" => (normal(seed, index) * 3.0).clamp(0.0, 6.0),
        "constant" => 1.25,
        "constant_negative" => -0.3,
        "zero" => 0.0,
        "all_negative" => normal(seed, index) * 0.25 - 3.0,
        "all_positive" => normal(seed, index) * 0.25 + 3.0,
        "tiny" => normal(seed, index) * 1e-6,
        "huge" => normal(seed, index) * 1e6,
        "outliers" if hash(seed + 7, index).is_multiple_of(997) => normal(seed, index) * 60.0,
        "outliers" => normal(seed, index),
        "bimodal" if hash(seed + 7, index).is_multiple_of(2) => normal(seed, index) - 9.0,
        "bimodal" => normal(seed, index) + 5.0,
        "few_values" => (normal(seed, index) * 2.0).floor() * 0.5,
        other => panic!("no distribution {other}"),
    };
    (0..len).map(value).collect()
}

/// The factor of each batch of a plan.
pub fn factors(plan: &str) -> &'static [f32] {
    match plan {
        "one" => &[1.0],
        "stays" => &[1.0, 0.5, 0.75],
        "grows" => &[1.0, 1.5, 1.25, 4.0],
        "grows_much" => &[0.001, 1.0, 30.0],
        "large" => &[1.0, 1.3],
        other => panic!("no plan {other}"),
    }
}

/// Batch `index` of a distribution: `len` values times `factor`.
pub fn batch(distribution: &str, index: usize, len: usize, factor: f32) -> Vec<f32> {
    values(distribution, 10 * index as u64 + 1, len).into_iter().map(|value| value * factor).collect()
}

/// All batches of a plan.
pub fn batches(distribution: &str, plan: &str) -> Vec<Vec<f32>> {
    let lengths: &[usize] = if plan == "large" { &[100_000, 120_001] } else { &[1500, 4099, 777, 2048] };
    let lengths = lengths.iter().zip(factors(plan)).enumerate();
    lengths.map(|(index, (&len, &factor))| batch(distribution, index, len, factor)).collect()
}
