//! Nodes of a graph, as a filter callback sees them.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_void};

use super::argument;
use super::status::{Failure, Outcome, c_text, enter, jq_status};
use crate::ir::Node;

/// A node of a graph. It is valid while the callback that was given it runs, on that thread only; it is not freed.
pub struct jq_node {
    _opaque: (),
}

/// The nodes that the callback in progress knows, and the texts that it was given.
#[derive(Default)]
struct Visit {
    /// Nodes whose graph lives as long as the visit.
    nodes: Vec<Node<'static>>,
    texts: Vec<CString>,
}

thread_local! {
    static VISITS: RefCell<Vec<Visit>> = const { RefCell::new(Vec::new()) };
    static FIRST: RefCell<usize> = const { RefCell::new(usize::MAX << 55) };
}

/// Handles on nodes are this far apart.
const STRIDE: usize = 16;

/// Calls `call` with a handle on `node` that is valid until it returns.
pub(super) fn visit<T>(node: Node<'_>, call: impl FnOnce(*const jq_node) -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            // The numbers of this visit are not used again: a handle that was kept is an error, not another node.
            let left = VISITS.with_borrow_mut(Vec::pop).map_or(0, |visit| visit.nodes.len());
            FIRST.with_borrow_mut(|first| *first += left * STRIDE);
        }
    }
    // SAFETY: the node is taken out of VISITS before the function returns, and copies of it are only used meanwhile.
    let node = unsafe { std::mem::transmute::<Node<'_>, Node<'static>>(node) };
    VISITS.with_borrow_mut(|visits| visits.push(Visit { nodes: vec![node], ..Visit::default() }));
    let _leave = Leave;
    call(number(0))
}

fn number(index: usize) -> *const jq_node {
    std::ptr::without_provenance(FIRST.with_borrow(|first| *first) + index * STRIDE)
}

/// Uses the node behind a handle.
fn with<T>(
    node: *const jq_node,
    argument: &str,
    call: impl FnOnce(Node<'static>, &mut Visit) -> Outcome<T>,
) -> Outcome<T> {
    if node.is_null() {
        return Err(Failure::argument(format!("'{argument}' is null; a jq_node is expected")));
    }
    let stale = || Failure::handle(format!("'{argument}' is no jq_node of the callback in progress on this thread"));
    let index = node.addr().wrapping_sub(FIRST.with_borrow(|first| *first));
    VISITS.with_borrow_mut(|visits| {
        let visit = visits.last_mut().ok_or_else(stale)?;
        let known = if index.is_multiple_of(STRIDE) { visit.nodes.get(index / STRIDE).copied() } else { None };
        call(known.ok_or_else(stale)?, visit)
    })
}

/// Keeps a text for the rest of the visit.
fn keep(visit: &mut Visit, text: &str) -> *const c_char {
    visit.texts.push(c_text(text));
    visit.texts[visit.texts.len() - 1].as_ptr()
}

/// Stores a text of a node's that stays as long as the node does.
///
/// # Safety
/// As for [`argument::Out::put`].
unsafe fn text_of(
    node: *const jq_node,
    text: *mut *const c_char,
    read: impl FnOnce(Node<'static>) -> Outcome<String>,
) -> jq_status {
    enter(|| {
        let room = argument::room(text, "text")?;
        let text = with(node, "node", |node, visit| Ok(keep(visit, &read(node)?)))?;
        // SAFETY: the caller's promise.
        unsafe { room.put(text) };
        Ok(())
    })
}

/// What the node does, e.g. `quantized::conv2d_prepack`, into `*text`, which stays as long as the node.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_node_kind(node: *const jq_node, text: *mut *const c_char) -> jq_status {
    // SAFETY: the caller's promise.
    unsafe { text_of(node, text, |node| Ok(node.kind().to_owned())) }
}

/// The node as libtorch prints it, into `*text`, which stays as long as the node.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_node_text(node: *const jq_node, text: *mut *const c_char) -> jq_status {
    // SAFETY: the caller's promise.
    unsafe { text_of(node, text, |node| Ok(node.to_string())) }
}

/// Its place in the TorchScript source, e.g. `resnet.py:231`, empty where that is not recorded, into `*text`, which stays
/// as long as the node.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_node_source(node: *const jq_node, text: *mut *const c_char) -> jq_status {
    // SAFETY: the caller's promise.
    unsafe { text_of(node, text, |node| Ok(crate::pass::source_of(node))) }
}

/// The name of the attribute that a `prim::GetAttr` reads or of the method that a `prim::CallMethod` calls, into
/// `*text`, which stays as long as the node.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_node_name(node: *const jq_node, text: *mut *const c_char) -> jq_status {
    let read = |node: Node<'static>| {
        node.name_attribute().ok_or_else(|| Failure::argument(format!("a {} has no name", node.kind())))
    };
    // SAFETY: the caller's promise.
    unsafe { text_of(node, text, read) }
}

/// How many inputs the node has, into `*count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_node_input_count(node: *const jq_node, count: *mut usize) -> jq_status {
    enter(|| {
        let room = argument::room(count, "count")?;
        let inputs = with(node, "node", |node, _| Ok(node.inputs().len()))?;
        // SAFETY: the caller's promise.
        unsafe { room.put(inputs) };
        Ok(())
    })
}

/// The node that computes input `index`, into `*producer`; it is valid as long as `node`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_node_input(node: *const jq_node, index: usize, producer: *mut *const jq_node) -> jq_status {
    enter(|| {
        let room = argument::room(producer, "producer")?;
        let found = with(node, "node", |node, visit| {
            let inputs = node.inputs();
            visit.nodes.push(inputs[argument::index(index, inputs.len(), "inputs")?].node());
            Ok(number(visit.nodes.len() - 1))
        })?;
        // SAFETY: the caller's promise.
        unsafe { room.put(found) };
        Ok(())
    })
}

/// libtorch's `torch::jit::Node*`, into `*torch_node`: for C++ programs. It must not be changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_node_to_torch(node: *const jq_node, torch_node: *mut *mut c_void) -> jq_status {
    enter(|| {
        let room = argument::room(torch_node, "torch_node")?;
        let address = with(node, "node", |node, _| Ok(node.address()))?;
        // SAFETY: the caller's promise.
        unsafe { room.put(address.cast_mut()) };
        Ok(())
    })
}
