//! Runs a Program file on floats: `classify model.jqp floats.bin 1 3 224 224` prints the largest outputs of each sample.

use std::error::Error;

use jitquant_runtime::{Model, TensorRef};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, sizes @ ..] = &arguments[..] else { return Err("classify MODEL.jqp FLOATS.bin SIZE...".into()) };
    let sizes = sizes.iter().map(|size| size.parse()).collect::<Result<Vec<i64>, _>>()?;
    println!("{}", classify(model, &std::fs::read(data)?, &sizes)?);
    Ok(())
}

/// The class with the largest score of each sample.
pub fn classify(model: &str, bytes: &[u8], sizes: &[i64]) -> Result<String, Box<dyn Error>> {
    let model = Model::open(model)?;
    let floats: Vec<f32> =
        bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let results = model.run(&[TensorRef::floats(&floats, sizes)])?;
    let scores = results[0].floats().ok_or("the model's first result holds no floats")?;
    let classes = scores.len() / results[0].sizes[0] as usize;
    let best = |scores: &[f32]| (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0);
    let lines = scores.chunks(classes).enumerate().map(|(sample, scores)| format!("{sample}: class {}", best(scores)));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
