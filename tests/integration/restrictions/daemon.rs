//! A running daemon, through frames and both clients: text and compiled exports, digests and raw
//! keys, with and without peppers, requests one at a time and many in one write.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use keyward_client::{Client, Decision, Options, Refund, Request, blocking};
use keyward_daemon::admin::message::{Command, Target};
use keyward_engine::pepper::Pepper;
use keyward_protocol::{Credential, ScopeMode, Scopes, Verify};

use super::model::{Ask, Model, PERIOD_DAYS, PLANS, Row, Seen, export, scatter, singles, some_asks};
use crate::support::{Daemon, RawClient, Received, Setup, TIMEOUT, sha256_hex};

/// Seconds that stand for one: longer than any test takes.
const UNIT: i64 = 86_400;

/// Requests in one write.
const TOGETHER: usize = 150;

const PEPPER: &str = "the pepper that is in force now";
const PREVIOUS_PEPPER: &str = "the pepper that was in force before";

/// Asks about keys in one way: the rows' keys, and what is asked of each.
trait Way {
    fn verify(&mut self, asked: &[(&str, Ask)]) -> Vec<Seen>;
    fn refund(&mut self, key: &str, cost: u32) -> Seen;
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

fn request<'k>(key: &'k str, ask: &Ask, raw: bool) -> Request<'k> {
    let mut request = Request::new(key).cost(ask.cost);
    if let Some(environment) = ask.environment {
        request = request.environment(environment);
    }
    request = match ask.scopes {
        Some((names, true)) => request.any_scope(names),
        Some((names, false)) => request.scopes(names),
        None => request,
    };
    if let Some(ip) = ask.ip {
        request = request.ip(ip.parse().expect("an address"));
    }
    if let Some(origin) = ask.origin {
        request = request.origin(origin);
    }
    if ask.metadata {
        request = request.metadata();
    }
    if raw { request.raw() } else { request }
}

fn refund(key: &str, cost: u32, raw: bool) -> Refund<'_> {
    let refund = Refund::new(key, cost);
    if raw { refund.raw() } else { refund }
}

fn seen(decision: &Decision) -> Seen {
    Seen {
        verdict: decision.verdict().name().into(),
        key_id: decision.key_id().unwrap_or_default().into(),
        limit: decision.limit().map(|limit| (limit.name.into(), limit.remaining)),
        shadow: decision.shadow_limit().map(str::to_owned),
        metadata: decision.metadata().map(str::to_owned),
    }
}

impl Way for Blocking {
    fn verify(&mut self, asked: &[(&str, Ask)]) -> Vec<Seen> {
        match asked {
            [(key, ask)] => vec![seen(&self.client.verify(&request(key, ask, self.raw)).expect("an answer"))],
            many => {
                let requests: Vec<_> = many.iter().map(|(key, ask)| request(key, ask, self.raw)).collect();
                let decisions = self.client.verify_many(&requests);
                decisions.into_iter().map(|decision| seen(&decision.expect("an answer"))).collect()
            }
        }
    }

    fn refund(&mut self, key: &str, cost: u32) -> Seen {
        seen(&self.client.refund(&refund(key, cost, self.raw)).expect("an answer"))
    }
}

impl Way for Async {
    fn verify(&mut self, asked: &[(&str, Ask)]) -> Vec<Seen> {
        let requests: Vec<_> = asked.iter().map(|(key, ask)| request(key, ask, self.raw)).collect();
        self.runtime.block_on(async {
            match &*requests {
                [request] => vec![seen(&self.client.verify(request).await.expect("an answer"))],
                many => {
                    let decisions = self.client.verify_many(many).await;
                    decisions.into_iter().map(|decision| seen(&decision.expect("an answer"))).collect()
                }
            }
        })
    }

    fn refund(&mut self, key: &str, cost: u32) -> Seen {
        let refund = refund(key, cost, self.raw);
        seen(&self.runtime.block_on(self.client.refund(&refund)).expect("an answer"))
    }
}

impl Frames {
    fn credential<'k>(&self, key: &'k str) -> Credential<'k> {
        match self.raw {
            true => Credential::RawKey(key.as_bytes()),
            false => Credential::Digest(keyward_engine::key_format::hash(key.as_bytes())),
        }
    }

    fn hear(&mut self, id: u32) -> Seen {
        let mut got = None;
        let said = self.peer.receive_with(|answer| {
            got = Some(Seen {
                verdict: answer.verdict.name().into(),
                key_id: answer.key_id.into(),
                limit: (!answer.limit.name.is_empty())
                    .then(|| (answer.limit.name.into(), answer.limit.remaining)),
                shadow: answer.shadow_limit.map(str::to_owned),
                metadata: answer.metadata.map(str::to_owned),
            });
        });
        assert!(matches!(said, Received::Answer { request_id, .. } if request_id == id), "{said:?}");
        got.expect("an answer")
    }
}

impl Way for Frames {
    fn verify(&mut self, asked: &[(&str, Ask)]) -> Vec<Seen> {
        let mut frames = Vec::new();
        for ((key, ask), id) in asked.iter().zip(0..) {
            let names = ask.scopes.map(|(names, any)| (names.join(" "), any));
            let request = Verify {
                cost: ask.cost,
                environment: ask.environment,
                scopes: names.as_ref().map(|(names, any)| Scopes {
                    names,
                    mode: if *any { ScopeMode::Any } else { ScopeMode::All },
                }),
                origin: ask.origin,
                want_metadata: ask.metadata,
                ..Verify::new(id, self.credential(key))
            };
            let request = match ask.ip {
                Some(ip) => request.with_ip(ip.parse().expect("an address")),
                None => request,
            };
            request.encode(&mut frames).expect("within all limits");
        }
        self.peer.send(&frames);
        (0..asked.len() as u32).map(|id| self.hear(id)).collect()
    }

    fn refund(&mut self, key: &str, cost: u32) -> Seen {
        let mut frame = Vec::new();
        let credential = self.credential(key);
        let refund = keyward_protocol::Refund { request_id: 7, cost, credential, limit: None };
        refund.encode(&mut frame).expect("within all limits");
        self.peer.send(&frame);
        self.hear(7)
    }
}

fn ways(daemon: &Daemon, raw: bool) -> [Box<dyn Way>; 3] {
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
                "plans.{plan}.{name} = {{ rate = \"{burst}/{PERIOD_DAYS}d\", per = \"{per}\", shadow = {shadow} }}\n"
            );
        }
    }
    text
}

fn start(setup: impl FnOnce(&str) -> Setup, peppers: &[(&str, &str)]) -> (Daemon, Vec<Row>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as u32;
    let rows = singles();
    // Keys are listed as the last of the peppers hashes them.
    let pepper = peppers.last().map(|(_, secret)| Pepper::new(secret.as_bytes()).expect("a pepper"));
    let hash = |key: &str| match &pepper {
        Some(pepper) => const_hex::encode(pepper.hash(key.as_bytes())),
        None => sha256_hex(key),
    };
    let setup = setup(&export(&rows, now, UNIT, hash));
    let mut config = configuration();
    for (setting, secret) in peppers {
        let path = setup.path(setting);
        fs::write(&path, secret).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets permissions");
        config += &format!("keys.{setting} = '{}'\n", path.display());
    }
    let daemon = setup.config(&config).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    for row in rows.iter().filter(|row| row.revoked_by_operator) {
        let target = Target { key_id: Some(row.key.clone()), owner: None };
        let reply = keyward_daemon::admin::send_command(&daemon.admin_socket(), &Command::Revoke(target))
            .expect("an answer");
        assert!(reply.revocation.is_some(), "{reply:?}");
    }
    (daemon, rows)
}

/// Asks `asked` in one way, so many at a time, and gives something back after each of these groups.
fn ask_all(way: &mut dyn Way, model: &mut Model, asked: &[(usize, Ask)], together: usize, case: &str) {
    for (group, number) in asked.chunks(together).zip(0..) {
        let keys: Vec<_> = group.iter().map(|(row, ask)| (model.rows[*row].key.clone(), *ask)).collect();
        let keys: Vec<_> = keys.iter().map(|(key, ask)| (key.as_str(), *ask)).collect();
        let got = way.verify(&keys);
        assert_eq!(got.len(), group.len());
        for ((row, ask), got) in group.iter().zip(&got) {
            model.verify(*row, ask).assert(got, || format!("{ask:?} of {:?}, {case}", model.rows[*row]));
        }
        if together > 1 || number % 5 == 0 {
            for (row, _) in group.iter().step_by(5) {
                let got = way.refund(&model.rows[*row].key.clone(), 2);
                model.refund(*row, 2).assert(&got, || format!("refund of {:?}, {case}", model.rows[*row]));
            }
        }
    }
}

fn ask_in_every_way(daemon: &Daemon, rows: Vec<Row>, forms: &[bool]) {
    let mut model = Model::new(rows);
    let of_all_rows = |asks: &[Ask]| {
        let all = (0..model.rows.len()).flat_map(|row| asks.iter().map(move |ask| (row, *ask)));
        scatter(all.collect())
    };
    let (asks, few) = (some_asks(), few_asks());
    let (all, few) = (of_all_rows(&asks), of_all_rows(&few));
    for raw in forms {
        for (mut way, name) in ways(daemon, *raw).into_iter().zip(["blocking", "async", "frames"]) {
            let case = |together: usize| format!("{name}, raw keys: {raw}, {together} at a time");
            ask_all(&mut *way, &mut model, &few, 1, &case(1));
            ask_all(&mut *way, &mut model, &all, TOGETHER, &case(TOGETHER));
        }
    }
}

/// For requests that each take their way to the daemon and back: the plain one, and one foreign
/// value of each field.
fn few_asks() -> Vec<Ask> {
    let plain = Ask { cost: 1, ..Ask::default() };
    vec![
        plain,
        Ask { cost: 0, metadata: true, ..plain },
        Ask { environment: Some("test"), ..plain },
        Ask { scopes: Some((&["orders:write"], false)), ..plain },
        Ask { ip: Some("11.0.0.1"), ..plain },
        Ask { origin: Some("https://evil.test"), ..plain },
    ]
}

#[test]
fn restrictions_of_a_text_export_are_heeded_in_every_way_of_asking() {
    let (daemon, rows) = start(|export| Setup::text(export), &[]);
    ask_in_every_way(&daemon, rows, &[false, true]);
}

#[test]
fn restrictions_of_a_compiled_export_are_heeded_in_every_way_of_asking() {
    let (daemon, rows) = start(|export| Setup::compiled(export), &[]);
    ask_in_every_way(&daemon, rows, &[false, true]);
}

#[test]
fn restrictions_are_heeded_with_a_pepper() {
    let (daemon, rows) = start(|export| Setup::new(export), &[("pepper_file", PEPPER)]);
    ask_in_every_way(&daemon, rows, &[true]);
}

#[test]
fn restrictions_are_heeded_for_keys_of_the_previous_pepper() {
    let (daemon, rows) = start(
        |export| Setup::new(export),
        &[("pepper_file", PEPPER), ("previous_pepper_file", PREVIOUS_PEPPER)],
    );
    ask_in_every_way(&daemon, rows, &[true]);
}
