//! What is known of a graph's values at one place of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::views::View;
use crate::ir::{Type, Value};

/// Where something comes from: a node, by its place among all nodes of the graph as it was, and which of its outputs.
/// Copies of a node (of a loop written out) are the same place.
pub(super) type Site = (usize, usize);

/// The site of the graph's arguments.
pub(super) const ARGUMENTS: usize = usize::MAX;
/// Added to the number of an argument of a loop's body, to tell it from the loop's results.
pub(super) const PARAMETER: usize = 1 << 20;

/// What is found out in one walk and holds for the next ones.
#[derive(Default)]
pub(super) struct Knowledge {
    /// Tensors that stay written in place, and why.
    pub real: BTreeMap<Site, String>,
    /// Lists and dictionaries that stay, and why.
    pub opaque: BTreeMap<Site, String>,
    /// What a loop, by its place, writes into: it carries the storages and lists of these sites from round to round.
    pub carried: BTreeMap<usize, BTreeSet<Site>>,
    /// Attributes that are bound anew, by path.
    pub rebound: BTreeSet<String>,
    /// Loops, by place, that cannot be written out.
    pub whole: BTreeSet<usize>,
    /// Tensors that stay written in place lie in what is not followed: all that comes from there stays so, too.
    pub real_heap: bool,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Known<'g> {
    /// A tensor object.
    Tensor(usize),
    /// A list whose items are known.
    List(usize),
    /// A dictionary whose keys and values are known.
    Dict(usize),
    /// A tuple.
    Tuple(Rc<Type>, Vec<Known<'g>>),
    /// The views that `chunk`, `split` or `unbind` gives.
    Views(Rc<Views<'g>>),
    /// A value that never changes, or of which nothing is known.
    Plain(Value<'g>),
}

impl PartialEq for Known<'_> {
    /// Whether both are the same thing.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tensor(a), Self::Tensor(b)) | (Self::List(a), Self::List(b)) | (Self::Dict(a), Self::Dict(b)) => {
                a == b
            }
            (Self::Tuple(_, a), Self::Tuple(_, b)) => a == b,
            (Self::Views(a), Self::Views(b)) => Rc::ptr_eq(a, b),
            (Self::Plain(a), Self::Plain(b)) => a == b,
            _ => false,
        }
    }
}

/// The list of views that a node gives.
#[derive(Debug)]
pub(super) struct Views<'g> {
    pub base: usize,
    pub view: View<'g>,
}

/// A tensor object: several values, list items and attributes may be the same one.
#[derive(Clone)]
pub(super) enum Object<'g> {
    /// Views on a storage.
    Pure {
        storage: usize,
        chain: Rc<[View<'g>]>,
        /// Its value, and the storage's version that it is of.
        cached: Option<(u64, Value<'g>)>,
    },
    /// It stays written in place.
    Real {
        value: Value<'g>,
        /// A copy of it, and the count of writes at the time.
        cached: Option<(u64, Value<'g>)>,
    },
}

/// Memory that tensors share.
#[derive(Clone)]
pub(super) struct Storage<'g> {
    pub current: Value<'g>,
    /// Differs after each write, everywhere.
    pub version: u64,
    pub site: Site,
    /// It is of a block that was left: it has no value any more.
    pub is_ghost: bool,
}

/// A list whose items are known.
#[derive(Clone)]
pub(super) struct List<'g> {
    pub items: Vec<Known<'g>>,
    pub ty: Rc<Type>,
    pub site: Site,
    /// A value for it, and the items' values in it.
    pub cached: Option<(Vec<Value<'g>>, Value<'g>)>,
}

/// A dictionary whose keys are constants, in the order of insertion.
#[derive(Clone)]
pub(super) struct Dict<'g> {
    /// The key as text, as a value, and what it leads to.
    pub items: Vec<(String, Value<'g>, Known<'g>)>,
    pub ty: Rc<Type>,
    pub site: Site,
}

/// The storage of all that lies in lists and attributes that are not followed.
pub(super) const HEAP: usize = 0;

/// What changes on the way through the graph, and differs from branch to branch.
#[derive(Clone, Default)]
pub(super) struct State<'g> {
    pub objects: HashMap<usize, Object<'g>>,
    pub storages: HashMap<usize, Storage<'g>>,
    pub lists: HashMap<usize, List<'g>>,
    pub dicts: HashMap<usize, Dict<'g>>,
    /// Storages that may be the same memory, lists and dictionaries that may be the same: each one's group.
    pub groups: HashMap<usize, usize>,
    /// Storages, lists and dictionaries (by number) that may have been changed by another name.
    pub stale: BTreeMap<usize, String>,
    /// Lists and dictionaries that lie in something that is not followed.
    pub escaped: BTreeSet<usize>,
    /// Counts writes into tensors that stay written in place.
    pub real_writes: u64,
}

impl State<'_> {
    fn group(&self, thing: usize) -> usize {
        self.groups.get(&thing).copied().unwrap_or(thing)
    }

    /// Notes that both may share memory.
    pub fn link(&mut self, one: usize, other: usize) {
        let (one_group, other_group) = (self.group(one), self.group(other));
        for (thing, group) in [(one, one_group), (other, other_group)] {
            self.groups.insert(thing, group);
        }
        let (keep, go) = (one_group.min(other_group), one_group.max(other_group));
        self.groups.insert(keep, keep);
        self.groups.values_mut().filter(|group| **group == go).for_each(|group| *group = keep);
    }

    /// The others that may share memory with it.
    pub fn linked(&self, thing: usize) -> Vec<usize> {
        let group = self.group(thing);
        let same = self.groups.iter().filter(|(other, of)| **of == group && **other != thing);
        let mut same: Vec<_> = same.map(|(other, _)| *other).collect();
        same.sort_unstable();
        same
    }

    /// Takes over what another branch knows of shared memory.
    pub fn join(&mut self, other: &Self) {
        for (thing, group) in &other.groups {
            self.link(*thing, *group);
        }
        self.stale.extend(other.stale.iter().map(|(thing, why)| (*thing, why.clone())));
        self.escaped.extend(&other.escaped);
        self.real_writes = self.real_writes.max(other.real_writes) + 1;
    }
}
