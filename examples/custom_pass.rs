//! A pass of one's own: `x * sigmoid(x)` becomes `silu(x)`, and dropout, which does nothing in inference, goes.
//!
//! `cargo run --example custom_pass -- model.pt out.pt`; without arguments it takes a small model made here.

use jitquant::ir::pattern::{any, boolean, one_of, op};
use jitquant::ir::{GeneralPass, Graph, Module, Tensor};

fn main() -> jitquant::Result<()> {
    let mut paths = std::env::args().skip(1);
    let module = match paths.next() {
        Some(path) => Module::load(path)?,
        None => swish_net()?,
    };
    let mut graph = module.graph("forward")?;
    graph.run(GeneralPass::Inline)?;
    println!("before:\n{graph}");
    let (fused, dropped) = (fuse_silu(&graph)?, drop_dropout(&graph)?);
    graph.run(GeneralPass::DeadCodeElimination)?;
    graph.lint()?;
    println!("after {fused} fusions and {dropped} dropouts:\n{graph}");
    drop(graph);
    let out = paths.next().unwrap_or_else(|| std::env::temp_dir().join("custom_pass.pt").display().to_string());
    module.save(&out)?;
    println!("saved as {out}");
    Ok(())
}

fn fuse_silu(graph: &Graph) -> jitquant::Result<usize> {
    let swish = any("x") * op("aten::sigmoid", [any("x")]).single_use();
    graph.rewrite(&swish, |at, found| Ok(Some(at.insert_operator("aten::silu", &[found.value("x")?])?)))
}

fn drop_dropout(graph: &Graph) -> jitquant::Result<usize> {
    let dropout = one_of(["aten::dropout", "aten::feature_dropout"].map(|kind| {
        let off = boolean(false);
        op(kind, [any("x"), any("p"), off])
    }));
    graph.rewrite(&dropout, |_, found| Ok(Some(found.value("x")?)))
}

fn swish_net() -> jitquant::Result<Module> {
    let module = Module::new("Swish")?;
    module.register_parameter("weight", Tensor::from_slice(&[0.5f32, -1.0], &[1, 2])?)?;
    module.define(
        "def forward(self, x: Tensor) -> Tensor:
             y = torch.linear(x, self.weight)
             y = torch.sigmoid(y) * y
             return torch.dropout(y, 0.1, False)",
    )?;
    Ok(module)
}

#[test]
fn the_output_stays_the_same() -> jitquant::Result<()> {
    let run = |net: &Module| net.forward(&[Tensor::from_slice(&[1.0f32, 2.0], &[1, 2])?])?.tensors()[0].to_vec::<f32>();
    let (net, changed) = (swish_net()?, swish_net()?);
    assert_eq!((fuse_silu(&changed.graph("forward")?)?, drop_dropout(&changed.graph("forward")?)?), (1, 1));
    assert!((run(&net)?[0] - run(&changed)?[0]).abs() < 1e-6);
    Ok(())
}
