//! A daemon through frames and both clients: text and compiled exports, digests and raw keys, with
//! and without peppers, single and batched requests.

use std::time::{SystemTime, UNIX_EPOCH};

use keyward_client::{Client, Decision, Options, Refund, Request, blocking};
use keyward_engine::pepper::Pepper;
use keyward_protocol::{Credential, ScopeMode, Scopes, Verify};

use super::model::{
    Model, Outcome, PERIOD_DAYS, PLANS, RequestCase, Row, export, rows_with_one_restriction, shuffle,
    typical_cases,
};
use crate::support::{Daemon, Export, RawClient, Received, Setup, TIMEOUT, key_target, sha256_hex};

/// The length of a second of validity in exports: longer than any test.
const UNIT_SECONDS: i64 = 86_400;

/// Requests per batch.
const BATCH_SIZE: usize = 150;

const PEPPER: &str = "the pepper that is in force now";
const PREVIOUS_PEPPER: &str = "the pepper that was in force before";

/// A way to send requests to the daemon.
trait Transport {
    fn verify(&mut self, batch: &[(&str, RequestCase)]) -> Vec<Outcome>;
    fn refund(&mut self, key: &str, cost: u32) -> Outcome;
}

struct Blocking {
    client: blocking::Client,
    raw: bool,
}

struct Async {
    runtime: tokio::runtime::Runtime,
    client: Client,
    raw: bool,
}

struct Frames {
    peer: RawClient,
    raw: bool,
}

fn request<'k>(key: &'k str, case: &RequestCase, raw: bool) -> Request<'k> {
    let mut request = Request::new(key).cost(case.cost);
    if let Some(environment) = case.environment {
        request = request.environment(environment);
    }
    request = match case.scopes {
        Some((names, true)) => request.any_scope(names),
        Some((names, false)) => request.scopes(names),
        None => request,
    };
    if let Some(ip) = case.ip {
        request = request.ip(ip.parse().expect("an address"));
    }
    if let Some(origin) = case.origin {
        request = request.origin(origin);
    }
    if case.metadata {
        request = request.metadata();
    }
    if raw { request.raw() } else { request }
}

fn refund(key: &str, cost: u32, raw: bool) -> Refund<'_> {
    let refund = Refund::new(key, cost);
    if raw { refund.raw() } else { refund }
}

fn outcome_of(decision: &Decision) -> Outcome {
    Outcome {
        verdict: decision.verdict().name().into(),
        key_id: decision.key_id().unwrap_or_default().into(),
        limit: decision.limit().map(|limit| (limit.name.into(), limit.remaining)),
        shadow: decision.shadow_limit().map(str::to_owned),
        metadata: decision.metadata().map(str::to_owned),
    }
}

impl Transport for Blocking {
    fn verify(&mut self, batch: &[(&str, RequestCase)]) -> Vec<Outcome> {
        match batch {
            [(key, case)] => {
                vec![outcome_of(&self.client.verify(&request(key, case, self.raw)).expect("an answer"))]
            }
            many => {
                let requests: Vec<_> = many.iter().map(|(key, case)| request(key, case, self.raw)).collect();
                let decisions = self.client.verify_many(&requests);
                decisions.into_iter().map(|decision| outcome_of(&decision.expect("an answer"))).collect()
            }
        }
    }

    fn refund(&mut self, key: &str, cost: u32) -> Outcome {
        outcome_of(&self.client.refund(&refund(key, cost, self.raw)).expect("an answer"))
    }
}

impl Transport for Async {
    fn verify(&mut self, batch: &[(&str, RequestCase)]) -> Vec<Outcome> {
        let requests: Vec<_> = batch.iter().map(|(key, case)| request(key, case, self.raw)).collect();
        self.runtime.block_on(async {
            match &*requests {
                [request] => vec![outcome_of(&self.client.verify(request).await.expect("an answer"))],
                many => {
                    let decisions = self.client.verify_many(many).await;
                    decisions.into_iter().map(|decision| outcome_of(&decision.expect("an answer"))).collect()
                }
            }
        })
    }

    fn refund(&mut self, key: &str, cost: u32) -> Outcome {
        let refund = refund(key, cost, self.raw);
        outcome_of(&self.runtime.block_on(self.client.refund(&refund)).expect("an answer"))
    }
}

impl Frames {
    fn credential<'k>(&self, key: &'k str) -> Credential<'k> {
        if self.raw {
            Credential::RawKey(key.as_bytes())
        } else {
            Credential::Digest(keyward_engine::key_format::hash(key.as_bytes()))
        }
    }

    fn receive(&mut self, id: u32) -> Outcome {
        let mut outcome = None;
        let received = self.peer.receive_with(|answer| {
            outcome = Some(Outcome {
                verdict: answer.verdict.name().into(),
                key_id: answer.key_id.into(),
                limit: (!answer.limit.name.is_empty())
                    .then(|| (answer.limit.name.into(), answer.limit.remaining)),
                shadow: answer.shadow_limit.map(str::to_owned),
                metadata: answer.metadata.map(str::to_owned),
            });
        });
        assert!(matches!(received, Received::Answer { request_id, .. } if request_id == id), "{received:?}");
        outcome.expect("an answer")
    }
}

impl Transport for Frames {
    fn verify(&mut self, batch: &[(&str, RequestCase)]) -> Vec<Outcome> {
        let mut frames = Vec::new();
        for ((key, case), id) in batch.iter().zip(0..) {
            let names = case.scopes.map(|(names, any)| (names.join(" "), any));
            let request = Verify {
                cost: case.cost,
                environment: case.environment,
                scopes: names.as_ref().map(|(names, any)| Scopes {
                    names,
                    mode: if *any { ScopeMode::Any } else { ScopeMode::All },
                }),
                origin: case.origin,
                want_metadata: case.metadata,
                ..Verify::new(id, self.credential(key))
            };
            let request = match case.ip {
                Some(ip) => request.with_ip(ip.parse().expect("an address")),
                None => request,
            };
            request.encode(&mut frames).expect("within all limits");
        }
        self.peer.send(&frames);
        (0..batch.len() as u32).map(|id| self.receive(id)).collect()
    }

    fn refund(&mut self, key: &str, cost: u32) -> Outcome {
        let mut frame = Vec::new();
        let credential = self.credential(key);
        let refund = keyward_protocol::Refund::new(7, cost, credential);
        refund.encode(&mut frame).expect("within all limits");
        self.peer.send(&frame);
        self.receive(7)
    }
}

fn transports(daemon: &Daemon, raw: bool) -> [Box<dyn Transport>; 3] {
    let options = Options::new(daemon.socket()).deadline(TIMEOUT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    [
        Box::new(Blocking { client: blocking::Client::with_options(options.clone()), raw }),
        Box::new(Async { runtime, client: Client::with_options(options), raw }),
        Box::new(Frames { peer: daemon.connect(), raw }),
    ]
}

fn configuration() -> String {
    let mut text = String::new();
    for (plan, limits) in PLANS {
        for (name, burst, shared, shadow) in limits {
            let per = if *shared { "owner" } else { "key" };
            text += &format!(
                "plans.{plan}.{name} = {{ limit = \"{burst}/{PERIOD_DAYS}d\", per = \"{per}\", shadow = {shadow} }}\n"
            );
        }
    }
    text
}

fn start(setup: impl FnOnce(Export) -> Setup, peppers: &[(&str, &str)]) -> (Daemon, Vec<Row>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as u32;
    let rows = rows_with_one_restriction();
    // Keys are hashed with the last pepper.
    let pepper = peppers.last().map(|(_, secret)| Pepper::new(secret.as_bytes()).expect("a pepper"));
    let hash = |key: &str| match &pepper {
        Some(pepper) => const_hex::encode(pepper.hash(key.as_bytes())),
        None => sha256_hex(key),
    };
    let setup = setup(export(&rows, now, UNIT_SECONDS, hash));
    let mut config = configuration();
    for (setting, secret) in peppers {
        config += &format!("keys.{setting} = '{}'\n", setup.write_secret(setting, secret));
    }
    let daemon = setup.config(&config).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    for row in rows.iter().filter(|row| row.revoked_by_operator) {
        daemon.revoke(key_target(&row.key));
    }
    (daemon, rows)
}

/// Verifies `cases` through one transport, `batch_size` at a time, and sends refunds after the
/// batches.
fn verify_all(
    transport: &mut dyn Transport,
    model: &mut Model,
    cases: &[(usize, RequestCase)],
    batch_size: usize,
    context: &str,
) {
    for (group, number) in cases.chunks(batch_size).zip(0..) {
        let keys: Vec<_> = group.iter().map(|(row, case)| (model.rows[*row].key.clone(), *case)).collect();
        let keys: Vec<_> = keys.iter().map(|(key, case)| (key.as_str(), *case)).collect();
        let outcomes = transport.verify(&keys);
        assert_eq!(outcomes.len(), group.len());
        for ((row, case), outcome) in group.iter().zip(&outcomes) {
            model
                .verify(*row, case)
                .assert(outcome, || format!("{case:?} of {:?}, {context}", model.rows[*row]));
        }
        if batch_size > 1 || number % 5 == 0 {
            for (row, _) in group.iter().step_by(5) {
                let outcome = transport.refund(&model.rows[*row].key.clone(), 2);
                model
                    .refund(*row, 2)
                    .assert(&outcome, || format!("refund of {:?}, {context}", model.rows[*row]));
            }
        }
    }
}

fn verify_through_every_transport(daemon: &Daemon, rows: Vec<Row>, raw_modes: &[bool]) {
    let mut model = Model::new(rows);
    let of_all_rows = |cases: &[RequestCase]| {
        let all = (0..model.rows.len()).flat_map(|row| cases.iter().map(move |case| (row, *case)));
        shuffle(all.collect())
    };
    let (cases, few) = (typical_cases(), few_cases());
    let (all, few) = (of_all_rows(&cases), of_all_rows(&few));
    for raw in raw_modes {
        for (mut transport, name) in transports(daemon, *raw).into_iter().zip(["blocking", "async", "frames"])
        {
            let context = |batch_size: usize| format!("{name}, raw keys: {raw}, {batch_size} at a time");
            verify_all(&mut *transport, &mut model, &few, 1, &context(1));
            verify_all(&mut *transport, &mut model, &all, BATCH_SIZE, &context(BATCH_SIZE));
        }
    }
}

/// Few cases, for requests that each wait for their answer: the plain request, and one value of
/// each field that does not match.
fn few_cases() -> Vec<RequestCase> {
    let plain = RequestCase { cost: 1, ..RequestCase::default() };
    vec![
        plain,
        RequestCase { cost: 0, metadata: true, ..plain },
        RequestCase { environment: Some("test"), ..plain },
        RequestCase { scopes: Some((&["orders:write"], false)), ..plain },
        RequestCase { ip: Some("11.0.0.1"), ..plain },
        RequestCase { origin: Some("https://evil.test"), ..plain },
    ]
}

#[test]
fn restrictions_of_a_text_export_apply_through_every_transport() {
    let (daemon, rows) = start(Setup::text, &[]);
    verify_through_every_transport(&daemon, rows, &[false, true]);
}

#[test]
fn restrictions_of_a_compiled_export_apply_through_every_transport() {
    let (daemon, rows) = start(Setup::compiled, &[]);
    verify_through_every_transport(&daemon, rows, &[false, true]);
}

#[test]
fn restrictions_apply_with_a_pepper() {
    let (daemon, rows) = start(Setup::new, &[("pepper_file", PEPPER)]);
    verify_through_every_transport(&daemon, rows, &[true]);
}

#[test]
fn restrictions_apply_to_keys_of_the_previous_pepper() {
    let (daemon, rows) =
        start(Setup::new, &[("pepper_file", PEPPER), ("previous_pepper_file", PREVIOUS_PEPPER)]);
    verify_through_every_transport(&daemon, rows, &[true]);
}
