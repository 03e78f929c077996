//! Whether two modules are the same but for the names that passes make up.

use std::collections::BTreeMap;

use jitquant::ir::{IValue, Module, Tensor};

use crate::canonical::{Canonical, is_observer, is_qparam};
use crate::compare::tensors;

pub fn loaded(bytes: &[u8]) -> Module {
    Module::load_bytes(bytes).unwrap()
}

pub fn saved_and_loaded(module: &Module) -> Module {
    loaded(&module.save_bytes().unwrap())
}

/// Both have the same classes, code, attributes and parameters.
pub fn assert_same(ours: &Module, theirs: &Module) {
    let (our_text, their_text) = (Canonical::of(ours).text, Canonical::of(theirs).text);
    assert!(our_text == their_text, "OURS\n{our_text}\nTHEIRS\n{their_text}");
    assert_eq!(state(ours), state(theirs));
}

/// Every attribute that is no module and whose name is not made up.
fn state(module: &Module) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for (path, part) in module.modules() {
        for attribute in part.attributes().into_iter().filter(|a| !a.is_module && !is_qparam(&a.name)) {
            let value = part.attribute(&attribute.name).unwrap();
            let text = match &value {
                IValue::Tensor(_) => format!("{:?}", tensors(&value)),
                other => format!("{other:?}"),
            };
            if !path.split('.').any(is_observer) {
                state.insert(format!("{path}.{}", attribute.name), text);
            }
        }
    }
    state
}

/// Both give the same numbers, bit for bit, or both fail.
pub fn assert_same_output(ours: &Module, theirs: &Module, method: &str, inputs: &[Tensor]) {
    let run = |module: &Module| module.call(method, inputs).map(|output| tensors(&output)).map_err(|_| "an error");
    assert_eq!(run(ours), run(theirs));
}
