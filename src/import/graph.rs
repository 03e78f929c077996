//! The graph of `forward`, node by node.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use super::schema::{self, Argument, Program};
use super::state::Held;
use super::{canonical, control_flow, methods, quantized, symbolic};
use crate::archive::shortened;
use crate::error::{Error, Result};
use crate::ir::{Graph, IValue, Module, Node, Operator, Type, Value};

/// The most nodes that a program may have, those of its branches as often as they are used.
const MOST_NODES: usize = 1_000_000;

/// The values of one graph by their names; a branch has its own.
pub(super) type Scope<'g, 'p> = HashMap<&'p str, Value<'g>>;

/// Writes nodes before a certain one.
pub(super) struct Builder<'g, 'p> {
    pub program: &'p Program,
    pub module: &'p Module,
    /// What the module holds.
    pub held: &'p [Held<'p>],
    pub graph: &'g Graph,
    /// New nodes go before it.
    pub at: Node<'g>,
    pub scope: Scope<'g, 'p>,
    /// What is the same in all blocks.
    shared: Rc<Shared<'g, 'p>>,
}

/// Operators by name and overload; `None` where no library defines one.
type Operators = BTreeMap<(String, String), Option<Rc<Operator>>>;

struct Shared<'g, 'p> {
    /// The names that some node, or a graph's results, take.
    used: HashSet<&'p str>,
    writes: bool,
    /// The nodes of the outermost graph by the names of their first results.
    makers: HashMap<&'p str, &'p schema::Node>,
    operators: RefCell<Operators>,
    nodes: RefCell<usize>,
    /// Operators, with the paths of the modules that they were called in.
    placed: RefCell<Vec<(Node<'g>, &'p str)>>,
}

impl<'g, 'p> Builder<'g, 'p> {
    /// For an empty graph.
    pub fn new(program: &'p Program, module: &'p Module, held: &'p [Held<'p>], graph: &'g Graph) -> Self {
        let at = graph.block().return_node();
        let mut used = HashSet::new();
        add_used(&program.graph_module.graph, &mut used);
        let shared = Shared {
            used,
            writes: writes(&program.graph_module.graph),
            makers: program.graph_module.graph.nodes.iter().filter_map(|node| Some((tensor(node)?, node))).collect(),
            operators: RefCell::default(),
            nodes: RefCell::default(),
            placed: RefCell::default(),
        };
        Self { program, module, held, graph, at, scope: Scope::new(), shared: Rc::new(shared) }
    }

    /// Fills the graph.
    ///
    /// # Errors
    /// Where a node is refused; the message names it.
    pub fn build(mut self) -> Result<()> {
        self.bind_inputs()?;
        self.nodes(&self.program.graph_module.graph.nodes)?;
        self.write_state()?;
        self.return_outputs()?;
        methods::outline(self.graph, self.module, &self.shared.placed.take())
    }

    /// The same in another place, with names of its own.
    pub fn inside(&self, at: Node<'g>, scope: Scope<'g, 'p>) -> Self {
        let Self { program, module, held, graph, .. } = *self;
        Self { program, module, held, graph, at, scope, shared: self.shared.clone() }
    }

    pub fn nodes(&mut self, nodes: &'p [schema::Node]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.node(node))
    }

    fn node(&mut self, node: &'p schema::Node) -> Result<()> {
        let before = self.at.prev();
        *self.shared.nodes.borrow_mut() += 1;
        if *self.shared.nodes.borrow() > MOST_NODES {
            return Err(Error::invalid(format!("the program has more than {MOST_NODES} nodes")));
        }
        self.translate(node).map_err(|e| in_node(node, e))?;
        self.tell_origin(before, node)
    }

    fn translate(&mut self, node: &'p schema::Node) -> Result<()> {
        if let Some(name) = node.target.strip_prefix("torch.ops.higher_order.") {
            return control_flow::translate(self, node, name);
        }
        let operator = node.target.strip_prefix("torch.ops.").and_then(|target| {
            let (namespace, rest) = target.split_once('.')?;
            let (name, overload) = rest.rsplit_once('.').unwrap_or((rest, "default"));
            Some((namespace, name, overload))
        });
        let Some((namespace, name, overload)) = operator else { return symbolic::translate(self, node) };
        let is_done = match namespace {
            "quantized_decomposed" | "torchao" => quantized::translate(self, node, name)?,
            "aten" => symbolic::translate_aten(self, node, name)? || canonical::translate(self, node, name, overload)?,
            _ => false,
        };
        match is_done {
            true => Ok(()),
            false => self.call(node, namespace, name, overload),
        }
    }

    /// Tells each new node where it came from.
    fn tell_origin(&self, before: Node<'g>, node: &'p schema::Node) -> Result<()> {
        let place = Place::of(node);
        let stack = node.metadata.get("nn_module_stack").map(String::as_str).unwrap_or_default();
        let path = stack.rsplit(';').next().and_then(|entry| entry.split(',').nth(1)).unwrap_or_default();
        let mut new = self.at.prev();
        while new != before && new.kind() != "prim::Param" {
            if let Some(place) = &place {
                new.set_source(&place.file, place.line, &place.code)?;
            }
            if !new.kind().starts_with("prim::") {
                self.shared.placed.borrow_mut().push((new, path));
            }
            new = new.prev();
        }
        Ok(())
    }

    /// The value called `name`.
    ///
    /// # Errors
    /// Where no node before has made it.
    pub fn value(&self, name: &str) -> Result<Value<'g>> {
        self.scope.get(name).copied().ok_or_else(|| {
            Error::invalid(format!("the file is damaged: '{}' is used before it is computed", shortened(name)))
        })
    }

    /// Gives a value its name in the program.
    pub fn bind(&mut self, name: &'p str, value: Value<'g>) -> Result<()> {
        if self.scope.insert(name, value).is_some() {
            return Err(Error::invalid(format!("the file is damaged: '{}' is computed twice", shortened(name))));
        }
        // A name that libtorch does not take is of no use to people either.
        if value.node().kind() != "prim::Param" && !value.is_constant() {
            value.set_debug_name(name).ok();
        }
        Ok(())
    }

    pub fn constant(&self, value: impl Into<IValue>) -> Result<Value<'g>> {
        self.at.insert_constant(value)
    }

    /// A node with its outputs, of these types.
    pub fn emit(&self, kind: &str, inputs: &[Value<'g>], types: &[&str]) -> Result<Node<'g>> {
        let node = self.graph.create(kind, inputs, types.len())?.insert_before(self.at)?;
        for (output, ty) in node.outputs().into_iter().zip(types) {
            output.set_type(&Type::parse(ty)?)?;
        }
        Ok(node)
    }

    /// The only output of a new node.
    pub fn emit_one(&self, kind: &str, inputs: &[Value<'g>], ty: &str) -> Result<Value<'g>> {
        output(self.emit(kind, inputs, &[ty])?)
    }

    pub fn list(&self, items: &[Value<'g>], element: &str) -> Result<Value<'g>> {
        self.emit_one("prim::ListConstruct", items, &format!("List[{element}]"))
    }

    /// Whether a node, or a graph's results, take the value of that name.
    pub fn is_used(&self, name: &str) -> bool {
        self.shared.used.contains(name)
    }

    /// Whether an operator of the program writes into its argument; a decomposed program has none that does.
    pub fn writes_in_place(&self) -> bool {
        self.shared.writes
    }

    /// The node of the outermost graph whose first result is the tensor of that name.
    pub fn maker(&self, name: &str) -> Option<&'p schema::Node> {
        self.shared.makers.get(name).copied()
    }

    /// The operator of that name, where a library that is loaded defines it.
    pub fn operator(&self, name: &str, overload: &str) -> Option<Rc<Operator>> {
        let key = (name.to_owned(), overload.to_owned());
        let mut known = self.shared.operators.borrow_mut();
        let find = || Operator::find(name, if overload == "default" { "" } else { overload }).ok().map(Rc::new);
        known.entry(key).or_insert_with(find).clone()
    }
}

/// The name of a node's first result, where it is a tensor.
pub(super) fn tensor(node: &schema::Node) -> Option<&str> {
    match node.outputs.first() {
        Some(Argument::AsTensor(named)) => Some(&named.name),
        _ => None,
    }
}

/// Collects what the nodes of a graph, and of the graphs within, take.
fn add_used<'p>(graph: &'p schema::Graph, used: &mut HashSet<&'p str>) {
    let arguments = graph.nodes.iter().flat_map(|node| node.inputs.iter().map(|input| &input.arg));
    for argument in arguments.chain(&graph.outputs) {
        match argument {
            Argument::AsGraph(inner) => add_used(&inner.graph, used),
            Argument::AsOptionalTensors(all) => used.extend(all.iter().filter_map(schema::OptionalTensor::name)),
            Argument::AsOptionalTensor(one) => used.extend(one.name()),
            Argument::AsSymInts(all) => used.extend(all.iter().filter_map(schema::SymInt::name)),
            Argument::AsSymFloats(all) => used.extend(all.iter().filter_map(schema::SymFloat::name)),
            Argument::AsSymBools(all) => used.extend(all.iter().filter_map(schema::SymBool::name)),
            other => used.extend(names(std::slice::from_ref(other)).into_iter().flatten().flatten()),
        }
    }
}

/// Whether an operator of a graph, or of the graphs within, writes into its argument: such names end in `_`.
fn writes(graph: &schema::Graph) -> bool {
    graph.nodes.iter().any(|node| {
        let name = node.target.rsplit('.').nth(1).unwrap_or_default();
        let mut inner = node.inputs.iter().filter_map(|input| match &input.arg {
            Argument::AsGraph(inner) => Some(&inner.graph),
            _ => None,
        });
        (name.ends_with('_') && !name.ends_with("__")) || inner.any(|graph| writes(graph))
    })
}

/// The only output of a node.
pub(super) fn output(node: Node<'_>) -> Result<Value<'_>> {
    node.output(0).ok_or_else(|| Error::invalid(format!("'{}' has no result", node.kind())))
}

/// The names that a node's results have; `None` where one is not used.
pub(super) fn names(outputs: &[Argument]) -> Result<Vec<Option<&str>>> {
    let mut names = Vec::new();
    for output in outputs {
        match output {
            Argument::AsTensor(named) => names.push(Some(named.name.as_str())),
            Argument::AsTensors(all) => names.extend(all.iter().map(|named| Some(named.name.as_str()))),
            Argument::AsSymInt(schema::SymInt::AsName(name))
            | Argument::AsSymFloat(schema::SymFloat::AsName(name))
            | Argument::AsSymBool(schema::SymBool::AsName(name)) => names.push(Some(name)),
            Argument::AsNone(_) => names.push(None),
            _ => return Err(Error::invalid("its result is of a kind that is not read")),
        }
    }
    Ok(names)
}

/// An error with the node that it is about.
fn in_node(node: &schema::Node, e: Error) -> Error {
    let name = node.name.as_deref().unwrap_or(&node.target);
    let place = Place::of(node).map_or(String::new(), |place| {
        let file = place.file.rsplit('/').next().unwrap_or(&place.file);
        format!(" ({}:{}: `{}`)", shortened(file), place.line, shortened(&place.code))
    });
    // What is nested in a branch is told from inside to outside, once.
    match &e {
        Error::Context { .. } => e,
        _ => Error::Context { context: format!("node '{}'{place}", shortened(name)), cause: Box::new(e) },
    }
}

/// A line of the model's source.
struct Place {
    file: String,
    line: usize,
    code: String,
}

impl Place {
    /// The innermost line that is not PyTorch's own, from the `stack_trace` of a node.
    fn of(node: &schema::Node) -> Option<Self> {
        let trace = node.metadata.get("stack_trace")?;
        let lines: Vec<&str> = trace.lines().map(str::trim).collect();
        let frame = |index: usize| {
            let (file, rest) = lines[index].strip_prefix("File \"")?.split_once("\", line ")?;
            let line = rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
            let code = lines.get(index + 1).filter(|code| !code.starts_with("File \"")).copied().unwrap_or_default();
            let is_own = !(file.contains("/torch/") || file.starts_with("torch/") || file.starts_with('<'));
            Some((is_own, Self { file: file.to_owned(), line, code: code.to_owned() }))
        };
        let frames: Vec<_> = (0..lines.len()).filter_map(frame).collect();
        let own = frames.iter().rposition(|(is_own, _)| *is_own);
        frames.into_iter().nth(own?).map(|(_, place)| place)
    }
}
