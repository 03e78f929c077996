//! Graphs, and who may change them.
//!
//! A [`Graph`] is a handle on a `torch::jit::Graph`; nodes and values borrow it. Two rules keep those borrows sound:
//! a node that a pass destroys is emptied and put aside, and freed when the last handle on its graph goes; and what
//! frees nodes for good (libtorch's own passes) takes `&mut Graph` and refuses while another handle on the same graph
//! lives.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use cxx::SharedPtr;

use super::block::Block;
use super::ffi::bridge as ffi;
use super::module::Module;
use super::node::Node;
use super::types::Type;
use super::value::Value;
use crate::error::{Error, Result};

/// libtorch's general passes over one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum GeneralPass {
    /// What profiling or tracing recorded of shapes and types is forgotten.
    ClearProfiling,
    CommonSubexpressionElimination,
    ConstantPooling,
    ConstantPropagation,
    DeadCodeElimination,
    /// Every call of a method or a function is replaced by its body.
    Inline,
    /// What `torch.jit.fork` would run beside is run in place.
    InlineForkWait,
    LowerSimpleTuples,
    Peephole,
    RemoveListMutation,
    RemoveTensorMutation,
    /// Loops that run a constant number of times become their bodies one after the other.
    UnrollConstantLoops,
}

impl GeneralPass {
    fn name(self) -> &'static str {
        match self {
            Self::ClearProfiling => "clear_profiling",
            Self::CommonSubexpressionElimination => "cse",
            Self::ConstantPooling => "constant_pooling",
            Self::ConstantPropagation => "constant_propagation",
            Self::DeadCodeElimination => "dead_code_elimination",
            Self::Inline => "inline",
            Self::InlineForkWait => "inline_fork_wait",
            Self::LowerSimpleTuples => "lower_simple_tuples",
            Self::Peephole => "peephole",
            Self::RemoveListMutation => "remove_list_mutation",
            Self::RemoveTensorMutation => "remove_tensor_mutation",
            Self::UnrollConstantLoops => "unroll_constant_loops",
        }
    }
}

/// The kind of the node, in no block itself, whose block keeps destroyed nodes.
pub(super) const GRAVEYARD: &str = "jitquant::destroyed";

/// The handles on one libtorch graph, and the address of the node whose block keeps its destroyed nodes.
#[derive(Default)]
struct Lease {
    handles: usize,
    graveyard: Option<usize>,
}

static LEASES: LazyLock<Mutex<HashMap<usize, Lease>>> = LazyLock::new(Mutex::default);

fn leases() -> MutexGuard<'static, HashMap<usize, Lease>> {
    LEASES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn address(raw: &ffi::Graph) -> usize {
    raw as *const ffi::Graph as usize
}

/// A TorchScript graph: of a method, of a function, of a subgraph, or one of its own.
///
/// ```
/// use jitquant::ir::Graph;
/// let graph = Graph::parse("graph(%x : Tensor):\n  %y : Tensor = aten::relu(%x)\n  return (%y)")?;
/// let relu = graph.nodes().find(|node| node.kind() == "aten::relu").unwrap();
/// assert_eq!(relu.inputs(), graph.inputs());
/// # Ok::<(), jitquant::Error>(())
/// ```
pub struct Graph {
    raw: SharedPtr<ffi::Graph>,
    code: Code,
}

/// What a graph calls it knows by addresses only; this keeps it alive.
#[derive(Clone, Default)]
pub(super) struct Code {
    /// The module, with all modules below it and their code.
    pub(super) module: Option<Module>,
    /// The functions and classes that the graph was compiled with.
    pub(super) unit: Option<SharedPtr<ffi::CompilationUnit>>,
}

impl Code {
    pub(super) fn of_type(ty: &Type) -> Self {
        Self { module: None, unit: Some(ffi::type_unit(&ty.0)) }
    }

    fn unit_address(&self) -> Option<*const ffi::CompilationUnit> {
        self.unit.as_ref()?.as_ref().map(std::ptr::from_ref)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let mut leases = leases();
        let key = address(&self.raw);
        if let Some(lease) = leases.get_mut(&key) {
            lease.handles -= 1;
            if lease.handles == 0 {
                bury(lease);
                leases.remove(&key);
            }
        }
    }
}

/// The names of the values that a printed graph defines, in order: of arguments, of nodes' outputs, of blocks' arguments.
fn defined_names(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("with "));
    lines
        .filter(|line| !line.starts_with("return") && !line.starts_with("->"))
        .flat_map(|line| line.split_once('=').map_or(line, |(outputs, _)| outputs).split('%').skip(1))
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').next().unwrap_or_default())
        .collect()
}

/// Frees the nodes that were put aside.
fn bury(lease: &mut Lease) {
    if let Some(node) = lease.graveyard.take() {
        // SAFETY: the node belongs to a graph that a handle keeps alive, nothing but this table knows it, and it
        // was taken out of the table.
        let node = unsafe { &*(node as *const ffi::Node) };
        if let Err(e) = ffi::node_destroy(node) {
            tracing::error!("freeing destroyed nodes: {e}");
        }
    }
}

impl Graph {
    pub(super) fn lease(raw: SharedPtr<ffi::Graph>, code: Code) -> Self {
        leases().entry(address(&raw)).or_default().handles += 1;
        Self { raw, code }
    }

    /// The graph as libtorch holds it.
    pub(super) fn shared(&self) -> SharedPtr<ffi::Graph> {
        self.raw.clone()
    }

    pub(super) fn code(&self) -> &Code {
        &self.code
    }

    /// Makes sure that a copy of the graph's nodes among `code` refers to no functions that `code` does not keep alive.
    pub(super) fn ensure_portable_to(&self, code: &Code) -> Result<()> {
        let calls_functions = || self.all_nodes().into_iter().any(|node| node.kind() == "prim::CallFunction");
        if self.code.unit_address() != code.unit_address() && calls_functions() {
            return Err(Error::invalid(
                "the graph calls functions of another module; run GeneralPass::Inline on it first",
            ));
        }
        Ok(())
    }

    pub(crate) fn raw(&self) -> &ffi::Graph {
        &self.raw
    }

    /// The block that keeps destroyed nodes until the last handle goes.
    pub(crate) fn graveyard(&self) -> Result<&ffi::Block> {
        let mut leases = leases();
        let lease = leases.entry(address(&self.raw)).or_default();
        let node = match lease.graveyard {
            // SAFETY: as in `bury`; the entry is only taken out when no borrow of this handle can be left.
            Some(node) => unsafe { &*(node as *const ffi::Node) },
            None => {
                let node = ffi::graph_create(&self.raw, GRAVEYARD, 0)?;
                ffi::node_add_block(node)?;
                lease.graveyard = Some(node as *const ffi::Node as usize);
                node
            }
        };
        Ok(ffi::node_block(node, 0)?)
    }

    /// Frees what was put aside, and makes sure that nobody else holds a handle on the graph or on one within it.
    fn exclusive(&mut self) -> Result<()> {
        for node in self.all_nodes() {
            for name in node.attribute_names() {
                if let Some(mut subgraph) = node.subgraph(&name) {
                    subgraph.exclusive()?;
                }
            }
        }
        let mut leases = leases();
        let lease = leases.entry(address(&self.raw)).or_default();
        if lease.handles > 1 {
            return Err(Error::invalid(format!(
                "the graph has {} other handles; drop them before a pass that frees nodes",
                lease.handles - 1
            )));
        }
        bury(lease);
        Ok(())
    }

    /// A handle on a graph of libtorch's own, which calls nothing that could go before it.
    pub(crate) fn of_host(raw: SharedPtr<ffi::Graph>) -> Self {
        Self::lease(raw, Code::default())
    }

    /// A handle on the host's graph; `None` where the host has none.
    ///
    /// # Safety
    /// `graph` points to a `std::shared_ptr<torch::jit::Graph>` of the libtorch that this library is loaded into.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn from_host(graph: *const c_void) -> Option<Self> {
        // SAFETY: the caller's promise.
        let raw = unsafe { ffi::graph_from_address(graph as usize) };
        (!raw.is_null()).then(|| Self::of_host(raw))
    }

    /// An empty graph.
    pub fn new() -> Self {
        Self::lease(ffi::graph_new(), Code::default())
    }

    /// The graph that `text` describes in the syntax that graphs are printed in.
    ///
    /// # Errors
    /// Where libtorch's parser refuses the text.
    pub fn parse(text: &str) -> Result<Self> {
        let graph = Self::lease(ffi::graph_parse(text)?, Code::default());
        // libtorch's parser does not keep the values' names.
        let (names, values) = (defined_names(text), graph.block().all_values());
        if names.len() == values.len() {
            let numbers = |name: &str| name.bytes().all(|c| c.is_ascii_digit());
            for (name, value) in names.iter().zip(values).filter(|(name, _)| !numbers(name)) {
                value.set_debug_name(name)?;
            }
        }
        Ok(graph)
    }

    /// A graph with the same content and nodes of its own.
    ///
    /// # Errors
    /// Where libtorch refuses to copy a node.
    pub fn deep_clone(&self) -> Result<Self> {
        Ok(Self::lease(ffi::graph_copy(&self.raw)?, self.code.clone()))
    }

    /// A graph of copies of `nodes`, each after those whose results it takes; its arguments stand for `inputs`, its results
    /// are the copies of `outputs`.
    ///
    /// # Errors
    /// Where a node takes something that is neither among the inputs nor computed before.
    pub(crate) fn of_nodes<'g>(nodes: &[Node<'g>], inputs: &[Value<'g>], outputs: &[Value<'g>]) -> Result<Self> {
        let refs = |values: &[Value<'g>]| -> Vec<_> {
            values.iter().map(|value| ffi::ValueRef { value: value.raw }).collect()
        };
        let nodes: Vec<_> = nodes.iter().map(|node| ffi::NodeRef { node: node.raw }).collect();
        Ok(Self::lease(ffi::graph_of_nodes(&nodes, &refs(inputs), &refs(outputs))?, Code::default()))
    }

    /// Tells one graph from another while both live.
    pub fn id(&self) -> usize {
        address(&self.raw)
    }

    /// The outermost block.
    pub fn block(&self) -> Block<'_> {
        Block::new(self, ffi::graph_block(&self.raw))
    }

    /// The graph's arguments; of a method the first one is `self`.
    pub fn inputs(&self) -> Vec<Value<'_>> {
        self.block().inputs()
    }

    /// The graph's results.
    pub fn outputs(&self) -> Vec<Value<'_>> {
        self.block().outputs()
    }

    /// The nodes of the outermost block, in order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        self.block().nodes()
    }

    /// The nodes of every block, each before the nodes of its own blocks.
    pub fn all_nodes(&self) -> Vec<Node<'_>> {
        self.block().all_nodes()
    }

    /// A node of `kind` with `inputs` and `outputs` outputs, not yet in any block.
    ///
    /// # Errors
    /// Where `kind` is not of the form `namespace::name`.
    pub fn create<'g>(&'g self, kind: &str, inputs: &[Value<'g>], outputs: usize) -> Result<Node<'g>> {
        if !kind.contains("::") {
            return Err(Error::invalid(format!("'{kind}' is no node kind: it should read namespace::name")));
        }
        let node = Node::new(self, ffi::graph_create(&self.raw, kind, outputs)?);
        for input in inputs {
            node.add_input(*input)?;
        }
        Ok(node)
    }

    /// Looks at the structure as libtorch's `lint` does.
    ///
    /// # Errors
    /// What is wrong with the structure, or that other handles on the graph live.
    pub fn lint(&mut self) -> Result<()> {
        self.exclusive()?;
        Ok(ffi::graph_lint(&self.raw)?)
    }

    /// Runs one of libtorch's general passes.
    ///
    /// # Errors
    /// Where the pass fails, or other handles on the graph live.
    pub fn run(&mut self, pass: GeneralPass) -> Result<()> {
        self.exclusive()?;
        Ok(ffi::graph_run_pass(&self.raw, pass.name())?)
    }

    /// The graph as text, each node with its place in the source.
    ///
    /// # Errors
    /// Where libtorch cannot print it.
    pub fn to_string_with_source(&self) -> Result<String> {
        Ok(ffi::graph_to_string(&self.raw, true)?)
    }
}

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&ffi::graph_to_string(&self.raw, false).map_err(|_| std::fmt::Error)?)
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}
