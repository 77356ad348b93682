//! The check of one request: what is asked of the daemon, and what its answer means.

use std::sync::Arc;

use http::request::Parts;
use keyward_client::{Client, Decision, Error, ErrorCode, Request, Verdict};
use tokio::time::{Instant, timeout};

use crate::charge_once::{ChargeId, ChargedRequests, RequestId, Turn};
use crate::client_address::AddressSource;
use crate::credential::{Credential, CredentialError, CredentialPlaces};
use crate::gateway::Gateway;
use crate::hint::{HintSource, Hints};
use crate::host::{self, HostError};
use crate::identity::IdentityHeaders;
use crate::origin;
use crate::original;
use crate::outcome::{Outcome, Refusal, Unavailable};
use crate::rate_limit::RateLimitHeaders;
use crate::route::{Access, Requirements, Route, Routes};
use crate::target::Target;

/// How the requests of one gateway are checked.
#[derive(Clone, Debug)]
pub struct CheckRules {
    /// The gateway.
    pub gateway: Gateway,
    /// The path that the gateway puts before the client's, if it forwards the client's request.
    pub path_prefix: String,
    /// Where the key is.
    pub credentials: CredentialPlaces,
    /// Where the address of the client is. `None`: it is not known, and keys that are bound to networks
    /// are denied.
    pub client_address: Option<AddressSource>,
    /// What the gateway adds to the requirements of a route.
    pub hints: Hints,
    /// How a check that the gateway repeats is recognised. `None`: each is charged.
    pub request_id: Option<RequestId>,
    /// What requests need.
    pub routes: Routes,
    /// What the upstream gets to know about the key.
    pub identity: IdentityHeaders,
    /// What the client gets to know about its limits.
    pub rate_limits: RateLimitHeaders,
}

/// What came of a check.
#[derive(Debug)]
pub struct Checked<'c> {
    /// The result.
    pub outcome: Outcome,
    /// The route that matched.
    pub route: Option<&'c Route>,
    /// What the request needs of its key: the requirements of the route, and those of the hints.
    pub requirements: Requirements,
}

impl Checked<'_> {
    /// A request that cannot be read.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self::undecided(Outcome::Refused(refusal))
    }

    /// A request that no route was looked for.
    pub(crate) fn undecided(outcome: Outcome) -> Self {
        Self { outcome, route: None, requirements: Requirements::default() }
    }
}

/// A request for which the daemon has to be asked.
struct Question<'r> {
    credential: Credential<'r>,
    requirements: Requirements,
    /// What a repeated check is recognised by.
    charge_id: Option<ChargeId>,
    ip: Option<std::net::IpAddr>,
    origin: Option<&'r str>,
}

/// What a request comes to before the daemon is asked.
enum Plan<'r> {
    Ask(Question<'r>),
    Done(Outcome),
}

impl CheckRules {
    /// Checks the request that the subrequest `parts` is about.
    pub(crate) async fn check(
        &self,
        client: &Client,
        charged: Option<&Arc<ChargedRequests>>,
        parts: &Parts,
    ) -> Checked<'_> {
        let (route, plan) = match self.plan(parts) {
            Ok(planned) => planned,
            Err(refusal) => return Checked::refused(refusal),
        };
        let (outcome, requirements) = match plan {
            Plan::Done(outcome) => (outcome, Requirements::default()),
            Plan::Ask(question) => {
                let answer = self.ask(client, charged, &question).await;
                let is_open = route.is_some_and(|route| route.fail_open);
                (conclude(answer, is_open), question.requirements)
            }
        };
        Checked { outcome, route, requirements }
    }

    /// Asks the daemon. A check that repeats one that was charged costs nothing.
    async fn ask(
        &self,
        client: &Client,
        charged: Option<&Arc<ChargedRequests>>,
        question: &Question<'_>,
    ) -> Result<Decision, Error> {
        let (Some(charged), Some(id)) = (charged, question.charge_id) else {
            return client.verify(&self.request(question, &question.requirements)).await;
        };
        let start = Instant::now();
        let turn = charged.turn(id).await;
        let answer = async {
            match turn {
                Turn::Late(deadline) => Err(Error::Deadline { deadline, written: false }),
                Turn::Unremembered => client.verify(&self.request(question, &question.requirements)).await,
                Turn::Repeated => {
                    let free = question.requirements.without_costs();
                    client.verify(&self.request(question, &free)).await
                }
                Turn::First(first) => {
                    let answer = client.verify(&self.request(question, &question.requirements)).await;
                    if answer.as_ref().is_ok_and(Decision::is_allowed) {
                        first.has_charged();
                    }
                    answer
                }
            }
        };
        // The time that it has waited for its turn is part of the deadline.
        let deadline = charged.deadline();
        let left = deadline.saturating_sub(start.elapsed());
        timeout(left, answer).await.unwrap_or(Err(Error::Deadline { deadline, written: true }))
    }

    fn plan<'r>(&self, parts: &'r Parts) -> Result<(Option<&Route>, Plan<'r>), Refusal> {
        let original = original::read(&self.gateway.request_source(), &self.path_prefix, parts)?;
        let target = Target::parse(original.target)?;
        if original.method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
            return Err(Refusal::Method);
        }
        let host = original.host.map(host::name).transpose()?;
        if host.is_none() && self.routes.depend_on_host() {
            return Err(HostError::Missing.into());
        }
        let route = self.routes.find(host.as_deref(), &target, &original.method).ok_or(Refusal::NoRoute)?;
        let done = |outcome| Ok((Some(route), Plan::Done(outcome)));
        match route.access {
            Access::Open => return done(Outcome::Open),
            Access::Closed => return done(Outcome::Refused(Refusal::Closed(route.name.clone()))),
            Access::Key if original.is_preflight && route.cors_preflight => return done(Outcome::Preflight),
            Access::Key => {}
        }
        let source = HintSource {
            headers: &parts.headers,
            query: parts.uri.query().filter(|_| self.gateway.sets_query()),
            attributes: parts.extensions.get(),
        };
        let question = || -> Result<Question<'r>, Refusal> {
            let requirements = self.hints.add_to(&route.requirements, &source)?;
            let credential = self.credentials.find(&parts.headers, target.query)?;
            let charge_id = self.request_id.as_ref().and_then(|request_id| {
                request_id.of(&parts.headers, credential.key(), &route.name, &requirements)
            });
            Ok(Question {
                requirements,
                credential,
                charge_id,
                ip: self.client_address.as_ref().and_then(|source| source.find(&parts.headers)),
                origin: origin::find(&parts.headers)?,
            })
        };
        let plan = question().map_or_else(|refusal| Plan::Done(Outcome::Refused(refusal)), Plan::Ask);
        Ok((Some(route), plan))
    }

    fn request<'k>(&self, question: &'k Question<'_>, requirements: &Requirements) -> Request<'k> {
        let mut request = requirements.apply(Request::new(question.credential.key()));
        if let Some(ip) = question.ip {
            request = request.ip(ip);
        }
        if let Some(origin) = question.origin {
            request = request.origin(origin);
        }
        if self.identity.needs_metadata() {
            request = request.metadata();
        }
        if self.rate_limits.needs_balances() { request.balances() } else { request }
    }
}

/// What an answer means, or that there is none. Only a daemon that cannot be asked lets a request
/// through on a route that fails open: a request that no daemon would accept does not.
pub(crate) fn conclude(answer: Result<Decision, Error>, fails_open: bool) -> Outcome {
    let unavailable = match answer {
        Ok(decision) if decision.is_allowed() => return Outcome::Allowed(decision),
        Ok(decision) if matches!(decision.verdict(), Verdict::NotReady | Verdict::StaleSnapshot) => {
            Unavailable::NotReady(decision)
        }
        Ok(decision) => return Outcome::Denied(decision),
        Err(error) if is_unavailable(&error) => Unavailable::NoAnswer(error),
        // Digests have no limit; a daemon with a pepper takes raw keys.
        Err(Error::FieldTooLong(error)) if error.field == "key" => {
            return Outcome::Refused(CredentialError::TooLong.into());
        }
        Err(error) => return Outcome::Refused(Refusal::Invalid(error.to_string())),
    };
    if fails_open { Outcome::FailedOpen(unavailable) } else { Outcome::Unavailable(unavailable) }
}

/// Whether an error says something about the daemon, and nothing about the request.
fn is_unavailable(error: &Error) -> bool {
    match error {
        Error::Connect { .. }
        | Error::Deadline { .. }
        | Error::ConnectionLost { .. }
        | Error::Protocol(_)
        | Error::NoRuntime => true,
        Error::Daemon(error) => matches!(
            error.code(),
            Some(
                ErrorCode::PeerRefused
                    | ErrorCode::TooManyConnections
                    | ErrorCode::IdleTimeout
                    | ErrorCode::ShuttingDown
                    | ErrorCode::QuotaExceeded
            )
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderName, HeaderValue};
    use keyward_client::{DaemonError, FieldTooLongError, Options};
    use keyward_protocol::{Answer, CREDENTIAL_DIGEST, Welcome};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::time::sleep;

    use super::*;
    use crate::hint::{HintKind, HintPlace};
    use crate::metrics::RepetitionMetrics;
    use crate::route::PathPattern;

    fn rules(routes: Vec<Route>) -> CheckRules {
        CheckRules {
            gateway: Gateway::Nginx,
            path_prefix: String::new(),
            credentials: CredentialPlaces::default(),
            client_address: Some(AddressSource {
                header: HeaderName::from_static("x-forwarded-for"),
                trusted_hops: 0,
            }),
            hints: Hints { place: HintPlace::Query, kinds: Vec::new() },
            request_id: None,
            routes: Routes::new(routes),
            identity: IdentityHeaders::new(Vec::new()),
            rate_limits: RateLimitHeaders::default(),
        }
    }

    fn route(name: &str, path: &str) -> Route {
        let path = Some(PathPattern::parse(path).expect("a pattern"));
        Route { name: name.to_owned(), path, ..Route::default() }
    }

    fn parts(uri: &str, method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri(uri);
        let original = [("x-original-method", method), ("x-original-uri", target)];
        for (name, value) in original.iter().chain(headers) {
            request = request.header(*name, HeaderValue::from_str(value).expect("a value"));
        }
        request.body(()).expect("a request").into_parts().0
    }

    /// The name of the outcome before the daemon is asked; `ASK` if it has to be asked.
    fn plan(rules: &CheckRules, parts: &Parts) -> &'static str {
        match rules.plan(parts) {
            Ok((_, Plan::Ask(_))) => "ASK",
            Ok((_, Plan::Done(outcome))) => outcome.name(),
            Err(refusal) => Outcome::Refused(refusal).name(),
        }
    }

    #[test]
    fn route_decides_whether_a_key_is_needed() {
        let preflight = [("origin", "https://a"), ("access-control-request-method", "GET")];
        let rules = rules(vec![
            Route { access: Access::Open, ..route("open", "/open") },
            Route { access: Access::Closed, ..route("closed", "/closed/**") },
            Route { cors_preflight: true, ..route("browser", "/browser") },
            route("key", "/key"),
        ]);
        let key = [("x-api-key", "k")];
        for (method, target, headers, expected) in [
            ("GET", "/open", &[][..], "OPEN"),
            ("GET", "/open", &[("x-api-key", "a,b")], "OPEN"),
            ("GET", "/closed/a", &key, "CLOSED_ROUTE"),
            ("OPTIONS", "/browser", &preflight, "PREFLIGHT"),
            ("OPTIONS", "/browser", &[], "NO_KEY"),
            ("OPTIONS", "/key", &preflight, "NO_KEY"),
            ("GET", "/key", &[], "NO_KEY"),
            ("GET", "/key", &key, "ASK"),
            ("GET", "/key?x", &key, "ASK"),
            ("GET", "/other", &key, "NO_ROUTE"),
            ("GET", "/open/../key", &key, "AMBIGUOUS_PATH"),
            ("get", "/key", &key, "INVALID_METHOD"),
            ("GET", "/key", &[("x-api-key", "k"), ("host", "a:80:80")], "INVALID_HOST"),
            (
                "GET",
                "/key",
                &[("x-api-key", "k"), ("origin", "https://a"), ("origin", "https://b")],
                "INVALID_ORIGIN",
            ),
            ("GET", "*", &key, "AMBIGUOUS_PATH"),
            ("GET", "/key", &[("x-api-key", "a,b")], "INVALID_CREDENTIAL"),
            ("GET", "/key", &[("x-api-key", "k"), ("x-original-uri", "/open")], "MISCONFIGURED"),
        ] {
            assert_eq!(
                plan(&rules, &parts("/", method, target, headers)),
                expected,
                "{method} {target} {headers:?}"
            );
        }
    }

    #[test]
    fn daemon_is_asked_what_route_hints_and_headers_say() {
        let needs = Requirements { scopes: vec!["a".to_owned()], ..Requirements::default() };
        let mut rules = rules(vec![Route { requirements: needs, ..Route::default() }]);
        rules.hints.kinds = vec![HintKind::Costs];
        let headers =
            [("x-api-key", "k"), ("origin", "https://a"), ("x-forwarded-for", "6.6.6.6, 203.0.113.7")];
        let asked = parts("/check?costs=tokens=9", "GET", "/?costs=tokens=0", &headers);
        let Ok((_, Plan::Ask(question))) = rules.plan(&asked) else { panic!("the daemon has to be asked") };
        assert_eq!((question.credential.key(), question.origin), (&b"k"[..], Some("https://a")));
        assert_eq!(question.ip, Some([203, 0, 113, 7].into()));
        let expected = Requirements {
            scopes: vec!["a".to_owned()],
            costs: vec![("tokens".to_owned(), 9)],
            ..Requirements::default()
        };
        assert_eq!(question.requirements, expected);
        assert_eq!(plan(&rules, &parts("/check", "GET", "/?costs=tokens=0", &headers)), "MISCONFIGURED");
        rules.client_address = None;
        let Ok((_, Plan::Ask(question))) = rules.plan(&asked) else { panic!("the daemon has to be asked") };
        assert_eq!(question.ip, None);
    }

    #[test]
    fn only_a_daemon_that_cannot_be_asked_opens_a_route_that_fails_open() {
        let decided = |verdict| Ok(Decision::from(&Answer::without_key(1, verdict, 1)));
        let refused = |code: ErrorCode| {
            let value = code as u8;
            Err(Error::Daemon(DaemonError { value, detail: 0, closing: false, message: String::new() }))
        };
        let lost = || Err(Error::ConnectionLost { written: true });
        for (answer, closed, open) in [
            (decided(Verdict::Allowed), "ALLOWED", true),
            (decided(Verdict::NotReady), "NOT_READY", true),
            (decided(Verdict::StaleSnapshot), "STALE_SNAPSHOT", true),
            (lost(), "UNAVAILABLE", true),
            (refused(ErrorCode::ShuttingDown), "UNAVAILABLE", true),
            (decided(Verdict::UnknownKey), "UNKNOWN_KEY", false),
            (decided(Verdict::RateLimited), "RATE_LIMITED", false),
            (decided(Verdict::from_value(200)), "OTHER", false),
            (refused(ErrorCode::InvalidField), "MISCONFIGURED", false),
            (Err(Error::InvalidScope { name: "a b".to_owned() }), "MISCONFIGURED", false),
            (
                Err(Error::FieldTooLong(FieldTooLongError { field: "key", length: 2000, max: 1024 })),
                "INVALID_CREDENTIAL",
                false,
            ),
        ] {
            let by_default = conclude(answer.clone(), false);
            assert_eq!(by_default.name(), closed);
            assert_eq!(by_default.is_let_through(), closed == "ALLOWED");
            assert_eq!(conclude(answer, true).is_let_through(), open, "{closed}");
        }
    }

    /// A repeated check waits for the first one, and is decided by the deadline all the same.
    #[tokio::test(start_paused = true)]
    async fn deadline_includes_the_time_that_a_repeated_check_waits() {
        // The client gives a connection up a second after a missed deadline.
        const DEADLINE: Duration = Duration::from_millis(500);
        const LATER: Duration = Duration::from_millis(200);
        let directory = tempfile::TempDir::new().expect("a directory");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("binds");
        // A daemon that hangs after its WELCOME.
        let daemon = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut hello = [0; 14];
            stream.read_exact(&mut hello).await.expect("HELLO");
            let mut welcome = Vec::new();
            Welcome {
                request_id: u32::from_le_bytes([hello[8], hello[9], hello[10], hello[11]]),
                version: 1,
                min_version: 1,
                max_version: 1,
                credentials: CREDENTIAL_DIGEST,
                max_length: 4096,
                idle_timeout_ms: 0,
                generation: 1,
                server: "",
            }
            .encode(&mut welcome);
            stream.write_all(&welcome).await.expect("writes");
            std::future::pending::<()>().await;
        });
        let client = Client::with_options(Options::new(&socket).deadline(DEADLINE));
        let charged = ChargedRequests::new(DEADLINE, DEADLINE, RepetitionMetrics::default());
        let name = HeaderName::from_static("x-request-id");
        let rules = CheckRules {
            request_id: Some(RequestId { header: name, within: DEADLINE }),
            ..rules(vec![route("r", "/")])
        };
        let parts = parts("/", "GET", "/", &[("x-api-key", "key"), ("x-request-id", "1")]);
        let start = Instant::now();
        let check = || rules.check(&client, Some(&charged), &parts);
        let repeated = async {
            sleep(LATER).await;
            check().await
        };
        for checked in <[_; 2]>::from(tokio::join!(check(), repeated)) {
            assert!(matches!(checked.outcome, Outcome::Unavailable(_)), "{:?}", checked.outcome);
        }
        assert!(start.elapsed() < LATER + DEADLINE + LATER / 2, "{:?}", start.elapsed());
        daemon.abort();
    }
}
