//! Named rate limits.

use crate::limiter::Rate;

/// Maximum number of limits of a row, and of a plan. Every request charges each limit, so this
/// bounds the work of a request.
pub const MAX_LIMITS: usize = 8;

// A key has at most the limits of its plan and those of its row.
const _: () = assert!(2 * MAX_LIMITS <= crate::limiter::MAX_CHARGES);

/// One named rate limit: a token bucket per key, or one per owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// The name, unique among the limits of a key. An answer names the limit that decided it.
    pub name: Box<str>,
    /// The refill rate and the burst.
    pub rate: Rate,
    /// Which requests share a bucket.
    pub per: Per,
    /// Shadow mode: the limit is charged and reported, but never refuses a request.
    pub shadow: bool,
}

/// Which requests share the bucket of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Per {
    /// One bucket for all rows with the same key id.
    #[default]
    Key,
    /// One bucket for all keys of an owner, regardless of their plans. A key without an owner has a
    /// bucket of its own.
    Owner,
}

impl Limit {
    /// An enforced limit with a bucket per key.
    pub fn new(name: impl Into<Box<str>>, rate: Rate) -> Self {
        Self { name: name.into(), rate, per: Per::Key, shadow: false }
    }

    /// The limit without a text of its own.
    pub fn as_ref(&self) -> LimitRef<'_> {
        LimitRef { name: &self.name, rate: self.rate, per: self.per, shadow: self.shadow }
    }
}

/// A [`Limit`] whose name is stored elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitRef<'l> {
    /// See [`Limit::name`].
    pub name: &'l str,
    /// See [`Limit::rate`].
    pub rate: Rate,
    /// See [`Limit::per`].
    pub per: Per,
    /// See [`Limit::shadow`].
    pub shadow: bool,
}

impl LimitRef<'_> {
    /// The limit with a text of its own.
    pub fn to_limit(self) -> Limit {
        Limit { name: self.name.into(), rate: self.rate, per: self.per, shadow: self.shadow }
    }
}

/// The name of a limit that is written without one.
pub const DEFAULT_LIMIT_NAME: &str = "default";
