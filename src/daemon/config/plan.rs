//! `[plans.NAME]`: the limits of a plan by name. A limit is a rate or a table.
//!
//! ```toml
//! [plans.pro]
//! requests = "100/s burst 200"
//! daily = { rate = "1000000/d", per = "owner" }
//! bursty = { rate = "20/s", shadow = true }
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::text::{Text, deserialize_text};
use keyward_engine::limiter::Rate;
use keyward_engine::record::{Limit, MAX_NAME, Per, is_limit_name, parse_rate};

/// The limits of a plan, in the order of their names.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Plan(BTreeMap<LimitName, PlanLimit>);

impl Plan {
    pub(super) fn limits(self) -> Vec<Limit> {
        let limit = |(LimitName(name), PlanLimit { rate: RateText(rate), per: PerText(per), shadow })| {
            Limit { name, rate, per, shadow }
        };
        self.0.into_iter().map(limit).collect()
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LimitName(Box<str>);

impl Text for LimitName {
    const EXPECTED: &'static str = "the name of a limit";

    fn parse(text: &str) -> Result<Self, String> {
        if !is_limit_name(text) {
            return Err(format!(
                "{text:?} is not a name for a limit: it has 1 to {MAX_NAME} letters, digits, _, . and -"
            ));
        }
        Ok(Self(text.into()))
    }
}

#[derive(Debug)]
pub(super) struct RateText(pub(super) Rate);

impl Text for RateText {
    const EXPECTED: &'static str = "a rate such as \"100/s\" or \"1000/h burst 50\"";

    fn parse(text: &str) -> Result<Self, String> {
        parse_rate(text).map(Self).map_err(|error| error.to_string())
    }
}

#[derive(Debug, Default)]
struct PerText(Per);

impl Text for PerText {
    const EXPECTED: &'static str = "\"key\" or \"owner\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "key" => Ok(Self(Per::Key)),
            "owner" => Ok(Self(Per::Owner)),
            _ => Err(format!("{text:?} shares no limit: write {}", Self::EXPECTED)),
        }
    }
}

deserialize_text!(LimitName, RateText, PerText);

/// One limit.
#[derive(Debug)]
struct PlanLimit {
    rate: RateText,
    per: PerText,
    shadow: bool,
}

/// A limit that is written as a table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitTable {
    rate: RateText,
    #[serde(default)]
    per: PerText,
    #[serde(default)]
    shadow: bool,
}

impl<'de> Deserialize<'de> for PlanLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RateOrTableVisitor;

        impl<'de> Visitor<'de> for RateOrTableVisitor {
            type Value = PlanLimit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a rate such as \"100/s\", or a table such as { rate = \"100/s\", per = \"owner\" }",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PlanLimit, E> {
                let rate = RateText::parse(text).map_err(E::custom)?;
                Ok(PlanLimit { rate, per: PerText::default(), shadow: false })
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<PlanLimit, A::Error> {
                let LimitTable { rate, per, shadow } =
                    LimitTable::deserialize(MapAccessDeserializer::new(table))?;
                Ok(PlanLimit { rate, per, shadow })
            }
        }

        deserializer.deserialize_any(RateOrTableVisitor)
    }
}
