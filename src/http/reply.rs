//! The reply to a gateway: the outcome of a check, in the gateway's terms.

use http::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};

use crate::check::{CheckRules, Checked};
use crate::credential::CredentialPlaces;
use crate::identity;
use crate::problem::{BodyType, Challenge, Problem};

/// The status that the client is to see, for gateways that understand only some.
const STATUS: HeaderName = HeaderName::from_static("x-keyward-status");

/// The problem body, for gateways that drop the body of an answer.
const PROBLEM: HeaderName = HeaderName::from_static("x-keyward-problem");

/// Headers that a reply has room for from the start: the identity, the limits, and what each reply has.
const USUAL_HEADERS: usize = 16;

/// The name of the outcome, for the log of the gateway.
pub(crate) const VERDICT: HeaderName = HeaderName::from_static("x-keyward-verdict");

impl CheckRules {
    /// The reply to the subrequest with these headers.
    pub fn reply(&self, checked: &Checked<'_>, request: &HeaderMap) -> Response<String> {
        let mut reply = match Problem::of(&checked.outcome) {
            None => self.let_through(checked),
            Some(problem) => self.refusal(checked, &problem, request),
        };
        reply.headers_mut().insert(VERDICT, HeaderValue::from_static(checked.outcome.name()));
        reply
    }

    /// Adds what every reply has.
    fn complete(&self, checked: &Checked<'_>, headers: &mut HeaderMap) {
        // An answer is valid only now.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(decision) = checked.outcome.decision() {
            self.rate_limits.add(decision, headers);
        }
    }

    fn let_through(&self, checked: &Checked<'_>) -> Response<String> {
        let mut reply = Response::new(String::new());
        reply.headers_mut().reserve(USUAL_HEADERS);
        let decision = checked.outcome.decision().filter(|decision| decision.is_allowed());
        self.identity.add(decision, reply.headers_mut());
        if let Some(name) = self.gateway.removal_header() {
            let keys: Vec<&str> = self.credentials.header_names().map(HeaderName::as_str).collect();
            // Names of headers are visible ASCII.
            reply.headers_mut().extend(HeaderValue::try_from(keys.join(",")).ok().map(|keys| (name, keys)));
        }
        self.complete(checked, reply.headers_mut());
        reply
    }

    /// The reply to a request that was not let through, without what is only for the gateway.
    pub(crate) fn refusal(
        &self,
        checked: &Checked<'_>,
        problem: &Problem,
        request: &HeaderMap,
    ) -> Response<String> {
        let body_type = BodyType::preferred(request);
        let mut reply = Response::new(String::new());
        *reply.status_mut() = self.gateway.status(problem.status);
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(body_type.content_type()));
        if let Some(error) = problem.challenge {
            let needed = &checked.requirements;
            let scopes = if needed.any_scope.is_empty() { &needed.scopes } else { &needed.any_scope };
            let value = challenge(&self.credentials, error, scopes);
            headers.extend(value.map(|value| (WWW_AUTHENTICATE, value)));
        }
        if let Some(seconds) = problem.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.gateway.drops_body() {
            headers.insert(STATUS, HeaderValue::from(problem.status.as_u16()));
            headers
                .extend(HeaderValue::try_from(problem.body(BodyType::Json)).ok().map(|body| (PROBLEM, body)));
        }
        self.complete(checked, headers);
        *reply.body_mut() = problem.body(body_type);
        reply
    }
}

/// The value of WWW-Authenticate (RFC 6750, section 3). `scopes` are those that the request needs.
pub(crate) fn challenge(
    places: &CredentialPlaces,
    challenge: Challenge,
    scopes: &[String],
) -> Option<HeaderValue> {
    let scheme = places.scheme();
    let mut parameters = Vec::new();
    if scheme == "Basic" {
        parameters.push(r#"realm="API key""#.to_owned());
    }
    if let Some(error) = challenge.error() {
        parameters.push(format!(r#"error="{error}""#));
    }
    if challenge == Challenge::InsufficientScope {
        parameters.push(format!(r#"scope="{}""#, quoted(&scopes.join(" "))));
    }
    HeaderValue::try_from(format!("{scheme} {}", parameters.join(", ")).trim_end()).ok()
}

/// The names of scopes within a quoted string. RFC 6750 allows no quotes, backslashes and other
/// characters than ASCII in them.
fn quoted(scopes: &str) -> String {
    let encoded =
        scopes.split(' ').map(|scope| identity::value(scope).to_str().unwrap_or_default().to_owned());
    encoded.collect::<Vec<_>>().join(" ").replace('"', "%22").replace('\\', "%5C")
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use keyward_client::{Decision, Verdict};
    use keyward_protocol::{Answer, LimitState};

    use super::*;
    use crate::credential::CredentialError;
    use crate::gateway::Gateway;
    use crate::hint::{HintPlace, Hints};
    use crate::identity::IdentityHeaders;
    use crate::outcome::{Outcome, Refusal};
    use crate::rate_limit::RateLimitHeaders;
    use crate::route::{Requirements, Routes};

    fn rules(gateway: Gateway) -> CheckRules {
        CheckRules {
            gateway,
            path_prefix: String::new(),
            credentials: CredentialPlaces::default(),
            client_address: None,
            hints: Hints { place: HintPlace::Query, kinds: Vec::new() },
            request_id: None,
            routes: Routes::new(Vec::new()),
            identity: IdentityHeaders::new(Vec::new()),
            rate_limits: RateLimitHeaders::default(),
        }
    }

    fn checked(outcome: Outcome) -> Checked<'static> {
        Checked { outcome, route: None, requirements: Requirements::default() }
    }

    fn decision(verdict: Verdict) -> Decision {
        let limit = LimitState { name: "requests", limit: 9, remaining: 0, retry_after_ms: 1, reset_ms: 2 };
        Decision::from(&Answer { limit, key_id: "k1", ..Answer::without_key(1, verdict, 1) })
    }

    fn lines(reply: &Response<String>) -> Vec<String> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("ASCII"))
        };
        let mut lines: Vec<String> = reply.headers().iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn reply_that_lets_through_has_the_identity() {
        let reply = rules(Gateway::Envoy)
            .reply(&checked(Outcome::Allowed(decision(Verdict::Allowed))), &HeaderMap::new());
        assert_eq!((reply.status(), reply.body().as_str()), (StatusCode::OK, ""));
        let expected = [
            "cache-control: no-store",
            "ratelimit-policy: \"requests\";q=9",
            "ratelimit: \"requests\";r=0;t=1",
            "x-envoy-auth-headers-to-remove: authorization,x-api-key",
            "x-keyward-environment: ",
            "x-keyward-key-id: k1",
            "x-keyward-owner: ",
            "x-keyward-plan: ",
            "x-keyward-verdict: ALLOWED",
        ];
        assert_eq!(lines(&reply), expected);
        let open = rules(Gateway::Caddy).reply(&checked(Outcome::Open), &HeaderMap::new());
        assert!(lines(&open).contains(&"x-keyward-key-id: ".to_owned()), "a forged header is overwritten");
    }

    /// The identity of a key that is denied is nothing that the client has to know.
    #[test]
    fn refusal_states_the_problem_in_the_terms_of_the_gateway() {
        let denied = || checked(Outcome::Denied(decision(Verdict::RateLimited)));
        let reply = rules(Gateway::Traefik).reply(&denied(), &HeaderMap::new());
        assert_eq!(reply.status(), 429);
        let expected = [
            "cache-control: no-store",
            "content-type: application/problem+json",
            "ratelimit-policy: \"requests\";q=9",
            "ratelimit: \"requests\";r=0;t=1",
            "retry-after: 1",
            "x-keyward-verdict: RATE_LIMITED",
        ];
        assert_eq!(lines(&reply), expected);
        let through_nginx = rules(Gateway::Nginx).reply(&denied(), &HeaderMap::new());
        assert_eq!(through_nginx.status(), 403);
        assert_eq!(through_nginx.headers()[STATUS], "429");
        assert_eq!(through_nginx.headers()[PROBLEM], reply.body().as_str());
    }

    #[test]
    fn challenge_follows_the_places_of_keys() {
        let header = |places: CredentialPlaces, outcome: Outcome| {
            let rules = CheckRules { credentials: places, ..rules(Gateway::Caddy) };
            let requirements =
                Requirements { scopes: vec!["a".to_owned(), "b\"c".to_owned()], ..Requirements::default() };
            let reply = rules.reply(&Checked { outcome, route: None, requirements }, &HeaderMap::new());
            reply.headers().get(WWW_AUTHENTICATE).map(|value| value.to_str().expect("ASCII").to_owned())
        };
        let missing = || Outcome::Refused(Refusal::Credential(CredentialError::Missing));
        let bearer = CredentialPlaces::default;
        let no_bearer = || CredentialPlaces { bearer: false, ..bearer() };
        let denied = |verdict| Outcome::Denied(decision(verdict));
        for (places, outcome, expected) in [
            (bearer(), missing(), Some("Bearer")),
            (no_bearer(), missing(), Some("ApiKey")),
            (
                bearer(),
                Outcome::Refused(Refusal::Credential(CredentialError::List)),
                Some(r#"Bearer error="invalid_request""#),
            ),
            (bearer(), denied(Verdict::Expired), Some(r#"Bearer error="invalid_token""#)),
            (no_bearer(), denied(Verdict::Expired), Some(r#"ApiKey error="invalid_token""#)),
            (
                bearer(),
                denied(Verdict::MissingScope),
                Some(r#"Bearer error="insufficient_scope", scope="a b%22c""#),
            ),
            (bearer(), denied(Verdict::RateLimited), None),
        ] {
            assert_eq!(header(places, outcome).as_deref(), expected);
        }
        let only_basic = CredentialPlaces {
            bearer: false,
            api_key: false,
            basic: Some(crate::credential::BasicPart::User),
            ..bearer()
        };
        assert_eq!(header(only_basic, missing()).as_deref(), Some(r#"Basic realm="API key""#));
    }
}
