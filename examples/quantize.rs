//! Quantizes a TorchScript model from Rust, with tch tensors as data.
//!
//!     cargo run --example quantize -- examples/digits/digits.pt digits.int8.pt
//!
//! The data here is random; a real program calibrates with samples like those of later use.

use jitquant::Quantizer;
use jitquant::ir::Module;
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "examples/digits/digits.pt".to_owned());
    let output = arguments.next().unwrap_or_else(|| "digits.int8.pt".to_owned());

    let float = Module::load(&model)?;
    let mut prepared = Quantizer::static_ptq().prepare(&float)?;
    for _ in 0..8 {
        let batch = Tensor::randn([32, 1, 28, 28], (Kind::Float, Device::Cpu));
        prepared.calibrate(&[batch])?;
    }
    let converted = prepared.convert()?;
    converted.module.save(&output)?;

    println!("{} layers in INT8, {} left in float", converted.report.quantized_layers, converted.report.float.len());
    for layer in &converted.report.float {
        println!("  {} ({}): {}", layer.path, layer.operator, layer.reason);
    }
    let x = Tensor::randn([1, 1, 28, 28], (Kind::Float, Device::Cpu));
    let y: Tensor = converted.module.forward(&[x])?.try_into()?;
    println!("scores {y:?}, saved as {output}");
    Ok(())
}
