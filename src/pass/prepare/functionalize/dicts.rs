//! Dictionaries whose keys are known.

use std::rc::Rc;

use super::state::{Dict, Known};
use super::walk::{Step, Walker, source};
use crate::error::Error;
use crate::ir::{IValue, Node, Type, Value};

/// A constant key as text.
fn key(value: Value<'_>) -> Option<String> {
    match value.constant()? {
        key @ (IValue::Str(_) | IValue::Int(_) | IValue::Bool(_) | IValue::Double(_)) => Some(format!("{key:?}")),
        _ => None,
    }
}

impl<'g> Walker<'g, '_> {
    fn key(&mut self, value: Value<'g>) -> Step<Option<(String, Value<'g>)>> {
        Ok(match self.known_of(value)? {
            Known::Plain(value) => key(value).map(|text| (text, value)),
            _ => None,
        })
    }

    pub fn make_dict(&mut self, node: Node<'g>) -> Step<bool> {
        let output = node.outputs()[0];
        let site = self.site(output);
        if self.is_opaque(site) {
            return self.make_opaque(node);
        }
        let mut items: Vec<(String, Value<'g>, Known<'g>)> = Vec::new();
        for pair in node.inputs().chunks(2) {
            let [name, value] = pair else { return Ok(false) };
            let known = self.known_of(*value)?;
            let Some((text, name)) = self.key(*name)? else { return self.make_opaque(node) };
            put(&mut items, text, name, known);
        }
        let number = self.number();
        self.state.dicts.insert(number, Dict { items, ty: Rc::new(output.type_of()), site });
        self.known.insert(output, Known::Dict(number));
        self.dead.push(node);
        Ok(true)
    }

    /// A value for the dictionary, before `at`.
    pub fn dict_value(&mut self, number: usize, at: Node<'g>, hands_over: bool) -> Step<Value<'g>> {
        self.refuse_stale_container(number)?;
        self.log_read(number);
        let Some(dict) = self.state.dicts.get(&number).cloned() else {
            return Err(Error::invalid("a dictionary is read that is not known here").into());
        };
        let mut values = Vec::new();
        for (_, name, item) in &dict.items {
            values.push(*name);
            values.push(self.value(item, at, hands_over)?);
        }
        self.construct("prim::DictConstruct", &values, &dict.ty, at)
    }

    pub fn dict_operator(&mut self, node: Node<'g>, number: usize, known: &Known<'g>) -> Step<bool> {
        self.refuse_stale_container(number)?;
        self.log_read(number);
        let Some(dict) = self.state.dicts.get(&number).cloned() else { return Ok(false) };
        let mut items = dict.items.clone();
        let inputs = node.inputs();
        let changes = node.schema().is_some_and(|schema| schema.arguments.first().is_some_and(|first| first.is_write));
        let asked = match inputs.get(1) {
            Some(name) => self.key(*name)?,
            None => None,
        };
        let found = asked.as_ref().and_then(|(text, _)| items.iter().position(|(known, ..)| known == text));
        let unknown = format!("{} with a key that is not known", source(node));
        let mut given = None;
        match node.kind() {
            "aten::_set_item" => match asked {
                Some((text, name)) => {
                    let item = self.known_of(inputs[2])?;
                    put(&mut items, text, name, item);
                }
                None => return self.keep_container(known, &unknown),
            },
            "aten::Delete" | "aten::pop" => match found {
                Some(place) => given = Some(items.remove(place).2),
                None if node.kind() == "aten::pop" && asked.is_some() && inputs.len() > 2 => {
                    given = Some(self.known_of(inputs[2])?);
                }
                None => return self.keep_container(known, &unknown),
            },
            "aten::clear" => items.clear(),
            "aten::setdefault" => match (asked, found) {
                (Some(_), Some(place)) => given = Some(items[place].2.clone()),
                (Some((text, name)), None) => {
                    let item = self.known_of(inputs[2])?;
                    put(&mut items, text, name, item.clone());
                    given = Some(item);
                }
                _ => return self.keep_container(known, &unknown),
            },
            "aten::update" => match self.known_of(inputs[1])? {
                Known::Dict(other) => {
                    self.refuse_stale_container(other)?;
                    let more = self.state.dicts.get(&other).map(|dict| dict.items.clone()).unwrap_or_default();
                    more.into_iter().for_each(|(text, name, item)| put(&mut items, text, name, item));
                }
                _ => return self.keep_container(known, &unknown),
            },
            "aten::len" => {
                return self.put_constant(node.outputs()[0], IValue::Int(items.len() as i64), node).map(|()| true);
            }
            "aten::__contains__" if asked.is_some() => {
                return self.put_constant(node.outputs()[0], IValue::Bool(found.is_some()), node).map(|()| true);
            }
            "aten::__getitem__" | "aten::get" => {
                let item = match (found, &asked) {
                    (Some(place), _) => items[place].2.clone(),
                    (None, Some(_)) if node.kind() == "aten::get" => match inputs.get(2) {
                        Some(default) => self.known_of(*default)?,
                        None => Known::Plain(node.insert_constant(IValue::None)?),
                    },
                    _ => return self.keep_container(known, &unknown),
                };
                self.known.insert(node.outputs()[0], item);
                self.dead.push(node);
                return Ok(true);
            }
            "aten::keys" | "aten::values" | "aten::items" => {
                let ty = node.outputs()[0].type_of();
                let element =
                    Rc::new(ty.contained().pop().ok_or_else(|| Error::invalid("a list has an element type"))?);
                let item = |(_, name, item): (String, Value<'g>, Known<'g>)| match node.kind() {
                    "aten::keys" => Known::Plain(name),
                    "aten::values" => item,
                    _ => Known::Tuple(element.clone(), vec![Known::Plain(name), item]),
                };
                let items = items.into_iter().map(item).collect();
                return self.give_list(node, items, &Rc::new(ty), dict.site);
            }
            "aten::copy" | "aten::dict" if node.outputs()[0].type_of() == *dict.ty => {
                let number = self.number();
                let site = self.site(node.outputs()[0]);
                if self.is_opaque(site) {
                    return Ok(false);
                }
                self.state.dicts.insert(number, Dict { items, ty: dict.ty.clone(), site });
                self.known.insert(node.outputs()[0], Known::Dict(number));
                self.dead.push(node);
                return Ok(true);
            }
            _ if changes => return self.keep_container(known, &format!("{} changes it", source(node))),
            _ => return Ok(false),
        }
        self.set_dict(number, items, node)?;
        for output in node.outputs() {
            self.known.insert(output, given.clone().unwrap_or_else(|| known.clone()));
        }
        self.dead.push(node);
        Ok(true)
    }

    /// The dictionary has other items from now on.
    fn set_dict(&mut self, number: usize, items: Vec<(String, Value<'g>, Known<'g>)>, at: Node<'g>) -> Step<()> {
        if self.state.escaped.contains(&number) {
            let why = format!("it lies in what is not followed, and {} changes it", source(at));
            return self.keep_container(&Known::Dict(number), &why);
        }
        let why = format!("{} may change it by another name", source(at));
        for other in self.state.linked(number) {
            self.state.stale.entry(other).or_insert_with(|| why.clone());
        }
        if let Some(dict) = self.state.dicts.get_mut(&number) {
            dict.items = items;
        }
        self.logs.iter_mut().for_each(|log| _ = log.writes.insert(number));
        Ok(())
    }

    pub fn new_dict(
        &mut self,
        items: Vec<(String, Value<'g>, Known<'g>)>,
        ty: Rc<Type>,
        site: (usize, usize),
    ) -> Known<'g> {
        let number = self.number();
        self.state.dicts.insert(number, Dict { items, ty, site });
        Known::Dict(number)
    }
}

fn put<'g>(items: &mut Vec<(String, Value<'g>, Known<'g>)>, text: String, name: Value<'g>, item: Known<'g>) {
    match items.iter_mut().find(|(known, ..)| *known == text) {
        Some((_, _, old)) => *old = item,
        None => items.push((text, name, item)),
    }
}
