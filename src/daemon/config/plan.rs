//! `[plans.NAME]`: the limits of a plan by name, in the order of the file. A limit is a text or a
//! table.
//!
//! ```toml
//! [plans.pro]
//! requests = "100/s burst 200"
//! monthly = { limit = "1000000/month", per = "owner" }
//! bursty = { limit = "20/s", shadow = true }
//! credits = "5000 overdraft 100"
//! ```

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::text::{Text, deserialize_text};
use keyward_engine::limiter::Rate;
use keyward_engine::record::{Limit, MAX_NAME, Per, is_limit_name, parse_rate, parse_rule};

/// The limits of a plan, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Plan(Vec<Limit>);

impl Plan {
    pub(super) fn limits(self) -> Vec<Limit> {
        self.0
    }
}

impl<'de> Deserialize<'de> for Plan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PlanVisitor;

        impl<'de> Visitor<'de> for PlanVisitor {
            type Value = Plan;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of limits")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plan, A::Error> {
                let mut limits = Vec::new();
                while let Some(LimitName(name)) = map.next_key()? {
                    limits.push(map.next_value_seed(LimitSeed(name))?);
                }
                Ok(Plan(limits))
            }
        }

        deserializer.deserialize_map(PlanVisitor)
    }
}

#[derive(Debug)]
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

/// A limit that is written as a table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitTable {
    limit: String,
    #[serde(default)]
    per: PerText,
    #[serde(default)]
    shadow: bool,
}

/// Reads the limit with this name.
struct LimitSeed(Box<str>);

impl LimitSeed {
    fn limit<E: Error>(self, text: &str) -> Result<Limit, E> {
        let rule = parse_rule(&self.0, text).map_err(E::custom)?;
        Ok(Limit::new(self.0, rule))
    }
}

impl<'de> DeserializeSeed<'de> for LimitSeed {
    type Value = Limit;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Limit, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for LimitSeed {
    type Value = Limit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a limit such as \"100/s\", \"10000/month\" or \"5000 credits\", or a table such as { limit = \
             \"100/s\", per = \"owner\" }",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Limit, E> {
        self.limit(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Limit, A::Error> {
        let LimitTable { limit, per: PerText(per), shadow } =
            LimitTable::deserialize(MapAccessDeserializer::new(table))?;
        Ok(Limit { per, shadow, ..self.limit(&limit)? })
    }
}
