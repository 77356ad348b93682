//! Plans: named sets of limits that the configuration defines and the rows of an export refer to.
//!
//! The limits of a key are its plan's, and its row's own on top: a limit of the row takes the place of the plan's limit of the
//! same name, so that one customer can be given more, or less, without a plan of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Limit, MAX_LIMITS, MAX_NAME, Quoted};

/// All plans of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plans {
    limits: BTreeMap<Box<str>, Arc<[Limit]>>,
    default: Option<Box<str>>,
}

/// Why plans make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlansError {
    /// A name that no row could have.
    #[error("{} is not a name for a plan: it has 1 to {MAX_NAME} bytes and no control characters", Quoted(.0))]
    Name(Box<str>),
    /// More limits than a verify is to be charged to.
    #[error("the plan {} has more than {MAX_LIMITS} limits, and every request would be charged to each", Quoted(.0))]
    TooMany(Box<str>),
    /// The default is none of them.
    #[error("the default plan {} is not defined: add [plans.NAME], or leave the default out", Quoted(.0))]
    NoDefault(Box<str>),
}

/// A row's plan that is not defined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan {} is not in the configuration: add [plans.NAME], or correct the row", Quoted(.0))]
pub struct UnknownPlanError(pub Box<str>);

impl Plans {
    /// Plans by name, and the name of the one for rows that name none.
    ///
    /// # Errors
    /// See [`PlansError`].
    pub fn new(
        plans: impl IntoIterator<Item = (Box<str>, Vec<Limit>)>,
        default: Option<Box<str>>,
    ) -> Result<Self, PlansError> {
        let mut limits = BTreeMap::new();
        for (name, of_plan) in plans {
            if !(1..=MAX_NAME).contains(&name.len()) || name.contains(char::is_control) {
                return Err(PlansError::Name(name));
            }
            if of_plan.len() > MAX_LIMITS {
                return Err(PlansError::TooMany(name));
            }
            limits.insert(name, of_plan.into());
        }
        match default {
            Some(name) if !limits.contains_key(&name) => Err(PlansError::NoDefault(name)),
            default => Ok(Self { limits, default }),
        }
    }

    /// The plan of a row that says `plan`, by its name and with its limits; both empty for a row that is on none.
    ///
    /// Where no plans are defined a row may say anything: a name that only answers repeat. Where some are, one that is not among
    /// them is more likely misspelt than meant, and would leave its keys without limits.
    ///
    /// # Errors
    /// When there are plans, and this is none of them.
    pub fn resolve<'a>(&'a self, plan: &'a str) -> Result<(&'a str, &'a [Limit]), UnknownPlanError> {
        let name = if plan.is_empty() { self.default.as_deref().unwrap_or_default() } else { plan };
        match self.limits.get(name) {
            Some(limits) => Ok((name, limits)),
            None if name.is_empty() || self.limits.is_empty() => Ok((name, &[])),
            None => Err(UnknownPlanError(name.into())),
        }
    }
}

/// A plan's limits, and a row's own on top of them.
pub(crate) fn merge_limits(plan: &[Limit], row: &Arc<[Limit]>) -> Arc<[Limit]> {
    if plan.is_empty() {
        return Arc::clone(row);
    }
    let is_replaced = |limit: &&Limit| row.iter().any(|own| own.name == limit.name);
    plan.iter().filter(|limit| !is_replaced(limit)).chain(row.iter()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Per, parse_limits, parse_rate};

    fn limits(text: &str) -> Vec<Limit> {
        parse_limits(text).expect("limits")
    }

    #[test]
    fn a_row_without_a_plan_is_on_the_default_one() {
        let plans = [("free".into(), limits("10/s")), ("pro".into(), limits("100/s"))];
        let plans = Plans::new(plans, Some("free".into())).expect("plans");
        assert_eq!(plans.resolve("pro"), Ok(("pro", &*limits("100/s"))));
        assert_eq!(plans.resolve(""), Ok(("free", &*limits("10/s"))));
        let message = "the plan \"por\" is not in the configuration: add [plans.NAME], or correct the row";
        assert_eq!(plans.resolve("por").map_err(|error| error.to_string()), Err(message.to_owned()));
    }

    #[test]
    fn without_plans_a_name_is_only_a_name() {
        assert_eq!(Plans::default().resolve("anything"), Ok(("anything", &[][..])));
        assert_eq!(Plans::default().resolve(""), Ok(("", &[][..])));
    }

    #[test]
    fn without_a_default_a_row_may_be_on_no_plan() {
        let plans = Plans::new([("pro".into(), limits("100/s"))], None).expect("plans");
        assert_eq!(plans.resolve(""), Ok(("", &[][..])));
    }

    #[test]
    fn plans_that_make_no_sense_say_why() {
        let long: Box<str> = "p".repeat(MAX_NAME + 1).into();
        assert_eq!(Plans::new([(long.clone(), vec![])], None), Err(PlansError::Name(long)));
        let many = (0..=MAX_LIMITS).map(|n| Limit::new(format!("l{n}"), parse_rate("1/s").expect("a rate")));
        assert_eq!(Plans::new([("p".into(), many.collect())], None), Err(PlansError::TooMany("p".into())));
        assert_eq!(Plans::new([], Some("p".into())), Err(PlansError::NoDefault("p".into())));
    }

    #[test]
    fn a_rows_own_limit_takes_the_place_of_the_plans() {
        let shared = Limit { per: Per::Owner, ..Limit::new("daily", parse_rate("1000/d").expect("a rate")) };
        let plan = [limits("requests=10/s"), vec![shared.clone()]].concat();
        let row: Arc<[Limit]> = limits("burst=5/s; requests=50/s").into();
        let all = merge_limits(&plan, &row);
        assert_eq!(*all, [vec![shared], limits("burst=5/s; requests=50/s")].concat());
        assert!(Arc::ptr_eq(&merge_limits(&[], &row), &row), "nothing is copied where there is no plan");
    }
}
