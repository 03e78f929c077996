//! Operators that run graphs: branches, loops, and graphs that stand for themselves.

use super::graph::{Builder, Scope, names};
use super::schema::{self, Argument, Graph, GraphArgument};
use crate::archive::shortened;
use crate::error::{Error, Result};
use crate::ir::{Node, Value};

/// Writes one of `torch.ops.higher_order`.
///
/// # Errors
/// Where it has no counterpart.
pub(super) fn translate<'p>(builder: &mut Builder<'_, 'p>, node: &'p schema::Node, name: &str) -> Result<()> {
    let arguments: Vec<&Argument> = node.inputs.iter().map(|input| &input.arg).collect();
    match (name, &arguments[..]) {
        ("cond", [condition, Argument::AsGraph(yes), Argument::AsGraph(no), operands @ ..]) => {
            branch(builder, node, condition, (&yes.graph, &no.graph), operands)
        }
        ("while_loop", [Argument::AsGraph(test), Argument::AsGraph(body), carried, others @ ..]) => {
            repeat(builder, node, (&test.graph, &body.graph), carried, others)
        }
        ("wrap_with_set_grad_enabled", [Argument::AsBool(_), Argument::AsGraph(body), operands @ ..]) => {
            inline(builder, node, body, operands)
        }
        ("wrap_with_autocast", [_, _, Argument::AsBool(enabled), _, Argument::AsGraph(body), operands @ ..]) => {
            match enabled {
                false => inline(builder, node, body, operands),
                true => Err(Error::invalid(
                    "torch.autocast is on here, and TorchScript's graphs have no such region: export the model without it, \
                     or convert it to one type with model.float()",
                )),
            }
        }
        ("strict_mode", [Argument::AsGraph(body), operands @ ..]) => inline(builder, node, body, operands),
        ("invoke_subgraph", [Argument::AsGraph(body), Argument::AsString(_) | Argument::AsNone(_), operands @ ..]) => {
            inline(builder, node, body, operands)
        }
        _ => Err(Error::invalid(format!(
            "the operator torch.ops.higher_order.{} has no counterpart in TorchScript: cond, while_loop and regions without \
             gradients do. In Python, exported.run_decompositions() may replace it, or torch.export.export(..., strict=False)",
            shortened(name)
        ))),
    }
}

/// The values that a graph is given, tuples taken apart.
fn operands<'g>(builder: &Builder<'g, '_>, arguments: &[&Argument]) -> Result<Vec<Value<'g>>> {
    let mut values = Vec::new();
    for argument in arguments {
        match argument {
            Argument::AsTensors(all) => {
                for named in all {
                    values.push(builder.value(&named.name)?);
                }
            }
            Argument::AsSymInts(all) => {
                for item in all {
                    values.push(builder.symbol(item)?);
                }
            }
            Argument::AsInts(all) => {
                for item in all {
                    values.push(builder.constant(*item)?);
                }
            }
            one => values.push(builder.number(one)?),
        }
    }
    Ok(values)
}

/// Writes a graph's nodes at `at`; its results.
fn body<'g, 'p>(
    builder: &Builder<'g, 'p>,
    graph: &'p Graph,
    at: Node<'g>,
    inputs: &[Value<'g>],
) -> Result<Vec<Value<'g>>> {
    let names = names(&graph.inputs)?;
    if names.len() != inputs.len() {
        let (wanted, given) = (names.len(), inputs.len());
        return Err(Error::invalid(format!("the file is damaged: a graph of {wanted} inputs is given {given}")));
    }
    let scope: Scope<'g, 'p> =
        names.into_iter().zip(inputs).filter_map(|(name, value)| Some((name?, *value))).collect();
    let mut inner = builder.inside(at, scope);
    inner.nodes(&graph.nodes)?;
    operands(&inner, &graph.outputs.iter().collect::<Vec<_>>())
}

fn inline<'p>(
    builder: &mut Builder<'_, 'p>,
    node: &'p schema::Node,
    graph: &'p GraphArgument,
    arguments: &[&Argument],
) -> Result<()> {
    let inputs = operands(builder, arguments)?;
    let results = body(builder, &graph.graph, builder.at, &inputs)?;
    builder.bind_all(node, &results)
}

fn branch<'p>(
    builder: &mut Builder<'_, 'p>,
    node: &'p schema::Node,
    condition: &Argument,
    (yes, no): (&'p Graph, &'p Graph),
    arguments: &[&Argument],
) -> Result<()> {
    let inputs = operands(builder, arguments)?;
    let condition = builder.truth(condition)?;
    let choice = builder.emit("prim::If", &[condition], &[])?;
    let mut types = Vec::new();
    for graph in [yes, no] {
        let block = choice.add_block()?;
        let results = body(builder, graph, block.return_node(), &inputs)?;
        types.push(results.iter().map(|result| result.type_of()).collect::<Vec<_>>());
        for result in results {
            block.register_output(result)?;
        }
    }
    let [first, second] = &types[..] else { return Err(Error::invalid("a branch is missing")) };
    if first != second {
        return Err(Error::invalid("its two branches give results of different types"));
    }
    for ty in first {
        choice.add_output()?.set_type(ty)?;
    }
    builder.bind_all(node, &choice.outputs())
}

fn repeat<'p>(
    builder: &mut Builder<'_, 'p>,
    node: &'p schema::Node,
    (test, round): (&'p Graph, &'p Graph),
    carried: &Argument,
    others: &[&Argument],
) -> Result<()> {
    let carried = operands(builder, &[carried])?;
    let others = operands(builder, others)?;
    let inputs: Vec<_> = carried.iter().chain(&others).copied().collect();
    let goes_on = body(builder, test, builder.at, &inputs)?;
    let goes_on = condition(builder, &goes_on)?;
    let mut loop_inputs = vec![builder.constant(i64::MAX)?, goes_on];
    loop_inputs.extend(&carried);
    let repeated = builder.emit("prim::Loop", &loop_inputs, &[])?;
    let block = repeated.add_block()?;
    block.add_input("")?.set_type(&crate::ir::Type::parse("int")?)?;
    let mut inner = Vec::new();
    for value in &carried {
        let handed = block.add_input("")?;
        handed.set_type(&value.type_of())?;
        inner.push(handed);
        repeated.add_output()?.set_type(&value.type_of())?;
    }
    inner.extend(&others);
    let results = body(builder, round, block.return_node(), &inner)?;
    if results.len() != carried.len() {
        return Err(Error::invalid("the file is damaged: a round of the loop hands on another number of values"));
    }
    let mut next = results.clone();
    next.extend(&others);
    let within = builder.inside(block.return_node(), Scope::new());
    let goes_on = body(&within, test, block.return_node(), &next)?;
    block.register_output(condition(&within, &goes_on)?)?;
    for result in results {
        block.register_output(result)?;
    }
    builder.bind_all(node, &repeated.outputs())
}

/// The only result of a loop's test, as a truth value.
fn condition<'g>(builder: &Builder<'g, '_>, results: &[Value<'g>]) -> Result<Value<'g>> {
    let [value] = results else { return Err(Error::invalid("the loop's test has more than one result")) };
    builder.as_bool(*value)
}
