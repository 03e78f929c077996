//! A model that threads share.

use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Result};
use crate::ir::{Graph, IValue, Module, Node};
use crate::pass::prepare::writes;

/// A model that many threads run.
///
/// [`Module`]s are handles on graphs, classes and attributes that any other handle may change, so that they stay in the thread
/// that made them (and with them what holds one: [`Prepared`](crate::Prepared), [`Converted`](crate::Converted)). A runner has
/// a copy of its own, which nobody changes.
///
/// ```
/// use jitquant::Runner;
/// use jitquant::ir::{Module, Tensor};
/// let model = Module::new("Twice")?;
/// model.define("def forward(self, x: Tensor) -> Tensor:\n    return x * 2.0\n")?;
/// let runner = Runner::new(&model)?;
/// std::thread::scope(|scope| {
///     let run = || runner.forward(&[Tensor::from_slice(&[1.5f32], &[1])?])?.as_tensor().unwrap().to_vec::<f32>();
///     let results = [scope.spawn(run), scope.spawn(run)].map(|thread| thread.join().unwrap());
///     for result in results {
///         assert_eq!(result?, [3.0]);
///     }
///     Ok::<(), jitquant::Error>(())
/// })?;
/// # Ok::<(), jitquant::Error>(())
/// ```
pub struct Runner {
    module: Mutex<Module>,
    /// Whether one call has to end before the next one begins: the model's code writes into something.
    takes_turns: bool,
}

// SAFETY: `new` reads the module from bytes, so that no other handle on it, on its classes or on its code exists, and none is
// given out: calls take theirs through the mutex, run it and drop it. Behind it are counted pointers, whose counts are atomic.
// libtorch's interpreter runs one module in several threads; where the code itself would write into what threads share, the
// mutex stays locked while it runs.
unsafe impl Send for Runner {}
// SAFETY: as above.
unsafe impl Sync for Runner {}

impl Runner {
    /// A runner of a copy of `module`, as it is now. It takes as much memory as the module does.
    ///
    /// # Errors
    /// Where the module cannot be saved and loaded again, as for [`Module::save_bytes`].
    pub fn new(module: &Module) -> Result<Self> {
        let copy = Module::load_bytes(&module.save_bytes()?).context(|| "copying the module".into())?;
        let mut takes_turns = false;
        for (_, part) in copy.modules() {
            // Norms that train write into their statistics, and their operators do not say so.
            takes_turns |= part.has_attribute("training") && part.is_training();
            for method in part.method_names() {
                takes_turns |= writes_anywhere(&part.graph(&method)?);
            }
        }
        Ok(Self { module: Mutex::new(copy), takes_turns })
    }

    /// Whether calls wait for each other: the model's code writes into tensors, lists or attributes, as far as can be told.
    pub fn takes_turns(&self) -> bool {
        self.takes_turns
    }

    /// Runs `forward`, without gradients.
    ///
    /// # Errors
    /// What libtorch says, with the place in the model's source.
    pub fn forward<'a, T>(&self, inputs: &'a [T]) -> Result<IValue>
    where
        IValue: From<&'a T>,
    {
        self.call("forward", inputs)
    }

    /// Runs a method, without gradients.
    ///
    /// # Errors
    /// Where there is no such method, and as for [`Runner::forward`].
    pub fn call<'a, T>(&self, method: &str, inputs: &'a [T]) -> Result<IValue>
    where
        IValue: From<&'a T>,
    {
        let locked = self.module.lock().unwrap_or_else(PoisonError::into_inner);
        if self.takes_turns {
            return locked.call(method, inputs);
        }
        let own = locked.clone();
        drop(locked);
        own.call(method, inputs)
    }
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("takes_turns", &self.takes_turns).finish_non_exhaustive()
    }
}

fn writes_anywhere(graph: &Graph) -> bool {
    graph.all_nodes().into_iter().any(may_write)
}

/// Whether a node of a method writes into something, or calls code that is not a method of a module and could.
fn may_write(node: Node<'_>) -> bool {
    let is_true = |value: Option<IValue>| matches!(value, Some(IValue::Bool(true)));
    match node.kind() {
        "prim::SetAttr" | "prim::CallFunction" | "prim::fork" | "prim::awaitable" => true,
        "prim::CallMethod" => !node.input(0).is_some_and(|object| object.type_of().is_module()),
        "aten::batch_norm" | "aten::instance_norm" => is_true(node.input(5).and_then(|training| training.constant())),
        _ => writes(node),
    }
}
