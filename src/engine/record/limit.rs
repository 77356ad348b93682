//! Named limits.

use crate::limiter::Rule;

/// Maximum number of limits of a row, and of a plan. Every request charges each limit, so this
/// bounds the work of a request.
pub const MAX_LIMITS: usize = 8;

// A key has at most the limits of its plan and those of its row.
const _: () = assert!(2 * MAX_LIMITS <= crate::limiter::MAX_CHARGES);

/// One named limit: a balance per key, or one per owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// The name, unique among the limits of a key. An answer names the limit that decided it.
    pub name: Box<str>,
    /// What the limit admits.
    pub rule: Rule,
    /// Which requests share a balance.
    pub per: Per,
    /// Shadow mode: the limit is charged and reported, but never refuses a request.
    pub shadow: bool,
}

/// Which requests share the balance of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Per {
    /// One balance for all rows with the same key id.
    #[default]
    Key,
    /// One balance for all keys of an owner, regardless of their plans. A key without an owner has a
    /// balance of its own.
    Owner,
}

impl Limit {
    /// An enforced limit with a balance per key.
    pub fn new(name: impl Into<Box<str>>, rule: Rule) -> Self {
        Self { name: name.into(), rule, per: Per::Key, shadow: false }
    }

    /// The limit without a text of its own.
    pub fn as_ref(&self) -> LimitRef<'_> {
        LimitRef { name: &self.name, rule: self.rule, per: self.per, shadow: self.shadow }
    }
}

/// A [`Limit`] whose name is stored elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitRef<'l> {
    /// See [`Limit::name`].
    pub name: &'l str,
    /// See [`Limit::rule`].
    pub rule: Rule,
    /// See [`Limit::per`].
    pub per: Per,
    /// See [`Limit::shadow`].
    pub shadow: bool,
}

impl LimitRef<'_> {
    /// The limit with a text of its own.
    pub fn to_limit(self) -> Limit {
        Limit { name: self.name.into(), rule: self.rule, per: self.per, shadow: self.shadow }
    }
}

/// The name of a limit that is written without one.
pub const DEFAULT_LIMIT_NAME: &str = "default";

/// The name of a limit that is one of credits if its text is a number alone.
pub const CREDITS_NAME: &str = "credits";
