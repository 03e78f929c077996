//! Modules as text that does not depend on the names and the order that passes gave to observers and to quantization
//! parameters.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use jitquant::ir::{Block, Graph, IValue, Module, Node, Value, join_path};

/// Every method of every module of a tree, and the observers by the value that they watch.
pub struct Canonical {
    pub text: String,
    pub observers: BTreeMap<String, Module>,
}

pub fn is_observer(name: &str) -> bool {
    name.starts_with("_observer_")
}

/// Whether a pass made the name up for a quantization parameter: `input.1_scale_0`.
pub fn is_qparam(name: &str) -> bool {
    let Some((start, number)) = name.rsplit_once('_') else { return false };
    let kinds = ["_scale", "_zero_point", "_axis", "_scalar_type"];
    number.parse::<usize>().is_ok() && kinds.iter().any(|kind| start.ends_with(kind))
}

impl Canonical {
    pub fn of(module: &Module) -> Self {
        let mut this = Self { text: String::new(), observers: BTreeMap::new() };
        this.module(module, "");
        this
    }

    fn module(&mut self, module: &Module, path: &str) {
        let made_up = |name: &str| is_observer(name) || is_qparam(name);
        let attributes: Vec<_> = module.attributes().into_iter().filter(|a| !made_up(&a.name)).collect();
        let names: Vec<_> = attributes.iter().map(|a| format!("{}: {}", a.name, plain(&a.type_name))).collect();
        writeln!(self.text, "module '{path}' {} {{{}}}", plain(&module.class_name()), names.join(", ")).unwrap();
        let mut observers = 0;
        for method in module.method_names() {
            let graph = module.graph(&method).unwrap();
            if method.starts_with("reset_observers_") {
                writeln!(self.text, "method '{}' resets {:?}", join_path(path, &method), reset(&graph)).unwrap();
                continue;
            }
            let mut writer = Writer {
                module,
                names: HashMap::new(),
                read: HashMap::new(),
                text: String::new(),
                observed: Vec::new(),
            };
            for (i, input) in graph.inputs().into_iter().enumerate() {
                writer.names.insert(input, format!("%in{i}"));
            }
            writer.block(graph.block(), 1);
            for node in graph.all_nodes() {
                if writer.observer(node).is_some() {
                    writer.value(node.outputs()[0], 1);
                }
            }
            writeln!(self.text, "method '{}'\n{}", join_path(path, &method), writer.text).unwrap();
            writer.observed.sort_by(|a, b| a.0.cmp(&b.0));
            for (value, observer) in writer.observed {
                writeln!(self.text, "  observed {value} by {}", plain(&observer.class_name())).unwrap();
                let key = format!("{} {value}", join_path(path, &method));
                assert!(self.observers.insert(key.clone(), observer).is_none(), "{key} is observed twice");
                observers += 1;
            }
        }
        let held = module.attributes().iter().filter(|a| is_observer(&a.name)).count();
        assert_eq!(held, observers, "'{path}' holds as many observers as its methods call");
        for (name, child) in module.children() {
            if !is_observer(&name) {
                self.module(&child, &join_path(path, &name));
            }
        }
    }
}

/// The classes of the observers that the code resets, in whatever order.
fn reset(graph: &Graph) -> Vec<String> {
    let calls = graph.nodes().filter(|node| node.kind() == "prim::CallMethod");
    let mut reset: Vec<_> = calls
        .map(|node| format!("{} {:?}", plain(&node.inputs()[0].type_of().text()), node.name_attribute()))
        .collect();
    reset.sort();
    reset
}

/// A type's or a class's name without what keeps classes of the same name apart.
fn plain(name: &str) -> String {
    let parts = name.split('.').filter(|part| !part.starts_with("___torch_mangle_"));
    parts.collect::<Vec<_>>().join(".")
}

struct Writer<'g, 'm> {
    module: &'m Module,
    names: HashMap<Value<'g>, String>,
    /// What reads the same attribute (other than a tensor, which is observed where it is read) or is the same constant
    /// has one name.
    read: HashMap<String, String>,
    text: String,
    observed: Vec<(String, Module)>,
}

impl<'g> Writer<'g, '_> {
    /// The observer that `node` calls, if it calls one.
    fn observer(&self, node: Node<'g>) -> Option<Module> {
        if node.kind() != "prim::CallMethod" || node.name_attribute()? != "forward" {
            return None;
        }
        let name = node.input(0)?.node().name_attribute()?;
        match is_observer(&name).then(|| self.module.attribute(&name).unwrap())? {
            IValue::Module(observer) => Some(observer),
            _ => None,
        }
    }

    /// Nodes that do more than compute results are written in order, the others where they are first needed.
    fn block(&mut self, block: Block<'g>, depth: usize) {
        for node in block.nodes() {
            let calls = node.kind().starts_with("prim::Call") && self.observer(node).is_none();
            let changes = node.kind().ends_with('_') && !node.kind().ends_with("__");
            if calls || changes || !node.blocks().is_empty() || matches!(node.kind(), "prim::SetAttr" | "aten::append")
            {
                self.node(node, depth);
            }
        }
        let results: Vec<_> = block.outputs().into_iter().map(|value| self.value(value, depth)).collect();
        writeln!(self.text, "{}return {}", "  ".repeat(depth), results.join(", ")).unwrap();
    }

    fn value(&mut self, value: Value<'g>, depth: usize) -> String {
        if let Some(name) = self.names.get(&value) {
            return name.clone();
        }
        match self.observer(value.node()) {
            Some(observer) => {
                let watched = self.value(value.node().inputs()[1], depth);
                let name = format!("{watched}!");
                self.observed.push((watched, observer));
                self.names.insert(value, name);
            }
            None => self.node(value.node(), depth),
        }
        self.names[&value].clone()
    }

    fn node(&mut self, node: Node<'g>, depth: usize) {
        if node.outputs().iter().any(|output| self.names.contains_key(output)) {
            return;
        }
        let inputs: Vec<_> = node.inputs().into_iter().map(|input| self.value(input, depth)).collect();
        let attributes = self.attributes(node);
        if let ("prim::GetAttr" | "prim::Constant", [output]) = (node.kind(), &node.outputs()[..])
            && !output.type_of().is_tensor()
        {
            let content = format!("{}{attributes}{inputs:?}", node.kind());
            if let Some(name) = self.read.get(&content) {
                self.names.insert(*output, name.clone());
                return;
            }
            self.read.insert(content, format!("%{}", self.names.len()));
        }
        let mut outputs = Vec::new();
        for output in node.outputs() {
            let name = format!("%{}", self.names.len());
            let ty = output.type_of();
            let ty = if ty.is_tensor() { "Tensor".to_owned() } else { plain(&ty.text()) };
            outputs.push(format!("{name}: {ty}"));
            self.names.insert(output, name);
        }
        let indent = "  ".repeat(depth);
        let results = outputs.join(", ");
        writeln!(self.text, "{indent}{results} = {}{}({})", node.kind(), attributes, inputs.join(", ")).unwrap();
        for block in node.blocks() {
            for input in block.inputs() {
                let name = format!("%{}", self.names.len());
                self.names.insert(input, name);
            }
            writeln!(self.text, "{indent} block").unwrap();
            self.block(block, depth + 2);
        }
    }

    fn attributes(&self, node: Node<'g>) -> String {
        if let Some(function) = node.output(0).and_then(Value::function_name) {
            return format!("[function {function}]");
        }
        if let Some(value) = self.qparam(node) {
            return format!("[{value}]");
        }
        if node.name_attribute().is_some_and(|name| node.kind() == "prim::GetAttr" && is_observer(&name)) {
            return "[an observer]".to_owned();
        }
        let attribute = |name: String| {
            let value = node.attribute(&name).map(|value| content(&value));
            format!("{name}={value:?}")
        };
        format!("{:?}", node.attribute_names().into_iter().map(attribute).collect::<Vec<_>>())
    }

    /// What a quantization parameter is.
    fn qparam(&self, node: Node<'g>) -> Option<String> {
        let name = node.name_attribute().filter(|name| node.kind() == "prim::GetAttr" && is_qparam(name))?;
        let owner = self.module.submodule(&node.input(0)?.attribute_path()?.join(".")).unwrap();
        Some(content(&owner.attribute(&name).unwrap()))
    }
}

fn content(value: &IValue) -> String {
    match value {
        IValue::Tensor(tensor) => format!("{tensor:?} {:?}", tensor.to_f32_vec().unwrap()),
        other => format!("{other:?}"),
    }
}
