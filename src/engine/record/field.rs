//! The fields of a [`KeyRecord`](super::KeyRecord) by name, and sets of them.

use std::fmt;

/// A field of a key record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of the record's own fields")]
pub enum Field {
    KeyHash,
    KeyId,
    Owner,
    Environment,
    Plan,
    Status,
    NotBefore,
    ExpiresAt,
    Scopes,
    AllowedIps,
    AllowedOrigins,
    Limits,
    Metadata,
}

impl Field {
    /// Number of fields.
    pub const COUNT: usize = 13;

    /// Every field, in the order of the discriminants.
    pub const ALL: [Self; Self::COUNT] = [
        Self::KeyHash,
        Self::KeyId,
        Self::Owner,
        Self::Environment,
        Self::Plan,
        Self::Status,
        Self::NotBefore,
        Self::ExpiresAt,
        Self::Scopes,
        Self::AllowedIps,
        Self::AllowedOrigins,
        Self::Limits,
        Self::Metadata,
    ];

    /// The name of its column in an export, unless the configuration maps it to another.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyHash => "key_hash",
            Self::KeyId => "key_id",
            Self::Owner => "owner",
            Self::Environment => "environment",
            Self::Plan => "plan",
            Self::Status => "status",
            Self::NotBefore => "not_before",
            Self::ExpiresAt => "expires_at",
            Self::Scopes => "scopes",
            Self::AllowedIps => "allowed_ips",
            Self::AllowedOrigins => "allowed_origins",
            Self::Limits => "limits",
            Self::Metadata => "metadata",
        }
    }

    /// Whether every row must have a value for it.
    pub fn is_required(self) -> bool {
        matches!(self, Self::KeyHash | Self::KeyId)
    }

    /// Whether it decides what a key may do. Losing it may change access.
    pub fn is_restriction(self) -> bool {
        FieldSet::RESTRICTIONS.contains(self)
    }

    /// The field with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// A set of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(u16);

const _: () = assert!(Field::COUNT <= u16::BITS as usize);

impl FieldSet {
    /// No field.
    pub const NONE: Self = Self(0);

    /// Every field.
    pub const ALL: Self = Self((1 << Field::COUNT) - 1);

    /// The fields that decide what a key may do. Losing one may change access.
    pub const RESTRICTIONS: Self = Self::NONE
        .with(Field::Environment)
        .with(Field::Plan)
        .with(Field::Status)
        .with(Field::NotBefore)
        .with(Field::ExpiresAt)
        .with(Field::Scopes)
        .with(Field::AllowedIps)
        .with(Field::AllowedOrigins)
        .with(Field::Limits);

    /// The inverse of [`bits`](Self::bits). Drops bits that stand for no field.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The set as a bit mask. The position of each bit is the discriminant of its field.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The set with `field` added.
    #[must_use]
    pub const fn with(self, field: Field) -> Self {
        Self(self.0 | 1 << field as u16)
    }

    /// The set with `field` added if `condition` holds.
    #[must_use]
    pub const fn with_if(self, field: Field, condition: bool) -> Self {
        Self(self.0 | (condition as u16) << field as u16)
    }

    /// The fields that are in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The fields that are in both sets.
    #[must_use]
    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The fields of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `field` is in the set.
    pub const fn contains(self, field: Field) -> bool {
        self.0 >> field as u16 & 1 == 1
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The fields of the set, in the order of [`Field::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(move |field| self.contains(*field))
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        fields.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Writes the names of the fields, separated by commas.
impl fmt::Display for FieldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, field.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_contains_the_fields_added_to_it() {
        let set = FieldSet::NONE.with(Field::KeyHash).with(Field::Metadata).with_if(Field::Owner, false);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Field::KeyHash, Field::Metadata]);
        assert_eq!(set.to_string(), "key_hash, metadata");
        assert_eq!(FieldSet::from_bits(u16::MAX), Field::ALL.into_iter().collect());
        assert_eq!(FieldSet::ALL.difference(FieldSet::ALL), FieldSet::NONE);
        assert!(FieldSet::NONE.is_empty() && !set.intersection(FieldSet::ALL).is_empty());
    }
}
