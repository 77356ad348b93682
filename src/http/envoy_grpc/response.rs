//! The result of a check, as a message of the service.

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::CheckResponse;
use super::messages::{
    DeniedHttpResponse, Entry, HeaderValueOption, HttpResponse, HttpStatus, OVERWRITE_IF_EXISTS_OR_ADD,
    OkHttpResponse, Status,
};
use crate::check::{CheckRules, Checked};
use crate::original::Attributes;
use crate::outcome::Outcome;
use crate::problem::Problem;
use crate::rate_limit::LimitState;

/// The response to a check of the request `parts`.
pub(crate) fn of(rules: &CheckRules, checked: &Checked<'_>, parts: &Parts) -> CheckResponse {
    let (code, http_response) = match Problem::of(&checked.outcome) {
        None => (Code::Ok, HttpResponse::Ok(let_through(rules, checked, parts))),
        Some(problem) => {
            let refusal = refusal(rules, checked, &problem, &parts.headers);
            // With `failure_mode_allow`, Envoy lets errors through: a request that the daemon could decide
            // about is none.
            let is_error = matches!(checked.outcome, Outcome::Unavailable(_));
            let refusal = if is_error { HttpResponse::Error(refusal) } else { HttpResponse::Denied(refusal) };
            (Code::of(problem.status), refusal)
        }
    };
    CheckResponse {
        status: Some(Status { code: code as i32, message: checked.outcome.name().to_owned() }),
        http_response: Some(http_response),
        dynamic_metadata: Some(metadata(rules, checked)),
    }
}

/// A status of gRPC. Envoy lets a request through if it is [`Ok`](Self::Ok), and never otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Ok = 0,
    Unknown = 2,
    InvalidArgument = 3,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Code {
    /// The status for a request that was not let through.
    fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::BAD_REQUEST => Self::InvalidArgument,
            StatusCode::UNAUTHORIZED => Self::Unauthenticated,
            StatusCode::FORBIDDEN => Self::PermissionDenied,
            StatusCode::TOO_MANY_REQUESTS => Self::ResourceExhausted,
            StatusCode::INTERNAL_SERVER_ERROR => Self::Internal,
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

fn let_through(rules: &CheckRules, checked: &Checked<'_>, parts: &Parts) -> OkHttpResponse {
    let decision = checked.outcome.decision();
    let (mut identity, mut limits) = (HeaderMap::new(), HeaderMap::new());
    rules.identity.add(decision.filter(|decision| decision.is_allowed()), &mut identity);
    decision.inspect(|decision| rules.rate_limits.add(decision, &mut limits));
    // Envoy does not promise to set empty values. What is removed cannot be forged either.
    let (empty, stated): (Vec<_>, Vec<_>) = identity.iter().partition(|(_, value)| value.is_empty());
    let empty = empty.into_iter().map(|(name, _)| name);
    OkHttpResponse {
        headers: stated.into_iter().map(overwriting).collect(),
        headers_to_remove: rules.credentials.header_names().chain(empty).map(HeaderName::to_string).collect(),
        response_headers_to_add: limits.iter().map(overwriting).collect(),
        query_parameters_to_remove: key_parameters(rules, parts),
    }
}

/// The parameters of the query that hold a key, as they are spelled there. Envoy does not decode names. It
/// sorts the parameters of a query that it removes one from, so it is told only of those that are there.
fn key_parameters(rules: &CheckRules, parts: &Parts) -> Vec<String> {
    let target = parts.extensions.get().and_then(|stated: &Attributes| str::from_utf8(&stated.target).ok());
    let query = target.and_then(|target| Some(target.split_once('?')?.1)).unwrap_or_default();
    rules.credentials.names_in(query).map(str::to_owned).collect()
}

fn refusal(
    rules: &CheckRules,
    checked: &Checked<'_>,
    problem: &Problem,
    request: &HeaderMap,
) -> DeniedHttpResponse {
    let (parts, body) = rules.refusal(checked, problem, request).into_parts();
    DeniedHttpResponse {
        status: Some(HttpStatus { code: problem.status.as_u16().into() }),
        headers: parts.headers.iter().map(overwriting).collect(),
        body,
    }
}

fn overwriting((name, value): (&HeaderName, &HeaderValue)) -> HeaderValueOption {
    let header = Entry {
        key: Bytes::copy_from_slice(name.as_str().as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        raw_value: Bytes::new(),
    };
    HeaderValueOption { header: Some(header), append_action: OVERWRITE_IF_EXISTS_OR_ADD }
}

/// The result for filters and logs of Envoy. A key that is known is named also when it is refused.
fn metadata(rules: &CheckRules, checked: &Checked<'_>) -> Struct {
    let mut fields = vec![("verdict", text(checked.outcome.name()))];
    fields.extend(checked.route.map(|route| ("route", text(&route.name))));
    if let Some(decision) = checked.outcome.decision() {
        let identity = [
            ("key_id", decision.key_id()),
            ("owner", decision.owner()),
            ("plan", decision.plan()),
            ("environment", decision.environment()),
        ];
        fields.extend(identity.into_iter().filter_map(|(name, value)| Some((name, text(value?)))));
        let of_key = rules.identity.metadata(Some(decision)).into_iter();
        let of_key = of_key.filter(|(_, value)| !value.is_empty());
        let of_key: Vec<_> = of_key.map(|(field, value)| (field, text(value))).collect();
        if !of_key.is_empty() {
            fields.push(("metadata", object(of_key)));
        }
        let limits: Vec<Value> = rules.rate_limits.states(decision).iter().map(limit).collect();
        if !limits.is_empty() {
            fields.push(("limits", value(Kind::ListValue(ListValue { values: limits }))));
        }
    }
    members(fields)
}

fn limit(state: &LimitState<'_>) -> Value {
    // Numbers of a Struct are doubles. Larger ones than they can count are not exact.
    let number = |number: u64| value(Kind::NumberValue(number as f64));
    let mut fields = vec![
        ("name", text(state.name)),
        ("limit", number(state.limit)),
        ("remaining", number(state.remaining)),
    ];
    fields.extend(state.reset.map(|reset| ("reset_seconds", value(Kind::NumberValue(reset.as_secs_f64())))));
    object(fields)
}

fn members<'n>(fields: impl IntoIterator<Item = (&'n str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn object<'n>(fields: impl IntoIterator<Item = (&'n str, Value)>) -> Value {
    value(Kind::StructValue(members(fields)))
}

fn text(text: impl Into<String>) -> Value {
    value(Kind::StringValue(text.into()))
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use keyward_client::{Decision, Verdict};
    use keyward_protocol::Answer;

    use super::*;
    use crate::credential::CredentialPlaces;
    use crate::gateway::Gateway;
    use crate::hint::{HintPlace, Hints};
    use crate::identity::{IdentityHeaders, MetadataHeader};
    use crate::outcome::{Refusal, Unavailable};
    use crate::rate_limit::RateLimitHeaders;
    use crate::route::{Requirements, Route, Routes};

    fn rules() -> CheckRules {
        let metadata =
            MetadataHeader { header: HeaderName::from_static("x-tenant"), field: "tenant".to_owned() };
        CheckRules {
            gateway: Gateway::EnvoyGrpc,
            path_prefix: String::new(),
            credentials: CredentialPlaces {
                query: Some("api_key".to_owned()),
                ..CredentialPlaces::default()
            },
            client_address: None,
            hints: Hints { place: HintPlace::Context, kinds: Vec::new() },
            request_id: None,
            routes: Routes::new(Vec::new()),
            identity: IdentityHeaders::new(vec![metadata]),
            rate_limits: RateLimitHeaders::default(),
        }
    }

    fn response(outcome: Outcome) -> CheckResponse {
        response_to("/", outcome)
    }

    fn response_to(target: &'static str, outcome: Outcome) -> CheckResponse {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.extensions.insert(Attributes { target: target.into(), ..Attributes::default() });
        let route = Route { name: "invoices".to_owned(), ..Route::default() };
        let checked = Checked { outcome, route: Some(&route), requirements: Requirements::default() };
        of(&rules(), &checked, &parts)
    }

    fn decision(verdict: Verdict) -> Decision {
        let limit = keyward_protocol::LimitState {
            name: "requests",
            limit: 9,
            remaining: 3,
            retry_after_ms: 1,
            reset_ms: 2_500,
        };
        let metadata = Some(r#"{"tenant":"blue","secret":"s"}"#);
        let answer = Answer::without_key(1, verdict, 1);
        Decision::from(&Answer { limit, key_id: "k1", owner: "M\u{fc}ller", metadata, ..answer })
    }

    fn lines(headers: &[HeaderValueOption]) -> Vec<String> {
        let line = |option: &HeaderValueOption| {
            assert_eq!(option.append_action, OVERWRITE_IF_EXISTS_OR_ADD, "a forged one is overwritten");
            let Entry { key, value, .. } = option.header.clone().expect("a header");
            [key, ": ".into(), value].map(|text| String::from_utf8(text.into()).expect("ASCII")).concat()
        };
        let mut lines: Vec<String> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    fn code(response: &CheckResponse) -> i32 {
        response.status.as_ref().expect("a status").code
    }

    #[test]
    fn response_that_lets_through_has_the_identity() {
        let response = response(Outcome::Allowed(decision(Verdict::Allowed)));
        assert_eq!(code(&response), 0);
        let Some(HttpResponse::Ok(ok)) = response.http_response else { panic!("it is let through") };
        let identity = ["x-keyward-key-id: k1", "x-keyward-owner: M%C3%BCller", "x-tenant: blue"];
        assert_eq!(lines(&ok.headers), identity);
        let removed = ["authorization", "x-api-key", "x-keyward-plan", "x-keyward-environment"];
        assert_eq!(ok.headers_to_remove, removed);
        let limits = ["ratelimit-policy: \"requests\";q=9", "ratelimit: \"requests\";r=3;t=3"];
        assert_eq!(lines(&ok.response_headers_to_add), limits);
    }

    #[test]
    fn key_in_the_query_is_removed_as_it_is_spelled() {
        for (target, expected) in [
            ("/", &[][..]),
            ("/?z=1&a", &[]),
            ("/?z=1&api_key=k&a", &["api_key"]),
            ("/?api%5Fkey=k&%61pi_key=k", &["api%5Fkey", "%61pi_key"]),
        ] {
            let response = response_to(target, Outcome::Allowed(decision(Verdict::Allowed)));
            let Some(HttpResponse::Ok(ok)) = response.http_response else { panic!("it is let through") };
            assert_eq!(ok.query_parameters_to_remove, expected, "{target}");
        }
    }

    /// Without a key, every header that could be forged is removed.
    #[test]
    fn open_route_removes_the_identity() {
        let Some(HttpResponse::Ok(ok)) = response(Outcome::Open).http_response else { panic!("it is open") };
        assert_eq!(lines(&ok.headers), [""; 0]);
        for name in rules().identity.names() {
            assert!(ok.headers_to_remove.iter().any(|removed| removed == name.as_str()), "{name}");
        }
    }

    #[test]
    fn denial_has_the_status_and_the_problem() {
        let response = response(Outcome::Denied(decision(Verdict::RateLimited)));
        assert_eq!(code(&response), 8);
        let Some(HttpResponse::Denied(denied)) = response.http_response else { panic!("it is denied") };
        assert_eq!(denied.status.expect("a status").code, 429);
        assert!(denied.body.contains("RATE_LIMITED"), "{}", denied.body);
        let expected = [
            "cache-control: no-store",
            "content-type: application/problem+json",
            "ratelimit-policy: \"requests\";q=9",
            "ratelimit: \"requests\";r=3;t=3",
            "retry-after: 1",
        ];
        assert_eq!(lines(&denied.headers), expected);
    }

    /// With `failure_mode_allow`, Envoy lets errors through, and no denial.
    #[test]
    fn only_what_cannot_be_asked_is_an_error() {
        let not_ready = Unavailable::NotReady(decision(Verdict::NotReady));
        let late = keyward_client::Error::ConnectionLost { written: false };
        for (outcome, status, expected) in [
            (Outcome::Unavailable(not_ready), 503, true),
            (Outcome::Unavailable(Unavailable::NoAnswer(late)), 503, true),
            (Outcome::Refused(Refusal::Invalid(String::new())), 500, false),
            (Outcome::Denied(decision(Verdict::UnknownLimit)), 500, false),
        ] {
            let response = response(outcome);
            assert_ne!(code(&response), 0);
            let (refusal, is_error) = match response.http_response {
                Some(HttpResponse::Error(error)) => (error, true),
                Some(HttpResponse::Denied(denied)) => (denied, false),
                other => panic!("{other:?}"),
            };
            assert_eq!((refusal.status.expect("a status").code, is_error), (status, expected));
        }
    }

    /// Envoy lets a request through if the code is 0, whatever else the response says.
    #[test]
    fn no_refusal_has_the_code_of_success() {
        for status in (100..=999).filter_map(|status| StatusCode::from_u16(status).ok()) {
            assert_ne!(Code::of(status) as i32, 0, "{status}");
        }
    }

    #[test]
    fn metadata_states_verdict_identity_and_limits() {
        let fields = response(Outcome::Denied(decision(Verdict::RateLimited))).dynamic_metadata;
        let fields = fields.expect("metadata").fields;
        let limit = object([
            ("name", text("requests")),
            ("limit", value(Kind::NumberValue(9.0))),
            ("remaining", value(Kind::NumberValue(3.0))),
            ("reset_seconds", value(Kind::NumberValue(2.5))),
        ]);
        let expected = members([
            ("verdict", text("RATE_LIMITED")),
            ("route", text("invoices")),
            ("key_id", text("k1")),
            ("owner", text("M\u{fc}ller")),
            ("metadata", object([("tenant", text("blue"))])),
            ("limits", value(Kind::ListValue(ListValue { values: vec![limit] }))),
        ]);
        assert_eq!(fields, expected.fields);
        let without_tenant = Answer { metadata: Some("{}"), ..Answer::without_key(1, Verdict::Allowed, 1) };
        let allowed = response(Outcome::Allowed(Decision::from(&without_tenant))).dynamic_metadata;
        assert!(!allowed.expect("metadata").fields.contains_key("metadata"), "nothing is stated");
        let open = response(Outcome::Open).dynamic_metadata.expect("metadata");
        assert_eq!(open.fields, members([("verdict", text("OPEN")), ("route", text("invoices"))]).fields);
    }
}
