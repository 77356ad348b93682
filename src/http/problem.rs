//! Why a request was not let through, for its client: status, headers, and a body of RFC 9457.

use http::StatusCode;
use http::header::HeaderMap;
use keyward_client::{Decision, Verdict};
use serde::Serialize;

use crate::accept::Accept;
use crate::credential::CredentialError;
use crate::outcome::{Outcome, Refusal};
use crate::rate_limit::seconds;

/// Why a request was not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status of HTTP, as SPEC.md assigns it to the verdict.
    pub status: StatusCode,
    /// The error code of RFC 6750, if the client should try another key.
    pub challenge: Option<Challenge>,
    /// Seconds after which the same request would be let through.
    pub retry_after: Option<u64>,
    /// The name of the [outcome](Outcome::name).
    pub code: &'static str,
    /// A sentence for people.
    pub detail: String,
}

/// What WWW-Authenticate states (RFC 6750, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// There was no key.
    NoKey,
    /// `invalid_request`: the key could not be read.
    InvalidRequest,
    /// `invalid_token`: the key is not in force.
    InvalidToken,
    /// `insufficient_scope`: the key lacks a scope.
    InsufficientScope,
}

impl Challenge {
    /// The error code; a request without a key has none.
    pub fn error(self) -> Option<&'static str> {
        match self {
            Self::NoKey => None,
            Self::InvalidRequest => Some("invalid_request"),
            Self::InvalidToken => Some("invalid_token"),
            Self::InsufficientScope => Some("insufficient_scope"),
        }
    }
}

/// The type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// `application/problem+json`, unless the client prefers another.
    Json,
    /// `text/html`
    Html,
    /// `text/plain`
    Plain,
}

/// The members of a problem body. `code` and `retry_after` are extensions.
#[derive(Serialize)]
pub(crate) struct Members<'p> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'p str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

impl Problem {
    /// The problem of a request that was not let through; `None` if it was.
    pub fn of(outcome: &Outcome) -> Option<Self> {
        let code = outcome.name();
        match outcome {
            Outcome::Allowed(_) | Outcome::Open | Outcome::Preflight | Outcome::FailedOpen(_) => None,
            Outcome::Denied(decision) => Some(denied(decision, code)),
            // The reason is for operators: it is in the log.
            Outcome::Unavailable(_) => Some(Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code,
                "API keys cannot be checked at the moment.",
            )),
            Outcome::Refused(refusal) => Some(refused(refusal, code)),
        }
    }

    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, challenge: None, retry_after: None, code, detail: detail.into() }
    }

    fn challenge(self, challenge: Challenge) -> Self {
        Self { challenge: Some(challenge), ..self }
    }

    fn title(&self) -> &'static str {
        self.status.canonical_reason().unwrap_or("Refused")
    }

    /// The members of the body.
    pub(crate) fn members(&self) -> Members<'_> {
        let Self { status, retry_after, code, ref detail, .. } = *self;
        Members {
            r#type: "about:blank",
            title: self.title(),
            status: status.as_u16(),
            detail,
            code,
            retry_after,
        }
    }

    /// The body, in the type that the client asks for.
    pub fn body(&self, body_type: BodyType) -> String {
        let title = self.title();
        match body_type {
            BodyType::Json => {
                // Texts and numbers can be serialized.
                serde_json::to_string(&self.members()).unwrap_or_default()
            }
            BodyType::Html => {
                let (status, detail) = (self.status.as_u16(), escaped(&self.detail));
                format!(
                    "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{status} {title}</title>\n\
                     <h1>{title}</h1>\n<p>{detail}</p>\n</html>\n"
                )
            }
            BodyType::Plain => format!("{title}: {}\n", self.detail),
        }
    }
}

fn denied(decision: &Decision, code: &'static str) -> Problem {
    let invalid = |detail: &str| {
        Problem::new(StatusCode::UNAUTHORIZED, code, detail).challenge(Challenge::InvalidToken)
    };
    let forbidden = |detail: &str| Problem::new(StatusCode::FORBIDDEN, code, detail);
    let limit =
        || decision.limit().map_or("a limit".to_owned(), |limit| format!("the limit {:?}", limit.name));
    match decision.verdict() {
        Verdict::MalformedKey => invalid("The API key is not complete, or has a typing error."),
        Verdict::UnknownKey => invalid("The API key is not known."),
        Verdict::Revoked => invalid("The API key has been revoked."),
        Verdict::Disabled => invalid("The API key is disabled."),
        Verdict::NotYetValid => invalid("The API key is not valid yet."),
        Verdict::Expired => invalid("The API key has expired."),
        Verdict::WrongEnvironment => invalid("The API key belongs to another environment."),
        Verdict::IpNotAllowed => forbidden("The API key may not be used from this address."),
        Verdict::OriginNotAllowed => forbidden("The API key may not be used from this origin."),
        Verdict::MissingScope => forbidden("The API key lacks a scope that this request needs.")
            .challenge(Challenge::InsufficientScope),
        Verdict::CostExceedsBurst => {
            forbidden(&format!("The request costs more than {} ever admits.", limit()))
        }
        Verdict::OutOfCredit => {
            let detail = format!("The credits of {} are used up.", limit());
            Problem::new(StatusCode::PAYMENT_REQUIRED, code, detail)
        }
        Verdict::RateLimited => {
            let retry_after = decision.limit().map(|limit| seconds(limit.retry_after));
            let detail = format!("The request exceeds {}.", limit());
            Problem { retry_after, ..Problem::new(StatusCode::TOO_MANY_REQUESTS, code, detail) }
        }
        Verdict::NotReady | Verdict::StaleSnapshot => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, "API keys cannot be checked at the moment.")
        }
        Verdict::UnknownLimit => misconfigured(code),
        // A denial is no answer of this kind, and an unknown verdict is a denial.
        Verdict::Allowed | Verdict::Other(_) => forbidden("The request is not allowed."),
    }
}

/// The message of an error, as a sentence.
pub(crate) fn sentence(message: &str) -> String {
    let mut characters = message.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).chain(['.']).collect()
}

fn refused(refusal: &Refusal, code: &'static str) -> Problem {
    let sentence = || sentence(&refusal.to_string());
    match refusal {
        Refusal::Credential(CredentialError::Missing) => {
            Problem::new(StatusCode::UNAUTHORIZED, code, sentence()).challenge(Challenge::NoKey)
        }
        Refusal::Credential(_) => {
            Problem::new(StatusCode::BAD_REQUEST, code, sentence()).challenge(Challenge::InvalidRequest)
        }
        Refusal::HeadersTooLarge => Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            code,
            "The request has too many or too large headers.",
        ),
        Refusal::Target(_) | Refusal::Method | Refusal::Host(_) | Refusal::Origin(_) => {
            Problem::new(StatusCode::BAD_REQUEST, code, sentence())
        }
        // What is closed and what does not exist look the same.
        Refusal::NoRoute | Refusal::Closed(_) => {
            Problem::new(StatusCode::FORBIDDEN, code, "No API key gives access to this.")
        }
        Refusal::Original(_) | Refusal::Hint(_) | Refusal::Invalid(_) => misconfigured(code),
    }
}

/// The client cannot do anything about it, and learns nothing about it.
fn misconfigured(code: &'static str) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, code, "The gateway is not configured correctly.")
}

impl BodyType {
    /// The type that a client prefers: HTML or plain text if it names one of them and gives JSON less
    /// weight. The gateway passes on the client's Accept header.
    pub fn preferred(headers: &HeaderMap) -> Self {
        let accept = Accept::of(headers);
        let json = accept.weight(&["application/problem+json", "application/json"]);
        let (html, plain) = (accept.weight(&["text/html"]), accept.weight(&["text/plain"]));
        if html > json && html >= plain {
            Self::Html
        } else if plain > json {
            Self::Plain
        } else {
            Self::Json
        }
    }

    /// The value of Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/problem+json",
            Self::Html => "text/html; charset=utf-8",
            Self::Plain => "text/plain; charset=utf-8",
        }
    }
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, character| {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::ACCEPT;
    use keyward_client::Error;
    use keyward_protocol::{Answer, LimitState};

    use super::*;
    use crate::outcome::Unavailable;

    fn decision(verdict: Verdict) -> Decision {
        let limit =
            LimitState { name: "<requests>", limit: 10, remaining: 0, retry_after_ms: 1_001, reset_ms: 9 };
        Decision::from(&Answer { limit, ..Answer::without_key(1, verdict, 1) })
    }

    fn denied(verdict: Verdict) -> Problem {
        Problem::of(&Outcome::Denied(decision(verdict))).expect("a problem")
    }

    /// The table in SPEC.md, section 7.
    #[test]
    fn verdict_has_the_status_that_the_specification_assigns() {
        for verdict in Verdict::all().filter(|verdict| !verdict.is_allowed()) {
            let expected = match verdict.name() {
                "NOT_READY" | "STALE_SNAPSHOT" => 503,
                "IP_NOT_ALLOWED" | "ORIGIN_NOT_ALLOWED" | "MISSING_SCOPE" | "COST_EXCEEDS_BURST" => 403,
                "UNKNOWN_LIMIT" => 500,
                "OUT_OF_CREDIT" => 402,
                "RATE_LIMITED" => 429,
                _ => 401,
            };
            let problem = denied(verdict);
            assert_eq!(problem.status.as_u16(), expected, "{}", verdict.name());
            assert_eq!(problem.code, verdict.name());
            let challenge = match expected {
                401 => Some(Challenge::InvalidToken),
                _ => (verdict == Verdict::MissingScope).then_some(Challenge::InsufficientScope),
            };
            assert_eq!(problem.challenge, challenge, "{}", verdict.name());
            let retry_after = (verdict == Verdict::RateLimited).then_some(2);
            assert_eq!(problem.retry_after, retry_after, "{}", verdict.name());
        }
        assert_eq!(denied(Verdict::from_value(200)).status, 403);
    }

    #[test]
    fn specification_has_the_same_table() {
        let table = include_str!("../../protocol/SPEC.md");
        for verdict in Verdict::all().filter(|verdict| !verdict.is_allowed()) {
            let row = table
                .lines()
                .find(|line| line.contains(&format!("| {} | {} |", verdict.name(), verdict.value())));
            let status = row.and_then(|row| row.trim_end_matches([' ', '|']).rsplit(' ').next());
            assert_eq!(status, Some(denied(verdict).status.as_str()), "{}", verdict.name());
        }
    }

    #[test]
    fn refusals_before_the_daemon_have_a_status() {
        let refused = |refusal| Problem::of(&Outcome::Refused(refusal)).expect("a problem");
        for (refusal, status, challenge) in [
            (Refusal::Credential(CredentialError::Missing), 401, Some(Challenge::NoKey)),
            (Refusal::Credential(CredentialError::Several), 400, Some(Challenge::InvalidRequest)),
            (Refusal::Target(crate::target::TargetError::DotSegment), 400, None),
            (Refusal::NoRoute, 403, None),
            (Refusal::Closed("a".to_owned()), 403, None),
            (Refusal::Invalid("a".to_owned()), 500, None),
        ] {
            let problem = refused(refusal);
            assert_eq!((problem.status.as_u16(), problem.challenge), (status, challenge), "{problem:?}");
        }
        let missing = refused(Refusal::Credential(CredentialError::Missing));
        assert_eq!(missing.detail, "The request carries no API key.");
        let unavailable = || Unavailable::NoAnswer(Error::NoRuntime);
        assert_eq!(Problem::of(&Outcome::Unavailable(unavailable())).expect("a problem").status, 503);
        assert_eq!(Problem::of(&Outcome::FailedOpen(unavailable())), None);
        assert_eq!(Problem::of(&Outcome::Allowed(decision(Verdict::Allowed))), None);
    }

    #[test]
    fn body_is_of_the_type_that_the_client_prefers() {
        for (accept, expected) in [
            (&[][..], BodyType::Json),
            (&["*/*"], BodyType::Json),
            (&["application/json"], BodyType::Json),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], BodyType::Html),
            (&["text/plain"], BodyType::Plain),
            (&["text/html;q=0.5, application/json"], BodyType::Json),
            (&["application/problem+json;q=0.4", "text/plain; q=0.5"], BodyType::Plain),
            (&["text/html;q=0"], BodyType::Json),
            (&["text/html;q=x"], BodyType::Json),
            (&["text/plain;q=0.9,text/html;q=0.9"], BodyType::Html),
        ] {
            let mut headers = HeaderMap::new();
            for line in accept {
                headers.append(ACCEPT, HeaderValue::from_static(line));
            }
            assert_eq!(BodyType::preferred(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn body_states_the_problem() {
        let problem = denied(Verdict::RateLimited);
        let json = r#"{"type":"about:blank","title":"Too Many Requests","status":429,"detail":"The request exceeds the limit \"<requests>\".","code":"RATE_LIMITED","retry_after":2}"#;
        assert_eq!(problem.body(BodyType::Json), json);
        assert_eq!(
            problem.body(BodyType::Plain),
            "Too Many Requests: The request exceeds the limit \"<requests>\".\n"
        );
        let html = problem.body(BodyType::Html);
        assert!(html.contains("<h1>Too Many Requests</h1>"), "{html}");
        assert!(html.contains("the limit &quot;&lt;requests&gt;&quot;."), "{html}");
    }
}
