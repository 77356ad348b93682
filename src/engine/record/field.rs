//! The fields of a key record by name, and sets of them.

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
    /// How many fields a record has.
    pub const COUNT: usize = 13;

    /// Every field, in the order of its discriminant.
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

    /// Whether every row has to have it.
    pub fn is_required(self) -> bool {
        matches!(self, Self::KeyHash | Self::KeyId)
    }

    /// Whether it bounds what the key may do, so that a row without it allows more than a row with it.
    pub fn is_restriction(self) -> bool {
        FieldSet::RESTRICTIONS.contains(self)
    }

    /// The field of this name.
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

    /// The fields that restrict what a key may do. A source that stops carrying one of them would widen access.
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

    /// The set of these bits, by the fields' discriminants; bits of no field are dropped.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// One bit for each field, by its discriminant.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The same set with `field` in it.
    #[must_use]
    pub const fn with(self, field: Field) -> Self {
        Self(self.0 | 1 << field as u16)
    }

    /// The same set with `field` in it if `condition` holds.
    #[must_use]
    pub const fn with_if(self, field: Field, condition: bool) -> Self {
        Self(self.0 | (condition as u16) << field as u16)
    }

    /// FieldSet of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// FieldSet of both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// FieldSet of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it has `field`.
    pub const fn contains(self, field: Field) -> bool {
        self.0 >> field as u16 & 1 == 1
    }

    /// Whether it has no field.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The fields, in the order of [`Field::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(move |field| self.contains(*field))
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        fields.into_iter().fold(Self::NONE, Self::with)
    }
}

/// The names in an export, separated by commas.
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
    fn set_has_the_fields_that_were_put_in() {
        let set = FieldSet::NONE.with(Field::KeyHash).with(Field::Metadata).with_if(Field::Owner, false);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Field::KeyHash, Field::Metadata]);
        assert_eq!(set.to_string(), "key_hash, metadata");
        assert_eq!(FieldSet::from_bits(u16::MAX), Field::ALL.into_iter().collect());
        assert_eq!(FieldSet::ALL.difference(FieldSet::ALL), FieldSet::NONE);
        assert!(FieldSet::NONE.is_empty() && !set.intersection(FieldSet::ALL).is_empty());
    }
}
