//! A set of scopes with one binary search for exact names and one for wildcards.

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// Exact scopes, and prefixes that stand for every scope that starts with them.
#[derive(Clone, Copy, Default, PartialEq)]
pub(in crate::snapshot) struct ScopeSet<'s> {
    /// Sorted, without those that a wildcard covers.
    exact: SortedTexts<'s>,
    /// The prefixes before the `*`, sorted. None starts with another, so at most one of them can
    /// match a scope.
    wildcards: SortedTexts<'s>,
}

/// Appends the set of `scopes`; one that ends in `*` is a wildcard. An empty set has no bytes.
pub(super) fn encode<'s>(scopes: impl Iterator<Item = &'s str> + Clone, out: &mut Vec<u8>) {
    let mut wildcards: Vec<&str> = scopes.clone().filter_map(|scope| scope.strip_suffix('*')).collect();
    wildcards.sort_unstable();
    // A prefix sorts before all texts that start with it.
    wildcards.dedup_by(|next, previous| next.starts_with(*previous));
    let is_covered = |scope: &str| {
        let after = wildcards.partition_point(|prefix| *prefix <= scope);
        after.checked_sub(1).is_some_and(|at| scope.starts_with(wildcards[at]))
    };
    let mut exact: Vec<&str> = scopes.filter(|scope| !scope.ends_with('*')).collect();
    exact.retain(|scope| !is_covered(scope));
    exact.sort_unstable();
    exact.dedup();
    if !(exact.is_empty() && wildcards.is_empty()) {
        SortedTexts::encode(&exact, out);
        SortedTexts::encode(&wildcards, out);
    }
}

impl<'s> ScopeSet<'s> {
    /// The set that was [encoded](encode) as `bytes`.
    pub(super) fn new(mut bytes: &'s [u8]) -> Self {
        let exact = SortedTexts::take(&mut bytes).unwrap_or_default();
        Self { exact, wildcards: SortedTexts::take(&mut bytes).unwrap_or_default() }
    }

    /// Whether `scope` is in the set, exactly or by a wildcard.
    pub(super) fn contains(self, scope: &str) -> bool {
        let scope = scope.as_bytes();
        self.exact.last_up_to(scope) == Some(scope) || self.is_covered(scope)
    }

    /// Whether the set is empty.
    pub(super) fn is_empty(self) -> bool {
        self.exact.is_empty() && self.wildcards.is_empty()
    }

    /// Whether every scope that `other` contains is in this set.
    pub(super) fn covers(self, other: ScopeSet<'_>) -> bool {
        let contains = |scope| self.exact.last_up_to(scope) == Some(scope) || self.is_covered(scope);
        other.exact.iter().all(contains) && other.wildcards.iter().all(|prefix| self.is_covered(prefix))
    }

    fn is_covered(self, scope: &[u8]) -> bool {
        self.wildcards.last_up_to(scope).is_some_and(|prefix| scope.starts_with(prefix))
    }
}

/// Texts in ascending order.
#[derive(Clone, Copy, Default, PartialEq)]
struct SortedTexts<'s> {
    /// Where each text ends in `texts`.
    ends: &'s [U32],
    texts: &'s [u8],
}

impl<'s> SortedTexts<'s> {
    /// Appends the number of texts, their ends, and the texts.
    fn encode(texts: &[&str], out: &mut Vec<u8>) {
        out.extend_from_slice(&(texts.len() as u32).to_le_bytes());
        let mut end = 0;
        for text in texts {
            end += text.len() as u32;
            out.extend_from_slice(&end.to_le_bytes());
        }
        texts.iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
    }

    /// Takes texts from the front of `bytes`.
    fn take(bytes: &mut &'s [u8]) -> Option<Self> {
        let (count, rest) = U32::read_from_prefix(bytes).ok()?;
        let (ends, rest) = <[U32]>::ref_from_prefix_with_elems(rest, count.get() as usize).ok()?;
        let length = ends.last().map_or(0, |end| end.get() as usize);
        let (texts, rest) = rest.split_at_checked(length)?;
        *bytes = rest;
        Some(Self { ends, texts })
    }

    fn is_empty(self) -> bool {
        self.ends.is_empty()
    }

    /// The text that ends at the end number `at`.
    fn get(self, at: usize) -> Option<&'s [u8]> {
        let start =
            at.checked_sub(1).map_or(Some(0), |previous| self.ends.get(previous).map(|end| end.get()));
        self.texts.get(start? as usize..self.ends.get(at)?.get() as usize)
    }

    fn iter(self) -> impl Iterator<Item = &'s [u8]> {
        (0..self.ends.len()).map_while(move |at| self.get(at))
    }

    /// The last text that is `text` or sorts before it.
    fn last_up_to(self, text: &[u8]) -> Option<&'s [u8]> {
        let (mut found, mut from, mut to) = (None, 0, self.ends.len());
        while from < to {
            let middle = from + (to - from) / 2;
            match self.get(middle).filter(|own| *own <= text) {
                Some(own) => (found, from) = (Some(own), middle + 1),
                None => to = middle,
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The encoded set is leaked.
    fn set(scopes: &[&str]) -> ScopeSet<'static> {
        let mut encoded = Vec::new();
        encode(scopes.iter().copied(), &mut encoded);
        ScopeSet::new(encoded.leak())
    }

    #[test]
    fn scopes_covered_by_a_wildcard_are_removed() {
        let set =
            set(&["orders:*", "orders:read", "orders:items:*", "invoices:read", "invoices:read", "order"]);
        assert!(set.exact.iter().eq([&b"invoices:read"[..], b"order"]));
        assert!(set.wildcards.iter().eq([b"orders:"]));
        for covered in ["orders:", "orders:read", "orders:items:write", "invoices:read", "order"] {
            assert!(set.contains(covered), "{covered}");
        }
        for foreign in ["orders", "invoices:", "invoices:read:all", "", "orderz:read"] {
            assert!(!set.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn lone_star_covers_every_scope() {
        assert!(set(&["*", "a:*", "b"]).contains("anything"));
        assert!(!set(&[]).contains("anything"));
    }

    #[test]
    fn set_covers_scopes_that_it_contains_exactly_or_by_a_wildcard() {
        let ours = set(&["orders:*", "invoices:read"]);
        for covered in [&["orders:items:*"][..], &["orders:*", "invoices:read"], &["orders:read"], &[]] {
            assert!(ours.covers(set(covered)), "{covered:?}");
        }
        for wider in [&["order*"][..], &["invoices:*"], &["*"], &["orders:read", "users:read"]] {
            assert!(!ours.covers(set(wider)), "{wider:?}");
        }
    }

    proptest! {
        #[test]
        fn binary_search_agrees_with_a_linear_scan(
            scopes in prop::collection::vec("[ab:]{0,4}\\*?", 0..30),
            probes in prop::collection::vec("[ab:]{0,5}", 1..40),
        ) {
            let mut encoded = Vec::new();
            encode(scopes.iter().map(String::as_str), &mut encoded);
            let set = ScopeSet::new(&encoded);
            for probe in probes {
                let linear = scopes.iter().any(|own| match own.strip_suffix('*') {
                    Some(prefix) => probe.starts_with(prefix),
                    None => *own == probe,
                });
                prop_assert_eq!(set.contains(&probe), linear, "{} in {:?}", probe, scopes);
            }
        }
    }
}
