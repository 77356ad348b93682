//! The field `costs` of a request (SPEC.md section 5): what to charge the limits that it names.

use std::fmt;

use crate::codec::{BodyReader, append_fixed, append_text8};
use crate::error::{FieldTooLongError, ProtocolError};
use crate::limits::{MAX_COSTS, MAX_NAME};

/// Bytes of the number of costs, with which the field begins.
const COUNT_BYTES: usize = 1;

/// A cost for each of 1 to [`MAX_COSTS`] limits, by name. The names are distinct and not empty.
///
/// It borrows the encoded field, which has been validated, so decoding a request allocates nothing.
/// A client makes one with [`CostsBuf`].
///
/// ```
/// use keyward_protocol::{Credential, CostsBuf, Verify};
///
/// let mut costs = CostsBuf::new();
/// costs.push("tokens", 1500)?;
/// let verify = Verify { costs: costs.as_costs(), ..Verify::new(1, Credential::Digest([0; 32])) };
/// let charged = |name| verify.costs.and_then(|costs| costs.get(name)).unwrap_or(verify.cost);
/// assert_eq!((charged("requests"), charged("tokens")), (1, 1500));
/// # Ok::<(), keyward_protocol::InvalidCostError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Costs<'a> {
    /// The encoded field.
    field: &'a [u8],
}

impl<'a> Costs<'a> {
    /// The costs, in the order of the request.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, u32)> + use<'a> {
        // The names have been validated.
        self.entries().map(|(name, cost)| (std::str::from_utf8(name).unwrap_or_default(), cost))
    }

    /// The cost for the limit with this name, if the request names it.
    pub fn get(&self, name: &str) -> Option<u32> {
        self.entries().find(|(listed, _)| *listed == name.as_bytes()).map(|(_, cost)| cost)
    }

    /// Reads the field with this number and validates it.
    pub(crate) fn read(reader: &mut BodyReader<'a>, number: u32) -> Result<Self, ProtocolError> {
        let start = reader.rest();
        let count: u8 = reader.read_fixed()?;
        if !(1..=MAX_COSTS).contains(&usize::from(count)) {
            return Err(reader.invalid_field(number));
        }
        for index in 0..count {
            let name = reader.read_text8(MAX_NAME, number)?;
            let mut earlier = Entries::of(start).take(usize::from(index));
            if name.is_empty() || earlier.any(|(other, _)| other == name.as_bytes()) {
                return Err(reader.invalid_field(number));
            }
            reader.read_fixed::<u32>()?;
        }
        let size = start.len() - reader.rest().len();
        Ok(Self { field: &start[..size] })
    }

    /// Appends the field.
    pub(crate) fn append(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.field);
    }

    fn entries(&self) -> Entries<'a> {
        Entries::of(self.field)
    }
}

impl fmt::Debug for Costs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The names and costs of a field, until it ends.
struct Entries<'a>(BodyReader<'a>);

impl<'a> Entries<'a> {
    /// The entries of a field that begins with its count.
    fn of(field: &'a [u8]) -> Self {
        Self(BodyReader::new(field.get(COUNT_BYTES..).unwrap_or_default(), 0))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], u32);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let name = self.0.read_bytes8(MAX_NAME, 0).ok()?;
        Some((name, self.0.read_fixed().ok()?))
    }
}

/// Costs that a client collects for a request.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CostsBuf {
    /// Empty, or the encoded field.
    field: Vec<u8>,
}

/// A cost that a request cannot carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCostError {
    /// The name of the limit is empty.
    #[error("the name of a limit is empty")]
    EmptyName,
    /// The name of the limit is longer than [`MAX_NAME`].
    #[error(transparent)]
    NameTooLong(#[from] FieldTooLongError),
    /// The request already has a cost for this limit.
    #[error("the limit has two costs")]
    Duplicate,
    /// The request already has [`MAX_COSTS`] costs.
    #[error("a request has at most {MAX_COSTS} costs")]
    TooMany,
}

impl CostsBuf {
    /// No costs.
    pub const fn new() -> Self {
        Self { field: Vec::new() }
    }

    /// Adds the cost for a limit.
    ///
    /// # Errors
    /// If the name is empty, too long or already present, or if there are [`MAX_COSTS`] costs;
    /// nothing is added then.
    pub fn push(&mut self, name: &str, cost: u32) -> Result<(), InvalidCostError> {
        if name.is_empty() {
            return Err(InvalidCostError::EmptyName);
        }
        if name.len() > MAX_NAME {
            let error = FieldTooLongError { field: "costs", length: name.len(), max: MAX_NAME };
            return Err(error.into());
        }
        let mut count = 0;
        if let Some(costs) = self.as_costs() {
            if costs.get(name).is_some() {
                return Err(InvalidCostError::Duplicate);
            }
            count = costs.field[0];
        }
        if usize::from(count) == MAX_COSTS {
            return Err(InvalidCostError::TooMany);
        }
        if self.field.is_empty() {
            self.field.push(0);
        }
        self.field[0] = count + 1;
        append_text8(name, MAX_NAME, &mut self.field);
        append_fixed(cost, &mut self.field);
        Ok(())
    }

    /// The costs as a field; `None` if there are none.
    pub fn as_costs(&self) -> Option<Costs<'_>> {
        (!self.field.is_empty()).then_some(Costs { field: &self.field })
    }
}

impl fmt::Debug for CostsBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.as_costs().iter().flat_map(Costs::iter)).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn invalid_cost_is_not_added() {
        let long = "x".repeat(MAX_NAME + 1);
        let mut costs = CostsBuf::new();
        assert_eq!(costs.push("", 1), Err(InvalidCostError::EmptyName));
        assert!(matches!(costs.push(&long, 1), Err(InvalidCostError::NameTooLong(_))));
        assert_eq!(costs.as_costs(), None);

        // Each name is a prefix of the next.
        for length in 1..=MAX_COSTS {
            costs.push(&long[..length], length as u32).unwrap();
        }
        let full = costs.clone();
        assert_eq!(costs.push("x", 7), Err(InvalidCostError::Duplicate));
        assert_eq!(costs.push("other", 7), Err(InvalidCostError::TooMany));
        assert_eq!(costs, full);
        let costs = full.as_costs().unwrap();
        assert_eq!(costs.iter().collect::<Vec<_>>().len(), MAX_COSTS);
        assert_eq!([costs.get("xx"), costs.get("other"), costs.get("")], [Some(2), None, None]);
    }
}
