//! The reply to a settlement: the balances, or the problem and whether the request can be sent again.

use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use keyward_client::{Decision, Verdict};
use serde::Serialize;

use super::Operation;
use super::request::RequestError;
use super::settle::may_be_done;
use crate::credential::CredentialPlaces;
use crate::outcome::{Outcome, Refusal};
use crate::problem::{BodyType, Members, Problem, sentence};
use crate::reply::{VERDICT, challenge};

/// What a settlement came to.
#[derive(Debug)]
pub(super) enum Settled {
    /// The user of the process may not settle.
    PeerRefused,
    /// The request is not a settlement.
    Invalid(RequestError),
    /// The request has no usable key, or the daemon was asked.
    Asked(Operation, Outcome),
}

/// The body of a settlement that was carried out. The names are those of SPEC.md, section 6, and of
/// `keyward verify --json`.
#[derive(Serialize)]
struct Confirmation<'d> {
    verdict: &'static str,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'d str>,
    balances: Vec<SettledBalance<'d>>,
}

/// A limit of the key, after the settlement.
#[derive(Serialize)]
struct SettledBalance<'d> {
    name: &'d str,
    kind: &'static str,
    limit: u64,
    #[serde(flatten)]
    amount: Amount,
    balance: i64,
    reset_ms: u64,
}

/// What the limit was charged or given back.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Amount {
    Charged(u32),
    Refunded(u32),
}

/// The body of a problem. The members after those of every problem are there with 503.
#[derive(Serialize)]
struct ProblemBody<'p> {
    #[serde(flatten)]
    members: Members<'p>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maybe_charged: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maybe_refunded: Option<bool>,
}

impl Settled {
    /// The name of what it came to: the verdict of the daemon, or what came before it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::PeerRefused => "PEER_REFUSED",
            Self::Invalid(error) => error.name(),
            Self::Asked(_, outcome) => outcome.name(),
        }
    }

    /// The name of the operation; `none` if the request does not come to one.
    pub(super) fn operation_name(&self) -> &'static str {
        match self {
            Self::PeerRefused | Self::Invalid(_) => "none",
            Self::Asked(operation, _) => operation.name(),
        }
    }

    /// The reply. `places` are where the key is expected.
    pub(super) fn reply(&self, places: &CredentialPlaces) -> Response<String> {
        let mut reply = match (self, self.problem()) {
            (Self::Asked(operation, Outcome::Allowed(decision)), None) => confirmation(*operation, decision),
            (_, problem) => self.refusal(&problem.unwrap_or_else(unexpected), places),
        };
        let headers = reply.headers_mut();
        headers.insert(VERDICT, HeaderValue::from_static(self.name()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        reply
    }

    /// `None` if the settlement was carried out.
    fn problem(&self) -> Option<Problem> {
        let code = self.name();
        match self {
            Self::PeerRefused => {
                Some(Problem::new(StatusCode::FORBIDDEN, code, "The user of this process may not settle."))
            }
            Self::Invalid(error) => Some(Problem::new(error.status(), code, sentence(&error.to_string()))),
            Self::Asked(_, outcome) => {
                let problem = Problem::of(outcome)?;
                let detail = match outcome {
                    Outcome::Unavailable(_) => Some(self.delivery()),
                    // Here the caller can do something about it, and is trusted.
                    Outcome::Denied(decision) if decision.verdict() == Verdict::UnknownLimit => {
                        Some("`costs` names a limit that no plan and no key has.".to_owned())
                    }
                    Outcome::Refused(refusal @ Refusal::Invalid(_)) => Some(sentence(&refusal.to_string())),
                    _ => None,
                };
                Some(match detail {
                    Some(detail) => Problem { detail, ..problem },
                    None => problem,
                })
            }
        }
    }

    /// The operation, and whether it may have been carried out. `None`: it certainly was or was not.
    fn uncertainty(&self) -> Option<(Operation, bool)> {
        match self {
            Self::Asked(operation, Outcome::Unavailable(reason)) => Some((*operation, may_be_done(reason))),
            _ => None,
        }
    }

    /// What a caller that gets no answer of the daemon should do.
    fn delivery(&self) -> String {
        match self.uncertainty() {
            Some((operation, true)) => {
                let name = operation.name();
                format!(
                    "keyward has not answered. The {name} may have been carried out: do not send it again."
                )
            }
            _ => "keyward cannot settle at the moment. Nothing was changed: send the request again later."
                .to_owned(),
        }
    }

    fn refusal(&self, problem: &Problem, places: &CredentialPlaces) -> Response<String> {
        let mut reply = Response::new(String::new());
        *reply.status_mut() = problem.status;
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(BodyType::Json.content_type()));
        headers.extend(
            problem
                .challenge
                .and_then(|error| challenge(places, error, &[]))
                .map(|value| (WWW_AUTHENTICATE, value)),
        );
        match self {
            // It would otherwise keep its place among the connections.
            Self::PeerRefused => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Invalid(RequestError::Method) => {
                headers.insert(ALLOW, HeaderValue::from_static("POST"));
            }
            _ => {}
        }
        let uncertainty = self.uncertainty();
        let of =
            |operation| uncertainty.filter(|(of, _)| *of == operation).map(|(_, may_be_done)| may_be_done);
        *reply.body_mut() = json(&ProblemBody {
            members: problem.members(),
            maybe_charged: of(Operation::Debit),
            maybe_refunded: of(Operation::Refund),
        });
        reply
    }
}

impl RequestError {
    fn name(&self) -> &'static str {
        match self {
            Self::Path => "UNKNOWN_PATH",
            Self::Method => "INVALID_METHOD",
            Self::ContentType => "INVALID_CONTENT_TYPE",
            Self::TooLarge => "BODY_TOO_LARGE",
            Self::Timeout => "BODY_TIMEOUT",
            Self::Incomplete | Self::Amounts(_) => "INVALID_BODY",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Path => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Incomplete | Self::Amounts(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl Operation {
    /// Its name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Debit => "debit",
            Self::Refund => "refund",
        }
    }
}

fn confirmation(operation: Operation, decision: &Decision) -> Response<String> {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let balances = decision.balances().map(|limit| SettledBalance {
        name: limit.name,
        kind: limit.kind.name(),
        limit: limit.limit,
        amount: match operation {
            Operation::Debit => Amount::Charged(limit.charged),
            Operation::Refund => Amount::Refunded(limit.charged),
        },
        balance: limit.balance,
        reset_ms: milliseconds(limit.reset),
    });
    let body = json(&Confirmation {
        verdict: decision.verdict().name(),
        generation: decision.generation(),
        key_id: decision.key_id(),
        balances: balances.collect(),
    });
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// Only ALLOWED confirms a settlement: anything else is a problem.
fn unexpected() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "MISCONFIGURED",
        "keyward gave an answer of another kind.",
    )
}

/// Texts and numbers can be serialized.
fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use keyward_client::Error;
    use keyward_protocol::{Answer, BalancesBuf, LimitBalance, LimitKind};

    use super::*;
    use crate::credential::CredentialError;
    use crate::outcome::Unavailable;
    use crate::settlement::amounts::AmountsError;

    fn reply(settled: &Settled) -> Response<String> {
        settled.reply(&CredentialPlaces::default())
    }

    fn allowed() -> Decision {
        let mut balances = BalancesBuf::new();
        balances.push(&LimitBalance {
            name: "tokens",
            kind: LimitKind::Bucket,
            limit: 9000,
            charged: 1500,
            balance: -20,
            reset_ms: 7,
        });
        let balances = Some(balances.as_balances());
        Decision::from(&Answer { key_id: "k1", balances, ..Answer::without_key(1, Verdict::Allowed, 3) })
    }

    #[test]
    fn confirmation_has_the_balances() {
        for (operation, member) in [(Operation::Debit, "charged"), (Operation::Refund, "refunded")] {
            let reply = reply(&Settled::Asked(operation, Outcome::Allowed(allowed())));
            assert_eq!(reply.status(), StatusCode::OK);
            assert_eq!(reply.headers()[CONTENT_TYPE], "application/json");
            assert_eq!(reply.headers()[VERDICT], "ALLOWED");
            let expected = format!(
                r#"{{"verdict":"ALLOWED","generation":3,"key_id":"k1","balances":[{{"name":"tokens","kind":"BUCKET","limit":9000,"{member}":1500,"balance":-20,"reset_ms":7}}]}}"#
            );
            assert_eq!(*reply.body(), expected);
        }
    }

    #[test]
    fn problem_says_whether_the_request_can_be_sent_again() {
        let lost = |operation, written| {
            let reason = Unavailable::NoAnswer(Error::ConnectionLost { written });
            let reply = reply(&Settled::Asked(operation, Outcome::Unavailable(reason)));
            assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
            serde_json::from_str::<serde_json::Value>(reply.body()).expect("JSON")
        };
        let charged = lost(Operation::Debit, true);
        assert_eq!((&charged["maybe_charged"], charged.get("maybe_refunded")), (&true.into(), None));
        let detail = "keyward has not answered. The debit may have been carried out: do not send it again.";
        assert_eq!(charged["detail"], detail);
        let refunded = lost(Operation::Refund, true);
        assert_eq!((&refunded["maybe_refunded"], refunded.get("maybe_charged")), (&true.into(), None));
        let unsent = lost(Operation::Debit, false);
        assert_eq!(unsent["maybe_charged"], false);
        let detail =
            "keyward cannot settle at the moment. Nothing was changed: send the request again later.";
        assert_eq!(unsent["detail"], detail);
        assert_eq!(lost(Operation::Refund, false)["maybe_refunded"], false);
    }

    #[test]
    fn refusal_has_its_status_and_its_name() {
        let denied = |verdict| {
            Settled::Asked(
                Operation::Debit,
                Outcome::Denied(Decision::from(&Answer::without_key(1, verdict, 1))),
            )
        };
        let refused = |refusal| Settled::Asked(Operation::Refund, Outcome::Refused(refusal));
        for (settled, status, code, detail) in [
            (Settled::PeerRefused, 403, "PEER_REFUSED", "The user of this process may not settle."),
            (
                Settled::Invalid(RequestError::Path),
                404,
                "UNKNOWN_PATH",
                "There is nothing at this path: it is /debit or /refund.",
            ),
            (Settled::Invalid(RequestError::Method), 405, "INVALID_METHOD", "The method is not POST."),
            (
                Settled::Invalid(RequestError::Timeout),
                408,
                "BODY_TIMEOUT",
                "The body did not arrive within 2 seconds.",
            ),
            (
                Settled::Invalid(RequestError::TooLarge),
                413,
                "BODY_TOO_LARGE",
                "The body has more than 4096 bytes.",
            ),
            (
                Settled::Invalid(RequestError::ContentType),
                415,
                "INVALID_CONTENT_TYPE",
                "Content-Type is not application/json.",
            ),
            (
                Settled::Invalid(RequestError::Amounts(AmountsError::Zero)),
                400,
                "INVALID_BODY",
                "The body has no amount: `cost` is missing or 0, and there are no `costs`.",
            ),
            (
                refused(Refusal::Credential(CredentialError::Missing)),
                401,
                "NO_KEY",
                "The request carries no API key.",
            ),
            (
                refused(Refusal::Invalid("no".to_owned())),
                500,
                "MISCONFIGURED",
                "The request cannot be asked about: no.",
            ),
            (denied(Verdict::UnknownKey), 401, "UNKNOWN_KEY", "The API key is not known."),
            (
                denied(Verdict::UnknownLimit),
                500,
                "UNKNOWN_LIMIT",
                "`costs` names a limit that no plan and no key has.",
            ),
        ] {
            let reply = reply(&settled);
            let problem: serde_json::Value = serde_json::from_str(reply.body()).expect("JSON");
            assert_eq!(
                (reply.status().as_u16(), &problem["code"], &problem["detail"]),
                (status, &code.into(), &detail.into())
            );
            assert_eq!(problem.get("maybe_charged").or(problem.get("maybe_refunded")), None);
            assert_eq!(reply.headers()[VERDICT], code);
            assert_eq!(reply.headers().contains_key(ALLOW), status == 405);
            assert_eq!(reply.headers().contains_key(WWW_AUTHENTICATE), status == 401);
            assert_eq!(reply.headers().contains_key(CONNECTION), status == 403);
        }
    }
}
