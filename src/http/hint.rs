//! Hints: what a gateway's configuration adds to the requirements of a route, for one of its locations.
//!
//! A hint that is configured has to be in every subrequest. A location whose author forgot it would
//! otherwise need less than was intended.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use crate::header::{HeaderError, single};
use crate::original::Attributes;
use crate::route::Requirements;

/// What a hint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintKind {
    /// Further scopes that the key needs, separated by spaces or commas.
    Scopes,
    /// The cost for limits that have none of their own.
    Cost,
    /// Costs of limits: `tokens=1500,requests=1`.
    Costs,
    /// The environment that the key has to be of.
    Environment,
}

/// Where hints are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintPlace {
    /// In headers: `X-Keyward-Scopes`, `X-Keyward-Cost`, `X-Keyward-Costs`, `X-Keyward-Environment`. The
    /// gateway has to set them over those of the client.
    Headers,
    /// In the query of the subrequest: `scopes`, `cost`, `costs`, `environment`.
    Query,
    /// In context extensions of Envoy with these names, which only its configuration can set.
    Context,
}

/// What hints are read from.
pub struct HintSource<'r> {
    /// The headers of the subrequest.
    pub headers: &'r HeaderMap,
    /// The query of the subrequest, if the gateway sets it.
    pub query: Option<&'r str>,
    /// What a message states besides headers, if the gateway sends messages.
    pub(crate) attributes: Option<&'r Attributes>,
}

/// The hints that a gateway sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints {
    /// Where they are.
    pub place: HintPlace,
    /// Which there are.
    pub kinds: Vec<HintKind>,
}

/// Why hints cannot be used: the gateway is not configured correctly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HintError {
    /// A hint is missing.
    #[error("the gateway has not sent the hint {0:?}; a location that needs none sends \"-\"")]
    Missing(&'static str),
    /// A hint is there more than once, so one may be the client's.
    #[error("the hint {0:?} is there more than once")]
    Repeated(&'static str),
    /// A hint has characters that none can have.
    #[error("the hint {0:?} is not text")]
    NotText(&'static str),
    /// A cost is not a number.
    #[error("the hint {0:?} is not a cost: expected a whole number up to 4294967295")]
    Cost(&'static str),
    /// The route names another environment.
    #[error("the hint \"environment\" names another environment than the route")]
    Environment,
    /// The route lists scopes of which one is needed; others cannot be added.
    #[error("the hint \"scopes\" cannot be added to a route with `any_scope`")]
    Scopes,
}

/// The value of a hint that adds nothing.
const NONE: &str = "-";

impl HintKind {
    /// Its name, in the query and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scopes => "scopes",
            Self::Cost => "cost",
            Self::Costs => "costs",
            Self::Environment => "environment",
        }
    }

    /// Its header.
    pub fn header(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::Scopes => "x-keyward-scopes",
            Self::Cost => "x-keyward-cost",
            Self::Costs => "x-keyward-costs",
            Self::Environment => "x-keyward-environment",
        })
    }
}

impl Hints {
    /// The requirements of a route, with the hints of a subrequest.
    ///
    /// # Errors
    /// If a hint is missing or cannot be used.
    pub fn add_to(&self, route: &Requirements, source: &HintSource<'_>) -> Result<Requirements, HintError> {
        let mut requirements = route.clone();
        for kind in &self.kinds {
            let text = match self.place {
                HintPlace::Headers => Cow::Borrowed(header(*kind, source.headers)?),
                HintPlace::Query => parameter(*kind, source.query.unwrap_or_default())?,
                HintPlace::Context => Cow::Borrowed(extension(*kind, source.attributes)?),
            };
            if text != NONE {
                requirements.add(*kind, &text)?;
            }
        }
        Ok(requirements)
    }
}

impl Requirements {
    fn add(&mut self, kind: HintKind, text: &str) -> Result<(), HintError> {
        let list = text.split([' ', ',']).filter(|item| !item.is_empty());
        let cost = |text: &str| text.parse().map_err(|_| HintError::Cost(kind.name()));
        match kind {
            HintKind::Scopes if !self.any_scope.is_empty() => return Err(HintError::Scopes),
            HintKind::Scopes => {
                let before = self.scopes.len();
                self.scopes.extend(list.map(str::to_owned));
                // A list without an item is the value of a variable that is not set.
                if self.scopes.len() == before {
                    return Err(HintError::Missing(kind.name()));
                }
            }
            HintKind::Cost => {
                let cost = cost(text)?;
                self.cost = Some(self.cost.map_or(cost, |of_route| of_route.max(cost)));
            }
            HintKind::Costs => {
                for item in list {
                    let (limit, amount) = item.split_once('=').ok_or(HintError::Cost(kind.name()))?;
                    let amount = cost(amount)?;
                    match self.costs.iter_mut().find(|(name, _)| name == limit) {
                        Some((_, of_route)) => *of_route = amount.max(*of_route),
                        None => self.costs.push((limit.to_owned(), amount)),
                    }
                }
            }
            HintKind::Environment => match &self.environment {
                Some(environment) if environment != text => return Err(HintError::Environment),
                _ => self.environment = Some(text.to_owned()),
            },
        }
        Ok(())
    }
}

fn header(kind: HintKind, headers: &HeaderMap) -> Result<&str, HintError> {
    match single(headers, &kind.header()) {
        Ok(value) => {
            value.map(str::trim).filter(|text| !text.is_empty()).ok_or(HintError::Missing(kind.name()))
        }
        Err(HeaderError::Repeated(_)) => Err(HintError::Repeated(kind.name())),
        Err(HeaderError::NotText(_)) => Err(HintError::NotText(kind.name())),
    }
}

fn extension(kind: HintKind, attributes: Option<&Attributes>) -> Result<&str, HintError> {
    let missing = HintError::Missing(kind.name());
    let mut values = attributes.ok_or(missing.clone())?.context(kind.name());
    let value = values.next().filter(|value| !value.is_empty()).ok_or(missing)?;
    if values.next().is_some() {
        return Err(HintError::Repeated(kind.name()));
    }
    str::from_utf8(value).map_err(|_| HintError::NotText(kind.name()))
}

fn parameter(kind: HintKind, query: &str) -> Result<Cow<'_, str>, HintError> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(name, _)| *name == kind.name()).map(|(_, value)| value);
    let value = values.next().filter(|text| !text.is_empty()).ok_or(HintError::Missing(kind.name()))?;
    if values.next().is_some() {
        return Err(HintError::Repeated(kind.name()));
    }
    // A plus is not a space here: scopes may contain one.
    percent_decode_str(value).decode_utf8().map_err(|_| HintError::NotText(kind.name()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ALL: [HintKind; 4] = [HintKind::Scopes, HintKind::Cost, HintKind::Costs, HintKind::Environment];

    fn route() -> Requirements {
        Requirements {
            scopes: vec!["a".to_owned()],
            costs: vec![("tokens".to_owned(), 7)],
            ..Requirements::default()
        }
    }

    fn with_query(route: &Requirements, query: &str) -> Result<Requirements, HintError> {
        let source = HintSource { headers: &HeaderMap::new(), query: Some(query), attributes: None };
        Hints { place: HintPlace::Query, kinds: ALL.to_vec() }.add_to(route, &source)
    }

    fn with_headers(route: &Requirements, values: [&str; 4]) -> Result<Requirements, HintError> {
        let mut headers = HeaderMap::new();
        for (kind, value) in ALL.into_iter().zip(values) {
            headers.append(kind.header(), HeaderValue::from_str(value).expect("a value"));
        }
        let source = HintSource { headers: &headers, query: None, attributes: None };
        Hints { place: HintPlace::Headers, kinds: ALL.to_vec() }.add_to(route, &source)
    }

    fn with_context(
        route: &Requirements,
        context: &[(&'static str, &'static str)],
    ) -> Result<Requirements, HintError> {
        let context = context.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let attributes = Attributes { context, ..Attributes::default() };
        let source =
            HintSource { headers: &HeaderMap::new(), query: Some("scopes=q"), attributes: Some(&attributes) };
        Hints { place: HintPlace::Context, kinds: ALL.to_vec() }.add_to(route, &source)
    }

    #[test]
    fn hints_are_added_to_the_route() {
        let expected = Requirements {
            scopes: ["a", "b:read", "c"].map(str::to_owned).to_vec(),
            cost: Some(5),
            costs: vec![("tokens".to_owned(), 1500), ("requests".to_owned(), 0)],
            environment: Some("live".to_owned()),
            ..Requirements::default()
        };
        let query = "scopes=b:read%20c&cost=5&costs=tokens=1500,requests=0&environment=live&other=1";
        assert_eq!(with_query(&route(), query), Ok(expected.clone()));
        assert_eq!(
            with_headers(&route(), ["b:read, c", "5", "tokens=1500, requests=0", "live"]),
            Ok(expected.clone())
        );
        let context = [
            ("costs", "tokens=1500,requests=0"),
            ("scopes", "b:read c"),
            ("other", "1"),
            ("environment", "live"),
            ("cost", "5"),
        ];
        assert_eq!(with_context(&route(), &context), Ok(expected));
        assert_eq!(with_headers(&route(), ["-", "-", "-", "-"]), Ok(route()));
    }

    #[test]
    fn missing_or_repeated_hint_is_refused() {
        for (query, expected) in [
            ("", HintError::Missing("scopes")),
            ("scopes=&cost=1&costs=-&environment=-", HintError::Missing("scopes")),
            ("scopes=-&costs=-&environment=-", HintError::Missing("cost")),
            ("scopes=-&scopes=a&cost=1&costs=-&environment=-", HintError::Repeated("scopes")),
            ("scopes=%ff&cost=1&costs=-&environment=-", HintError::NotText("scopes")),
            ("scopes=-&cost=-1&costs=-&environment=-", HintError::Cost("cost")),
            ("scopes=-&cost=4294967296&costs=-&environment=-", HintError::Cost("cost")),
            ("scopes=-&cost=1&costs=tokens&environment=-", HintError::Cost("costs")),
            ("scopes=-&cost=1&costs=tokens=x&environment=-", HintError::Cost("costs")),
        ] {
            assert_eq!(with_query(&route(), query), Err(expected), "{query}");
        }
        assert_eq!(with_headers(&route(), [" ", "1", "-", "-"]), Err(HintError::Missing("scopes")));
        let only_scopes = Hints { place: HintPlace::Headers, kinds: vec![HintKind::Scopes] };
        let mut headers = HeaderMap::new();
        headers.append(HintKind::Scopes.header(), HeaderValue::from_static("a"));
        headers.append(HintKind::Scopes.header(), HeaderValue::from_static("-"));
        let source = HintSource { headers: &headers, query: Some("cost=0"), attributes: None };
        assert_eq!(only_scopes.add_to(&route(), &source), Err(HintError::Repeated("scopes")));
        // Hints that are not configured are ignored: a client may have sent them.
        let none = Hints { place: HintPlace::Headers, kinds: Vec::new() };
        assert_eq!(none.add_to(&route(), &source), Ok(route()));
    }

    #[test]
    fn missing_or_repeated_context_extension_is_refused() {
        let rest = [("cost", "-"), ("costs", "-"), ("environment", "-")];
        for (scopes, expected) in [
            (&[][..], HintError::Missing("scopes")),
            (&[("scopes", "")], HintError::Missing("scopes")),
            (&[("Scopes", "a")], HintError::Missing("scopes")),
            (&[("scopes", "-"), ("scopes", "a")], HintError::Repeated("scopes")),
        ] {
            assert_eq!(with_context(&route(), &[scopes, &rest].concat()), Err(expected), "{scopes:?}");
        }
        let bytes = vec![("scopes".into(), (&b"\xff"[..]).into())];
        let attributes = Attributes { context: bytes, ..Attributes::default() };
        let hints = Hints { place: HintPlace::Context, kinds: vec![HintKind::Scopes] };
        for (attributes, expected) in
            [(Some(&attributes), HintError::NotText("scopes")), (None, HintError::Missing("scopes"))]
        {
            let source = HintSource { headers: &HeaderMap::new(), query: None, attributes };
            assert_eq!(hints.add_to(&route(), &source), Err(expected));
        }
    }

    #[test]
    fn hint_does_not_weaken_a_route() {
        let live = Requirements { environment: Some("live".to_owned()), ..Requirements::default() };
        assert_eq!(with_headers(&live, ["-", "-", "-", "test"]), Err(HintError::Environment));
        assert_eq!(with_headers(&live, ["-", "-", "-", "live"]), Ok(live));
        let dear =
            Requirements { cost: Some(7), costs: vec![("tokens".to_owned(), 7)], ..Requirements::default() };
        assert_eq!(with_headers(&dear, ["-", "5", "tokens=5", "-"]), Ok(dear));
        assert_eq!(
            with_headers(&Requirements::default(), [",", "-", "-", "-"]),
            Err(HintError::Missing("scopes"))
        );
        let any = Requirements { any_scope: vec!["a".to_owned()], ..Requirements::default() };
        assert_eq!(with_headers(&any, ["b", "-", "-", "-"]), Err(HintError::Scopes));
        assert_eq!(with_headers(&any, ["-", "-", "-", "-"]), Ok(any));
    }
}
