//! Where a request carries its API key.
//!
//! A request has to carry one key. Several different keys, a list, or an empty value are refused:
//! the gateway, keyward and the upstream might each choose another one.

use std::fmt;

use data_encoding::BASE64;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::escape;

/// Where keys are looked for. What is not named here is not a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialPlaces {
    /// `Authorization: Bearer KEY`
    pub bearer: bool,
    /// `Authorization: ApiKey KEY`
    pub api_key: bool,
    /// `Authorization: Basic`, with the key as the user or as the password.
    pub basic: Option<BasicPart>,
    /// Headers whose whole value is the key.
    pub headers: Vec<HeaderName>,
    /// The parameter of the query that is the key. URLs are written to logs, histories and Referer
    /// headers, so a key in one is soon known to others: there is none by default.
    pub query: Option<String>,
}

/// The part of HTTP Basic credentials that is the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BasicPart {
    /// What precedes the first colon. The password is ignored.
    User,
    /// What follows the first colon. The user is ignored.
    Password,
}

/// A key that was found in a request. It is wiped on drop if it was decoded, and otherwise lies in
/// the header that it was found in.
pub struct Credential<'r>(Key<'r>);

enum Key<'r> {
    Borrowed(&'r [u8]),
    Decoded(Zeroizing<Vec<u8>>),
}

/// Why a request has no key that could be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// No place holds one.
    #[error("the request carries no API key")]
    Missing,
    /// A place holds an empty one.
    #[error("the request carries an empty API key")]
    Empty,
    /// Several places hold different ones.
    #[error("the request carries several different API keys; send one")]
    Several,
    /// A value is a list: two headers that a proxy has joined, or a mistake.
    #[error("the request carries an API key with a comma, which is a list of several; send one")]
    List,
    /// A key contains a space.
    #[error("the request carries an API key with a space in it")]
    Space,
    /// It is longer than the daemon accepts raw keys.
    #[error("the request carries an API key that is too long")]
    TooLong,
    /// HTTP Basic credentials, or a parameter of the query, that cannot be decoded.
    #[error("the request carries an API key that is not encoded correctly")]
    Encoding,
}

impl Default for CredentialPlaces {
    /// `Authorization: Bearer`, `Authorization: ApiKey` and `X-API-Key`.
    fn default() -> Self {
        Self {
            bearer: true,
            api_key: true,
            basic: None,
            headers: vec![HeaderName::from_static("x-api-key")],
            query: None,
        }
    }
}

impl CredentialPlaces {
    /// The key of a request with these headers, and with this query as the client sent it.
    ///
    /// # Errors
    /// If there is none, or not exactly one.
    pub fn find<'r>(
        &self,
        headers: &'r HeaderMap,
        query: Option<&'r str>,
    ) -> Result<Credential<'r>, CredentialError> {
        let authorization =
            headers.get_all(AUTHORIZATION).iter().filter_map(|value| self.authorization(value));
        let whole =
            self.headers.iter().flat_map(|name| headers.get_all(name)).map(|value| whole(value.as_bytes()));
        let parameters = self.query.iter().flat_map(|name| parameters(query.unwrap_or_default(), name));
        let mut found: Option<Credential<'r>> = None;
        for credential in authorization.chain(whole).chain(parameters) {
            let credential = credential?;
            match &found {
                Some(first) if first.key() != credential.key() => return Err(CredentialError::Several),
                // The same key in two places is unambiguous.
                Some(_) => {}
                None => found = Some(credential),
            }
        }
        found.ok_or(CredentialError::Missing)
    }

    /// The headers that hold a key. A gateway removes them from what it sends to the upstream.
    pub fn header_names(&self) -> impl Iterator<Item = &HeaderName> {
        let is_in_authorization = self.bearer || self.api_key || self.basic.is_some();
        is_in_authorization.then_some(&AUTHORIZATION).into_iter().chain(&self.headers)
    }

    /// The names of the parameters in a query that hold a key, as they are spelled there.
    pub(crate) fn names_in<'q>(&'q self, query: &'q str) -> impl Iterator<Item = &'q str> {
        let names = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
        names.filter(|spelled| self.query.as_ref().is_some_and(|name| is_named(spelled, name)))
    }

    /// The scheme that a client is asked to authenticate with.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self { bearer: true, .. } => "Bearer",
            Self { bearer: false, api_key: false, basic: Some(_), .. } => "Basic",
            _ => "ApiKey",
        }
    }

    /// The key of an Authorization header. `None`: it is of a scheme that is not looked at.
    fn authorization<'r>(&self, value: &'r HeaderValue) -> Option<Result<Credential<'r>, CredentialError>> {
        let value = value.as_bytes().trim_ascii();
        let end = value.iter().position(|byte| *byte == b' ' || *byte == b'\t').unwrap_or(value.len());
        let (scheme, parameter) = value.split_at(end);
        match scheme {
            _ if self.bearer && scheme.eq_ignore_ascii_case(b"bearer") => Some(whole(parameter)),
            _ if self.api_key && scheme.eq_ignore_ascii_case(b"apikey") => Some(whole(parameter)),
            _ if scheme.eq_ignore_ascii_case(b"basic") => Some(basic(parameter, self.basic?)),
            _ => None,
        }
    }
}

impl Credential<'_> {
    /// The bytes of the key.
    pub fn key(&self) -> &[u8] {
        match &self.0 {
            Key::Borrowed(key) => key,
            Key::Decoded(key) => key,
        }
    }

    fn checked(self) -> Result<Self, CredentialError> {
        match self.key() {
            [] => Err(CredentialError::Empty),
            key if key.contains(&b',') => Err(CredentialError::List),
            key if key.iter().any(u8::is_ascii_whitespace) => Err(CredentialError::Space),
            _ => Ok(self),
        }
    }
}

/// Prints only the length of the key, because the key must not reach a log.
impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({} bytes)", self.key().len())
    }
}

/// A value that is the key. HTTP allows spaces around a value.
fn whole(value: &[u8]) -> Result<Credential<'_>, CredentialError> {
    Credential(Key::Borrowed(value.trim_ascii())).checked()
}

fn decoded(key: Zeroizing<Vec<u8>>) -> Result<Credential<'static>, CredentialError> {
    Credential(Key::Decoded(key)).checked()
}

/// The key of HTTP Basic credentials (RFC 7617).
fn basic(parameter: &[u8], part: BasicPart) -> Result<Credential<'static>, CredentialError> {
    let parameter = parameter.trim_ascii();
    let length = BASE64.decode_len(parameter.len()).map_err(|_| CredentialError::Encoding)?;
    // What was decoded before an error is wiped too.
    let mut pair = Zeroizing::new(vec![0; length]);
    let length = BASE64.decode_mut(parameter, &mut pair).map_err(|_| CredentialError::Encoding)?;
    let pair = &pair[..length];
    let colon = pair.iter().position(|byte| *byte == b':').ok_or(CredentialError::Encoding)?;
    let key = match part {
        BasicPart::User => &pair[..colon],
        BasicPart::Password => &pair[colon + 1..],
    };
    decoded(Zeroizing::new(key.to_vec()))
}

/// Whether a parameter that is spelled so in a query is `name`.
fn is_named(spelled: &str, name: &str) -> bool {
    percent_decode_str(spelled).eq(name.bytes())
}

/// The keys in the parameters `name` of a query.
fn parameters<'r, 'q>(
    query: &'q str,
    name: &'q str,
) -> impl Iterator<Item = Result<Credential<'r>, CredentialError>> + use<'r, 'q> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(spelled, _)| is_named(spelled, name)).map(|(_, value)| {
        if !escape::is_well_formed(value) {
            return Err(CredentialError::Encoding);
        }
        // At least as long as the decoded key: a vector that grows leaves copies behind.
        let mut key = Zeroizing::new(Vec::with_capacity(value.len()));
        key.extend(percent_decode_str(value));
        decoded(key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "acme_live_1";

    fn every_place() -> CredentialPlaces {
        CredentialPlaces {
            basic: Some(BasicPart::Password),
            query: Some("api_key".to_owned()),
            ..CredentialPlaces::default()
        }
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        map
    }

    fn find(
        places: &CredentialPlaces,
        lines: &[(&str, &str)],
        query: Option<&str>,
    ) -> Result<String, CredentialError> {
        let headers = headers(lines);
        let credential = places.find(&headers, query)?;
        Ok(String::from_utf8_lossy(credential.key()).into_owned())
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
    }

    #[test]
    fn key_is_found_in_each_place() {
        let as_password = basic("anyone", KEY);
        for line in [
            ("authorization", "Bearer acme_live_1"),
            ("authorization", "bearer   acme_live_1  "),
            ("authorization", "ApiKey acme_live_1"),
            ("authorization", "APIKEY acme_live_1"),
            ("x-api-key", "acme_live_1"),
            ("authorization", &as_password),
        ] {
            assert_eq!(find(&every_place(), &[line], None).as_deref(), Ok(KEY), "{line:?}");
        }
        for query in ["api_key=acme_live_1", "a=b&api_key=acme%5Flive_1&c", "api%5fkey=acme_live_1"] {
            assert_eq!(find(&every_place(), &[], Some(query)).as_deref(), Ok(KEY), "{query}");
        }
        let user = CredentialPlaces { basic: Some(BasicPart::User), ..CredentialPlaces::default() };
        assert_eq!(find(&user, &[("authorization", &basic(KEY, ""))], None).as_deref(), Ok(KEY));
        let colon = find(&every_place(), &[("authorization", &basic("a", "b:c"))], None);
        assert_eq!(colon.as_deref(), Ok("b:c"), "only the first colon separates");
    }

    #[test]
    fn place_that_is_not_configured_holds_no_key() {
        let none =
            CredentialPlaces { bearer: false, api_key: false, basic: None, headers: vec![], query: None };
        let as_password = basic("anyone", KEY);
        for line in [
            ("authorization", "Bearer acme_live_1"),
            ("authorization", "ApiKey acme_live_1"),
            ("authorization", "acme_live_1"),
            ("authorization", "Digest username=acme_live_1"),
            ("x-api-key", "acme_live_1"),
            ("authorization", &as_password),
        ] {
            assert_eq!(find(&none, &[line], None), Err(CredentialError::Missing), "{line:?}");
        }
        let by_default = CredentialPlaces::default();
        assert_eq!(find(&by_default, &[], Some("api_key=acme_live_1")), Err(CredentialError::Missing));
        assert_eq!(
            find(&by_default, &[("authorization", &as_password)], None),
            Err(CredentialError::Missing)
        );
    }

    #[test]
    fn one_key_in_several_places_is_accepted_and_several_keys_are_not() {
        let both = |first, second| [("authorization", first), ("x-api-key", second)];
        assert_eq!(find(&every_place(), &both("Bearer k", "k"), Some("api_key=k")).as_deref(), Ok("k"));
        for (lines, query) in [
            (both("Bearer k", "j"), None),
            (both("Bearer k", "k"), Some("api_key=j")),
            ([("x-api-key", "k"), ("x-api-key", "j")], None),
            ([("authorization", "Bearer k"), ("authorization", "ApiKey j")], None),
        ] {
            assert_eq!(find(&every_place(), &lines, query), Err(CredentialError::Several), "{lines:?}");
        }
        assert_eq!(find(&every_place(), &[], Some("api_key=k&api_key=j")), Err(CredentialError::Several));
    }

    /// Another key in the request does not help a value that cannot be used.
    #[test]
    fn unusable_value_is_refused_even_beside_a_usable_one() {
        let joined = basic("a", "k,j");
        for (value, expected) in [
            ("Bearer", CredentialError::Empty),
            ("Bearer ", CredentialError::Empty),
            ("Bearer k,j", CredentialError::List),
            ("Bearer k, j", CredentialError::List),
            ("Bearer k j", CredentialError::Space),
            ("Basic", CredentialError::Encoding),
            ("Basic !", CredentialError::Encoding),
            ("Basic aaaa", CredentialError::Encoding),
            ("Basic YTo=", CredentialError::Empty),
            (&joined, CredentialError::List),
        ] {
            let lines = [("authorization", value), ("x-api-key", "k")];
            assert_eq!(find(&every_place(), &lines, None), Err(expected), "{value}");
        }
        for (query, expected) in [
            ("api_key", CredentialError::Empty),
            ("api_key=", CredentialError::Empty),
            ("api_key=%", CredentialError::Encoding),
            ("api_key=%4", CredentialError::Encoding),
            ("api_key=%zz", CredentialError::Encoding),
            ("api_key=k%2Cj", CredentialError::List),
            ("api_key=k%20j", CredentialError::Space),
        ] {
            let lines = [("x-api-key", "k")];
            assert_eq!(find(&every_place(), &lines, Some(query)), Err(expected), "{query}");
        }
        assert_eq!(find(&every_place(), &[("x-api-key", " ")], None), Err(CredentialError::Empty));
    }

    #[test]
    fn debug_output_has_no_key() {
        let headers = headers(&[("x-api-key", KEY)]);
        let credential = every_place().find(&headers, None).expect("a key");
        assert_eq!(format!("{credential:?}"), "Credential(11 bytes)");
    }

    #[test]
    fn headers_to_remove_are_those_that_hold_keys() {
        let names = |places: &CredentialPlaces| {
            places.header_names().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&CredentialPlaces::default()), ["authorization", "x-api-key"]);
        let one = CredentialPlaces { bearer: false, api_key: false, ..CredentialPlaces::default() };
        assert_eq!(names(&one), ["x-api-key"]);
    }
}
