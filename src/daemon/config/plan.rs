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
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use keyward_engine::limiter::{Rate, Rule};
use keyward_engine::record::{Limit, MAX_LIMITS, MAX_NAME, Per, is_limit_name, parse_rate, parse_rule};
use keyward_settings::deserialize_text;
use keyward_settings::text::Text;

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
                    let preceding = limits.len();
                    limits.push(map.next_value_seed(LimitSeed { name, preceding })?);
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

#[derive(Debug)]
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

/// A setting of a limit that is written as a table.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum LimitField {
    Limit,
    Per,
    Shadow,
}

/// Reads a limit. All values are read at their places, so that an error has its position.
struct LimitSeed {
    name: Box<str>,
    /// The number of limits of the plan that precede it.
    preceding: usize,
}

impl LimitSeed {
    fn check_number<E: Error>(&self) -> Result<(), E> {
        if self.preceding < MAX_LIMITS {
            return Ok(());
        }
        Err(E::custom(format_args!(
            "is one limit too many: a plan has at most {MAX_LIMITS}, and every request is charged to each"
        )))
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
        self.check_number()?;
        let rule = RuleSeed(&self.name).visit_str(text)?;
        Ok(Limit::new(self.name, rule))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Limit, A::Error> {
        self.check_number()?;
        let (mut rule, mut per, mut shadow) = (None, Per::default(), false);
        while let Some(field) = table.next_key()? {
            match field {
                LimitField::Limit => rule = Some(table.next_value_seed(RuleSeed(&self.name))?),
                LimitField::Per => PerText(per) = table.next_value()?,
                LimitField::Shadow => shadow = table.next_value()?,
            }
        }
        let rule = rule.ok_or_else(|| A::Error::missing_field("limit"))?;
        Ok(Limit { per, shadow, ..Limit::new(self.name, rule) })
    }
}

/// Reads what the limit with this name admits.
struct RuleSeed<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for RuleSeed<'_> {
    type Value = Rule;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Rule, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for RuleSeed<'_> {
    type Value = Rule;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text such as \"100/s\", \"10000/month\" or \"5000 credits\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Rule, E> {
        parse_rule(self.0, text).map_err(E::custom)
    }
}
