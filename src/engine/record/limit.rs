//! Named rate limits.

use std::sync::Arc;

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
    /// Limits with the same name can share its text.
    pub name: Arc<str>,
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
    pub fn new(name: impl Into<Arc<str>>, rate: Rate) -> Self {
        Self { name: name.into(), rate, per: Per::Key, shadow: false }
    }

    /// The limit without a text of its own.
    pub(crate) fn as_ref(&self) -> LimitRef<'_> {
        LimitRef { name: &self.name, rate: self.rate, per: self.per, shadow: self.shadow }
    }
}

/// A [`Limit`] whose name is stored elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LimitRef<'l> {
    pub(crate) name: &'l str,
    pub(crate) rate: Rate,
    pub(crate) per: Per,
    pub(crate) shadow: bool,
}

impl LimitRef<'_> {
    /// The limit with the text `name`, which has to be its name.
    pub(crate) fn with_name(self, name: Arc<str>) -> Limit {
        Limit { name, rate: self.rate, per: self.per, shadow: self.shadow }
    }

    /// The limit with a text of its own.
    pub(crate) fn to_limit(self) -> Limit {
        self.with_name(self.name.into())
    }
}

/// The name of a limit that is written without one.
pub const DEFAULT_LIMIT_NAME: &str = "default";
