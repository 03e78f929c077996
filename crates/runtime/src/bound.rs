//! Bounds of floats in files: JSON has no infinity, so none is written as `null`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn write<S: Serializer>(bound: &f32, to: S) -> Result<S::Ok, S::Error> {
    bound.is_finite().then_some(*bound).serialize(to)
}

fn read<'d, D: Deserializer<'d>>(from: D, absent: f32) -> Result<f32, D::Error> {
    Ok(Option::<f32>::deserialize(from)?.unwrap_or(absent))
}

/// A lower bound.
pub(crate) mod lower {
    pub(crate) use super::write as serialize;

    pub(crate) fn deserialize<'d, D: serde::Deserializer<'d>>(from: D) -> Result<f32, D::Error> {
        super::read(from, f32::NEG_INFINITY)
    }
}

/// An upper bound.
pub(crate) mod upper {
    pub(crate) use super::write as serialize;

    pub(crate) fn deserialize<'d, D: serde::Deserializer<'d>>(from: D) -> Result<f32, D::Error> {
        super::read(from, f32::INFINITY)
    }
}
