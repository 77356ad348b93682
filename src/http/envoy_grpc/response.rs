//! The result of a check, as a message of the service.

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::CheckResponse;
use super::messages::{
    DeniedHttpResponse, Entry, HeaderValueOption, HttpResponse, HttpStatus, OVERWRITE_IF_EXISTS_OR_ADD,
    OkHttpResponse, Status,
};
use crate::check::{CheckRules, Checked};
use crate::problem::Problem;
use crate::reply::VERDICT;

/// The response to a check of a request with these headers.
pub(crate) fn of(rules: &CheckRules, checked: &Checked<'_>, request: &HeaderMap) -> CheckResponse {
    let (code, http_response) = match Problem::of(&checked.outcome) {
        None => (Code::Ok, HttpResponse::Ok(let_through(rules, checked))),
        Some(problem) => {
            let code = Code::of(problem.status);
            let refusal = refusal(rules, checked, &problem, request);
            // Envoy counts errors apart from denials.
            let is_error = problem.status.is_server_error();
            (code, if is_error { HttpResponse::Error(refusal) } else { HttpResponse::Denied(refusal) })
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

fn let_through(rules: &CheckRules, checked: &Checked<'_>) -> OkHttpResponse {
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
        query_parameters_to_remove: rules.credentials.query.iter().cloned().collect(),
    }
}

fn refusal(
    rules: &CheckRules,
    checked: &Checked<'_>,
    problem: &Problem,
    request: &HeaderMap,
) -> DeniedHttpResponse {
    let (parts, body) = rules.reply(checked, request).into_parts();
    // The verdict is for the gateway's log, which has it from the metadata.
    let for_client = parts.headers.iter().filter(|(name, _)| **name != VERDICT);
    DeniedHttpResponse {
        status: Some(HttpStatus { code: problem.status.as_u16().into() }),
        headers: for_client.map(overwriting).collect(),
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

fn limit(state: &crate::rate_limit::LimitState<'_>) -> Value {
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
    use crate::outcome::{Outcome, Refusal, Unavailable};
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
        let route = Route { name: "invoices".to_owned(), ..Route::default() };
        let checked = Checked { outcome, route: Some(&route), requirements: Requirements::default() };
        of(&rules(), &checked, &HeaderMap::new())
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
        assert_eq!(ok.query_parameters_to_remove, ["api_key"]);
        let limits = ["ratelimit-policy: \"requests\";q=9", "ratelimit: \"requests\";r=3;t=3"];
        assert_eq!(lines(&ok.response_headers_to_add), limits);
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

    #[test]
    fn failure_is_an_error_and_not_a_denial() {
        let not_ready = Unavailable::NotReady(decision(Verdict::NotReady));
        let late = keyward_client::Error::ConnectionLost { written: false };
        for outcome in [
            Outcome::Unavailable(not_ready),
            Outcome::Unavailable(Unavailable::NoAnswer(late)),
            Outcome::Refused(Refusal::Invalid(String::new())),
        ] {
            let response = response(outcome);
            assert_ne!(code(&response), 0);
            let Some(HttpResponse::Error(error)) = response.http_response else { panic!("it is an error") };
            assert!(error.status.expect("a status").code >= 500);
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
        let open = response(Outcome::Open).dynamic_metadata.expect("metadata");
        assert_eq!(open.fields, members([("verdict", text("OPEN")), ("route", text("invoices"))]).fields);
    }
}
