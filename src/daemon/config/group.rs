//! The verify socket's group: a name, until the socket is bound.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::MAX_ID;

/// Longest name of a group, in bytes: what `groupadd` accepts.
const MAX_GROUP_NAME: usize = 32;

/// A group, by name or number.
///
/// A name stays a name in the configuration, so that a file can be checked on a machine that lacks the group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Its name: 1..=32 bytes without spaces, `:` and `/`, and not all digits.
    Name(Box<str>),
    /// Its number, at most [`MAX_ID`].
    Id(u32),
}

/// Why a group's number is unknown.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The machine has no such group.
    #[error("there is no group {0:?}: create it (groupadd --system {0}), or set server.socket_group")]
    Unknown(Box<str>),
    /// The group database cannot be asked.
    #[error("cannot look up the group {name:?}: {error}")]
    LookUp {
        /// The name.
        name: Box<str>,
        /// What the system said.
        error: std::io::Error,
    },
}

impl Group {
    /// The group's number, from wherever the machine keeps its groups (files, systemd, a directory).
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn resolve(&self) -> Result<u32, GroupError> {
        let name = match self {
            Self::Id(id) => return Ok(*id),
            Self::Name(name) => name,
        };
        // The C library's look-up, because /etc/group is not the only place that a group can come from.
        match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            Ok(None) => Err(GroupError::Unknown(name.clone())),
            Err(errno) => Err(GroupError::LookUp { name: name.clone(), error: errno.into() }),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a group: write its name or its number");
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let id = text.parse().ok().filter(|id| *id <= MAX_ID);
            return id.map(Self::Id).ok_or_else(wrong);
        }
        let foreign = |c: char| c.is_whitespace() || c.is_control() || ":/,".contains(c);
        if text.is_empty() || text.len() > MAX_GROUP_NAME || text.starts_with('-') || text.contains(foreign) {
            return Err(wrong());
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
    fn a_group_is_a_name_or_a_number() {
        assert_eq!(Group::parse("keyward"), Ok(Group::Name("keyward".into())));
        assert_eq!(Group::parse("990"), Ok(Group::Id(990)));
        assert_eq!(Group::parse("4294967294"), Ok(Group::Id(4_294_967_294)));
        for text in ["", "a b", "a:b", "-x", "a/b", "a\0", "4294967295", "99999999999999999999"] {
            let expected = format!("{text:?} is not a group: write its name or its number");
            assert_eq!(Group::parse(text), Err(expected));
        }
    }

    #[test]
    fn root_is_group_0_and_an_unknown_group_says_what_to_do() {
        assert_eq!(Group::Id(7).resolve().expect("a number needs no look-up"), 7);
        assert_eq!(Group::Name("root".into()).resolve().expect("every machine has it"), 0);
        let error = Group::Name("no_such_group_here".into()).resolve().expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "there is no group \"no_such_group_here\": create it (groupadd --system no_such_group_here), \
             or set server.socket_group"
        );
    }
}
