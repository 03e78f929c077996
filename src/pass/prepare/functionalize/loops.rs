//! Loops: those that run a known number of times and change lists or tensors are written out, the others carry what they
//! write.

use std::collections::HashMap;
use std::rc::Rc;

use super::state::{HEAP, Known, Object, PARAMETER, State, Storage};
use super::views::copy_of;
use super::walk::{Log, Step, Stop, Walker, is_container, is_tensor, source};
use super::writes::changes_something;
use crate::error::Error;
use crate::ir::{Block, IValue, Node, Type, Value};

/// Rounds that are written out at most.
const MOST_ROUNDS: usize = 256;
/// Nodes that are copied at most, all loops together.
const MOST_COPIES: usize = 20_000;

/// What a loop hands from round to round.
enum Slot<'g> {
    /// A value of its own: what it is at first.
    Own(Known<'g>),
    Storage(usize),
    /// An item of a list.
    Item(usize, usize),
}

/// `node`, the nodes in its blocks, and the ends of those.
fn with_inner<'g>(node: Node<'g>, all: &mut Vec<Node<'g>>) {
    all.push(node);
    for block in node.blocks() {
        block.nodes().for_each(|inner| with_inner(inner, all));
        all.push(block.return_node());
    }
}

/// Whether `value`, in the body of a loop, is computed from numbers and lengths alone.
fn is_count(value: Value<'_>, body: Block<'_>) -> bool {
    let node = value.node();
    if value.is_constant() || node.owning_block() != Some(body) || value.is_block_input() {
        let kind = value.type_of().kind();
        return matches!(kind.as_str(), "IntType" | "BoolType" | "NoneType") || is_container(&value.type_of());
    }
    let is_arithmetic = node.kind() == "aten::len" || {
        let kinds = ["IntType", "BoolType"];
        node.kind().starts_with("aten::") && node.inputs().iter().all(|input| kinds.contains(&&*input.type_of().kind()))
    };
    is_arithmetic && node.inputs().into_iter().all(|input| is_count(input, body))
}

fn why_handed(node: Node<'_>) -> String {
    format!("it is handed from round to round of a loop ({})", source(node))
}

impl<'g> Walker<'g, '_> {
    /// Walks through a `prim::Loop`.
    pub fn rounds(&mut self, node: Node<'g>) -> Step<()> {
        let [trips, condition, ..] = node.inputs()[..] else { return Err(Error::invalid("a loop has inputs").into()) };
        let (trips, condition) = (self.int(trips)?, self.truth(condition)?);
        let body = node.blocks()[0];
        let begins = condition != Some(false) && trips != Some(0);
        if !begins {
            for (output, input) in std::iter::zip(node.outputs(), &node.inputs()[2..]) {
                let known = self.known_of(*input)?;
                self.known.insert(output, known);
            }
            self.dead.push(node);
            return Ok(());
        }
        let changes = body
            .all_nodes()
            .into_iter()
            .any(|inner| changes_something(inner) || matches!(inner.kind(), "aten::__getitem__" | "prim::ListUnpack"));
        let carries_list = body.inputs().into_iter().any(|input| is_container(&input.type_of()));
        let site = self.sites.get(&node).copied().unwrap_or_default();
        let goes_on = body.outputs()[0];
        let is_counted = match goes_on.constant() {
            Some(IValue::Bool(true)) => trips.is_some_and(|trips| trips <= MOST_ROUNDS as i64),
            _ => is_count(goes_on, body),
        };
        let is_wanted = (changes || carries_list) && condition == Some(true) && trips.is_some() && is_counted;
        match is_wanted && !self.knowledge.whole.contains(&site) {
            true => self.write_out(node, body, trips.unwrap_or_default(), site),
            false => self.carry(node, body, site),
        }
    }

    /// Puts the body's nodes before the loop, once for each round.
    fn write_out(&mut self, node: Node<'g>, body: Block<'g>, trips: i64, site: usize) -> Step<()> {
        let mut carried = Vec::new();
        for input in &node.inputs()[2..] {
            carried.push(self.known_of(*input)?);
        }
        let arguments = body.inputs();
        let mut round = 0;
        while round < trips {
            if round as usize >= MOST_ROUNDS || self.copied > MOST_COPIES {
                self.knowledge.whole.insert(site);
                return Err(Stop::Again);
            }
            let number = node.insert_constant(IValue::Int(round))?;
            self.known.insert(arguments[0], Known::Plain(number));
            for (argument, known) in std::iter::zip(&arguments[1..], &carried) {
                self.known.insert(*argument, known.clone());
            }
            let (copies, map) = self.copy_body(body, node)?;
            copies.into_iter().try_for_each(|copy| self.node(copy))?;
            let results: Vec<_> =
                body.outputs().into_iter().map(|result| map.get(&result).copied().unwrap_or(result)).collect();
            let goes_on = self.truth(results[0])?;
            carried = results[1..].iter().map(|result| self.known_of(*result)).collect::<Step<_>>()?;
            round += 1;
            match goes_on {
                Some(true) => {}
                Some(false) => break,
                None => {
                    self.knowledge.whole.insert(site);
                    return Err(Stop::Again);
                }
            }
        }
        for (output, known) in std::iter::zip(node.outputs(), carried) {
            self.known.insert(output, known);
        }
        self.dead.push(node);
        Ok(())
    }

    fn copy_body(&mut self, body: Block<'g>, at: Node<'g>) -> Step<(Vec<Node<'g>>, HashMap<Value<'g>, Value<'g>>)> {
        let mut map: HashMap<Value<'g>, Value<'g>> = HashMap::new();
        let mut copies = Vec::new();
        for node in body.nodes() {
            let copy = node.copy()?.insert_before(at)?;
            let (mut old, mut new) = (Vec::new(), Vec::new());
            with_inner(node, &mut old);
            with_inner(copy, &mut new);
            for (old, new) in std::iter::zip(&old, &new) {
                if let Some(site) = self.sites.get(old).copied() {
                    self.sites.insert(*new, site);
                }
            }
            for each in &new {
                for (index, input) in each.inputs().into_iter().enumerate() {
                    if let Some(mapped) = map.get(&input) {
                        each.replace_input(index, *mapped)?;
                    }
                }
            }
            map.extend(std::iter::zip(node.outputs(), copy.outputs()));
            self.copied += new.len();
            copies.push(copy);
        }
        Ok((copies, map))
    }

    /// A loop that stays: a new one that carries what it writes.
    fn carry(&mut self, node: Node<'g>, body: Block<'g>, site: usize) -> Step<()> {
        let mut inputs = Vec::new();
        for input in &node.inputs()[..2] {
            let known = self.known_of(*input)?;
            inputs.push(self.value(&known, node, false)?);
        }
        let slots = self.slots(node, site)?;
        let (arguments, results) = (body.inputs(), body.outputs());
        let own = node.inputs().len() - 2;
        let mut is_real = Vec::new();
        let mut first = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let (known, ty) = match slot {
                Slot::Own(known) => (known.clone(), arguments[index + 1].type_of()),
                Slot::Storage(number) => {
                    first.push(self.current(*number)?.1);
                    is_real.push(false);
                    continue;
                }
                Slot::Item(list, place) => {
                    let item = self.state.lists.get(list).and_then(|list| list.items.get(*place)).cloned();
                    (item.ok_or_else(|| Error::invalid("a list has its items"))?, Type::parse("Tensor")?)
                }
            };
            let noted =
                [(site, PARAMETER + index), (site, index)].iter().any(|site| self.knowledge.real.contains_key(site));
            let real = is_tensor(&ty) && (noted || self.is_real(&known));
            if real {
                self.keep_seen_written(&known, &[], &self.state.clone(), || why_handed(node))?;
            }
            let mut value = self.value(&known, node, true)?;
            if real && !self.is_real(&known) && value.type_of().is_tensor() {
                value = copy_of(node, node, value)?;
            }
            if !is_tensor(&ty) {
                self.escape(&known)?;
            }
            first.push(value);
            is_real.push(real);
        }
        inputs.extend(&first);
        let new = self.graph.create("prim::Loop", &inputs, 0)?.insert_before(node)?;
        new.copy_metadata(node)?;
        self.sites.insert(new, site);
        let block = new.add_block()?;
        let before = self.state.clone();
        let number = block.add_input("")?;
        number.set_type(&Type::parse("int")?)?;
        self.known.insert(arguments[0], Known::Plain(number));
        let mut parameters = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let parameter = block.add_input("")?;
            match slot {
                Slot::Own(_) => parameter.set_type(&arguments[index + 1].type_of())?,
                _ => parameter.set_type(&first[index].type_of())?,
            }
            parameters.push(self.parameter(
                slot,
                parameter,
                is_real[index],
                (site, PARAMETER + index),
                arguments.get(index + 1),
            )?);
        }
        self.state.real_writes += 1;
        self.logs.push(Log::default());
        for inner in body.nodes().collect::<Vec<_>>() {
            inner.move_before(block.return_node())?;
            self.node(inner)?;
        }
        let end = block.return_node();
        let goes_on = self.known_of(results[0])?;
        let goes_on = self.value(&goes_on, end, false)?;
        block.register_output(goes_on)?;
        let handed = results[1..].iter().map(|result| self.known_of(*result)).collect::<Step<Vec<_>>>()?;
        let mut last = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let known = match slot {
                Slot::Own(_) => self.known_of(results[index + 1])?,
                Slot::Storage(number) => {
                    block.register_output(self.current(*number)?.1)?;
                    last.push(None);
                    continue;
                }
                Slot::Item(list, place) => {
                    let item = self.state.lists.get(list).and_then(|list| list.items.get(*place)).cloned();
                    match item {
                        Some(item) => item,
                        None => return self.keep_container(&Known::List(*list), "its length changes in a loop"),
                    }
                }
            };
            if is_real[index] {
                self.keep_seen_written(&known, &handed, &before, || why_handed(node))?;
            }
            let mut value = self.value(&known, end, true)?;
            match (is_real[index], self.is_real(&known)) {
                (true, false) if value.type_of().is_tensor() => value = copy_of(end, end, value)?,
                (false, true) => {
                    self.knowledge.real.insert((site, PARAMETER + index), why_handed(node));
                    return Err(Stop::Again);
                }
                _ => {}
            }
            if !is_tensor(&value.type_of()) {
                self.escape(&known)?;
            }
            block.register_output(value)?;
            last.push(self.storage_of(&known));
        }
        let log = self.logs.pop().unwrap_or_default();
        self.refuse_what_changed(&before, &slots, node, site)?;
        self.link_rounds(&before, &parameters, &last, &log, node)?;
        // After the loop.
        let body_state = std::mem::replace(&mut self.state, before.clone());
        self.state.join(&body_state);
        self.state.keep_ghosts(&body_state);
        for (index, slot) in slots.iter().enumerate() {
            let output = new.add_output()?;
            match slot {
                Slot::Own(init) => {
                    output.set_type(&node.outputs()[index].type_of())?;
                    let known =
                        self.after(output, is_real[index], (site, index), [self.storage_of(init), last[index]])?;
                    self.known.insert(node.outputs()[index], known);
                }
                Slot::Storage(number) => {
                    output.set_type(&first[index].type_of())?;
                    let version = self.number() as u64;
                    if let Some(storage) = self.state.storages.get_mut(number) {
                        (storage.current, storage.version) = (output, version);
                    }
                }
                Slot::Item(list, place) => {
                    output.set_type(&first[index].type_of())?;
                    let item = before.lists.get(list).and_then(|list| list.items.get(*place)).cloned();
                    let storage = item.and_then(|item| self.storage_of(&item));
                    let known = self.after(output, is_real[index], (site, index), [storage, last[index]])?;
                    if let Some(list) = self.state.lists.get_mut(list) {
                        list.items[*place] = known;
                        list.cached = None;
                    }
                }
            }
        }
        let _ = own;
        self.dead.push(node);
        Ok(())
    }

    /// What the loop carries: its own values, then what it was found to write.
    fn slots(&mut self, node: Node<'g>, site: usize) -> Step<Vec<Slot<'g>>> {
        let mut slots = Vec::new();
        for input in &node.inputs()[2..] {
            slots.push(Slot::Own(self.known_of(*input)?));
        }
        let wanted = self.knowledge.carried.get(&site).cloned().unwrap_or_default();
        let mut storages: Vec<_> = self
            .state
            .storages
            .iter()
            .filter(|(_, storage)| !storage.is_ghost && wanted.contains(&storage.site))
            .map(|(number, _)| *number)
            .collect();
        storages.sort_unstable();
        slots.extend(storages.into_iter().map(Slot::Storage));
        let mut lists: Vec<_> = self
            .state
            .lists
            .iter()
            .filter(|(_, list)| wanted.contains(&list.site))
            .map(|(number, _)| *number)
            .collect();
        lists.sort_unstable();
        for number in lists {
            let items = self.state.lists.get(&number).map(|list| list.items.clone()).unwrap_or_default();
            if items.iter().any(|item| !matches!(item, Known::Tensor(_))) {
                return self.keep_container(&Known::List(number), "a loop changes its items");
            }
            slots.extend((0..items.len()).map(|place| Slot::Item(number, place)));
        }
        Ok(slots)
    }

    /// What an argument of the body is; its storage.
    fn parameter(
        &mut self,
        slot: &Slot<'g>,
        value: Value<'g>,
        is_real: bool,
        site: (usize, usize),
        old: Option<&Value<'g>>,
    ) -> Step<Option<usize>> {
        let init = match slot {
            Slot::Storage(number) => {
                let version = self.number() as u64;
                if let Some(storage) = self.state.storages.get_mut(number) {
                    (storage.current, storage.version) = (value, version);
                }
                return Ok(None);
            }
            Slot::Own(known) => self.storage_of(known),
            Slot::Item(list, place) => {
                let item = self.state.lists.get(list).and_then(|list| list.items.get(*place)).cloned();
                item.and_then(|item| self.storage_of(&item))
            }
        };
        let known = match (is_tensor(&value.type_of()), is_real) {
            (true, true) => self.real(value),
            (true, false) => self.pure(value, site),
            _ => Known::Plain(value),
        };
        let storage = self.storage_of(&known);
        if let (Some(storage), Some(init)) = (storage, init) {
            self.state.link(storage, init);
        }
        match (slot, old) {
            (Slot::Own(_), Some(old)) => drop(self.known.insert(*old, known)),
            (Slot::Item(list, place), _) => {
                if let Some(list) = self.state.lists.get_mut(list) {
                    list.items[*place] = known;
                    list.cached = None;
                }
            }
            _ => {}
        }
        Ok(storage)
    }

    /// What a result of the loop is.
    fn after(
        &mut self,
        output: Value<'g>,
        is_real: bool,
        site: (usize, usize),
        sources: [Option<usize>; 2],
    ) -> Step<Known<'g>> {
        if !is_tensor(&output.type_of()) {
            return Ok(Known::Plain(output));
        }
        if is_real {
            return Ok(self.real(output));
        }
        let known = self.pure(output, site);
        if let Some(storage) = self.storage_of(&known) {
            sources.into_iter().flatten().for_each(|source| self.state.link(storage, source));
        }
        Ok(known)
    }

    /// What the body changed and the loop does not carry yet.
    fn refuse_what_changed(&mut self, before: &State<'g>, slots: &[Slot<'g>], node: Node<'g>, site: usize) -> Step<()> {
        let is_carried = |wanted: usize| {
            slots.iter().any(|slot| match slot {
                Slot::Storage(number) | Slot::Item(number, _) => *number == wanted,
                Slot::Own(_) => false,
            })
        };
        let why = format!("it changes in a loop whose number of rounds is not known ({})", source(node));
        let mut found = Vec::new();
        for (number, storage) in before.storages.iter().filter(|(_, storage)| !storage.is_ghost) {
            let now = self.state.storages.get(number).map(|storage| storage.version);
            if now != Some(storage.version) && !is_carried(*number) {
                found.push(storage.site);
            }
        }
        let mut lists: Vec<_> = before.lists.iter().collect();
        lists.sort_by_key(|(number, _)| **number);
        for (number, list) in lists {
            let now = self.state.lists.get(number).map(|list| list.items.clone()).unwrap_or_default();
            if now.len() != list.items.len() {
                return self.keep_container(&Known::List(*number), &why);
            }
            if now != list.items && !is_carried(*number) {
                found.push(list.site);
            }
        }
        for (number, dict) in &before.dicts {
            let now = self.state.dicts.get(number).map(|dict| dict.items.clone()).unwrap_or_default();
            let same = now.len() == dict.items.len()
                && std::iter::zip(&now, &dict.items).all(|(now, was)| now.0 == was.0 && now.2 == was.2);
            if !same {
                return self.keep_container(&Known::Dict(*number), &why);
            }
        }
        for (number, object) in &before.objects {
            if let (Object::Pure { storage, chain, .. }, Some(Object::Pure { chain: now, .. })) =
                (object, self.state.objects.get(number))
                && !Rc::ptr_eq(chain, now)
            {
                return self.keep_written(*storage, &why);
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let carried = self.knowledge.carried.entry(site).or_default();
        let count = carried.len();
        carried.extend(found);
        let found_out = carried.len() > count;
        self.again(found_out, &why)
    }

    /// What a round hands on is what the next one begins with: what shares memory then, and what is out of date.
    fn link_rounds(
        &mut self,
        before: &State<'g>,
        parameters: &[Option<usize>],
        last: &[Option<usize>],
        log: &Log,
        node: Node<'g>,
    ) -> Step<()> {
        let why = format!("a round of a loop writes what a later one may read by another name ({})", source(node));
        let lasts = |thing: usize| {
            thing == HEAP
                || parameters.contains(&Some(thing))
                || before.storages.contains_key(&thing)
                || before.lists.contains_key(&thing)
                || before.dicts.contains_key(&thing)
        };
        for (parameter, last) in std::iter::zip(parameters, last) {
            let (Some(parameter), Some(last)) = (parameter, last) else { continue };
            let mut same = self.state.linked(*last);
            same.push(*last);
            if parameter == last || !same.iter().any(|thing| lasts(*thing)) {
                continue;
            }
            self.state.link(*parameter, *last);
            let mut group = self.state.linked(*parameter);
            group.push(*parameter);
            for written in group.iter().filter(|thing| log.writes.contains(thing)) {
                for other in group.iter().filter(|other| *other != written && lasts(**other)) {
                    self.state.stale.entry(*other).or_insert_with(|| why.clone());
                }
            }
        }
        for thing in self.state.stale.keys().copied().collect::<Vec<_>>() {
            let is_new = !before.stale.contains_key(&thing);
            if is_new && log.reads.contains(&thing) && lasts(thing) {
                return self.keep_written(thing, &why);
            }
        }
        Ok(())
    }
}

impl<'g> State<'g> {
    /// Storages of a block that was left: they have no value here, and share memory with others still.
    pub(super) fn keep_ghosts(&mut self, inner: &State<'g>) {
        for (number, storage) in &inner.storages {
            self.storages.entry(*number).or_insert_with(|| Storage { is_ghost: true, ..storage.clone() });
        }
    }
}
