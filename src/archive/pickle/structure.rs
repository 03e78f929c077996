//! Which values a pickle's containers hold: no circles, no deep nesting, no endless sharing.

use super::machine::Value;

/// The number of a container.
pub(super) type Id = u32;

/// How deeply values may nest: libtorch frees them, and visits modules, by calling itself at each level.
const DEEPEST: usize = 500;

/// How many ways may lead to containers in all: who visits submodules comes by on each of them.
const MOST_PATHS: u64 = 50_000_000;

/// All tuples, lists, dictionaries and instances of a pickle.
#[derive(Default)]
pub(super) struct Containers {
    items: Vec<Vec<Value>>,
}

impl Containers {
    pub fn add(&mut self, items: Vec<Value>) -> Id {
        self.items.push(items);
        // A pickle of 1 GB has fewer than 2^32 opcodes.
        (self.items.len() - 1) as Id
    }

    pub fn extend(&mut self, container: Id, items: Vec<Value>) -> Result<(), String> {
        let known = self.items.get_mut(container as usize).ok_or("a container is missing")?;
        known.extend(items);
        Ok(())
    }

    pub fn items(&self, container: Id) -> &[Value] {
        self.items.get(container as usize).map_or(&[], Vec::as_slice)
    }

    /// Visits all of them, each after those that it holds.
    pub fn check(&self) -> Result<(), String> {
        #[derive(Clone, Copy)]
        enum Visit {
            New,
            Open,
            Done { depth: usize, paths: u64 },
        }
        let mut visits = vec![Visit::New; self.items.len()];
        for start in 0..self.items.len() {
            let mut open: Vec<(usize, usize)> = vec![(start, 0)];
            if let Visit::Done { .. } = visits[start] {
                continue;
            }
            visits[start] = Visit::Open;
            while let Some((container, next)) = open.pop() {
                let inner = self.items[container][next..].iter().enumerate();
                let inner = inner.filter_map(|(index, value)| Some((next + index, contained(value)?)));
                let mut unvisited = None;
                for (index, id) in inner {
                    match visits[id] {
                        Visit::New => {
                            unvisited = Some((index, id));
                            break;
                        }
                        Visit::Open => return Err("a value holds itself".to_owned()),
                        Visit::Done { .. } => {}
                    }
                }
                if let Some((index, id)) = unvisited {
                    if open.len() >= DEEPEST {
                        return Err(format!("values nest more than {DEEPEST} deep"));
                    }
                    open.push((container, index));
                    open.push((id, 0));
                    visits[id] = Visit::Open;
                    continue;
                }
                let (mut depth, mut paths) = (1, 1u64);
                for id in self.items[container].iter().filter_map(contained) {
                    if let Visit::Done { depth: inner, paths: ways } = visits[id] {
                        depth = depth.max(inner + 1);
                        paths = paths.saturating_add(ways);
                    }
                }
                if depth > DEEPEST {
                    return Err(format!("values nest more than {DEEPEST} deep"));
                }
                if paths > MOST_PATHS {
                    return Err("values are shared in more ways than can be visited".to_owned());
                }
                visits[container] = Visit::Done { depth, paths };
            }
        }
        Ok(())
    }
}

/// The container that a value is.
fn contained(value: &Value) -> Option<usize> {
    match value {
        Value::Tuple(id) | Value::List(id) | Value::Dict(id) | Value::Object(id) => Some(*id as usize),
        _ => None,
    }
}
