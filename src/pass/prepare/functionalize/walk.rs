//! The walk through a graph in the order in which it runs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::layout::views_of_row_major;
use super::state::{ARGUMENTS, HEAP, Knowledge, Known, Object, Site, State, Storage, Views};
use super::views::{SHARING_LISTS, Sharing, View, copy_of, sharing};
use crate::error::Error;
use crate::ir::{Graph, IValue, Node, Type, Value};

/// Why a walk ends before the end of the graph.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something was found out; the walk begins again.
    Again,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) type Step<T> = std::result::Result<T, Stop>;

/// What the body of a loop did so far with what was there before it.
#[derive(Default)]
pub(super) struct Log {
    pub reads: BTreeSet<usize>,
    pub writes: BTreeSet<usize>,
}

/// One walk.
pub(super) struct Walker<'g, 'k> {
    pub graph: &'g Graph,
    pub knowledge: &'k mut Knowledge,
    /// The place of each node in the graph as it was.
    pub sites: HashMap<Node<'g>, usize>,
    /// The places of nodes that give a view where a copy would be possible.
    views: HashSet<usize>,
    pub known: HashMap<Value<'g>, Known<'g>>,
    pub state: State<'g>,
    /// One for each loop around the current node.
    pub logs: Vec<Log>,
    /// Nodes made needless.
    pub dead: Vec<Node<'g>>,
    /// Nodes copied to write out loops.
    pub copied: usize,
    /// The module's attributes by path: what each is, and the value that it begins with.
    attributes: BTreeMap<String, (Known<'g>, Value<'g>)>,
    /// Whether what is not followed can be seen from outside.
    heap_is_seen: bool,
    last: u64,
}

/// Whether a value of this type is a tensor, or `None` in place of one.
pub(super) fn is_tensor(ty: &Type) -> bool {
    ty.is_tensor() || (ty.kind() == "OptionalType" && ty.contained().iter().all(Type::is_tensor))
}

/// Whether a value of this type holds tensors that can be reached through it.
pub(super) fn holds_tensors(ty: &Type) -> bool {
    if ty.is_module() {
        return false;
    }
    matches!(ty.kind().as_str(), "ClassType" | "InterfaceType" | "AnyType")
        || ty.contained().iter().any(|part| part.is_tensor() || holds_tensors(part))
}

/// Whether values of this type can be changed: lists and dictionaries.
pub(super) fn is_container(ty: &Type) -> bool {
    matches!(ty.kind().as_str(), "ListType" | "DictType")
        || (ty.kind() == "OptionalType" && ty.contained().iter().any(is_container))
}

/// Where a node is in the source, for reasons.
pub(super) fn source(node: Node<'_>) -> String {
    let source = crate::pass::source_of(node);
    if source.is_empty() { node.kind().to_owned() } else { format!("{} at {source}", node.kind()) }
}

impl<'g, 'k> Walker<'g, 'k> {
    pub fn new(graph: &'g Graph, knowledge: &'k mut Knowledge) -> Self {
        let sites: HashMap<_, _> =
            graph.all_nodes().into_iter().enumerate().map(|(index, node)| (node, index)).collect();
        let views = views_of_row_major(graph).into_iter().filter_map(|node| sites.get(&node).copied()).collect();
        Self {
            graph,
            knowledge,
            sites,
            views,
            known: HashMap::new(),
            state: State::default(),
            logs: Vec::new(),
            dead: Vec::new(),
            copied: 0,
            attributes: BTreeMap::new(),
            heap_is_seen: false,
            last: HEAP as u64,
        }
    }

    /// Rewrites the graph.
    pub fn run(mut self) -> Step<()> {
        let graph = self.graph;
        let first = graph.block().param_node().next();
        for (index, argument) in graph.inputs().into_iter().enumerate() {
            let ty = argument.type_of();
            self.heap_is_seen |= holds_tensors(&ty);
            self.define(argument, (ARGUMENTS, index), true, first)?;
        }
        let nodes: Vec<_> = graph.block().nodes().collect();
        self.read_attributes(first)?;
        nodes.into_iter().try_for_each(|node| self.node(node))?;
        self.finish()?;
        for node in std::mem::take(&mut self.dead).into_iter().rev() {
            node.destroy()?;
        }
        Ok(())
    }

    pub fn number(&mut self) -> usize {
        self.last += 1;
        self.last as usize
    }

    pub fn site(&self, value: Value<'g>) -> Site {
        (self.sites.get(&value.node()).copied().unwrap_or(ARGUMENTS), value.offset())
    }

    fn is_noted(&self, site: Site) -> bool {
        self.knowledge.real.contains_key(&site)
    }

    pub fn is_opaque(&self, site: Site) -> bool {
        self.knowledge.opaque.contains_key(&site)
    }

    /// Attributes that the code reads are read once, at the beginning; those that it binds anew are read where it does.
    fn read_attributes(&mut self, first: Node<'g>) -> Step<()> {
        for node in self.graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::GetAttr") {
            let ty = node.outputs()[0].type_of();
            let Some(path) = node.outputs()[0].attribute_path().map(|path| path.join(".")) else { continue };
            if ty.is_module() || self.attributes.contains_key(&path) {
                continue;
            }
            if self.knowledge.rebound.contains(&path) || !is_tensor(&ty) {
                self.heap_is_seen |= is_tensor(&ty) || holds_tensors(&ty);
                continue;
            }
            let value = self.attribute(&path, first)?;
            let site = self.site(node.outputs()[0]);
            let known = self.define(value, site, true, first)?;
            self.attributes.insert(path, (known, value));
        }
        Ok(())
    }

    /// `self.path` before `at`.
    fn attribute(&self, path: &str, at: Node<'g>) -> Step<Value<'g>> {
        Ok(at.insert_attribute_path(self.graph.inputs()[0], path.split('.'))?)
    }

    /// Notes what a new value is; where `is_alias` is set and it stays written in place, it is itself what is written, else
    /// a copy of it.
    pub fn define(&mut self, value: Value<'g>, site: Site, is_alias: bool, after: Node<'g>) -> Step<Known<'g>> {
        let known = if is_tensor(&value.type_of()) {
            match self.is_noted(site) {
                true if is_alias || !value.type_of().is_tensor() => self.real(value),
                true => {
                    let copy = copy_of(after, value.node(), value)?;
                    self.real(copy)
                }
                false => self.pure(value, site),
            }
        } else {
            Known::Plain(value)
        };
        self.known.insert(value, known.clone());
        Ok(known)
    }

    /// A tensor with a storage of its own.
    pub fn pure(&mut self, value: Value<'g>, site: Site) -> Known<'g> {
        let (storage, version) = (self.number(), self.number() as u64);
        self.state.storages.insert(storage, Storage { current: value, version, site, is_ghost: false });
        self.object(Object::Pure { storage, chain: Rc::new([]), cached: Some((version, value)) })
    }

    pub fn real(&mut self, value: Value<'g>) -> Known<'g> {
        self.object(Object::Real { value, cached: None })
    }

    fn object(&mut self, object: Object<'g>) -> Known<'g> {
        let number = self.number();
        self.state.objects.insert(number, object);
        Known::Tensor(number)
    }

    /// A tensor out of what is not followed.
    pub fn define_from_heap(&mut self, value: Value<'g>) -> Step<()> {
        let site = self.site(value);
        if is_tensor(&value.type_of()) && (self.knowledge.real_heap || self.is_noted(site)) {
            let real = self.real(value);
            self.known.insert(value, real);
            return Ok(());
        }
        let known = self.define(value, site, true, value.node().next())?;
        if let Some(storage) = self.storage_of(&known) {
            self.state.link(storage, HEAP);
        }
        Ok(())
    }

    pub fn storage_of(&self, known: &Known<'g>) -> Option<usize> {
        let Known::Tensor(object) = known else { return None };
        match self.state.objects.get(object)? {
            Object::Pure { storage, .. } => Some(*storage),
            Object::Real { .. } => None,
        }
    }

    pub fn known_of(&mut self, value: Value<'g>) -> Step<Known<'g>> {
        if let Some(known) = self.known.get(&value) {
            return Ok(known.clone());
        }
        let site = self.site(value);
        self.define(value, site, false, value.node().next())
    }

    /// What is read may have been changed by another name.
    fn refuse_stale(&mut self, thing: usize) -> Step<()> {
        match self.state.stale.get(&thing).cloned() {
            Some(why) => self.keep_written(thing, &why),
            None => Ok(()),
        }
    }

    /// Has all that may share memory with a storage stay written in place.
    pub fn keep_written<T>(&mut self, storage: usize, why: &str) -> Step<T> {
        let mut found_out = false;
        for each in self.state.linked(storage).into_iter().chain([storage]) {
            if let Some(storage) = self.state.storages.get(&each) {
                found_out |= self.knowledge.real.insert(storage.site, why.to_owned()).is_none();
            }
            if let Some(list) = self.state.lists.get(&each) {
                found_out |= self.knowledge.opaque.insert(list.site, why.to_owned()).is_none();
            }
            if let Some(dict) = self.state.dicts.get(&each) {
                found_out |= self.knowledge.opaque.insert(dict.site, why.to_owned()).is_none();
            }
        }
        if each_time(&mut self.knowledge.real_heap, storage == HEAP) {
            found_out = true;
        }
        self.again(found_out, why)
    }

    /// Has what is `known`, one of the `results` of a block, stay written in place where it has another name outside: it was
    /// there `before`, shares memory with what was, or is two of the results. A copy would not be written with the others.
    pub fn keep_seen_written(
        &mut self,
        known: &Known<'g>,
        results: &[Known<'g>],
        before: &State<'g>,
        why: impl Fn() -> String,
    ) -> Step<()> {
        let Some(storage) = self.storage_of(known) else { return Ok(()) };
        let mut linked = self.state.linked(storage);
        linked.push(storage);
        let is_same = |result: &&Known<'g>| self.storage_of(result).is_some_and(|storage| linked.contains(&storage));
        let is_seen = linked.iter().any(|thing| *thing == HEAP || before.storages.contains_key(thing));
        match is_seen || results.iter().filter(is_same).count() > 1 {
            true => self.keep_written(storage, &why()),
            false => Ok(()),
        }
    }

    pub fn again<T>(&self, found_out: bool, why: &str) -> Step<T> {
        match found_out {
            true => Err(Stop::Again),
            false => Err(Error::invalid(format!("following writes in place: {why}")).into()),
        }
    }

    /// Has a list or dictionary stay what it is.
    pub fn keep_container<T>(&mut self, known: &Known<'g>, why: &str) -> Step<T> {
        let site = match known {
            Known::List(number) => self.state.lists.get(number).map(|list| list.site),
            Known::Dict(number) => self.state.dicts.get(number).map(|dict| dict.site),
            Known::Views(views) => self.sites.get(&views.view.node).map(|node| (*node, 0)),
            _ => None,
        };
        let found_out = site.is_some_and(|site| self.knowledge.opaque.insert(site, why.to_owned()).is_none());
        self.again(found_out, why)
    }

    /// What is not followed is looked into.
    fn refuse_stale_heap(&mut self) -> Step<()> {
        self.refuse_stale(HEAP)
    }

    pub fn log_read(&mut self, thing: usize) {
        self.logs.iter_mut().for_each(|log| _ = log.reads.insert(thing));
    }

    /// The tensor's value at this time, before `at`.
    pub fn read(&mut self, object: usize, at: Node<'g>) -> Step<Value<'g>> {
        match self.state.objects.get(&object).cloned() {
            Some(Object::Real { value, cached }) => {
                if !value.type_of().is_tensor() {
                    return Ok(value);
                }
                if let Some((writes, copy)) = cached
                    && writes == self.state.real_writes
                {
                    return Ok(copy);
                }
                let copy = copy_of(at, at, value)?;
                let cached = Some((self.state.real_writes, copy));
                self.state.objects.insert(object, Object::Real { value, cached });
                Ok(copy)
            }
            Some(Object::Pure { storage, chain, cached }) => {
                self.refuse_stale(storage)?;
                self.log_read(storage);
                let (version, current) = self.current(storage)?;
                if let Some((of, value)) = cached
                    && of == version
                {
                    return Ok(value);
                }
                let mut value = current;
                for view in chain.iter() {
                    value = self.apply(view, value, at)?;
                }
                let cached = Some((version, value));
                self.state.objects.insert(object, Object::Pure { storage, chain, cached });
                Ok(value)
            }
            None => Err(Error::invalid("a tensor is read that is not known here").into()),
        }
    }

    pub fn current(&self, storage: usize) -> Step<(u64, Value<'g>)> {
        let known = self.state.storages.get(&storage).map(|storage| (storage.version, storage.current));
        known.ok_or_else(|| Error::invalid("a tensor's storage is not known here").into())
    }

    /// The tensor itself where it stays written in place, else its value.
    pub fn itself(&mut self, object: usize, at: Node<'g>) -> Step<Value<'g>> {
        match self.state.objects.get(&object) {
            Some(Object::Real { value, .. }) => Ok(*value),
            _ => self.read(object, at),
        }
    }

    pub fn is_real(&self, known: &Known<'g>) -> bool {
        matches!(known, Known::Tensor(object) if matches!(self.state.objects.get(object), Some(Object::Real { .. })))
    }

    /// A value for what is known, before `at`; `hands_over` where whoever takes it may keep it, so that tensors that stay
    /// written in place are passed themselves.
    pub fn value(&mut self, known: &Known<'g>, at: Node<'g>, hands_over: bool) -> Step<Value<'g>> {
        match known {
            Known::Plain(value) => {
                if holds_tensors(&value.type_of()) {
                    self.refuse_stale_heap()?;
                    self.log_read(HEAP);
                }
                Ok(*value)
            }
            Known::Tensor(object) if hands_over => self.itself(*object, at),
            Known::Tensor(object) => self.read(*object, at),
            Known::List(number) => self.list_value(*number, at, hands_over),
            Known::Dict(number) => self.dict_value(*number, at, hands_over),
            Known::Tuple(ty, items) => {
                let values = items.iter().map(|item| self.value(item, at, hands_over)).collect::<Step<Vec<_>>>()?;
                self.construct("prim::TupleConstruct", &values, ty, at)
            }
            Known::Views(views) => {
                let base = match hands_over {
                    true => self.itself(views.base, at)?,
                    false => self.read(views.base, at)?,
                };
                if views.view.node.input(0) == Some(base) && views.view.node.is_inserted() {
                    return Ok(views.view.node.outputs()[0]);
                }
                self.apply(&views.view, base, at)
            }
        }
    }

    pub fn construct(&self, kind: &str, values: &[Value<'g>], ty: &Type, at: Node<'g>) -> Step<Value<'g>> {
        let node = self.graph.create(kind, values, 1)?.insert_before(at)?;
        node.copy_metadata(at)?;
        node.outputs()[0].set_type(ty)?;
        Ok(node.outputs()[0])
    }

    /// What is known comes to lie where it is not followed.
    pub fn escape(&mut self, known: &Known<'g>) -> Step<()> {
        match known {
            Known::Plain(_) => {}
            Known::Tensor(_) => match self.storage_of(known) {
                Some(storage) => self.state.link(storage, HEAP),
                None if self.knowledge.real_heap => {}
                None => {
                    self.knowledge.real_heap = true;
                    return Err(Stop::Again);
                }
            },
            Known::List(number) => {
                self.state.escaped.insert(*number);
                for item in self.state.lists.get(number).map(|list| list.items.clone()).unwrap_or_default() {
                    self.escape(&item)?;
                }
            }
            Known::Dict(number) => {
                self.state.escaped.insert(*number);
                let items = self.state.dicts.get(number).map(|dict| dict.items.clone()).unwrap_or_default();
                for (_, _, item) in items {
                    self.escape(&item)?;
                }
            }
            Known::Tuple(_, items) => items.iter().try_for_each(|item| self.escape(item))?,
            Known::Views(views) => self.escape(&Known::Tensor(views.base))?,
        }
        Ok(())
    }

    /// Has `node` take the values of this time; `hands_over` as for [`Walker::value`].
    pub fn take_inputs(&mut self, node: Node<'g>, hands_over: bool) -> Step<Vec<Known<'g>>> {
        let mut all = Vec::new();
        for (index, input) in node.inputs().into_iter().enumerate() {
            let known = self.known_of(input)?;
            let value = self.value(&known, node, hands_over)?;
            if value != input {
                node.replace_input(index, value)?;
            }
            all.push(known);
        }
        Ok(all)
    }

    /// Walks through `node`.
    pub fn node(&mut self, node: Node<'g>) -> Step<()> {
        match node.kind() {
            "prim::If" => self.branches(node),
            "prim::Loop" => self.rounds(node),
            "prim::GetAttr" => self.get_attribute(node),
            "prim::SetAttr" => self.set_attribute(node),
            "prim::Constant" => {
                let value = node.outputs()[0];
                let site = self.site(value);
                self.define(value, site, false, node.next()).map(drop)
            }
            _ => {
                if self.container(node)? || self.write(node)? {
                    return Ok(());
                }
                self.plain(node)
            }
        }
    }

    fn get_attribute(&mut self, node: Node<'g>) -> Step<()> {
        let value = node.outputs()[0];
        let path = value.attribute_path().map(|path| path.join("."));
        if let Some((known, _)) = path.and_then(|path| self.attributes.get(&path)) {
            self.known.insert(value, known.clone());
            return Ok(());
        }
        if value.type_of().is_module() {
            self.known.insert(value, Known::Plain(value));
            return Ok(());
        }
        self.take_inputs(node, false)?;
        self.define_from_heap(value)
    }

    fn set_attribute(&mut self, node: Node<'g>) -> Step<()> {
        let inputs = node.inputs();
        let known = self.known_of(inputs[1])?;
        let path = inputs[0].attribute_path().and_then(|mut path| {
            path.push(node.name_attribute()?);
            Some(path.join("."))
        });
        if let Some(path) = path
            && let Some((before, _)) = self.attributes.get(&path)
        {
            if *before == known {
                // `self.n += 1` binds what it has written into.
                self.dead.push(node);
                return Ok(());
            }
            self.knowledge.rebound.insert(path);
            return Err(Stop::Again);
        }
        let value = self.value(&known, node, true)?;
        node.replace_input(1, value)?;
        self.escape(&known)?;
        self.stale_heap_lists(node)
    }

    /// A list that is not followed changes: it may be one that is followed and lies there.
    pub fn stale_heap_lists(&mut self, node: Node<'g>) -> Step<()> {
        let why = format!("it lies in what is changed by {}", source(node));
        for number in self.state.escaped.clone() {
            self.state.stale.entry(number).or_insert_with(|| why.clone());
        }
        Ok(())
    }

    /// An operator that writes nothing that is followed.
    fn plain(&mut self, node: Node<'g>) -> Step<()> {
        let shares = self.sharing(node);
        let outputs = node.outputs();
        if shares != Sharing::None
            && let Some(input) = node.input(0)
        {
            let base = self.known_of(input)?;
            if let Known::Tensor(object) = base {
                return self.view(node, object, shares);
            }
            if super::views::is_cast(node.kind()) && !matches!(base, Known::Plain(_)) {
                self.known.insert(outputs[0], base);
                self.dead.push(node);
                return Ok(());
            }
        }
        let schema = node.schema();
        let writes = |index: usize| {
            schema.as_ref().and_then(|schema| schema.arguments.get(index)).is_some_and(|argument| argument.is_write)
        };
        for (index, input) in node.inputs().into_iter().enumerate().filter(|(index, _)| writes(*index)) {
            let known = self.known_of(input)?;
            if !matches!(known, Known::Plain(_)) {
                return self.keep_container(&known, &format!("{} changes it (argument {index})", source(node)));
            }
        }
        let changes_container = schema.is_some() && (0..node.inputs().len()).any(writes);
        let gives_container = outputs.iter().any(|output| holds_tensors(&output.type_of()));
        let may_keep = changes_container
            || gives_container
            || SHARING_LISTS.contains(&node.kind())
            || (schema.is_none() && node.kind() == "prim::CreateObject");
        let taken = self.take_inputs(node, may_keep)?;
        if may_keep {
            taken.iter().try_for_each(|known| self.escape(known))?;
        }
        if changes_container {
            self.stale_heap_lists(node)?;
        }
        let from_heap = taken.iter().any(|known| match known {
            Known::Plain(value) => holds_tensors(&value.type_of()),
            _ => false,
        });
        let results = schema.map(|schema| schema.returns).unwrap_or_default();
        for output in outputs {
            let ty = output.type_of();
            let is_new = results.get(output.offset()).is_some_and(|result| result.alias.is_empty());
            let may_alias = matches!(
                node.kind(),
                "aten::__getitem__" | "prim::ListUnpack" | "prim::TupleUnpack" | "prim::TupleIndex" | "aten::pop"
            ) || !is_new;
            if is_tensor(&ty) && from_heap && may_alias {
                self.define_from_heap(output)?;
            } else {
                let site = self.site(output);
                self.define(output, site, false, node.next())?;
            }
        }
        self.fold(node)
    }

    /// How the result of `node` shares memory with its first input.
    fn sharing(&self, node: Node<'g>) -> Sharing {
        match sharing(node) {
            Sharing::Perhaps if self.sites.get(&node).is_some_and(|site| self.views.contains(site)) => Sharing::View,
            sharing => sharing,
        }
    }

    /// `node` gives one or more views of the tensor `object`, or perhaps a copy.
    fn view(&mut self, node: Node<'g>, object: usize, shares: Sharing) -> Step<()> {
        let base = self.itself(object, node)?;
        node.replace_input(0, base)?;
        for (index, input) in node.inputs().into_iter().enumerate().skip(1) {
            let known = self.known_of(input)?;
            let value = self.value(&known, node, false)?;
            node.replace_input(index, value)?;
        }
        let output = node.outputs()[0];
        let view = View { node, element: None };
        let known = match (shares, self.state.objects.get(&object).cloned()) {
            (Sharing::Views, _) if self.is_opaque(self.site(output)) => {
                self.escape(&Known::Tensor(object))?;
                Known::Plain(output)
            }
            (Sharing::Views, _) => Known::Views(Rc::new(Views { base: object, view })),
            (_, Some(Object::Pure { storage, chain, .. })) if shares == Sharing::View => {
                let chain: Rc<[_]> = chain.iter().cloned().chain([view]).collect();
                let (version, _) = self.current(storage)?;
                self.object(Object::Pure { storage, chain, cached: Some((version, output)) })
            }
            (_, Some(Object::Pure { storage, .. })) => {
                let site = self.site(output);
                let known = self.define(output, site, true, node.next())?;
                if let Some(copy) = self.storage_of(&known) {
                    self.state.link(storage, copy);
                }
                known
            }
            _ => self.real(output),
        };
        self.known.insert(output, known);
        Ok(())
    }

    /// View number `element` of a list of views.
    pub fn element(&mut self, views: &Rc<Views<'g>>, element: i64, at: Node<'g>) -> Step<Known<'g>> {
        let view = View { node: views.view.node, element: Some(element) };
        match self.state.objects.get(&views.base).cloned() {
            Some(Object::Pure { storage, chain, .. }) => {
                let chain: Rc<[_]> = chain.iter().cloned().chain([view]).collect();
                Ok(self.object(Object::Pure { storage, chain, cached: None }))
            }
            _ => {
                let list = self.value(&Known::Views(views.clone()), at, true)?;
                let value = self.item_of(list, element, at)?;
                Ok(self.real(value))
            }
        }
    }

    /// Results, and what the caller and the module's state are to see.
    fn finish(&mut self) -> Step<()> {
        let end = self.graph.block().return_node();
        self.take_inputs(end, true)?;
        if self.heap_is_seen {
            self.refuse_stale_heap()?;
        }
        for (path, (known, born)) in self.attributes.clone() {
            let Some(storage) = self.storage_of(&known) else { continue };
            self.refuse_stale(storage)?;
            let (_, now) = self.current(storage)?;
            if now != born {
                let attribute = self.attribute(&path, end)?;
                self.copy_into(attribute, now, end)?;
            }
        }
        let first = self.graph.block().param_node().next();
        for argument in self.graph.inputs() {
            let Some(known) = self.known.get(&argument) else { continue };
            let Some(storage) = self.storage_of(known) else { continue };
            // Written by another name, which may have been this one in a branch or a round: the caller is to see it.
            self.refuse_stale(storage)?;
            let (_, now) = self.current(storage)?;
            if now == argument {
                continue;
            }
            // Who reads the argument reads another name of it, which quantization may put something else for.
            let name = self.graph.create("aten::alias", &[argument], 1)?.insert_before(first)?;
            argument.replace_all_uses_with(name.outputs()[0])?;
            name.replace_input(0, argument)?;
            self.copy_into(argument, now, end)?;
        }
        Ok(())
    }

    fn copy_into(&self, target: Value<'g>, value: Value<'g>, at: Node<'g>) -> Step<()> {
        let waits = at.insert_constant(IValue::Bool(false))?;
        self.graph.create("aten::copy_", &[target, value, waits], 1)?.insert_before(at)?;
        Ok(())
    }
}

/// Sets a flag where `on`; whether it was not set before.
fn each_time(flag: &mut bool, on: bool) -> bool {
    let is_new = on && !*flag;
    *flag |= on;
    is_new
}
