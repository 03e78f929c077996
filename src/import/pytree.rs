//! How arguments and results nest: the text of Python's `treespec_dumps`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::schema::NamedTuple;
use crate::archive::shortened;
use crate::error::{Error, Result};

/// The version of the text that is read.
const VERSION: u64 = 1;

/// A tree of values.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    /// One value of the graph, or a constant.
    Leaf,
    Tuple(Vec<Tree>),
    List(Vec<Tree>),
    /// A dictionary, or an object with named fields. Keys that are no texts are written as texts.
    Named(Vec<(String, Tree)>),
}

impl Tree {
    /// How many leaves it has.
    pub fn leaves(&self) -> usize {
        match self {
            Self::Leaf => 1,
            Self::Tuple(items) | Self::List(items) => items.iter().map(Self::leaves).sum(),
            Self::Named(items) => items.iter().map(|(_, item)| item.leaves()).sum(),
        }
    }
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "type")]
    class: Option<String>,
    context: Option<Value>,
    children_spec: Vec<Spec>,
}

/// Reads a tree. How deeply it may nest is limited by the reader of JSON.
///
/// # Errors
/// Where it is of another form, or its names do not fit its children.
pub(super) fn parse(text: &str, named_tuples: &BTreeMap<String, NamedTuple>) -> Result<Tree> {
    let damaged = |e: serde_json::Error| {
        Error::invalid(format!("the file is damaged: a tree of arguments is not what PyTorch writes ({e})"))
    };
    let (version, spec): (u64, Spec) = serde_json::from_str(text).map_err(damaged)?;
    match version {
        VERSION => tree(&spec, named_tuples),
        _ => Err(Error::invalid(format!("trees of arguments are of version {version}; version {VERSION} is read"))),
    }
}

fn tree(spec: &Spec, named_tuples: &BTreeMap<String, NamedTuple>) -> Result<Tree> {
    let Some(class) = &spec.class else { return Ok(Tree::Leaf) };
    let children = spec.children_spec.iter().map(|child| tree(child, named_tuples)).collect::<Result<Vec<_>>>()?;
    match class.as_str() {
        "builtins.tuple" | "torch.Size" => return Ok(Tree::Tuple(children)),
        "builtins.list" | "collections.deque" => return Ok(Tree::List(children)),
        _ => {}
    }
    // The context is JSON in a text, or that JSON itself.
    let context = match &spec.context {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or(Value::Null),
        Some(other) => other.clone(),
        None => Value::Null,
    };
    let fields = match class.as_str() {
        "collections.namedtuple" => {
            context.as_str().and_then(|name| named_tuples.get(name)).map(|fields| fields.field_names.clone())
        }
        _ => names(&context, children.len()),
    };
    match fields {
        Some(fields) if fields.len() == children.len() => Ok(Tree::Named(fields.into_iter().zip(children).collect())),
        // What is no dictionary is told by the places of its parts.
        None if class != "builtins.dict" => Ok(Tree::Tuple(children)),
        _ => Err(Error::invalid(format!(
            "the file is damaged: a {} has {} parts, and not as many names",
            shortened(class),
            children.len()
        ))),
    }
}

/// The names in a context: a list of them, or a list that begins with one (dataclasses add the fields that are `None`,
/// default dictionaries begin with their default).
fn names(context: &Value, count: usize) -> Option<Vec<String>> {
    let items = context.as_array()?;
    let texts = |items: &Vec<Value>| {
        let text = |item: &Value| match item {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let all: Option<Vec<String>> = items.iter().map(text).collect();
        all.filter(|all| all.len() == count)
    };
    texts(items).or_else(|| items.iter().filter_map(Value::as_array).find_map(texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Tree> {
        parse(text, &BTreeMap::new())
    }

    const LEAF: &str = r#"{"type": null, "context": null, "children_spec": []}"#;

    #[test]
    fn tuples_and_dictionaries_nest() {
        let text = format!(
            r#"[1, {{"type": "builtins.dict", "context": "[\"a\", \"b\"]", "children_spec": [{LEAF},
               {{"type": "builtins.tuple", "context": "null", "children_spec": [{LEAF}, {LEAF}]}}]}}]"#
        );
        let tree = parsed(&text).unwrap();
        let tuple = Tree::Tuple(vec![Tree::Leaf, Tree::Leaf]);
        assert_eq!(tree, Tree::Named(vec![("a".to_owned(), Tree::Leaf), ("b".to_owned(), tuple)]));
        assert_eq!(tree.leaves(), 3);
    }

    #[test]
    fn dataclasses_have_their_fields() {
        let text =
            format!(r#"[1, {{"type": "m.Output", "context": "[[\"y\"], [\"z\"]]", "children_spec": [{LEAF}]}}]"#);
        assert_eq!(parsed(&text).unwrap(), Tree::Named(vec![("y".to_owned(), Tree::Leaf)]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in [
            "[2, {}]".to_owned(),
            format!("[2, {LEAF}]"),
            format!(r#"[1, {{"type": "builtins.dict", "context": "[]", "children_spec": [{LEAF}]}}]"#),
            format!(
                "[1, {}{LEAF}{}]",
                r#"{"type": "builtins.tuple", "context": null, "children_spec": ["#.repeat(500),
                "]}".repeat(500)
            ),
        ] {
            assert!(parsed(&text).is_err(), "{text}");
        }
    }
}
