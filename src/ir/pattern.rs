//! Patterns over values, written as Rust expressions: what a pass looks for.

use std::borrow::Cow;
use std::sync::Arc;

use super::graph::Graph;
use super::ivalue::IValue;
use super::node::{Node, Value};
use crate::error::{Error, Result};

/// What a value has to look like: how it is computed, from what, down to values that are only given a name.
///
/// ```
/// use jitquant::ir::Graph;
/// use jitquant::ir::pattern::{any, op};
/// let swish = any("x") * op("aten::sigmoid", [any("x")]).single_use();
/// let graph = Graph::parse(
///     "graph(%a : Tensor):
///        %s : Tensor = aten::sigmoid(%a)
///        %y : Tensor = aten::mul(%s, %a)
///        return (%y)",
/// )?;
/// let found = graph.find(&swish).unwrap();
/// assert_eq!(found.value("x")?.debug_name(), "a");
/// // Why it does not match, where it does not:
/// let why = op("aten::relu", [any("x")]).matches(graph.outputs()[0]).unwrap_err();
/// assert_eq!(why.to_string(), "%y comes from aten::mul, expected aten::relu");
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// A pattern sees how values follow from one another, not what is written in place between two reads.
#[derive(Clone)]
pub struct Pattern(Arc<Form>);

type OnNode = Box<dyn Fn(Node<'_>) -> bool + Send + Sync>;
type OnConstant = Box<dyn Fn(&IValue) -> bool + Send + Sync>;

enum Form {
    Any,
    Rest,
    Constant { expected: Cow<'static, str>, accepts: OnConstant },
    Operation { target: Target, inputs: Vec<Pattern>, commutative: bool },
    OneOf(Vec<Pattern>),
    Named(Arc<str>, Pattern),
    When { expected: Cow<'static, str>, holds: OnNode, pattern: Pattern },
    Output(usize, Pattern),
    SingleUse(Pattern),
}

/// Which node an operation is.
enum Target {
    Operator(Cow<'static, str>),
    Method { class: Cow<'static, str>, method: Cow<'static, str> },
    Function(Cow<'static, str>),
    Attribute(Cow<'static, str>),
}

impl From<Form> for Pattern {
    fn from(form: Form) -> Self {
        Self(Arc::new(form))
    }
}

/// Any value, captured as `name`. Where a name stands twice in a pattern, both have to be the same value.
pub fn any(name: &str) -> Pattern {
    Pattern::from(Form::Any).named(name)
}

/// Any value.
pub fn anything() -> Pattern {
    Form::Any.into()
}

/// As the last input of an operation: any number of further inputs.
pub fn rest() -> Pattern {
    Form::Rest.into()
}

/// An output of operator `kind`, e.g. `aten::relu`, with exactly these inputs; end them with [`rest`] to leave the
/// last ones open.
pub fn op(kind: impl Into<Cow<'static, str>>, inputs: impl IntoIterator<Item = Pattern>) -> Pattern {
    operation(Target::Operator(kind.into()), inputs, false)
}

/// As [`op`], the first two inputs in either order.
pub fn commutative_op(kind: impl Into<Cow<'static, str>>, inputs: impl IntoIterator<Item = Pattern>) -> Pattern {
    operation(Target::Operator(kind.into()), inputs, true)
}

/// What a module's method returns: `prim::CallMethod` on a module of class `class`, named as in Python, e.g.
/// `torch.nn.modules.activation.ReLU`. `inputs` are the method's arguments without the module, which is input 0 of the
/// call.
pub fn call_method(
    class: impl Into<Cow<'static, str>>,
    method: impl Into<Cow<'static, str>>,
    inputs: impl IntoIterator<Item = Pattern>,
) -> Pattern {
    operation(Target::Method { class: class.into(), method: method.into() }, inputs, false)
}

/// What a TorchScript function returns: `prim::CallFunction` of the function `name`, without its module, e.g. `relu`
/// for `torch.nn.functional.relu`. `inputs` are its arguments.
pub fn call_function(name: impl Into<Cow<'static, str>>, inputs: impl IntoIterator<Item = Pattern>) -> Pattern {
    operation(Target::Function(name.into()), inputs, false)
}

/// The attribute `name` of `object`: `prim::GetAttr`.
pub fn attribute(object: Pattern, name: impl Into<Cow<'static, str>>) -> Pattern {
    operation(Target::Attribute(name.into()), [object], false)
}

fn operation(target: Target, inputs: impl IntoIterator<Item = Pattern>, commutative: bool) -> Pattern {
    Form::Operation { target, inputs: inputs.into_iter().collect(), commutative }.into()
}

/// The first of these that matches together with the rest of the pattern.
pub fn one_of(alternatives: impl IntoIterator<Item = Pattern>) -> Pattern {
    Form::OneOf(alternatives.into_iter().collect()).into()
}

/// A constant that `accepts` holds for; `expected` says in words what it is, for [`Mismatch`].
pub fn constant_where(
    expected: impl Into<Cow<'static, str>>,
    accepts: impl Fn(&IValue) -> bool + Send + Sync + 'static,
) -> Pattern {
    Form::Constant { expected: expected.into(), accepts: Box::new(accepts) }.into()
}

/// Any constant, captured as `name`.
pub fn constant(name: &str) -> Pattern {
    constant_where("a constant", |_| true).named(name)
}

/// The integer constant `value`.
pub fn int(value: i64) -> Pattern {
    constant_where(format!("the constant {value}"), move |constant| matches!(constant, IValue::Int(v) if *v == value))
}

/// The constant `value`, a float or an integer.
pub fn number(value: f64) -> Pattern {
    constant_where(format!("the constant {value}"), move |constant| constant.as_number() == Some(value))
}

/// The boolean constant `value`.
pub fn boolean(value: bool) -> Pattern {
    constant_where(format!("the constant {value}"), move |constant| matches!(constant, IValue::Bool(v) if *v == value))
}

/// The constant `None`.
pub fn none() -> Pattern {
    constant_where("the constant None", |constant| matches!(constant, IValue::None))
}

impl std::ops::Add for Pattern {
    type Output = Pattern;

    /// `aten::add` of two tensors in either order, with `alpha` 1.
    fn add(self, other: Pattern) -> Pattern {
        commutative_op("aten::add", [self, other, number(1.0)])
    }
}

impl std::ops::Mul for Pattern {
    type Output = Pattern;

    /// `aten::mul` in either order.
    fn mul(self, other: Pattern) -> Pattern {
        commutative_op("aten::mul", [self, other])
    }
}

impl Pattern {
    /// Captures the value as `name`; the node that computes it is [`Match::node`] of that name.
    pub fn named(self, name: &str) -> Pattern {
        Form::Named(name.into(), self).into()
    }

    /// Only where `holds` is true of the node that computes the value. It is asked after the node and its inputs have
    /// matched.
    pub fn when(self, holds: impl Fn(Node<'_>) -> bool + Send + Sync + 'static) -> Pattern {
        self.when_it("meets the pattern's condition", holds)
    }

    /// As [`Pattern::when`]; `expected` completes "it …" in a [`Mismatch`], e.g. `"has stride 1"`.
    pub fn when_it(
        self,
        expected: impl Into<Cow<'static, str>>,
        holds: impl Fn(Node<'_>) -> bool + Send + Sync + 'static,
    ) -> Pattern {
        Form::When { expected: expected.into(), holds: Box::new(holds), pattern: self }.into()
    }

    /// Only the node's output `index`. Without it every output of an operation matches.
    pub fn output(self, index: usize) -> Pattern {
        Form::Output(index, self).into()
    }

    /// Only where the value is used once: a rewrite that makes it superfluous takes nothing from anybody else.
    pub fn single_use(self) -> Pattern {
        Form::SingleUse(self).into()
    }

    /// Matches the pattern with `value`.
    ///
    /// # Errors
    /// Why it does not match: of all alternatives, the one that came furthest.
    pub fn matches<'g>(&self, value: Value<'g>) -> Result<Match<'g>, Mismatch<'g>> {
        let found = solve(vec![Goal::Match(self, value)], Found::default())?;
        Ok(Match { root: value, found })
    }
}

/// What a pattern matched.
#[derive(Clone, Debug)]
pub struct Match<'g> {
    root: Value<'g>,
    found: Found<'g>,
}

#[derive(Clone, Debug, Default)]
struct Found<'g> {
    values: Vec<(Arc<str>, Value<'g>)>,
    nodes: Vec<Node<'g>>,
}

impl<'g> Match<'g> {
    /// The value that the whole pattern stands for.
    pub fn root(&self) -> Value<'g> {
        self.root
    }

    /// The value captured as `name`.
    ///
    /// # Errors
    /// Where nothing was captured under that name; the message lists the names.
    pub fn value(&self, name: &str) -> Result<Value<'g>> {
        self.get(name).ok_or_else(|| {
            let names: Vec<_> = self.found.values.iter().map(|(name, _)| name.as_ref()).collect();
            Error::invalid(format!("the match has no '{name}', only {}", names.join(", ")))
        })
    }

    /// The node that computes the value captured as `name`.
    ///
    /// # Errors
    /// As [`Match::value`].
    pub fn node(&self, name: &str) -> Result<Node<'g>> {
        Ok(self.value(name)?.node())
    }

    /// The value captured as `name`; `None` where the alternative that matched has no such name.
    pub fn get(&self, name: &str) -> Option<Value<'g>> {
        self.found.get(name)
    }

    /// The matched operations, the root's first, each before its inputs'.
    pub fn nodes(&self) -> &[Node<'g>] {
        &self.found.nodes
    }
}

impl<'g> Found<'g> {
    fn get(&self, name: &str) -> Option<Value<'g>> {
        self.values.iter().find(|(known, _)| **known == *name).map(|(_, value)| *value)
    }
}

/// Why a pattern does not match.
#[derive(Clone, Debug)]
pub struct Mismatch<'g> {
    value: Value<'g>,
    expected: String,
    found: Option<String>,
    /// How many operations had matched before.
    matched: usize,
}

impl<'g> Mismatch<'g> {
    /// The value that is not as the pattern says.
    pub fn value(&self) -> Value<'g> {
        self.value
    }

    /// The node that computes it.
    pub fn node(&self) -> Node<'g> {
        self.value.node()
    }

    /// What was expected of it.
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

impl std::fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.value.node().kind();
        write!(f, "{:?} ", self.value)?;
        match (&self.found, kind) {
            (Some(found), _) => write!(f, "{found}")?,
            (None, "prim::Param") => write!(f, "is an argument")?,
            (None, kind) => write!(f, "comes from {kind}")?,
        }
        write!(f, ", expected {}", self.expected)
    }
}

impl std::error::Error for Mismatch<'_> {}

impl From<Mismatch<'_>> for Error {
    fn from(mismatch: Mismatch<'_>) -> Self {
        Error::invalid(mismatch.to_string())
    }
}

/// What is still to be checked.
#[derive(Clone, Copy)]
enum Goal<'p, 'g> {
    Match(&'p Pattern, Value<'g>),
    Holds(&'p OnNode, &'p str, Value<'g>),
}

/// Checks the goals, last one first. Where there is a choice, each alternative is tried together with all goals that
/// are left, so that a capture that one part allows and another forbids leads to the next alternative.
fn solve<'p, 'g>(mut goals: Vec<Goal<'p, 'g>>, mut found: Found<'g>) -> Result<Found<'g>, Mismatch<'g>> {
    while let Some(goal) = goals.pop() {
        let matched = found.nodes.len();
        let (pattern, value) = match goal {
            Goal::Match(pattern, value) => (pattern, value),
            Goal::Holds(holds, expected, value) => match holds(value.node()) {
                true => continue,
                false => return Err(Mismatch { value, expected: format!("that it {expected}"), found: None, matched }),
            },
        };
        let fail = |expected: String, found: Option<String>| Mismatch { value, expected, found, matched };
        match &*pattern.0 {
            Form::Any => {}
            Form::Rest => {
                return Err(fail("nothing: rest() only stands last among an operation's inputs".into(), None));
            }
            Form::Named(name, pattern) => {
                match found.get(name) {
                    Some(other) if other != value => return Err(fail(format!("'{name}', which is {other:?}"), None)),
                    Some(_) => {}
                    None => found.values.push((name.clone(), value)),
                }
                goals.push(Goal::Match(pattern, value));
            }
            Form::When { expected, holds, pattern } => {
                goals.push(Goal::Holds(holds, expected, value));
                goals.push(Goal::Match(pattern, value));
            }
            Form::Output(index, pattern) => {
                if value.offset() != *index {
                    let is = format!("is output {} of {}", value.offset(), value.node().kind());
                    return Err(fail(format!("output {index}"), Some(is)));
                }
                goals.push(Goal::Match(pattern, value));
            }
            Form::SingleUse(pattern) => {
                let uses = value.uses().len();
                if uses != 1 {
                    return Err(fail("a single use".into(), Some(format!("is used {uses} times"))));
                }
                goals.push(Goal::Match(pattern, value));
            }
            Form::Constant { expected, accepts } => match value.constant() {
                Some(constant) if accepts(&constant) => {}
                Some(constant) => return Err(fail(expected.to_string(), Some(format!("is {}", in_words(&constant))))),
                None => return Err(fail(expected.to_string(), None)),
            },
            Form::OneOf(alternatives) => {
                let alternatives = alternatives.iter().map(|pattern| vec![Goal::Match(pattern, value)]);
                return first_of(goals, found, alternatives, || fail("nothing: one_of([])".into(), None));
            }
            Form::Operation { target, inputs, commutative } => {
                let node = value.node();
                let skip = target.check(node).map_err(|(expected, found)| fail(expected, found))?;
                found.nodes.push(node);
                let values = node.inputs().split_off(skip);
                let open = matches!(inputs.last().map(|last| &*last.0), Some(Form::Rest));
                let inputs = &inputs[..inputs.len() - usize::from(open)];
                if values.len() < inputs.len() || (values.len() > inputs.len() && !open) {
                    let has = format!("comes from {} with {} inputs", node.kind(), values.len());
                    return Err(fail(format!("{} of them", inputs.len()), Some(has)));
                }
                let in_order: Vec<_> = inputs.iter().zip(values).map(|(p, v)| Goal::Match(p, v)).rev().collect();
                match in_order[..] {
                    [.., Goal::Match(second, b), Goal::Match(first, a)] if *commutative => {
                        let mut swapped = in_order.clone();
                        let last = swapped.len() - 1;
                        (swapped[last - 1], swapped[last]) = (Goal::Match(second, a), Goal::Match(first, b));
                        return first_of(goals, found, [in_order, swapped], || fail("two inputs".into(), None));
                    }
                    _ => goals.extend(in_order),
                }
            }
        }
    }
    Ok(found)
}

fn first_of<'p, 'g>(
    goals: Vec<Goal<'p, 'g>>,
    found: Found<'g>,
    alternatives: impl IntoIterator<Item = Vec<Goal<'p, 'g>>>,
    nothing: impl FnOnce() -> Mismatch<'g>,
) -> Result<Found<'g>, Mismatch<'g>> {
    let mut furthest: Option<Mismatch<'g>> = None;
    for alternative in alternatives {
        match solve(goals.iter().copied().chain(alternative).collect(), found.clone()) {
            Ok(found) => return Ok(found),
            Err(mismatch) => match &mut furthest {
                Some(known) if known.matched > mismatch.matched => {}
                Some(known) if known.matched == mismatch.matched && known.value == mismatch.value => {
                    if !known.expected.split(" or ").any(|part| part == mismatch.expected) {
                        known.expected = format!("{} or {}", known.expected, mismatch.expected);
                    }
                }
                Some(known) if known.matched == mismatch.matched => {}
                _ => furthest = Some(mismatch),
            },
        }
    }
    Err(furthest.unwrap_or_else(nothing))
}

impl Target {
    /// How many inputs of `node` come before the pattern's, or what was expected and what was found.
    fn check(&self, node: Node<'_>) -> Result<usize, (String, Option<String>)> {
        let called = |kind: &str| match node.kind() == kind {
            true => Ok(()),
            false => Err((self.to_string(), None)),
        };
        let is = |what: Option<String>, wanted: &str, skip: usize| match what {
            Some(what) if what == wanted => Ok(skip),
            Some(what) => Err((self.to_string(), Some(format!("comes from {} of {what}", node.kind())))),
            None => Err((self.to_string(), None)),
        };
        match self {
            Self::Operator(kind) => called(kind).map(|()| 0),
            Self::Attribute(name) => called("prim::GetAttr").and_then(|()| is(node.name_attribute(), name, 0)),
            Self::Function(name) => {
                called("prim::CallFunction")?;
                is(node.input(0).and_then(Value::function_name), name, 1)
            }
            Self::Method { class, method } => {
                called("prim::CallMethod")?;
                let of = node.input(0).and_then(|object| object.type_of().unmangled_class_name());
                is(of, class, 1)?;
                is(node.name_attribute(), method, 1)
            }
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operator(kind) => write!(f, "{kind}"),
            Self::Method { class, method } => write!(f, "a call of {class}.{method}"),
            Self::Function(name) => write!(f, "a call of the function {name}"),
            Self::Attribute(name) => write!(f, "the attribute '{name}'"),
        }
    }
}

fn in_words(constant: &IValue) -> String {
    match constant {
        IValue::None => "the constant None".into(),
        IValue::Int(value) => format!("the constant {value}"),
        IValue::Double(value) => format!("the constant {value}"),
        IValue::Bool(value) => format!("the constant {value}"),
        IValue::Str(value) => format!("the constant '{value}'"),
        other => format!("a constant {}", other.kind()),
    }
}

impl Graph {
    /// The first match of `pattern`, in the order of [`Graph::all_nodes`].
    pub fn find(&self, pattern: &Pattern) -> Option<Match<'_>> {
        self.matches(pattern).next()
    }

    /// All matches of `pattern`, in the order of [`Graph::all_nodes`], nested blocks included. They may overlap.
    pub fn find_all(&self, pattern: &Pattern) -> Vec<Match<'_>> {
        self.matches(pattern).collect()
    }

    fn matches(&self, pattern: &Pattern) -> impl Iterator<Item = Match<'_>> {
        let values = self.all_nodes().into_iter().flat_map(Node::outputs);
        values.filter_map(|value| pattern.matches(value).ok())
    }
}
