//! The body of a settlement: the amounts.

use std::fmt;

use keyward_client::{Debit, Refund};
use keyward_protocol::CostsBuf;
use keyward_settings::text;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// The amounts of a settlement: SPEC.md, section 5. They are not all missing.
#[derive(Clone, Debug)]
pub(crate) struct Amounts {
    /// The amount for each limit that `costs` does not name.
    cost: u32,
    costs: CostsBuf,
}

/// Why a body has no amounts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AmountsError {
    /// The body is not JSON, or has other members. The message states line and column.
    #[error("the body is not a settlement such as {{\"costs\":{{\"tokens\":1500}}}}: {0}")]
    Json(#[from] serde_json::Error),
    /// There is nothing to settle.
    #[error("the body has no amount: `cost` is missing or 0, and there are no `costs`")]
    Zero,
}

/// The members. [`ObjectVisitor`] keeps out arrays, which serde takes for the members in their order.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    #[serde(default)]
    cost: Amount,
    #[serde(default, deserialize_with = "costs")]
    costs: CostsBuf,
}

/// The amount for a limit.
#[derive(Clone, Copy, Default)]
struct Amount(u32);

struct ObjectVisitor;

struct CostsVisitor;

impl Amounts {
    /// Parses a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, AmountsError> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let Members { cost: Amount(cost), costs } = json.deserialize_map(ObjectVisitor)?;
        json.end()?;
        if cost == 0 && costs.as_costs().is_none() {
            return Err(AmountsError::Zero);
        }
        Ok(Self { cost, costs })
    }

    /// The debit of the amounts, with all balances.
    pub(crate) fn debit<'k>(&self, key: &'k [u8]) -> Debit<'k> {
        let debit = Debit::new(key, self.cost).balances();
        self.each().fold(debit, |debit, (limit, amount)| debit.cost_of(limit, amount))
    }

    /// The refund of the amounts, with all balances.
    pub(crate) fn refund<'k>(&self, key: &'k [u8]) -> Refund<'k> {
        let refund = Refund::new(key, self.cost).balances();
        self.each().fold(refund, |refund, (limit, amount)| refund.cost_of(limit, amount))
    }

    fn each(&self) -> impl Iterator<Item = (&str, u32)> {
        self.costs.as_costs().into_iter().flat_map(|costs| costs.iter())
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::integer(deserializer, 0..=u32::MAX).map(Self)
    }
}

fn costs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CostsBuf, D::Error> {
    deserializer.deserialize_map(CostsVisitor)
}

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `cost` or `costs`")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Members, A::Error> {
        Members::deserialize(MapAccessDeserializer::new(members))
    }
}

impl<'de> Visitor<'de> for CostsVisitor {
    type Value = CostsBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of amounts by the names of limits")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<CostsBuf, A::Error> {
        let mut costs = CostsBuf::new();
        while let Some((limit, Amount(amount))) = entries.next_entry::<String, Amount>()? {
            costs.push(&limit, amount).map_err(A::Error::custom)?;
        }
        if costs.as_costs().is_none() {
            return Err(A::Error::custom("`costs` names no limit: leave it out"));
        }
        Ok(costs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_those_of_the_body() {
        for (body, cost, expected) in [
            (r#"{"cost":1500}"#, 1500, &[][..]),
            (r#" { "cost" : 4294967295 } "#, u32::MAX, &[]),
            (r#"{"costs":{"tokens":1500}}"#, 0, &[("tokens", 1500)]),
            (r#"{"costs":{"b":2,"a":0},"cost":1}"#, 1, &[("b", 2), ("a", 0)]),
            (r#"{"cost":0,"costs":{"\u00e9":1}}"#, 0, &[("\u{e9}", 1)]),
        ] {
            let amounts = Amounts::parse(body.as_bytes()).expect(body);
            assert_eq!(
                (amounts.cost, amounts.each().collect::<Vec<_>>()),
                (cost, expected.to_vec()),
                "{body}"
            );
        }
    }

    #[test]
    fn malformed_body_is_refused_with_its_place() {
        let form = r#"the body is not a settlement such as {"costs":{"tokens":1500}}: "#;
        let long = "x".repeat(65);
        let many: String = (0..17).map(|number| format!("\"{number}\":1,")).collect();
        let many = format!("{{\"costs\":{{{}}}}}", many.trim_end_matches(','));
        for (body, expected) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("{", "EOF while parsing an object at line 1 column 1"),
            ("{\"cost\":1}\n x", "trailing characters at line 2 column 2"),
            ("[1]", "invalid type: sequence, expected an object with `cost` or `costs` at line 1 column 0"),
            (
                "\"a\"",
                "invalid type: string \"a\", expected an object with `cost` or `costs` at line 1 column 3",
            ),
            ("{\"cost\":1,\"key\":1}", "unknown field `key`, expected `cost` or `costs` at line 1 column 15"),
            ("{\"cost\":1,\"cost\":1}", "duplicate field `cost` at line 1 column 16"),
            (
                "{\n\"cost\":-1}",
                "invalid value: integer `-1`, expected an integer from 0 to 4294967295 at line 2 column 9",
            ),
            (
                "{\"cost\":4294967296}",
                "invalid value: integer `4294967296`, expected an integer from 0 to 4294967295 at line 1 column 18",
            ),
            (
                "{\"cost\":1.5}",
                "invalid type: floating point `1.5`, expected an integer from 0 to 4294967295 at line 1 column 11",
            ),
            (
                "{\"cost\":null}",
                "invalid type: null, expected an integer from 0 to 4294967295 at line 1 column 12",
            ),
            ("{\"costs\":{}}", "`costs` names no limit: leave it out at line 1 column 11"),
            (
                "{\"costs\":[]}",
                "invalid type: sequence, expected an object of amounts by the names of limits at line 1 column 9",
            ),
            ("{\"costs\":{\"\":1}}", "the name of a limit is empty at line 1 column 15"),
            ("{\"costs\":{\"a\":1,\"a\":2}}", "the limit has two costs at line 1 column 22"),
            (&format!("{{\"costs\":{{\"{long}\":1}}}}"), "65 bytes"),
            (&many, "a request has at most 16 costs at line 1 column"),
        ] {
            let error = Amounts::parse(body.as_bytes()).expect_err(body).to_string();
            assert!(error.starts_with(form) && error.contains(expected), "{body}: {error}");
        }
        for body in ["{}", "{\"cost\":0}"] {
            assert!(matches!(Amounts::parse(body.as_bytes()), Err(AmountsError::Zero)), "{body}");
        }
    }
}
