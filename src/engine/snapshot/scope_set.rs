//! A set of scopes with one binary search for exact names and one for wildcards.

use std::sync::Arc;

/// Exact scopes, and prefixes that stand for every scope that starts with them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ScopeSet {
    /// Sorted, without those that a wildcard covers.
    exact: Box<[Box<str>]>,
    /// The prefixes before the `*`, sorted. None starts with another, so at most one of them can
    /// match a scope.
    wildcards: Box<[Box<str>]>,
}

impl ScopeSet {
    /// The set of `scopes`; one that ends in `*` is a wildcard.
    pub(crate) fn new(scopes: &Arc<[Box<str>]>) -> Self {
        let mut wildcards: Vec<&str> = scopes.iter().filter_map(|scope| scope.strip_suffix('*')).collect();
        wildcards.sort_unstable();
        // A prefix sorts before all texts that start with it.
        wildcards.dedup_by(|next, previous| next.starts_with(*previous));
        let set = Self { exact: Box::default(), wildcards: wildcards.into_iter().map(Box::from).collect() };
        let mut exact: Vec<&str> =
            scopes.iter().map(|scope| &**scope).filter(|scope| !scope.ends_with('*')).collect();
        exact.retain(|scope| !set.is_covered(scope));
        exact.sort_unstable();
        exact.dedup();
        Self { exact: exact.into_iter().map(Box::from).collect(), ..set }
    }

    /// Whether `scope` is in the set, exactly or by a wildcard.
    pub(crate) fn contains(&self, scope: &str) -> bool {
        self.exact.binary_search_by(|own| (**own).cmp(scope)).is_ok() || self.is_covered(scope)
    }

    /// Whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcards.is_empty()
    }

    /// Whether every scope that `other` contains is in this set.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        other.exact.iter().all(|scope| self.contains(scope))
            && other.wildcards.iter().all(|prefix| self.is_covered(prefix))
    }

    fn is_covered(&self, scope: &str) -> bool {
        let after = self.wildcards.partition_point(|prefix| **prefix <= *scope);
        after
            .checked_sub(1)
            .and_then(|at| self.wildcards.get(at))
            .is_some_and(|prefix| scope.starts_with(&**prefix))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(scopes: &[&str]) -> ScopeSet {
        ScopeSet::new(&scopes.iter().map(|scope| Box::from(*scope)).collect())
    }

    #[test]
    fn scopes_covered_by_a_wildcard_are_removed() {
        let set =
            set(&["orders:*", "orders:read", "orders:items:*", "invoices:read", "invoices:read", "order"]);
        assert_eq!(*set.exact, ["invoices:read".into(), "order".into()]);
        assert_eq!(*set.wildcards, ["orders:".into()]);
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
            assert!(ours.covers(&set(covered)), "{covered:?}");
        }
        for wider in [&["order*"][..], &["invoices:*"], &["*"], &["orders:read", "users:read"]] {
            assert!(!ours.covers(&set(wider)), "{wider:?}");
        }
    }

    proptest! {
        #[test]
        fn binary_search_agrees_with_a_linear_scan(
            scopes in prop::collection::vec("[ab:]{0,4}\\*?", 0..30),
            probes in prop::collection::vec("[ab:]{0,5}", 1..40),
        ) {
            let set = ScopeSet::new(&scopes.iter().map(|scope| Box::from(scope.as_str())).collect());
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
