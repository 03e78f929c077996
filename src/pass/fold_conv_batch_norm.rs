//! Batch norms become part of the convolutions before them.

use std::collections::{HashMap, HashSet};

use super::source_of;
use crate::error::{Context, Result};
use crate::ir::{GeneralPass, Graph, IValue, Module, Node, Type, Value};

/// A convolution's class and that of the batch norm that folds into it.
const PAIRS: &[(&str, &str)] = &[
    ("torch.nn.modules.conv.Conv2d", "torch.nn.modules.batchnorm.BatchNorm2d"),
    ("torch.nn.modules.conv.Conv3d", "torch.nn.modules.batchnorm.BatchNorm3d"),
];

/// Classes of convolutions, which get a bias where they have none.
const CONVOLUTIONS: &[&str] =
    &["torch.nn.modules.conv.Conv1d", "torch.nn.modules.conv.Conv2d", "torch.nn.modules.conv.Conv3d"];

/// In TorchScript, so that libtorch's arithmetic and its types decide: `w' = w * g / sqrt(v + eps)` per output channel,
/// `b' = (b - m) / sqrt(v + eps) * g + beta`.
const ARITHMETIC: &str = "
def fold(self, weight: Tensor, bias: Optional[Tensor], mean: Tensor, var: Tensor, eps: float,
         gamma: Optional[Tensor], beta: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    if gamma is None:
        gamma = torch.ones_like(mean)
    if beta is None:
        beta = torch.zeros_like(mean)
    if bias is None:
        bias = torch.zeros_like(mean)
    deviation = torch.rsqrt(var + eps)
    channels = [1] * weight.dim()
    channels[0] = -1
    folded = weight * (gamma * deviation).reshape(channels)
    return folded, (bias - mean) * deviation * gamma + beta
";

/// A copy of `module` in which each batch norm whose input is a convolution alone is folded into that convolution's
/// weight and bias: `Conv2d` and `BatchNorm2d`, `Conv3d` and `BatchNorm3d`, as modules called by their `forward`. The
/// contract is that of libtorch's function of this name; statistics are the ones that the batch norm has stored.
///
/// A pair stays as it is where the convolution is also called without the batch norm, or a class is shared and one of
/// its instances has not what folding takes.
///
/// ```
/// use jitquant::{ir::{Module, Tensor}, pass::fold_conv_batch_norm};
/// # let ones = |n: i64| Tensor::from_slice(&vec![1.0f32; n as usize], &[n]);
/// let conv = Module::new("torch.nn.modules.conv.Conv2d")?;
/// conv.register_parameter("weight", Tensor::from_slice(&[4.0f32], &[1, 1, 1, 1])?)?;
/// conv.register_parameter("bias", ones(1)?)?;
/// conv.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.conv2d(x, self.weight, self.bias)")?;
/// let norm = Module::new("torch.nn.modules.batchnorm.BatchNorm2d")?;
/// for name in ["weight", "bias", "running_mean", "running_var"] {
///     norm.register_parameter(name, ones(1)?)?;
/// }
/// norm.define(
///     "def forward(self, x: Tensor) -> Tensor:
///          return torch.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, False, 0.1, 3.0, False)",
/// )?;
/// let module = Module::new("Net")?;
/// module.register_submodule("conv", &conv)?;
/// module.register_submodule("norm", &norm)?;
/// module.define("def forward(self, x: Tensor) -> Tensor:\n    return self.norm.forward(self.conv.forward(x))")?;
///
/// let folded = fold_conv_batch_norm(&module)?.submodule("conv")?;
/// let weight = folded.attribute("weight")?.as_tensor().unwrap().to_vec::<f32>()?;
/// assert_eq!(weight, [2.0]); // divided by sqrt(1 + 3)
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where the module cannot be copied, or a weight's shape does not fit the batch norm's.
pub fn fold_conv_batch_norm(module: &Module) -> Result<Module> {
    let copy = module.deep_clone().context(|| "cloning the module".into())?;
    for (_, part) in copy.modules() {
        add_missing_bias(&part)?;
    }
    let arithmetic = Module::new("jitquant.FoldBatchNorm")?;
    arithmetic.define(ARITHMETIC)?;
    for pair in PAIRS {
        fold(&copy, pair, &arithmetic).context(|| format!("folding {} into {}", pair.1, pair.0))?;
    }
    Ok(copy)
}

/// Gives a convolution that was traced without a bias the attribute, and the traced operator reads it.
fn add_missing_bias(part: &Module) -> Result<()> {
    let is_convolution = part.type_of().unmangled_class_name().is_some_and(|name| CONVOLUTIONS.contains(&&*name));
    if !is_convolution || part.has_attribute("bias") || !part.has_method("forward") {
        return Ok(());
    }
    part.register("bias", &Type::parse("Optional[Tensor]")?, &IValue::None, true, false)?;
    let graph = part.graph("forward")?;
    for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::_convolution") {
        let bias = node.insert_get_attribute(graph.inputs()[0], "bias")?;
        bias.set_type(&Type::parse("Tensor")?)?;
        node.replace_input(2, bias)?;
    }
    Ok(())
}

/// A convolution's call and the call of the batch norm after it.
struct Found<'g> {
    conv: Node<'g>,
    norm: Node<'g>,
    conv_path: String,
    norm_path: String,
}

/// A graph and the modules that run it.
struct Code {
    graph: Graph,
    instances: Vec<Module>,
}

/// A convolution of one instance, the batch norm behind it, and what the arithmetic takes for them.
struct Pair {
    conv: Module,
    norm: usize,
    arguments: Option<Vec<IValue>>,
}

fn fold(module: &Module, (conv_class, norm_class): &(&str, &str), arithmetic: &Module) -> Result<()> {
    let code = all_code(module)?;
    let mut matches = Vec::new();
    for code in &code {
        for found in find(code, conv_class, norm_class) {
            let mut pairs = Vec::new();
            for instance in &code.instances {
                let (conv, norm) = (instance.submodule(&found.conv_path)?, instance.submodule(&found.norm_path)?);
                let arguments = folding_arguments(&conv, &norm)?;
                pairs.push(Pair { conv, norm: norm.id(), arguments });
            }
            matches.push((found, pairs));
        }
    }
    let kept = kept_apart(&matches, &calls_by_module(&code));
    let mut folded = Vec::new();
    for (found, pairs) in &matches {
        if pairs.iter().any(|pair| kept.contains(&pair.conv.id())) {
            let (norm, conv, place) = (&found.norm_path, &found.conv_path, source_of(found.norm));
            tracing::warn!(
                "the batch norm '{norm}' ({place}) stays: '{conv}' is also called without it, or both lack numbers"
            );
            continue;
        }
        for pair in pairs {
            if let Some(arguments) = &pair.arguments {
                folded.push((pair.conv.clone(), arithmetic.call("fold", arguments)?));
            }
        }
        replace(found)?;
    }
    for (conv, result) in folded {
        if let IValue::Tuple(items) = &result
            && let [weight, bias] = &items[..]
        {
            conv.set_attribute("weight", weight)?;
            conv.set_attribute("bias", bias)?;
        }
    }
    Ok(())
}

/// The convolutions that nothing is folded into: called without a batch norm, with different ones, or without what
/// folding takes; and those that share their code with such a one.
fn kept_apart(matches: &[(Found<'_>, Vec<Pair>)], calls: &HashMap<usize, usize>) -> HashSet<usize> {
    let mut norms: HashMap<usize, Vec<usize>> = HashMap::new();
    for pair in matches.iter().flat_map(|(_, pairs)| pairs) {
        norms.entry(pair.conv.id()).or_default().push(pair.norm);
    }
    let is_kept = |pair: &Pair| {
        let norms = &norms[&pair.conv.id()];
        let all_calls = calls.get(&pair.conv.id()) == Some(&norms.len());
        pair.arguments.is_none() || !all_calls || norms.iter().any(|norm| *norm != pair.norm)
    };
    let all = matches.iter().flat_map(|(_, pairs)| pairs);
    let mut kept: HashSet<usize> = all.filter(|pair| is_kept(pair)).map(|pair| pair.conv.id()).collect();
    loop {
        let before = kept.len();
        for (_, pairs) in matches {
            if pairs.iter().any(|pair| kept.contains(&pair.conv.id())) {
                kept.extend(pairs.iter().map(|pair| pair.conv.id()));
            }
        }
        if kept.len() == before {
            return kept;
        }
    }
}

/// The code of all methods of all modules, with the modules that share it.
fn all_code(module: &Module) -> Result<Vec<Code>> {
    let mut all: Vec<Code> = Vec::new();
    let mut by_id = HashMap::new();
    for (_, part) in module.modules() {
        for method in part.method_names() {
            let graph = part.graph(&method)?;
            let index = *by_id.entry(graph.id()).or_insert(all.len());
            match all.get_mut(index) {
                Some(code) => code.instances.push(part.clone()),
                None => all.push(Code { graph, instances: vec![part.clone()] }),
            }
        }
    }
    Ok(all)
}

fn path_of(object: Value<'_>) -> Option<String> {
    object.attribute_path().map(|path| path.join("."))
}

/// How many calls there are of each module's methods from other modules' code.
fn calls_by_module(code: &[Code]) -> HashMap<usize, usize> {
    let mut calls = HashMap::new();
    for code in code {
        for node in code.graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::CallMethod") {
            let Some(path) = node.input(0).and_then(path_of).filter(|path| !path.is_empty()) else { continue };
            for callee in code.instances.iter().filter_map(|instance| instance.submodule(&path).ok()) {
                *calls.entry(callee.id()).or_default() += 1;
            }
        }
    }
    calls
}

/// The path of the module of class `class` whose `forward` the node calls with one argument.
fn called(node: Node<'_>, class: &str) -> Option<String> {
    let fits = node.kind() == "prim::CallMethod"
        && node.name_attribute()? == "forward"
        && node.inputs().len() == 2
        && node.input(0)?.type_of().unmangled_class_name()? == class;
    fits.then(|| path_of(node.input(0)?)).flatten()
}

fn find<'g>(code: &'g Code, conv_class: &str, norm_class: &str) -> Vec<Found<'g>> {
    let pair = |norm: Node<'g>| {
        let norm_path = called(norm, norm_class)?;
        let input = norm.input(1)?;
        let conv = input.node();
        let conv_path = called(conv, conv_class)?;
        let alone = input.uses().len() == 1 && conv.owning_block() == norm.owning_block();
        alone.then_some(Found { conv, norm, conv_path, norm_path })
    };
    code.graph.all_nodes().into_iter().filter_map(pair).collect()
}

fn tensor(module: &Module, name: &str) -> Option<IValue> {
    module.attribute(name).ok().filter(|value| value.as_tensor().is_some_and(|tensor| tensor.is_defined()))
}

/// What the arithmetic takes for these two; `None` where something is missing.
fn folding_arguments(conv: &Module, norm: &Module) -> Result<Option<Vec<IValue>>> {
    let has_bias = conv.attributes().iter().any(|attribute| attribute.name == "bias" && attribute.is_parameter);
    let (Some(weight), Some(mean), Some(var)) =
        (tensor(conv, "weight"), tensor(norm, "running_mean"), tensor(norm, "running_var"))
    else {
        return Ok(None);
    };
    // A scripted one calls a function that has the operator.
    let mut graph = norm.graph("forward")?.deep_clone()?;
    graph.run(GeneralPass::Inline)?;
    let operators: Vec<_> = graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::batch_norm").collect();
    // What a batch norm has not as attributes stands in its code.
    let given = |name: &str, argument: usize| match norm.attribute(name) {
        Ok(value) => Some(value),
        Err(_) => operators.first()?.input(argument)?.constant(),
    };
    let (Some(eps), Some(gamma), Some(beta)) = (given("eps", 7), given("weight", 1), given("bias", 2)) else {
        return Ok(None);
    };
    if !has_bias || operators.len() > 1 {
        return Ok(None);
    }
    let bias = tensor(conv, "bias").unwrap_or(IValue::None);
    Ok(Some(vec![weight, bias, mean, var, eps, gamma, beta]))
}

fn replace(found: &Found<'_>) -> Result<()> {
    let object = found.norm.input(0);
    for (from, to) in found.norm.outputs().into_iter().zip(found.conv.outputs()) {
        from.replace_all_uses_with(to)?;
    }
    found.norm.destroy()?;
    match object {
        Some(object) if !object.is_used() && object.node().kind() == "prim::GetAttr" => object.node().destroy(),
        _ => Ok(()),
    }
}
