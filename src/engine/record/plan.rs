//! Plans: named sets of limits that the configuration defines and the rows of an export refer to.
//!
//! The limits of a key are those of its plan and those of its row. A limit of the row replaces the
//! limit of the plan with the same name, so that one customer can have a higher or a lower limit
//! without a plan of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Limit, LimitRef, MAX_LIMITS, MAX_NAME, Quoted};

/// The plans of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plans {
    limits: BTreeMap<Box<str>, Arc<[Limit]>>,
    default: Option<Box<str>>,
}

/// Why a set of plans is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlansError {
    /// A name that the plan field of a row cannot hold.
    #[error("{} is not a name for a plan: it has 1 to {MAX_NAME} bytes and no control characters", Quoted(.0))]
    Name(Box<str>),
    /// More than [`MAX_LIMITS`] limits.
    #[error("the plan {} has more than {MAX_LIMITS} limits, and every request would be charged to each", Quoted(.0))]
    TooMany(Box<str>),
    /// The default plan is not defined.
    #[error("the default plan {} is not defined: add [plans.NAME], or leave the default out", Quoted(.0))]
    NoDefault(Box<str>),
}

/// A row names a plan that is not defined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan {} is not in the configuration: add [plans.NAME], or correct the row", Quoted(.0))]
pub struct UnknownPlanError(pub Box<str>);

impl Plans {
    /// Creates the plans from their names and limits. `default` is the plan of rows that name none.
    ///
    /// # Errors
    /// See [`PlansError`].
    pub fn new(
        plans: impl IntoIterator<Item = (Box<str>, Vec<Limit>)>,
        default: Option<Box<str>>,
    ) -> Result<Self, PlansError> {
        let mut limits = BTreeMap::new();
        for (name, plan) in plans {
            if !(1..=MAX_NAME).contains(&name.len()) || name.contains(char::is_control) {
                return Err(PlansError::Name(name));
            }
            if plan.len() > MAX_LIMITS {
                return Err(PlansError::TooMany(name));
            }
            limits.insert(name, plan.into());
        }
        match default {
            Some(name) if !limits.contains_key(&name) => Err(PlansError::NoDefault(name)),
            default => Ok(Self { limits, default }),
        }
    }

    /// Resolves the plan field of a row to the name and the limits of its plan; both are empty if
    /// the row is on no plan.
    ///
    /// If no plans are defined, a row may name any plan, and answers repeat the name. If plans are
    /// defined, an undefined name is an error: it is probably misspelt, and would leave the key
    /// without limits.
    ///
    /// # Errors
    /// If plans are defined, but not this one.
    pub fn resolve<'a>(&'a self, plan: &'a str) -> Result<(&'a str, &'a [Limit]), UnknownPlanError> {
        let name = if plan.is_empty() { self.default.as_deref().unwrap_or_default() } else { plan };
        match self.limits.get(name) {
            Some(limits) => Ok((name, limits)),
            None if name.is_empty() || self.limits.is_empty() => Ok((name, &[])),
            None => Err(UnknownPlanError(name.into())),
        }
    }

    /// Whether any plan has a limit of this name.
    pub fn has_limit(&self, name: &str) -> bool {
        self.limits.values().flat_map(|limits| limits.iter()).any(|limit| *limit.name == *name)
    }

    /// The most bytes that the name of a plan and that of one of its limits have together.
    pub(crate) fn longest_texts(&self) -> usize {
        let name = |limits: &[Limit]| limits.iter().map(|limit| limit.name.len()).max().unwrap_or(0);
        self.limits.iter().map(|(plan, limits)| plan.len() + name(limits)).max().unwrap_or(0)
    }
}

/// The limits of a key: those of its plan, in the order of the configuration, each replaced by the
/// limit of the row with the same name if there is one; then the other limits of its row.
pub(crate) fn merge_limits<'l>(
    plan: &'l [Limit],
    row: impl Iterator<Item = LimitRef<'l>> + Clone,
) -> Vec<LimitRef<'l>> {
    let of_plan = plan.iter().map(|limit| {
        let own = row.clone().find(|own| *own.name == *limit.name);
        own.unwrap_or_else(|| limit.as_ref())
    });
    let others = row.clone().filter(|own| plan.iter().all(|limit| *limit.name != *own.name));
    of_plan.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Per, parse_limits, parse_rule};

    fn limits(text: &str) -> Vec<Limit> {
        parse_limits(text).expect("limits")
    }

    #[test]
    fn row_without_a_plan_is_on_the_default_plan() {
        let plans = [("free".into(), limits("10/s")), ("pro".into(), limits("100/s"))];
        let plans = Plans::new(plans, Some("free".into())).expect("plans");
        assert_eq!(plans.resolve("pro"), Ok(("pro", &*limits("100/s"))));
        assert_eq!(plans.resolve(""), Ok(("free", &*limits("10/s"))));
        let message = "the plan \"por\" is not in the configuration: add [plans.NAME], or correct the row";
        assert_eq!(plans.resolve("por").map_err(|error| error.to_string()), Err(message.to_owned()));
    }

    #[test]
    fn any_plan_name_is_accepted_if_no_plans_are_defined() {
        assert_eq!(Plans::default().resolve("anything"), Ok(("anything", &[][..])));
        assert_eq!(Plans::default().resolve(""), Ok(("", &[][..])));
    }

    #[test]
    fn row_without_a_plan_has_no_limits_if_there_is_no_default_plan() {
        let plans = Plans::new([("pro".into(), limits("100/s"))], None).expect("plans");
        assert_eq!(plans.resolve(""), Ok(("", &[][..])));
    }

    #[test]
    fn invalid_plans_are_refused() {
        let long: Box<str> = "p".repeat(MAX_NAME + 1).into();
        assert_eq!(Plans::new([(long.clone(), vec![])], None), Err(PlansError::Name(long)));
        let many =
            (0..=MAX_LIMITS).map(|n| Limit::new(format!("l{n}"), parse_rule("l", "1/s").expect("a rule")));
        assert_eq!(Plans::new([("p".into(), many.collect())], None), Err(PlansError::TooMany("p".into())));
        assert_eq!(Plans::new([], Some("p".into())), Err(PlansError::NoDefault("p".into())));
    }

    #[test]
    fn limit_of_the_row_replaces_the_limit_of_the_plan() {
        let shared =
            Limit { per: Per::Owner, ..Limit::new("daily", parse_rule("daily", "1000/d").expect("a rule")) };
        let plan = [limits("requests=10/s"), vec![shared.clone()]].concat();
        let row = limits("burst=5/s; requests=50/s");
        let [burst, requests] = [row[0].clone(), row[1].clone()];
        let merged = |plan| {
            let all = merge_limits(plan, row.iter().map(Limit::as_ref));
            all.into_iter().map(LimitRef::to_limit).collect::<Vec<_>>()
        };
        assert_eq!(merged(&plan), [requests, shared, burst], "it keeps the place of the plan's");
        assert_eq!(merged(&[]), row);
    }
}
