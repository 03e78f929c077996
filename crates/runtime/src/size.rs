//! Numbers that are known when a Program is called.

use crate::layout::Layout;
use crate::program::{NumberId, ValueId};
use crate::{Error, Result, refuse};

/// A size, or another number that sizes are computed with.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// The same in every call.
    Known(i64),
    /// A number that the caller gives.
    Given(NumberId),
    /// A dimension of a value.
    Of(ValueId, i64),
    /// A sum.
    Sum(Box<Size>, Box<Size>),
    /// A difference.
    Difference(Box<Size>, Box<Size>),
    /// A product.
    Product(Box<Size>, Box<Size>),
    /// A quotient, rounded down.
    Quotient(Box<Size>, Box<Size>),
}

impl Size {
    /// The number in a call.
    ///
    /// # Errors
    /// Where a value or a number is not known, or the result is none.
    pub(crate) fn value<'a>(&self, numbers: &[i64], layout: &dyn Fn(ValueId) -> Result<&'a Layout>) -> Result<i64> {
        let of = |size: &Size| size.value(numbers, layout);
        let wrapped = || Error("a size is too large".to_owned());
        match self {
            Self::Known(number) => Ok(*number),
            Self::Given(id) => numbers.get(id.0).copied().ok_or_else(|| Error("a number is missing".to_owned())),
            Self::Of(value, axis) => {
                let layout = layout(*value)?;
                Ok(layout.sizes[layout.axis(*axis)?])
            }
            Self::Sum(a, b) => of(a)?.checked_add(of(b)?).ok_or_else(wrapped),
            Self::Difference(a, b) => of(a)?.checked_sub(of(b)?).ok_or_else(wrapped),
            Self::Product(a, b) => of(a)?.checked_mul(of(b)?).ok_or_else(wrapped),
            Self::Quotient(a, b) => match (of(a)?, of(b)?) {
                (a, b) if a >= 0 && b > 0 => Ok(a / b),
                (a, b) => refuse(format!("{a} divided by {b}")),
            },
        }
    }

    /// The values whose sizes it asks for.
    pub(crate) fn values(&self, into: &mut Vec<ValueId>) {
        match self {
            Self::Known(_) | Self::Given(_) => {}
            Self::Of(value, _) => into.push(*value),
            Self::Sum(a, b) | Self::Difference(a, b) | Self::Product(a, b) | Self::Quotient(a, b) => {
                a.values(into);
                b.values(into);
            }
        }
    }
}
