//! What a batch of calibration may change of an observed module, so that one that fails changes nothing.

use crate::error::Result;
use crate::ir::{IValue, Module};
use crate::pass::changed_attributes::{changed_attributes, written_tensors};

/// The attributes that the code of an observed flat module changes when it runs, by path; observers' are not among them.
///
/// # Errors
/// Where a method has no graph.
pub(crate) fn moving_attributes(module: &Module, method: &str) -> Result<Vec<String>> {
    let mut moving = written_tensors(&module.graph(method)?);
    moving.extend(changed_attributes(module, true)?);
    moving.sort();
    moving.dedup();
    moving.retain(|path| find(module, path).is_some_and(|(owner, name)| owner.has_attribute(&name)));
    Ok(moving)
}

/// The module that has the attribute at `path`, and its name there: a flat module's own attributes have dots in their names.
pub(crate) fn find(module: &Module, path: &str) -> Option<(Module, String)> {
    if module.has_attribute(path) {
        return Some((module.clone(), path.to_owned()));
    }
    let (owner, name) = path.rsplit_once('.')?;
    Some((module.submodule(owner).ok()?, name.to_owned()))
}

/// Values of attributes before a batch.
pub(crate) struct Before(Vec<(Module, String, IValue)>);

impl Before {
    /// Copies of the buffers of `observers`, and of the attributes of `module` at the paths `moving`.
    ///
    /// # Errors
    /// Where a value cannot be copied.
    pub fn of(observers: Vec<(String, Module)>, module: &Module, moving: &[String]) -> Result<Self> {
        let buffers = observers.into_iter().flat_map(|(_, observer)| {
            let buffers = observer.attributes().into_iter().filter(|attribute| attribute.is_buffer);
            buffers.map(|buffer| (observer.clone(), buffer.name)).collect::<Vec<_>>()
        });
        let moving = moving.iter().filter_map(|path| find(module, path));
        let value = |(owner, name): (Module, String)| {
            let value = owner.attribute(&name)?.deep_clone()?;
            Ok((owner, name, value))
        };
        Ok(Self(buffers.chain(moving).map(value).collect::<Result<_>>()?))
    }

    /// Gives each attribute its value again.
    ///
    /// # Errors
    /// Where libtorch refuses to set one.
    pub fn restore(self) -> Result<()> {
        self.0.into_iter().try_for_each(|(owner, name, value)| owner.set_attribute(&name, &value))
    }
}
