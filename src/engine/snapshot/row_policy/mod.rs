//! A policy as a row states it, before its plan is applied: texts and lists, each after its length.
//! The bytes in memory are those of a compiled file, and equal policies have equal bytes.

use ipnet::IpNet;

use crate::record::{KeyRecord, LimitRef, OriginRef};

mod encode;
mod list;
mod policies;
mod validate;

pub(super) use encode::encode;
use list::{List, take, take_limit, take_network, take_text};
pub use policies::RowPolicies;

/// The row has no such list and is not restricted by one.
const ABSENT: u8 = 0;
/// A list follows. An empty list admits nothing.
const PRESENT: u8 = 1;

/// Marks of a limit. Only plans have shadow limits, so a limit with that mark is no limit of a row in a
/// compiled file.
const SHADOW: u8 = 1;
const PER_OWNER: u8 = 2;

/// A view of an encoded row policy.
#[derive(Clone, Copy)]
pub(super) struct RowPolicy<'b> {
    pub(super) environment: &'b str,
    pub(super) plan: &'b str,
    scopes: List<'b>,
    /// `None` allows any address, an empty list none.
    networks: Option<List<'b>>,
    /// `None` allows any origin, an empty list none.
    origins: Option<List<'b>>,
    limits: List<'b>,
}

impl<'b> RowPolicy<'b> {
    /// A policy that admits no request. Bytes that are no policy are read as this one.
    const NONE: Self = Self {
        environment: "",
        plan: "",
        scopes: List::EMPTY,
        networks: Some(List::EMPTY),
        origins: Some(List::EMPTY),
        limits: List::EMPTY,
    };

    /// The policy with these bytes, which [`encode`] returned or [`take_valid`](Self::take_valid)
    /// accepted.
    pub(super) fn new(mut bytes: &'b [u8]) -> Self {
        Self::take(&mut bytes).unwrap_or(Self::NONE)
    }

    /// Takes a policy from the front of `bytes`, without checking its values.
    fn take(bytes: &mut &'b [u8]) -> Option<Self> {
        Some(Self {
            environment: take_text(bytes)?,
            plan: take_text(bytes)?,
            scopes: List::take(bytes, take_text)?,
            networks: take_optional(bytes, take_network)?,
            origins: take_optional(bytes, take_text)?,
            limits: List::take(bytes, take_limit)?,
        })
    }

    pub(super) fn scopes(self) -> impl Iterator<Item = &'b str> + Clone {
        self.scopes.items(take_text)
    }

    pub(super) fn networks(self) -> Option<impl Iterator<Item = IpNet> + Clone> {
        self.networks.map(|list| list.items(take_network))
    }

    pub(super) fn origins(self) -> Option<impl Iterator<Item = OriginRef<'b>> + Clone> {
        self.origins.map(|list| list.items(take_text).map(OriginRef::from_text))
    }

    pub(super) fn limits(self) -> impl Iterator<Item = LimitRef<'b>> + Clone {
        self.limits.items(take_limit)
    }

    /// A record with the values of this policy.
    pub(super) fn to_record(self) -> KeyRecord<'b> {
        KeyRecord {
            environment: self.environment,
            plan: self.plan,
            scopes: self.scopes().map(Box::from).collect(),
            allowed_ips: self.networks().map(Iterator::collect),
            allowed_origins: self.origins().map(|origins| origins.map(OriginRef::to_origin).collect()),
            limits: self.limits().map(LimitRef::to_limit).collect(),
            ..KeyRecord::new([0; 32], "")
        }
    }
}

/// Takes an optional list. The outer `None` means that the bytes are neither a list nor [`ABSENT`].
fn take_optional<'b, T>(
    bytes: &mut &'b [u8],
    item: impl FnMut(&mut &'b [u8]) -> Option<T>,
) -> Option<Option<List<'b>>> {
    match take(bytes)? {
        [ABSENT] => Some(None),
        [PRESENT] => List::take(bytes, item).map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Limit, Per};
    use crate::snapshot::test_record::{described_policy, limits, networks, numbered, origins};

    fn encoded(record: &KeyRecord<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        bytes
    }

    #[test]
    fn encoded_policy_reads_back_as_it_was() {
        let shared = Limit { per: Per::Owner, shadow: true, ..limits("2/s burst 7")[0].clone() };
        let full = KeyRecord {
            environment: "live",
            plan: "pro",
            scopes: ["orders:*", "a"].map(Into::into).into(),
            allowed_ips: Some(networks(&["10.0.0.0/8", "2001:db8::/32"])),
            allowed_origins: Some(origins(&["https://*.example.com", "https://a.example"])),
            limits: limits("requests=100/s burst 200; daily=7/d"),
            ..numbered(1)
        };
        let empty = || Some(std::sync::Arc::default());
        for record in [
            numbered(1),
            KeyRecord { allowed_ips: None, ..full.clone() },
            KeyRecord { allowed_ips: Some(std::sync::Arc::default()), ..full.clone() },
            KeyRecord { allowed_origins: empty(), ..full.clone() },
            KeyRecord { limits: [shared].into(), ..full.clone() },
            full,
        ] {
            let bytes = encoded(&record);
            assert_eq!(described_policy(&RowPolicy::new(&bytes).to_record()), described_policy(&record));
        }
    }

    #[test]
    fn truncated_policy_admits_nothing() {
        let record = KeyRecord { limits: limits("1/s"), ..numbered(1) };
        let bytes = encoded(&record);
        for length in 0..bytes.len() {
            let policy = RowPolicy::new(&bytes[..length]);
            assert_eq!(policy.networks().map(Iterator::count), Some(0), "{length}");
            assert_eq!(policy.origins().map(Iterator::count), Some(0), "{length}");
        }
    }
}
