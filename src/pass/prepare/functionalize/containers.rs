//! Lists and tuples whose items are known.

use std::rc::Rc;

use super::state::{Known, List, Site};
use super::walk::{Step, Walker, holds_tensors, is_container, is_tensor, source};
use crate::ir::{IValue, Node, Type, Value};

/// Items that a list multiplied by a number has at most.
const MOST_ITEMS: usize = 1024;

impl<'g> Walker<'g, '_> {
    /// Walks through `node` where it makes, reads or changes a list, a dictionary or a tuple that is known; whether it
    /// does.
    pub fn container(&mut self, node: Node<'g>) -> Step<bool> {
        let output = node.output(0);
        match node.kind() {
            "prim::ListConstruct" => return self.make_list(node),
            "prim::DictConstruct" => return self.make_dict(node),
            "prim::TupleConstruct" => {
                let items = node.inputs().into_iter().map(|input| self.known_of(input)).collect::<Step<Vec<_>>>()?;
                let tuple = Known::Tuple(Rc::new(node.outputs()[0].type_of()), items);
                self.known.insert(node.outputs()[0], tuple);
                self.dead.push(node);
                return Ok(true);
            }
            _ => {}
        }
        let Some(first) = node.input(0) else { return Ok(false) };
        let known = self.known_of(first)?;
        match (&known, node.kind()) {
            (Known::Tuple(_, items), "prim::TupleUnpack") => {
                for (output, item) in std::iter::zip(node.outputs(), items) {
                    self.known.insert(output, item.clone());
                }
                self.dead.push(node);
                Ok(true)
            }
            (Known::Tuple(_, items), "prim::TupleIndex" | "aten::__getitem__") => {
                let index = self.int(node.inputs()[1])?.and_then(|index| place(index, items.len()));
                let (Some(index), Some(output)) = (index, output) else { return Ok(false) };
                self.known.insert(output, items[index].clone());
                self.dead.push(node);
                Ok(true)
            }
            (Known::Views(views), kind) => {
                let views = views.clone();
                match kind {
                    "prim::ListUnpack" => {
                        let mut items = Vec::new();
                        for element in 0..node.outputs().len() {
                            items.push(self.element(&views, element as i64, node)?);
                        }
                        for (output, item) in std::iter::zip(node.outputs(), items) {
                            self.known.insert(output, item);
                        }
                        self.dead.push(node);
                        Ok(true)
                    }
                    "aten::__getitem__" => {
                        let Some(index) = self.int(node.inputs()[1])? else {
                            return self
                                .keep_container(&known, &format!("{} takes one that is not known", source(node)));
                        };
                        let item = self.element(&views, index, node)?;
                        self.known.insert(node.outputs()[0], item);
                        self.dead.push(node);
                        Ok(true)
                    }
                    "aten::len" => {
                        // Sizes do not change.
                        node.replace_input(0, views.view.node.outputs()[0])?;
                        self.known.insert(node.outputs()[0], Known::Plain(node.outputs()[0]));
                        Ok(true)
                    }
                    _ => Ok(false),
                }
            }
            (Known::List(number), _) => self.list_operator(node, *number, &known),
            (Known::Dict(number), _) => self.dict_operator(node, *number, &known),
            (Known::Plain(value), _) if value.is_constant() && value.type_of().kind() == "ListType" => {
                // A constant list that is changed is a new one each time the model runs? No: it is the same. It stays.
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn make_list(&mut self, node: Node<'g>) -> Step<bool> {
        let output = node.outputs()[0];
        let site = self.site(output);
        if self.is_opaque(site) {
            return self.make_opaque(node);
        }
        let items = node.inputs().into_iter().map(|input| self.known_of(input)).collect::<Step<Vec<_>>>()?;
        let list = self.new_list(items, Rc::new(output.type_of()), site);
        self.known.insert(output, list);
        self.dead.push(node);
        Ok(true)
    }

    /// A list or dictionary that is not followed.
    pub fn make_opaque(&mut self, node: Node<'g>) -> Step<bool> {
        let taken = self.take_inputs(node, true)?;
        taken.iter().try_for_each(|known| self.escape(known))?;
        self.known.insert(node.outputs()[0], Known::Plain(node.outputs()[0]));
        Ok(true)
    }

    pub fn new_list(&mut self, items: Vec<Known<'g>>, ty: Rc<Type>, site: Site) -> Known<'g> {
        let number = self.number();
        self.state.lists.insert(number, List { items, ty, site, cached: None });
        Known::List(number)
    }

    pub fn refuse_stale_container(&mut self, number: usize) -> Step<()> {
        match self.state.stale.get(&number).cloned() {
            Some(why) => self.keep_written(number, &why),
            None => Ok(()),
        }
    }

    /// The list has other items from now on.
    fn set_items(&mut self, number: usize, items: Vec<Known<'g>>, at: Node<'g>) -> Step<()> {
        if self.state.escaped.contains(&number) {
            let why = format!("it lies in what is not followed, and {} changes it", source(at));
            return self.keep_container(&Known::List(number), &why);
        }
        let why = format!("{} may change it by another name", source(at));
        for other in self.state.linked(number) {
            self.state.stale.entry(other).or_insert_with(|| why.clone());
        }
        if let Some(list) = self.state.lists.get_mut(&number) {
            (list.items, list.cached) = (items, None);
        }
        self.logs.iter_mut().for_each(|log| _ = log.writes.insert(number));
        Ok(())
    }

    /// A value for the list, before `at`.
    pub fn list_value(&mut self, number: usize, at: Node<'g>, hands_over: bool) -> Step<Value<'g>> {
        self.refuse_stale_container(number)?;
        self.log_read(number);
        let Some(list) = self.state.lists.get(&number).cloned() else {
            return Err(crate::error::Error::invalid("a list is read that is not known here").into());
        };
        let values = list.items.iter().map(|item| self.value(item, at, hands_over)).collect::<Step<Vec<_>>>()?;
        if let Some((of, value)) = &list.cached
            && *of == values
        {
            return Ok(*value);
        }
        let value = self.construct("prim::ListConstruct", &values, &list.ty, at)?;
        // Who is handed a list may change it.
        if !hands_over && let Some(list) = self.state.lists.get_mut(&number) {
            list.cached = Some((values, value));
        }
        Ok(value)
    }

    fn list_operator(&mut self, node: Node<'g>, number: usize, known: &Known<'g>) -> Step<bool> {
        self.refuse_stale_container(number)?;
        self.log_read(number);
        let Some(list) = self.state.lists.get(&number).cloned() else { return Ok(false) };
        let (mut items, site) = (list.items.clone(), list.site);
        let inputs = node.inputs();
        let schema = node.schema();
        let changes =
            schema.as_ref().is_some_and(|schema| schema.arguments.first().is_some_and(|first| first.is_write));
        let mut given = None;
        match node.kind() {
            "aten::append" => items.push(self.known_of(inputs[1])?),
            "aten::extend" | "aten::add_" => match self.items_of(inputs[1])? {
                Some(more) => {
                    items.extend(more);
                    given = Some(known.clone());
                }
                None => return self.keep_container(known, &format!("{} adds what is not known", source(node))),
            },
            "aten::insert" | "aten::pop" | "aten::Delete" | "aten::_set_item" => {
                let length = items.len();
                let index = match inputs.get(1) {
                    Some(index) => self.int(*index)?,
                    None => Some(-1),
                };
                let Some(index) = index else {
                    return self.keep_container(known, &format!("{} at a place that is not known", source(node)));
                };
                if node.kind() == "aten::insert" {
                    let index = if index < 0 { index + length as i64 } else { index };
                    let item = self.known_of(inputs[2])?;
                    items.insert(index.clamp(0, length as i64) as usize, item);
                } else {
                    let Some(index) = place(index, length) else {
                        return self.keep_container(known, &format!("{} beyond its end", source(node)));
                    };
                    match node.kind() {
                        "aten::_set_item" => {
                            items[index] = self.known_of(inputs[2])?;
                            given = Some(known.clone());
                        }
                        _ => given = Some(items.remove(index)),
                    }
                }
            }
            "aten::reverse" => items.reverse(),
            "aten::clear" => items.clear(),
            "aten::len" => {
                return self.put_constant(node.outputs()[0], IValue::Int(items.len() as i64), node).map(|()| true);
            }
            "aten::__getitem__" => {
                return match self.int(inputs[1])?.and_then(|index| place(index, items.len())) {
                    Some(index) => {
                        self.known.insert(node.outputs()[0], items[index].clone());
                        self.dead.push(node);
                        Ok(true)
                    }
                    None => self.any_item(node, &items),
                };
            }
            "prim::ListUnpack" if node.outputs().len() == items.len() => {
                for (output, item) in std::iter::zip(node.outputs(), items) {
                    self.known.insert(output, item);
                }
                self.dead.push(node);
                return Ok(true);
            }
            "aten::copy" | "aten::list" if node.outputs()[0].type_of() == *list.ty => {
                return self.give_list(node, items, &list.ty, site);
            }
            "aten::add" => {
                return match self.items_of(inputs[1])? {
                    Some(more) => {
                        items.extend(more);
                        self.give_list(node, items, &list.ty, site)
                    }
                    None => Ok(false),
                };
            }
            "aten::mul" => {
                return match self.int(inputs[1])? {
                    Some(times) if items.len() * times.max(0) as usize <= MOST_ITEMS => {
                        let items: Vec<_> = (0..times.max(0)).flat_map(|_| items.iter().cloned()).collect();
                        self.give_list(node, items, &list.ty, site)
                    }
                    _ => Ok(false),
                };
            }
            "aten::slice" => {
                return match self.sliced(&inputs, &items)? {
                    Some(items) => self.give_list(node, items, &list.ty, site),
                    None => Ok(false),
                };
            }
            _ if changes => return self.keep_container(known, &format!("{} changes it", source(node))),
            _ => return Ok(false),
        }
        self.set_items(number, items, node)?;
        let given = given.unwrap_or_else(|| known.clone());
        for output in node.outputs() {
            self.known.insert(output, given.clone());
        }
        self.dead.push(node);
        Ok(true)
    }

    pub fn give_list(&mut self, node: Node<'g>, items: Vec<Known<'g>>, ty: &Rc<Type>, of: Site) -> Step<bool> {
        // Where the new list cannot be followed, the one that it came from is not either.
        let own = self.site(node.outputs()[0]);
        let site = if self.sites.contains_key(&node) { own } else { of };
        if self.is_opaque(site) {
            return Ok(false);
        }
        let list = self.new_list(items, ty.clone(), site);
        self.known.insert(node.outputs()[0], list);
        self.dead.push(node);
        Ok(true)
    }

    /// The items of a list that is followed, or constant.
    pub fn items_of(&mut self, list: Value<'g>) -> Step<Option<Vec<Known<'g>>>> {
        match self.known_of(list)? {
            Known::List(number) => {
                self.refuse_stale_container(number)?;
                self.log_read(number);
                Ok(self.state.lists.get(&number).map(|list| list.items.clone()))
            }
            _ => Ok(None),
        }
    }

    fn sliced(&mut self, inputs: &[Value<'g>], items: &[Known<'g>]) -> Step<Option<Vec<Known<'g>>>> {
        let mut bounds = [0, items.len() as i64, 1];
        for (bound, input) in std::iter::zip(&mut bounds, &inputs[1..]) {
            match self.known_of(*input)? {
                Known::Plain(value) => match value.constant() {
                    Some(IValue::None) => {}
                    Some(IValue::Int(number)) => *bound = number,
                    _ => return Ok(None),
                },
                _ => return Ok(None),
            }
        }
        let [start, end, step] = bounds;
        let length = items.len() as i64;
        if step < 1 {
            return Ok(None);
        }
        let clamp = |bound: i64| if bound < 0 { (bound + length).max(0) } else { bound.min(length) };
        let (start, end) = (clamp(start), clamp(end));
        Ok(Some((start..end).step_by(step as usize).map(|index| items[index as usize].clone()).collect()))
    }

    /// `list[index]` for an index that is not known.
    fn any_item(&mut self, node: Node<'g>, items: &[Known<'g>]) -> Step<bool> {
        let output = node.outputs()[0];
        let ty = output.type_of();
        if !is_tensor(&ty) {
            // Which list, of several, is changed later cannot be told.
            if is_container(&ty) || holds_tensors(&ty) {
                let known = self.known_of(node.inputs()[0])?;
                return self.keep_container(&known, &format!("{} takes one that is not known", source(node)));
            }
            return Ok(false);
        }
        let is_real = items.iter().any(|item| self.is_real(item));
        for (index, input) in node.inputs().into_iter().enumerate() {
            let known = self.known_of(input)?;
            let value = self.value(&known, node, is_real)?;
            node.replace_input(index, value)?;
        }
        if is_real {
            let site = self.site(output);
            for item in items {
                if let Some(storage) = self.storage_of(item) {
                    return self.keep_written(storage, &format!("{} takes one that is not known", source(node)));
                }
            }
            let _ = site;
            let real = self.real(output);
            self.known.insert(output, real);
            return Ok(true);
        }
        let site = self.site(output);
        let known = self.define(output, site, true, node.next())?;
        if let Some(storage) = self.storage_of(&known) {
            for item in items.iter().filter_map(|item| self.storage_of(item)).collect::<Vec<_>>() {
                self.state.link(storage, item);
            }
        }
        Ok(true)
    }
}

/// The place of `list[index]`, negative from the end.
fn place(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index + length as i64 } else { index };
    usize::try_from(index).ok().filter(|index| *index < length)
}
