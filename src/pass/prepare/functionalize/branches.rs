//! Branches: what both have written is a result of `prim::If`.

use std::rc::Rc;

use super::state::{Known, Object, Site, State, Storage};
use super::views::copy_of;
use super::walk::{Step, Walker, is_tensor, source};
use crate::error::Error;
use crate::ir::{Block, IValue, Node, Type, Value};

/// The end of a branch.
struct End<'g> {
    block: Block<'g>,
    state: State<'g>,
    results: Vec<Known<'g>>,
    /// It ends in an exception: what it did does not matter.
    raises: bool,
}

/// Whether `value` is computed in one of the blocks of `node`.
pub fn is_inside(value: Value<'_>, node: Node<'_>) -> bool {
    let mut block = value.node().owning_block();
    while let Some(owner) = block.and_then(Block::owner) {
        if owner == node {
            return true;
        }
        block = owner.owning_block();
    }
    false
}

fn raises(nodes: &[Node<'_>]) -> bool {
    nodes.iter().any(|node| match node.kind() {
        "prim::RaiseException" => true,
        "prim::If" => node.blocks().into_iter().all(|block| raises(&block.nodes().collect::<Vec<_>>())),
        _ => false,
    })
}

impl<'g> Walker<'g, '_> {
    /// Walks through a `prim::If`.
    pub fn branches(&mut self, node: Node<'g>) -> Step<()> {
        if let Some(truth) = self.truth(node.inputs()[0])? {
            let block = node.blocks()[usize::from(!truth)];
            for inner in block.nodes().collect::<Vec<_>>() {
                inner.move_before(node)?;
                self.node(inner)?;
            }
            for (output, result) in std::iter::zip(node.outputs(), block.outputs()) {
                let known = self.known_of(result)?;
                self.known.insert(output, known);
            }
            self.dead.push(node);
            return Ok(());
        }
        let condition = self.known_of(node.inputs()[0])?;
        let condition = self.value(&condition, node, false)?;
        let new = self.graph.create("prim::If", &[condition], 0)?.insert_before(node)?;
        new.copy_metadata(node)?;
        let site = self.sites.get(&node).copied().unwrap_or_default();
        self.sites.insert(new, site);
        let before = self.state.clone();
        let mut ends = Vec::new();
        for old in node.blocks() {
            let block = new.add_block()?;
            let nodes: Vec<_> = old.nodes().collect();
            let raises = raises(&nodes);
            self.state = before.clone();
            for inner in nodes {
                inner.move_before(block.return_node())?;
                self.node(inner)?;
            }
            let results = old.outputs().into_iter().map(|result| self.known_of(result)).collect::<Step<Vec<_>>>()?;
            ends.push(End { block, state: std::mem::take(&mut self.state), results, raises });
        }
        if ends.iter().all(|end| end.raises) {
            ends.iter_mut().for_each(|end| end.raises = false);
        }
        self.join(node, new, before, ends)
    }

    /// What holds after both branches.
    fn join(&mut self, old: Node<'g>, new: Node<'g>, before: State<'g>, mut ends: Vec<End<'g>>) -> Step<()> {
        self.state = before.clone();
        self.refuse_reshaped(&before, &ends, old)?;
        let site = self.sites.get(&new).copied().unwrap_or_default();
        let tensor = Rc::new(Type::parse("Tensor")?);
        let mut storages: Vec<_> = before.storages.iter().filter(|(_, storage)| !storage.is_ghost).collect();
        storages.sort_by_key(|(number, _)| **number);
        for (number, storage) in storages {
            let now = |end: &End<'g>| end.state.storages.get(number).map(|storage| (storage.version, storage.current));
            let changed =
                |end: &End<'g>| !end.raises && now(end).is_some_and(|(version, _)| version != storage.version);
            if !ends.iter().any(changed) {
                continue;
            }
            let values: Vec<_> = ends
                .iter()
                .map(|end| if end.raises { storage.current } else { now(end).map_or(storage.current, |now| now.1) })
                .collect();
            let current =
                self.phi(new, &ends, &values.into_iter().map(Some).collect::<Vec<_>>(), &storage.current.type_of())?;
            let version = self.number() as u64;
            self.state.storages.insert(*number, Storage { current, version, ..storage.clone() });
        }
        let mut lists: Vec<_> = before.lists.iter().collect();
        lists.sort_by_key(|(number, _)| **number);
        for (number, list) in lists {
            let items: Vec<Option<Vec<Known<'g>>>> = ends
                .iter()
                .map(|end| if end.raises { None } else { end.state.lists.get(number).map(|list| list.items.clone()) })
                .collect();
            if items.iter().flatten().all(|items| *items == list.items) {
                continue;
            }
            let length = items.iter().flatten().next().map_or(0, Vec::len);
            if items.iter().flatten().any(|items| items.len() != length) {
                let why = format!("its length depends on a branch ({})", source(old));
                return self.keep_container(&Known::List(*number), &why);
            }
            let ty = list.ty.contained().pop().map_or_else(|| tensor.clone(), Rc::new);
            let mut merged = Vec::new();
            for index in 0..length {
                let each = items.iter().map(|items| items.as_ref().map(|items| items[index].clone())).collect();
                merged.push(self.merge(new, &before, &mut ends, each, &ty, (site, 1000 + index))?);
            }
            if let Some(list) = self.state.lists.get_mut(number) {
                (list.items, list.cached) = (merged, None);
            }
        }
        let mut dicts: Vec<_> = before.dicts.iter().collect();
        dicts.sort_by_key(|(number, _)| **number);
        for (number, dict) in dicts {
            let items: Vec<_> = ends
                .iter()
                .map(|end| if end.raises { None } else { end.state.dicts.get(number).map(|dict| dict.items.clone()) })
                .collect();
            let same = |items: &&Vec<(String, Value<'g>, Known<'g>)>| {
                items.len() == dict.items.len()
                    && std::iter::zip(*items, &dict.items).all(|(a, b)| a.0 == b.0 && a.2 == b.2)
            };
            if items.iter().flatten().all(|items| same(&items)) {
                continue;
            }
            let Some(merged) = self.merge_dicts(new, &before, &mut ends, &items, &dict.ty, site)? else {
                let why = format!("its keys depend on a branch ({})", source(old));
                return self.keep_container(&Known::Dict(*number), &why);
            };
            if let Some(dict) = self.state.dicts.get_mut(number) {
                dict.items = merged;
            }
        }
        for (index, output) in old.outputs().into_iter().enumerate() {
            let each = ends.iter().map(|end| (!end.raises).then(|| end.results[index].clone())).collect();
            let known = self.merge(new, &before, &mut ends, each, &Rc::new(output.type_of()), (site, index))?;
            self.known.insert(output, known);
        }
        for end in ends.iter().filter(|end| !end.raises) {
            self.state.join(&end.state);
            self.state.keep_ghosts(&end.state);
        }
        self.dead.push(old);
        Ok(())
    }

    /// A tensor object that has other sizes after one branch cannot be followed.
    fn refuse_reshaped(&mut self, before: &State<'g>, ends: &[End<'g>], node: Node<'g>) -> Step<()> {
        for (number, object) in &before.objects {
            let Object::Pure { storage, chain, .. } = object else { continue };
            let is_other = |end: &End<'g>| matches!(end.state.objects.get(number), Some(Object::Pure { chain: now, .. }) if !Rc::ptr_eq(chain, now));
            if ends.iter().any(|end| !end.raises && is_other(end)) {
                return self.keep_written(*storage, &format!("its sizes depend on a branch ({})", source(node)));
            }
        }
        Ok(())
    }

    /// A new result of `new`: a value of each block; `None` of one that raises.
    fn phi(&mut self, new: Node<'g>, ends: &[End<'g>], values: &[Option<Value<'g>>], ty: &Type) -> Step<Value<'g>> {
        for (end, value) in std::iter::zip(ends, values) {
            let value = match value {
                Some(value) => *value,
                None => {
                    let none =
                        self.graph.create("prim::Uninitialized", &[], 1)?.insert_before(end.block.return_node())?;
                    none.outputs()[0].set_type(ty)?;
                    none.outputs()[0]
                }
            };
            end.block.register_output(value)?;
        }
        let output = new.add_output()?;
        output.set_type(ty)?;
        Ok(output)
    }

    /// What is one thing in each block: the same, or a new result of `new`.
    fn merge(
        &mut self,
        new: Node<'g>,
        before: &State<'g>,
        ends: &mut [End<'g>],
        each: Vec<Option<Known<'g>>>,
        ty: &Rc<Type>,
        site: Site,
    ) -> Step<Known<'g>> {
        let live: Vec<Known<'g>> = each.iter().flatten().cloned().collect();
        let Some(first) = live.first() else { return Err(Error::invalid("a branch has no end").into()) };
        let is_visible = match first {
            Known::Tensor(number) => before.objects.contains_key(number),
            Known::List(number) => before.lists.contains_key(number),
            Known::Dict(number) => before.dicts.contains_key(number),
            Known::Views(views) => {
                before.objects.contains_key(&views.base) && !is_inside(views.view.node.outputs()[0], new)
            }
            Known::Plain(value) => !is_inside(*value, new),
            Known::Tuple(..) => false,
        };
        if is_visible && live.iter().all(|known| known == first) {
            return Ok(first.clone());
        }
        if let Known::Plain(value) = first
            && let Some(constant) = value.constant()
            && matches!(constant, IValue::Int(_) | IValue::Bool(_) | IValue::None | IValue::Str(_))
            && live.iter().all(|known| matches!(known, Known::Plain(other) if other.constant().is_some_and(|other| format!("{other:?}") == format!("{constant:?}"))))
        {
            return Ok(Known::Plain(new.insert_constant(constant)?));
        }
        let has_tensor = live.iter().any(|known| matches!(known, Known::Tensor(_)));
        if has_tensor && live.iter().all(|known| matches!(known, Known::Tensor(_) | Known::Plain(_))) {
            return self.merge_tensors(new, before, ends, &each, ty, site);
        }
        match first {
            Known::Tuple(_, items)
                if live.iter().all(|known| matches!(known, Known::Tuple(_, other) if other.len() == items.len())) =>
            {
                let types = ty.contained();
                let mut merged = Vec::new();
                for index in 0..items.len() {
                    let part = |known: &Known<'g>| match known {
                        Known::Tuple(_, items) => items[index].clone(),
                        other => other.clone(),
                    };
                    let each = each.iter().map(|known| known.as_ref().map(part)).collect();
                    let part_type = match types.get(index) {
                        Some(part) => Rc::new(Type::parse(&part.annotation())?),
                        None => ty.clone(),
                    };
                    merged.push(self.merge(
                        new,
                        before,
                        ends,
                        each,
                        &part_type,
                        (site.0, site.1 * 64 + 2000 + index),
                    )?);
                }
                return Ok(Known::Tuple(ty.clone(), merged));
            }
            Known::List(_) if !self.is_opaque(site) => {
                let items: Vec<Option<Vec<Known<'g>>>> = std::iter::zip(&each, ends.iter())
                    .map(|(known, end)| match known {
                        Some(Known::List(number)) => end.state.lists.get(number).map(|list| list.items.clone()),
                        _ => None,
                    })
                    .collect();
                let lengths: Vec<_> = items.iter().flatten().map(Vec::len).collect();
                if lengths.len() == live.len() && lengths.iter().all(|length| *length == lengths[0]) {
                    let item_type = ty.contained().pop().map_or_else(|| ty.clone(), Rc::new);
                    let mut merged = Vec::new();
                    for index in 0..lengths[0] {
                        let each = items.iter().map(|items| items.as_ref().map(|items| items[index].clone())).collect();
                        let place = (site.0, site.1 * 64 + 4000 + index);
                        merged.push(self.merge(new, before, ends, each, &item_type, place)?);
                    }
                    let list = self.new_list(merged, ty.clone(), site);
                    self.link_containers(&list, &live);
                    return Ok(list);
                }
            }
            Known::Dict(_) if !self.is_opaque(site) => {
                let items: Vec<_> = std::iter::zip(&each, ends.iter())
                    .map(|(known, end)| match known {
                        Some(Known::Dict(number)) => end.state.dicts.get(number).map(|dict| dict.items.clone()),
                        _ => None,
                    })
                    .collect();
                if items.iter().flatten().count() == live.len()
                    && let Some(merged) = self.merge_dicts(new, before, ends, &items, ty, site.0)?
                {
                    let dict = self.new_dict(merged, ty.clone(), site);
                    self.link_containers(&dict, &live);
                    return Ok(dict);
                }
            }
            _ => {}
        }
        // Whatever it is, it is not followed from here on.
        let mut values = Vec::new();
        for (place, known) in each.iter().enumerate() {
            values.push(match known {
                Some(known) => Some(self.in_end(ends, place, |walker, at| {
                    walker.escape(known)?;
                    walker.value(known, at, true)
                })?),
                None => None,
            });
        }
        Ok(Known::Plain(self.phi(new, ends, &values, ty)?))
    }

    fn link_containers(&mut self, merged: &Known<'g>, sources: &[Known<'g>]) {
        let number = |known: &Known<'g>| match known {
            Known::List(number) | Known::Dict(number) => Some(*number),
            _ => None,
        };
        for source in sources.iter().filter_map(number) {
            number(merged).into_iter().for_each(|merged| self.state.link(merged, source));
        }
    }

    #[allow(clippy::type_complexity)]
    fn merge_dicts(
        &mut self,
        new: Node<'g>,
        before: &State<'g>,
        ends: &mut [End<'g>],
        items: &[Option<Vec<(String, Value<'g>, Known<'g>)>>],
        ty: &Rc<Type>,
        site: usize,
    ) -> Step<Option<Vec<(String, Value<'g>, Known<'g>)>>> {
        let Some(first) = items.iter().flatten().next() else { return Ok(None) };
        let keys =
            |items: &[(String, Value<'g>, Known<'g>)]| items.iter().map(|item| item.0.clone()).collect::<Vec<_>>();
        if items.iter().flatten().any(|items| keys(items) != keys(first)) {
            return Ok(None);
        }
        let value_type = ty.contained().pop().map_or_else(|| ty.clone(), Rc::new);
        let mut merged = Vec::new();
        for (index, (text, name, _)) in first.iter().enumerate() {
            let each = items.iter().map(|items| items.as_ref().map(|items| items[index].2.clone())).collect();
            let item = self.merge(new, before, ends, each, &value_type, (site, 6000 + index))?;
            let name = match name.constant() {
                Some(constant) if is_inside(*name, new) => new.insert_constant(constant)?,
                _ => *name,
            };
            merged.push((text.clone(), name, item));
        }
        Ok(Some(merged))
    }

    /// Does something at the end of a branch, in its state.
    fn in_end<T>(
        &mut self,
        ends: &mut [End<'g>],
        place: usize,
        act: impl FnOnce(&mut Self, Node<'g>) -> Step<T>,
    ) -> Step<T> {
        let at = ends[place].block.return_node();
        std::mem::swap(&mut self.state, &mut ends[place].state);
        let result = act(self, at);
        std::mem::swap(&mut self.state, &mut ends[place].state);
        result
    }

    fn merge_tensors(
        &mut self,
        new: Node<'g>,
        before: &State<'g>,
        ends: &mut [End<'g>],
        each: &[Option<Known<'g>>],
        ty: &Type,
        site: Site,
    ) -> Step<Known<'g>> {
        let mut is_real = self.knowledge.real.contains_key(&site);
        for (known, end) in std::iter::zip(each, ends.iter()) {
            if let Some(Known::Tensor(object)) = known {
                is_real |= matches!(end.state.objects.get(object), Some(Object::Real { .. }));
            }
        }
        let why = || format!("it may be what a branch gives, which is written in place ({})", source(new));
        let (mut values, mut sources) = (Vec::new(), Vec::new());
        for (place, known) in each.iter().enumerate() {
            let Some(known) = known else {
                values.push(None);
                continue;
            };
            let results = ends[place].results.clone();
            let (value, source) = self.in_end(ends, place, |walker, at| {
                if is_real {
                    walker.keep_seen_written(known, &results, before, why)?;
                }
                let source = walker.storage_of(known);
                let value = walker.value(known, at, true)?;
                let copies = is_real && !walker.is_real(known) && value.type_of().is_tensor();
                Ok((if copies { copy_of(at, at, value)? } else { value }, source))
            })?;
            values.push(Some(value));
            sources.extend(source);
        }
        let ty = if is_tensor(ty) { Type::parse(&ty.annotation())? } else { Type::parse("Tensor")? };
        let value = self.phi(new, ends, &values, &ty)?;
        if is_real {
            return Ok(self.real(value));
        }
        let known = self.pure(value, site);
        if let Some(storage) = self.storage_of(&known) {
            sources.into_iter().for_each(|source| self.state.link(storage, source));
        }
        Ok(known)
    }
}
