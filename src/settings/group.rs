//! The group of a socket.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use crate::id::MAX_ID;

/// Maximum length of a group name in bytes: what `groupadd` accepts.
const MAX_GROUP_NAME: usize = 32;

/// A group, by name or number. A name is resolved only when the socket is bound, so that a
/// configuration can be checked on a machine without the group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// The name: 1..=32 bytes without whitespace, control characters, `:`, `/` and `,`, and not all
    /// digits.
    Name(Box<str>),
    /// The number, at most [`MAX_ID`].
    Id(u32),
}

/// Why a group cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// There is no such group.
    #[error("there is no group {0:?}: create it (groupadd --system {0}), or set socket_group")]
    Unknown(Box<str>),
    /// The look-up failed.
    #[error("cannot look up the group {name:?}: {source}")]
    LookUp {
        /// The name of the group.
        name: Box<str>,
        /// The error of the system.
        source: std::io::Error,
    },
}

impl Group {
    /// The number of the group.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn resolve(&self) -> Result<u32, GroupError> {
        let name = match self {
            Self::Id(id) => return Ok(*id),
            Self::Name(name) => name,
        };
        // The C library's look-up: groups can also come from systemd or a directory service.
        match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            Ok(None) => Err(GroupError::Unknown(name.clone())),
            Err(errno) => Err(GroupError::LookUp { name: name.clone(), source: errno.into() }),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let not_a_group = || format!("{text:?} is not a group: write its name or its number");
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let id = text.parse().ok().filter(|id| *id <= MAX_ID);
            return id.map(Self::Id).ok_or_else(not_a_group);
        }
        let is_forbidden = |c: char| c.is_whitespace() || c.is_control() || ":/,".contains(c);
        if text.is_empty()
            || text.len() > MAX_GROUP_NAME
            || text.starts_with('-')
            || text.contains(is_forbidden)
        {
            return Err(not_a_group());
        }
        Ok(Self::Name(text.into()))
    }
}

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GroupVisitor;

        impl Visitor<'_> for GroupVisitor {
            type Value = Group;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a group's name, or its number from 0 to {MAX_ID}")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Group, E> {
                Group::parse(text).map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, id: i64) -> Result<Group, E> {
                match u32::try_from(id) {
                    Ok(number) if number <= MAX_ID => Ok(Group::Id(number)),
                    _ => Err(E::invalid_value(Unexpected::Signed(id), &self)),
                }
            }
        }

        deserializer.deserialize_any(GroupVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_is_a_name_or_a_number() {
        assert_eq!(Group::parse("keyward"), Ok(Group::Name("keyward".into())));
        assert_eq!(Group::parse("990"), Ok(Group::Id(990)));
        assert_eq!(Group::parse("4294967294"), Ok(Group::Id(4_294_967_294)));
        for text in ["", "a b", "a:b", "-x", "a/b", "a\0", "4294967295", "99999999999999999999"] {
            let expected = format!("{text:?} is not a group: write its name or its number");
            assert_eq!(Group::parse(text), Err(expected));
        }
    }

    #[test]
    fn known_group_is_resolved_and_unknown_group_is_refused() {
        assert_eq!(Group::Id(7).resolve().expect("a number needs no look-up"), 7);
        assert_eq!(Group::Name("root".into()).resolve().expect("every machine has it"), 0);
        let error = Group::Name("no_such_group_here".into()).resolve().expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "there is no group \"no_such_group_here\": create it (groupadd --system no_such_group_here), \
             or set socket_group"
        );
    }
}
