//! Settlement: a gateway or an application reports through `keyward http` what a response has cost.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keyward_client::Request;
use keyward_engine::pepper::Pepper;
use rustix::process::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::http_client::{Response, converse, send};
use crate::support::{
    Daemon, Export, Process, Random, Setup, TIMEOUT, dose, free_port, key_target, row, run, start_companion,
    wait_for, wait_until,
};

/// A key that is looked for in logs.
const KEY: &str = "canary-key-0123456789";

/// Credits: time does not change them. The first two are charged 1 by each check.
const LIMITS: &str = "requests=100000 credits;other=100000 credits;tokens=20000 credits overdraft 500";
const GRANTED: i64 = 20_000;
const OVERDRAFT: i64 = 500;

/// The daemon and `keyward http`, which logs everything.
struct Settling {
    daemon: Daemon,
    _companion: Process,
    metrics: u16,
    directory: TempDir,
}

impl Settling {
    fn start() -> Self {
        Self::of(Setup::new(Export::new([row(KEY).id("canary").limits(LIMITS)])), &own_uid(), "5s")
    }

    fn of(setup: Setup, uids: &str, deadline: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("sets");
        let daemon = setup.config("state.save_interval = '1h'").start();
        let socket = |name: &str| directory.path().join(name).display().to_string();
        let metrics = free_port();
        let text = format!(
            "[server]\nkeyward = {:?}\ndeadline = '5s'\n[[gateways]]\nname = 'caddy'\nkind = 'caddy'\nlisten = {:?}\n\
             hints = {{ place = 'headers', kinds = ['costs'] }}\n[settlement]\nlisten = {:?}\nsocket_mode = '0666'\n\
             uids = [{uids}]\ndeadline = '{deadline}'\n[metrics]\nlisten = '127.0.0.1:{metrics}'\n[log]\nlevel = 'trace'\n",
            daemon.socket(),
            socket("caddy.sock"),
            socket("settlement.sock"),
        );
        fs::write(directory.path().join("http.toml"), text).expect("writes");
        let companion = start_companion(directory.path());
        Self { daemon, _companion: companion, metrics, directory }
    }

    /// Settlements of this kind, as the metrics count them.
    fn counted(&self, operation: &str, outcome: &str) -> u64 {
        let exposition = send(self.metrics, "GET", "/metrics", &[]).body;
        let labels = format!("{{operation=\"{operation}\",outcome=\"{outcome}\"}} ");
        let values =
            exposition.lines().filter_map(|line| line.strip_prefix("keyward_http_settlements_total"));
        let mut values = values.filter_map(|line| line.strip_prefix(&labels));
        values.next().map_or(0, |value| value.parse().expect("a number"))
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("settlement.sock")
    }

    fn connect(&self) -> UnixStream {
        connect(&self.socket())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("http.log")).expect("the log")
    }

    /// A check of the gateway, with an estimate.
    fn check(&self, estimate: u32) -> Response {
        let headers = [
            &format!("Authorization: Bearer {KEY}"),
            &format!("X-Keyward-Costs: tokens={estimate}"),
            "X-Forwarded-Method: POST",
            "X-Forwarded-Uri: /v1/messages",
        ];
        converse(connect(&self.directory.path().join("caddy.sock")), "GET", "/", &headers, "")
    }

    fn post(&self, path: &str, key: &str, body: &str) -> Response {
        let headers = [
            &format!("Authorization: Bearer {key}"),
            "Content-Type: application/json",
            &format!("Content-Length: {}", body.len()),
        ];
        converse(self.connect(), "POST", path, &headers, body)
    }

    fn settle(&self, path: &str, tokens: u32) -> Response {
        self.post(path, KEY, &format!("{{\"costs\":{{\"tokens\":{tokens}}}}}"))
    }

    /// As [`settle`](Self::settle), and again while that is said to be safe: the daemon has been restarted,
    /// and the client of `keyward http` may be waiting before it connects.
    fn settle_after_restart(&self, path: &str, tokens: u32) -> Response {
        wait_for("a settlement", || {
            let response = self.settle(path, tokens);
            let is_safe = response.status == 503 && body(&response)["maybe_charged"] == false;
            (!is_safe).then_some(response)
        })
    }

    /// The balance of the tokens, from the daemon.
    fn balance(&self) -> i64 {
        let decision = self.daemon.client().verify(&Request::new(KEY).peek().balances()).expect("an answer");
        decision.balance("tokens").expect("the limit").balance
    }
}

fn own_uid() -> String {
    geteuid().as_raw().to_string()
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connects");
    stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
    stream
}

fn body(response: &Response) -> Value {
    serde_json::from_str(&response.body).unwrap_or_else(|_| panic!("{response:?}"))
}

/// The tokens in a confirmation: what was charged or refunded, and the balance.
fn confirmed(response: &Response, member: &str) -> (i64, i64) {
    assert_eq!(response.status, 200, "{response:?}");
    let body = body(response);
    let limits = body["balances"].as_array().expect("balances");
    let names: Vec<&Value> = limits.iter().map(|limit| &limit["name"]).collect();
    assert_eq!(names, ["requests", "other", "tokens"]);
    for limit in &limits[..2] {
        assert_eq!(limit[member], 0, "only the limit that was named: {body}");
    }
    (limits[2][member].as_i64().expect("an amount"), limits[2]["balance"].as_i64().expect("a balance"))
}

/// A problem with this status and code. Its other members.
fn problem(response: &Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    assert_eq!(response.header("x-keyward-verdict"), Some(code));
    let body = body(response);
    assert_eq!((&body["status"], &body["code"]), (&json!(status), &json!(code)));
    body
}

/// Each call is charged an estimate by a check, and settled up or down.
#[test]
fn balances_of_a_day_equal_the_model() {
    let stack = Settling::start();
    let mut random = Random::new(1);
    let (mut balance, mut counts) = (GRANTED, [0; 5]);
    for _ in 0..dose(150, 2_000) {
        let estimate = 1 + random.below(800) as i64;
        let response = stack.check(estimate as u32);
        if balance < estimate {
            problem(&response, 402, "OUT_OF_CREDIT");
            counts[0] += 1;
            // The next calls of the day are paid for.
            let (refunded, after) = confirmed(&stack.settle("/refund", 15_000), "refunded");
            let expected = 15_000.min(GRANTED - balance);
            balance += expected;
            assert_eq!((refunded, after), (expected, balance));
            counts[1] += i32::from(expected < 15_000);
            continue;
        }
        assert_eq!(response.status, 200, "{response:?}");
        balance -= estimate;
        let actual = random.below(3 * estimate as usize) as i64;
        if actual >= estimate {
            let missing = actual - estimate;
            let charged = missing.min(balance + OVERDRAFT).max(0);
            balance -= charged;
            let response = stack.settle("/debit", missing as u32);
            assert_eq!(confirmed(&response, "charged"), (charged, balance));
            counts[2] += 1;
            counts[3] += i32::from(charged < missing);
        } else {
            let excess = estimate - actual;
            balance += excess;
            let response = stack.settle("/refund", excess as u32);
            assert_eq!(confirmed(&response, "refunded"), (excess, balance));
            counts[4] += 1;
        }
    }
    assert_eq!(stack.balance(), balance);
    assert!(counts[0] > 0 && counts[2] > 0 && counts[4] > 0, "{counts:?}");
    assert_eq!(stack.counted("debit", "ALLOWED"), counts[2] as u64);
    assert!(!stack.log().contains(KEY));
}

#[test]
fn debit_stops_at_the_floor_and_refund_at_the_grant() {
    let stack = Settling::start();
    assert_eq!(confirmed(&stack.settle("/refund", 1), "refunded"), (0, GRANTED));
    let all = stack.settle("/debit", u32::MAX);
    assert_eq!(confirmed(&all, "charged"), (GRANTED + OVERDRAFT, -OVERDRAFT));
    assert_eq!((&body(&all)["verdict"], &body(&all)["key_id"]), (&json!("ALLOWED"), &json!("canary")));
    assert_eq!(confirmed(&stack.settle("/debit", 1), "charged"), (0, -OVERDRAFT));
    problem(&stack.check(1), 402, "OUT_OF_CREDIT");
    // `cost` concerns every limit that is not named.
    let both = body(&stack.post("/debit", KEY, r#"{"cost":7,"costs":{"tokens":0}}"#));
    let charged: Vec<&Value> =
        both["balances"].as_array().expect("balances").iter().map(|limit| &limit["charged"]).collect();
    assert_eq!(charged, [7, 7, 0]);
}

#[test]
fn key_that_was_revoked_in_the_meantime_is_settled() {
    let stack = Settling::start();
    assert_eq!(stack.check(1_000).status, 200);
    stack.daemon.revoke(key_target("canary"));
    problem(&stack.check(1), 401, "REVOKED");
    assert_eq!(confirmed(&stack.settle("/debit", 300), "charged"), (300, GRANTED - 1_300));
    assert_eq!(confirmed(&stack.settle("/refund", 100), "refunded"), (100, GRANTED - 1_200));
}

#[test]
fn only_processes_of_the_listed_users_settle() {
    const REQUESTS: u64 = 30;
    let other = geteuid().as_raw() + 1;
    let setup = Setup::new(Export::new([row(KEY).limits(LIMITS)]));
    let stack = Settling::of(setup, &other.to_string(), "5s");
    for _ in 0..REQUESTS {
        let response = stack.settle("/debit", 1);
        problem(&response, 403, "PEER_REFUSED");
    }
    assert_eq!(stack.balance(), GRANTED);
    assert_eq!(stack.counted("none", "PEER_REFUSED"), REQUESTS);
    // One line a second, which says how many.
    let text = "not in settlement.uids";
    let of_line = |line: &str| -> u64 {
        let count =
            line.split("requests=").nth(1).and_then(|rest| rest.split(' ').next()?.trim().parse().ok());
        count.unwrap_or_else(|| panic!("{line}"))
    };
    let lines =
        || stack.log().lines().filter(|line| line.contains("refused: ")).map(of_line).collect::<Vec<_>>();
    wait_until("all requests in the log", || lines().iter().sum::<u64>() == REQUESTS);
    assert!(lines().len() < REQUESTS as usize / 2, "{:?}", lines());
    let log = stack.log();
    assert!(log.contains(text) && log.contains(&format!("uid={}", own_uid())), "{log}");
}

/// Root is a user like any other.
#[test]
#[ignore = "needs root and curl"]
fn user_of_the_process_decides() {
    const NOBODY: &str = "65534";
    let setup = Setup::new(Export::new([row(KEY).limits(LIMITS)]));
    let stack = Settling::of(setup, NOBODY, "5s");
    problem(&stack.settle("/debit", 1), 403, "PEER_REFUSED");
    let mut curl = Command::new("setpriv");
    curl.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "curl", "--silent", "--unix-socket"]);
    curl.arg(stack.socket()).args(["--header", "Content-Type: application/json", "--data", r#"{"cost":1}"#]);
    curl.args(["--header", &format!("X-API-Key: {KEY}"), "http://keyward/debit"]);
    let output = run(&mut curl);
    assert!(output.stdout.contains(r#""verdict":"ALLOWED""#), "{output:?}");
    assert_eq!(stack.balance(), GRANTED - 1);
}

#[test]
fn request_that_is_not_a_settlement_changes_nothing() {
    let stack = Settling::start();
    let key = format!("Authorization: Bearer {KEY}");
    let (json, other_key) = ("Content-Type: application/json", "X-API-Key: other");
    let long = format!("{{\"cost\":1{}}}", " ".repeat(4 << 10));
    let chunked = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    let one = r#"{"cost":1}"#;
    for (method, path, headers, text, status, code) in [
        ("POST", "/", vec![&*key, json], one, 404, "UNKNOWN_PATH"),
        ("POST", "/debit/x", vec![&*key, json], one, 404, "UNKNOWN_PATH"),
        ("GET", "/debit", vec![&*key, json], "", 405, "INVALID_METHOD"),
        ("PUT", "/refund", vec![&*key, json], one, 405, "INVALID_METHOD"),
        ("POST", "/debit", vec![&*key], one, 415, "INVALID_CONTENT_TYPE"),
        (
            "POST",
            "/debit",
            vec![&*key, "Content-Type: application/x-www-form-urlencoded"],
            one,
            415,
            "INVALID_CONTENT_TYPE",
        ),
        ("POST", "/debit", vec![json], one, 401, "NO_KEY"),
        ("POST", "/debit", vec![&*key, json, other_key], one, 400, "INVALID_CREDENTIAL"),
        ("POST", "/debit", vec![json, other_key], one, 401, "UNKNOWN_KEY"),
        ("POST", "/debit", vec![&*key, json], &long, 413, "BODY_TOO_LARGE"),
        ("POST", "/debit", vec![&*key, json, "Transfer-Encoding: chunked"], &chunked, 413, "BODY_TOO_LARGE"),
        ("POST", "/debit", vec![&*key, json], "", 400, "INVALID_BODY"),
        ("POST", "/debit", vec![&*key, json], "{}", 400, "INVALID_BODY"),
        ("POST", "/debit", vec![&*key, json], "cost=1", 400, "INVALID_BODY"),
        ("POST", "/refund", vec![&*key, json], r#"{"cost":1,"key":"k"}"#, 400, "INVALID_BODY"),
        ("POST", "/debit", vec![&*key, json], r#"{"costs":{"tokns":1}}"#, 500, "UNKNOWN_LIMIT"),
    ] {
        let mut headers = headers;
        let length = format!("Content-Length: {}", text.len());
        if !headers.iter().any(|line| line.starts_with("Transfer-Encoding")) {
            headers.push(&length);
        }
        let response = converse(stack.connect(), method, path, &headers, text);
        problem(&response, status, code);
        assert_eq!(response.header("allow"), (status == 405).then_some("POST"), "{response:?}");
        assert_eq!(
            response.header("www-authenticate").is_some(),
            status == 401 || code == "INVALID_CREDENTIAL"
        );
    }
    let malformed = problem(&stack.post("/debit", KEY, "{\n\"cost\": -1}"), 400, "INVALID_BODY");
    let detail = malformed["detail"].as_str().expect("a detail");
    assert!(detail.ends_with("expected an integer from 0 to 4294967295 at line 2 column 10."), "{detail}");
    // The listener for checks takes no settlement.
    let gateway = connect(&stack.directory.path().join("caddy.sock"));
    let headers = [&*key, json, "X-Keyward-Costs: tokens=0", "Content-Length: 10"];
    problem(&converse(gateway, "POST", "/debit", &headers, one), 500, "MISCONFIGURED");
    assert_eq!(stack.balance(), GRANTED);
    assert!(!stack.log().contains(KEY));
}

#[test]
fn body_that_does_not_arrive_ends_the_request() {
    let stack = Settling::start();
    let begin = format!(
        "POST /debit HTTP/1.1\r\nHost: keyward\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n\
         Content-Length: 11\r\n\r\n{{\"cost\":"
    );
    let mut slow = stack.connect();
    slow.write_all(begin.as_bytes()).expect("writes");
    let mut text = String::new();
    slow.read_to_string(&mut text).expect("an end");
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("BODY_TIMEOUT"), "{text}");
    // The rest comes too late.
    let _ = slow.write_all(b"100}");
    let mut cut = stack.connect();
    cut.write_all(begin.as_bytes()).expect("writes");
    drop(cut);
    assert_eq!(confirmed(&stack.settle("/debit", 1), "charged"), (1, GRANTED - 1));
}

/// The daemon is not there: nothing is sent, and the caller may send it again.
#[test]
fn settlement_without_a_daemon_can_be_sent_again() {
    let mut stack =
        Settling::of(Setup::new(Export::new([row(KEY).id("canary").limits(LIMITS)])), &own_uid(), "300ms");
    stack.daemon.stop();
    let began = Instant::now();
    let debit = problem(&stack.settle("/debit", 1), 503, "UNAVAILABLE");
    assert_eq!((&debit["maybe_charged"], debit.get("maybe_refunded")), (&json!(false), None));
    let refund = problem(&stack.settle("/refund", 1), 503, "UNAVAILABLE");
    assert_eq!((&refund["maybe_refunded"], refund.get("maybe_charged")), (&json!(false), None));
    assert!(began.elapsed() < TIMEOUT / 2);
    stack.daemon = stack.daemon.respawn();
    wait_until("the daemon", || stack.daemon.try_status().is_some_and(|status| status.ready));
    assert_eq!(confirmed(&stack.settle_after_restart("/debit", 1), "charged"), (1, GRANTED - 1));
    assert!(stack.log().contains("not settled: keyward cannot be asked"));
}

/// The request was written: it may be carried out, and nothing sends it again.
#[test]
fn settlement_without_an_answer_may_have_been_carried_out() {
    let mut stack =
        Settling::of(Setup::new(Export::new([row(KEY).id("canary").limits(LIMITS)])), &own_uid(), "300ms");
    assert_eq!(confirmed(&stack.settle("/debit", 1), "charged"), (1, GRANTED - 1));
    stack.daemon.pause();
    let began = Instant::now();
    let debit = problem(&stack.settle("/debit", 100), 503, "UNAVAILABLE");
    assert!(began.elapsed() < Duration::from_secs(3), "the deadline is that of settlements");
    assert_eq!(debit["maybe_charged"], true, "{debit}");
    stack.daemon.resume();
    // It is carried out, once, when the daemon runs again.
    wait_until("the debit", || stack.balance() == GRANTED - 101);
    assert_eq!(confirmed(&stack.settle_after_restart("/debit", 1), "charged"), (1, GRANTED - 102));
    stack.daemon.pause();
    let refund = problem(&stack.settle("/refund", 10), 503, "UNAVAILABLE");
    assert_eq!(refund["maybe_refunded"], true, "{refund}");
    stack.daemon.resume();
    wait_until("the refund", || stack.balance() == GRANTED - 92);
    // The daemon is killed between the request and the answer.
    stack.daemon = stack.daemon.stop_and_restart();
    assert_eq!(stack.balance(), GRANTED - 92);
    // On a new connection, which has to be there before the daemon is paused.
    assert_eq!(confirmed(&stack.settle_after_restart("/debit", 1), "charged"), (1, GRANTED - 93));
    stack.daemon.pause();
    let lost = problem(&stack.settle("/debit", 100), 503, "UNAVAILABLE");
    assert_eq!(lost["maybe_charged"], true, "{lost}");
    stack.daemon = stack.daemon.kill_and_restart();
    let (charged, balance) = confirmed(&stack.settle_after_restart("/debit", 1), "charged");
    // The kill forgets what was charged since the last save: the debit of 1, or nothing.
    let is_forgotten = [GRANTED - 93, GRANTED - 94].contains(&balance);
    assert!(charged == 1 && is_forgotten, "it was lost, and was not sent again: {balance}");
}

#[test]
fn daemon_decides_which_settlements_it_takes() {
    let setup = Setup::new(Export::new([row(KEY).limits(LIMITS)])).config("server.debit_uids = []");
    let stack = Settling::of(setup, &own_uid(), "5s");
    let refused = problem(&stack.settle("/debit", 1), 500, "MISCONFIGURED");
    assert!(refused["detail"].as_str().is_some_and(|text| text.contains("REQUEST_REFUSED")), "{refused}");
    assert_eq!(confirmed(&stack.settle("/refund", 1), "refunded"), (0, GRANTED));
    assert!(stack.log().contains("not settled: keyward refuses such requests"));
}

/// With a pepper, the daemon gets the key itself.
#[test]
fn key_is_settled_under_a_pepper() {
    const PEPPER: &[u8] = b"the pepper of this test";
    let setup = Setup::without_export();
    let pepper = setup.write_secret("pepper", PEPPER);
    let hash = Pepper::new(PEPPER).expect("a pepper").hash(KEY.as_bytes());
    setup.write_export(Export::new([row(KEY).hash(const_hex::encode(hash)).limits(LIMITS)]));
    let setup = setup.config(&format!("keys.pepper_file = {pepper:?}"));
    let stack = Settling::of(setup, &own_uid(), "5s");
    assert_eq!(confirmed(&stack.settle("/debit", 5), "charged"), (5, GRANTED - 5));
    assert!(!stack.log().contains(KEY));
}

/// The blocks of a language in the page about settlement.
fn documented(language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/SETTLEMENT.md");
    let page = fs::read_to_string(path).expect("the page");
    let begin = format!("```{language}\n");
    let blocks =
        page.split(&begin).skip(1).map(|rest| rest.split_once("```\n").expect("an end").0.to_owned());
    blocks.collect()
}

#[test]
#[ignore = "needs curl"]
fn documented_function_settles() {
    let stack = Settling::start();
    let [function] = documented("sh").try_into().expect("one function");
    let socket = "/run/keyward-http/settlement.sock";
    assert!(function.contains(socket) && documented("toml")[0].contains(socket));
    let function = function.replace(socket, &stack.socket().display().to_string());
    let settle = |arguments: &str| {
        let mut shell = Command::new("sh");
        // The key comes from the environment of the shell, and not from its arguments.
        shell.arg("-c").arg(format!("{function}\nsettle {arguments}")).env("key", KEY);
        run(&mut shell)
    };
    let debit = settle(r#"debit "$key" tokens 300"#);
    assert_eq!(debit.code, Some(0), "{debit:?}");
    let body: Value = serde_json::from_str(&debit.stdout).expect("JSON");
    assert_eq!(body["balances"][2]["charged"], 300);
    let refund = settle(r#"refund "$key" tokens 100"#);
    assert!(refund.stdout.contains(r#""refunded":100"#), "{refund:?}");
    assert_eq!(stack.balance(), GRANTED - 200);
    let unknown = settle("debit other tokens 1");
    assert!(unknown.code != Some(0) && unknown.stdout.contains("UNKNOWN_KEY"), "{unknown:?}");
}

/// The members of the documented answers are those of real ones.
#[test]
fn documented_answers_are_real() {
    let stack = Settling::start();
    let members = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let console = documented("console").concat();
    let answer = console.lines().find(|line| line.starts_with('{')).expect("an answer");
    let answer: Value = serde_json::from_str(answer).expect("JSON");
    let real = body(&stack.settle("/debit", 1));
    assert_eq!(members(&answer), members(&real));
    assert_eq!(members(&answer["balances"][0]), members(&real["balances"][0]));
    let documented_problem: Value = serde_json::from_str(&documented("json")[0]).expect("JSON");
    stack.daemon.pause();
    let headers = [&format!("X-API-Key: {KEY}"), "Content-Type: application/json", "Content-Length: 10"];
    let lost = converse(stack.connect(), "POST", "/debit", &headers, r#"{"cost":1}"#);
    stack.daemon.resume();
    assert_eq!(body(&lost), documented_problem);
}
