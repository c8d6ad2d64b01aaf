//! Names the tensors of an object graph by the path that leads to each: dictionary keys, list
//! indices and modules, joined by dots.

use std::collections::{HashMap, HashSet};

use super::pickle::{Constructor, Node, NodeId, Pickle, Value};
use super::stream::{Storages, call, is_tensor, tensor};
use super::{Budget, Fault, Tensor, quote};

/// Deepest nesting; a snapshot nests modules only a few times.
const MAX_DEPTH: usize = 64;
const MAX_NAME: usize = 1024;

/// The tensors of a file by name, and those of kinds that are not read, each with its kind.
#[derive(Default)]
pub(super) struct Named {
    pub tensors: Vec<(String, Tensor)>,
    pub unread: Vec<(String, String)>,
}

/// Returns every tensor that can be reached from the root of a pickle, in the file's order.
///
/// A module (an object whose state has `_parameters`) gives the entries of PyTorch's `state_dict`:
/// its parameters, its buffers, then its modules. Other objects of EDM's give every attribute.
pub(super) fn named_tensors(
    pickle: &Pickle,
    storages: &Storages,
    budget: &mut Budget,
) -> Result<Named, Fault> {
    let (visits, names, found) = (HashMap::new(), HashSet::new(), Named::default());
    let mut walk = Walk { pickle, storages, budget, visits, names, found };
    walk.value("", pickle.root, 0)?;
    Ok(walk.found)
}

/// Progress of the walk through a container.
enum Visit {
    Within,
    /// Number of tensors below it.
    Done(usize),
}

struct Walk<'w, 'a> {
    pickle: &'w Pickle<'a>,
    storages: &'w Storages<'a>,
    budget: &'w mut Budget,
    visits: HashMap<NodeId, Visit>,
    names: HashSet<String>,
    found: Named,
}

impl<'a> Walk<'_, 'a> {
    fn value(&mut self, name: &str, value: Value<'a>, depth: usize) -> Result<(), Fault> {
        if is_tensor(self.pickle, value) {
            return self.tensor(name, value);
        }
        let Value::Node(id) = value else { return Ok(()) };
        // A container without tensors is entered once, and another one at the cost of its entries, which
        // bounds the time even if the file shares containers.
        match self.visits.get(&id) {
            Some(Visit::Within) => {
                return Err(Fault::refused(format!("{} within itself", quote(name))));
            }
            Some(Visit::Done(0)) => return Ok(()),
            Some(Visit::Done(_)) | None => {}
        }
        if depth == MAX_DEPTH {
            return Err(Fault::refused(format!(
                "more than {MAX_DEPTH} levels of objects, at {}",
                quote(name)
            )));
        }
        self.visits.insert(id, Visit::Within);
        let before = self.count();
        self.container(name, value, depth + 1)?;
        self.visits.insert(id, Visit::Done(self.count() - before));
        Ok(())
    }

    fn count(&self) -> usize {
        self.found.tensors.len() + self.found.unread.len()
    }

    fn container(&mut self, name: &str, value: Value<'a>, depth: usize) -> Result<(), Fault> {
        let pickle = self.pickle;
        if let Some(entries) = pickle.entries(value) {
            self.budget.bytes(entries.len())?;
            for (key, value) in entries {
                match (pickle.text(*key), key) {
                    (Some(key), _) => self.value(&join(name, key)?, *value, depth)?,
                    (_, Value::Int(key)) => self.value(&join(name, &key.to_string())?, *value, depth)?,
                    // Matters only if it leads to a tensor, which would have no name.
                    _ => {
                        let before = self.count();
                        self.value(name, *value, depth)?;
                        if self.count() > before {
                            let what = format!("a key in {} that is neither text nor a number", quote(name));
                            return Err(Fault::broken(what));
                        }
                    }
                }
            }
            return Ok(());
        }
        let Value::Node(id) = value else { return Ok(()) };
        match pickle.node(id) {
            Node::List(items) | Node::Tuple(items) => {
                self.budget.bytes(items.len())?;
                for (index, item) in items.iter().enumerate() {
                    self.value(&join(name, &index.to_string())?, *item, depth)?;
                }
                Ok(())
            }
            Node::Object { constructor: Constructor::ModuleDict, state, .. } => {
                self.object(name, *state, depth)
            }
            Node::Object { constructor: Constructor::Persistent, .. } => {
                let state = match call(pickle, value) {
                    Some((_, [meta])) => pickle.get(*meta, "state"),
                    _ => None,
                };
                match state {
                    Some(state) => self.object(name, state, depth),
                    None => Err(Fault::broken(format!("no state in the object {}", quote(name)))),
                }
            }
            Node::Object { constructor: Constructor::NumpyArray | Constructor::NumpyFromBuffer, .. } => {
                self.named(name)?;
                self.found.unread.push((name.into(), "an array of NumPy's".into()));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Walks through a `__dict__`.
    fn object(&mut self, name: &str, state: Value<'a>, depth: usize) -> Result<(), Fault> {
        let Some(parameters) = self.pickle.get(state, "_parameters") else {
            return self.value(name, state, depth);
        };
        let (buffers, modules) = (self.pickle.get(state, "_buffers"), self.pickle.get(state, "_modules"));
        for part in [Some(parameters), buffers, modules] {
            match part {
                Some(part) if self.pickle.entries(part).is_some() => self.value(name, part, depth)?,
                _ => return Err(Fault::broken(format!("the module {} without its parts", quote(name)))),
            }
        }
        Ok(())
    }

    /// Takes a name, which no other tensor may have.
    fn named(&mut self, name: &str) -> Result<(), Fault> {
        self.budget.bytes(name.len())?;
        match self.names.insert(name.into()) {
            true => Ok(()),
            false => Err(Fault::broken(format!("two tensors of the name {}", quote(name)))),
        }
    }

    fn tensor(&mut self, name: &str, value: Value<'a>) -> Result<(), Fault> {
        self.named(name)?;
        match tensor(self.pickle, self.storages, value, self.budget) {
            Ok(tensor) => self.found.tensors.push((name.into(), tensor)),
            Err(Fault::Unread(kind)) => self.found.unread.push((name.into(), kind)),
            Err(fault) => return Err(fault.within(&format!("the tensor {}", quote(name)))),
        }
        Ok(())
    }
}

fn join(name: &str, key: &str) -> Result<String, Fault> {
    let joined = if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
    if joined.len() > MAX_NAME {
        return Err(Fault::refused(format!("a name of {} bytes, {}", joined.len(), quote(&joined))));
    }
    Ok(joined)
}
