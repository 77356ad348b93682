//! One seed: a daemon and its reference take the same steps, and must agree after each.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use keyward_daemon::admin::message::{self, Command, Reply};
use keyward_daemon::admin::{CommandError, send_command_within};
use keyward_daemon::config::{Config, Overrides};
use keyward_daemon::connection::simulation as sockets;
use keyward_daemon::log::Log;
use keyward_daemon::reload::BadRowPolicy;
use keyward_daemon::server::simulation::Process;
use keyward_state::disk::trace;
use keyward_state::simulation::{self, Time};

use crate::client::Client;
use crate::counts::Counts;
use crate::disk::Disk;
use crate::keys::{ANCHOR, Content, Rows, Source, TICKS, Universe};
use crate::random::Random;
use crate::reference::{Guard, Now, Reference, Request, Served, Start, Target};

/// How long the daemon may take for a command, a start or its end. It is longer than any wait of the
/// daemon.
const HANG: Duration = Duration::from_secs(20);

/// As in the configuration below.
/// Generations from here on are taken from the system time, because the disk has failed.
const FROM_SYSTEM_TIME: u64 = 1 << 40;

const POLL: i64 = 1000 * SECOND;
const SAVE_INTERVAL: i64 = 60 * SECOND;

const SECOND: i64 = 1_000_000_000;

/// The smallest send buffer, and requests whose answers do not fit it.
const SMALL_SEND_BUFFER: usize = 4096;
const STALLED_REQUESTS: usize = 300;

/// How long the test waits for an acknowledgement that must not come, and how long the daemon waits
/// for a peer to read its answers, with a margin.
const EARLY: Duration = Duration::from_millis(2);
const UNSENT_ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

const CONFIGURATION: &str = "
[server]
huge_pages = true
drain_timeout = '5s'
idle_timeout = 'never'
[source]
poll = '1000s'
settle = '0s'
max_shrink = 0.5
max_reactivated = 1.0
max_loosened = 1.0
[state]
save_interval = '60s'
[usage]
interval = '30d'
";

/// What all seeds of a process share.
pub struct Fixture {
    root: PathBuf,
    config: Config,
    log: Log,
    /// The threads of the process without any daemon.
    threads: u64,
}

/// A daemon and its reference.
struct Run<'f> {
    fixture: &'f Fixture,
    universe: Universe,
    reference: Reference,
    source: Source,
    /// Whether bad rows are set aside. Otherwise they refuse the source.
    sets_aside: bool,
    next_version: u64,
    disk: Arc<Disk>,
    process: Option<Process>,
    client: Option<Client>,
    time: Time,
    /// When the reload thread last polled, and when balances are saved next.
    polled_at: i64,
    save_due: i64,
    /// Whether anything was charged since the last save.
    is_charged: bool,
    /// Whether the current process has had a snapshot.
    has_loaded: bool,
    random: Random,
    steps: Vec<String>,
    counts: &'f mut Counts,
}

/// A disagreement, and the steps that led to it.
pub struct Failure {
    pub problem: String,
    pub steps: Vec<String>,
}

impl Fixture {
    pub fn new(root: &Path) -> Self {
        let path = |name: &str| Some(root.join(name));
        let overrides = Overrides {
            source: path("keys.csv"),
            socket: path("s"),
            admin_socket: path("a"),
            state_dir: path("state"),
        };
        let mut config = Config::parse(Path::new("model.toml"), CONFIGURATION, overrides).expect("valid");
        config.server.workers = 1;
        let log = Log::start(fs::File::create("/dev/null").expect("opens")).expect("a thread");
        Self { root: root.to_owned(), config, log, threads: threads() }
    }

    /// Runs the steps with the given seeds on the daemon that `seed` describes.
    pub fn run(&self, seed: u64, steps: &[u64], counts: &mut Counts) -> Result<(), Failure> {
        for entry in fs::read_dir(&self.root).expect("lists").flatten() {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        let mut random = Random::new(seed);
        let time = Time {
            boottime: (1 + random.below(1_000_000) as i64) * SECOND,
            realtime: (1_900_000_000 + random.below(1_000_000) as i64) * SECOND,
            boot_id: [1; 16],
        };
        simulation::install(time);
        let disk = Arc::new(Disk::new(&self.root.join("state"), random.number()));
        disk.shorten_writes(random.one_in(3));
        trace::intercept(Some(Arc::clone(&disk) as Arc<dyn trace::Interceptor>));
        let mut run = Run {
            fixture: self,
            universe: Universe::new(&mut random),
            reference: Reference::default(),
            source: Source { version: 0, content: Content::Missing },
            sets_aside: random.one_in(3),
            next_version: 1,
            disk,
            process: None,
            client: None,
            time,
            polled_at: 0,
            save_due: 0,
            is_charged: false,
            has_loaded: false,
            random,
            steps: Vec::new(),
            counts,
        };
        let result = run.all(steps);
        let calls = run.disk.calls();
        let mut log = std::mem::take(&mut run.steps);
        let ended = run.abandon();
        match result.and(ended) {
            Ok(()) => Ok(()),
            Err(problem) => {
                let from = calls.len().saturating_sub(60);
                log.push(format!("the last calls on the disk: {}", calls[from..].join("; ")));
                Err(Failure { problem, steps: log })
            }
        }
    }
}

/// The number of threads of this process.
fn threads() -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/task").expect("there").nlink() - 2
}

fn no_failure(error: &dyn std::fmt::Display) -> String {
    format!("an unexpected error: {error}")
}

impl Run<'_> {
    fn all(&mut self, steps: &[u64]) -> Result<(), String> {
        self.write_rows(true);
        self.start()?;
        for step in steps {
            self.random = Random::new(*step);
            self.step()?;
            if self.disk.is_crashed() {
                self.crash()?;
            }
            simulation::quiesce().map_err(|error| error.to_string())?;
        }
        self.note("the end");
        self.terminate()?;
        if self.disk.is_crashed() {
            self.crash()?;
            self.terminate()?;
        }
        Ok(())
    }

    /// Ends a daemon that is left after a failure.
    fn abandon(&mut self) -> Result<(), String> {
        self.client = None;
        if let Some(process) = self.process.take() {
            self.disk.crash_now();
            let _ = process.kill();
        }
        self.wait_ended()
    }

    fn note(&mut self, text: impl Into<String>) {
        self.steps.push(text.into());
    }

    fn now(&self) -> Now {
        Now { ticks: i128::from(self.time.boottime) * TICKS, unix: self.time.realtime.div_euclid(SECOND) }
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..34 => self.requests(),
            34..44 => {
                self.write_source();
                Ok(())
            }
            44..54 => self.reload(false),
            54..58 => self.reload(true),
            58..67 => self.revoke(),
            67..72 => self.unrevoke(),
            72..82 => self.advance(),
            82..84 => {
                self.set_clock();
                Ok(())
            }
            84..87 => self.store(),
            87..89 => self.lose_connection(),
            89..90 => self.stalled_peer(),
            90..93 => {
                self.plan_failure();
                Ok(())
            }
            93..97 => {
                self.plan_crash();
                Ok(())
            }
            97..98 => {
                self.note("kill -9");
                self.disk.crash_now();
                Ok(())
            }
            _ => self.restart(),
        }
    }

    // Requests

    fn client(&mut self) -> Result<&mut Client, String> {
        if self.client.is_none() {
            self.client = Some(Client::connect(&self.fixture.root.join("s"))?);
        }
        self.client.as_mut().ok_or_else(String::new)
    }

    fn random_request(&mut self) -> Request {
        let random = &mut self.random;
        let key = (!random.one_in(12)).then(|| random.index(self.universe.keys.len()));
        let limits = key.map_or(&[][..], |key| self.universe.keys[key].limits());
        let refund =
            random.one_in(8).then(|| limits.first().filter(|_| random.one_in(3)).map(|(name, ..)| *name));
        let cost = match random.below(10) {
            0 => 0,
            1..6 => 1,
            6..8 => 1 + random.below(4) as u32,
            8 => 1 + random.below(8) as u32,
            _ => 100 + random.below(300) as u32,
        };
        let cost = if refund.is_some() { cost.max(1) } else { cost };
        Request { key, is_raw: random.one_in(6), cost, refund }
    }

    /// Sends a batch, in one or several parts, and checks every answer.
    fn requests(&mut self) -> Result<(), String> {
        let count = if self.random.one_in(10) { 100 } else { 1 + self.random.index(10) };
        let requests: Vec<_> = (0..count).map(|_| self.random_request()).collect();
        let max_read = if self.random.one_in(3) { 1 + self.random.index(200) } else { usize::MAX };
        sockets::set_max_read(max_read);
        self.note(format!("{count} requests"));
        let has_hello = self.random.one_in(4);
        let cut = self.random.one_in(3).then(|| self.random.number());
        self.client()?;
        let Some(client) = &mut self.client else { return Ok(()) };
        let mut frames = Vec::new();
        if has_hello {
            frames.push(client.hello());
        }
        frames.extend(requests.iter().map(|request| client.encode(&self.universe, request)));
        let bytes = frames.concat();
        let cut = cut.map_or(bytes.len(), |cut| cut as usize % bytes.len());
        client.send(&bytes[..cut])?;
        let mut complete = 0;
        let mut is_cut = cut < bytes.len();
        for (number, frame) in frames.iter().enumerate() {
            complete += frame.len();
            if is_cut && complete > cut {
                // All answers to complete requests arrive before the rest is sent.
                self.client.as_mut().expect("connected").send(&bytes[cut..])?;
                is_cut = false;
            }
            let now = self.now();
            let client = self.client.as_mut().expect("connected");
            if has_hello && number == 0 {
                let generation = client.receive_welcome()?;
                if generation != self.reference.generation() {
                    return Err(format!("WELCOME has generation {generation}"));
                }
                continue;
            }
            let request = &requests[number - usize::from(has_hello)];
            let (reference, universe) = (&mut self.reference, &self.universe);
            let checked = client.receive_answer(|answer| {
                reference
                    .check(universe, request, now, answer)
                    .map_err(|problem| format!("{request:?} was answered {answer:?}: {problem}"))
                    .map(|()| answer.verdict.is_allowed() && request.cost > 0 && answer.limit.limit > 0)
            })?;
            self.is_charged |= checked?;
            self.counts.requests += 1;
        }
        if self.client()?.has_rest() {
            return Err("there are more responses than requests".to_owned());
        }
        Ok(())
    }

    /// Sends a batch, and closes the connection without reading the answers.
    fn lose_connection(&mut self) -> Result<(), String> {
        let requests: Vec<_> = (0..1 + self.random.index(6)).map(|_| self.random_request()).collect();
        self.note(format!("{} requests, and the connection is lost", requests.len()));
        sockets::set_max_read(usize::MAX);
        let rest = self.random.number();
        self.client()?;
        let Some(mut client) = self.client.take() else { return Ok(()) };
        let mut bytes =
            requests.iter().flat_map(|request| client.encode(&self.universe, request)).collect::<Vec<_>>();
        // The last request may be incomplete.
        bytes.truncate(bytes.len().saturating_sub(rest as usize % 40));
        client.send(&bytes)?;
        drop(client);
        let started = Instant::now();
        while self.process.as_ref().is_some_and(|process| process.connections() > 0) {
            if started.elapsed() > HANG {
                return Err("the connection does not end: HANGS".to_owned());
            }
            thread::sleep(Duration::from_micros(50));
        }
        let now = self.now();
        for request in &requests {
            self.reference.lose(&self.universe, request, now);
        }
        self.is_charged = false;
        self.counts.lost_connections += 1;
        Ok(())
    }

    /// A peer does not read its answers. A command is not acknowledged until it does.
    fn stalled_peer(&mut self) -> Result<(), String> {
        let key = self.random.index(self.universe.keys.len());
        let target = Target::Key(self.universe.keys[key].id.clone());
        let is_known = self.reference.revoked.contains(&target);
        let is_absent = self.reference.rows_of(&self.universe, &target).0 == 0;
        let reloads = self.random.one_in(2) || is_known || is_absent;
        self.note(format!(
            "a peer does not read its answers, then {}",
            if reloads { "reload" } else { "revoke" }
        ));
        sockets::set_max_read(usize::MAX);
        sockets::set_send_buffer(SMALL_SEND_BUFFER);
        let mut peer = Client::connect(&self.fixture.root.join("s"))?;
        let hello = peer.hello();
        peer.send(&hello)?;
        peer.receive_welcome()?;
        sockets::set_send_buffer(0);
        let request = Request { key: Some(key), is_raw: false, cost: 0, refund: None };
        let frames: Vec<_> = (0..STALLED_REQUESTS).map(|_| peer.encode(&self.universe, &request)).collect();
        peer.send(&frames.concat())?;
        // All of them are answered at once, and the answers do not fit the send buffer.
        peer.wait_received()?;
        let guard = self.guard();
        let command = if reloads {
            Command::Reload { force: false }
        } else {
            self.reference.uncertain.insert(target.clone());
            Command::Revoke(to_message(&target))
        };
        let (socket, started) = (self.fixture.root.join("a"), Instant::now());
        let commanding =
            thread::spawn(move || (send_command_within(&socket, &command, HANG), Instant::now()));
        while started.elapsed() < EARLY && !commanding.is_finished() {
            thread::sleep(Duration::from_micros(100));
        }
        let is_early = commanding.is_finished();
        let now = self.now();
        for _ in 0..STALLED_REQUESTS {
            let (reference, universe) = (&mut self.reference, &self.universe);
            peer.receive_answer(|answer| {
                let checked = reference.check(universe, &request, now, answer);
                checked.map_err(|problem| format!("{answer:?}: {problem}"))
            })??;
        }
        let (reply, at) = commanding.join().map_err(|_| "the command panicked")?;
        drop(peer);
        self.counts.commands += 1;
        self.counts.stalled_peers += 1;
        if self.disk.is_crashed() {
            if reloads && guard != Guard::Refuses {
                self.reference.may_have_accepted(&self.source);
            }
            return Ok(());
        }
        let reply = reply.map_err(|error| error.to_string())?;
        // A refused reload changes no answers. After a second, the daemon closes the connection.
        let has_effect = reply.reload.as_ref().is_none_or(|reload| reload.accepted);
        if is_early && has_effect && at - started < UNSENT_ANSWER_TIMEOUT {
            return Err("a command was acknowledged while answers from before it were unsent".to_owned());
        }
        if let Some(reload) = &reply.reload {
            return self.reloaded(guard, reload.accepted, reload.generation);
        }
        self.reference.revoked.insert(target.clone());
        self.edited(&target, false, &reply)
    }

    // The source

    fn write_rows(&mut self, is_first: bool) {
        let unix = self.now().unix as u32;
        let before = match &self.source.content {
            Content::Rows(rows) if !rows.rows.is_empty() => Some(Rc::clone(rows)),
            _ => self.reference.served.as_ref().map(|served| Rc::clone(&served.rows)),
        };
        let before = before.filter(|_| !is_first);
        let has_bad = self.sets_aside && !is_first && self.random.one_in(3);
        let mut rows =
            self.universe.rows(&mut self.random, before.as_deref(), self.next_version, unix, has_bad);
        if !is_first {
            match self.random.below(12) {
                0 => rows.rows.clear(),
                1 => rows.has_limits = false,
                2 => rows.rows.retain(|row| row.key == ANCHOR),
                _ => {}
            }
        }
        self.note(format!("export {}: {} rows, limits: {}", rows.marker, rows.rows.len(), rows.has_limits));
        let text = self.universe.csv(&rows);
        self.replace_source(Some(text), Content::Rows(Rc::new(rows)));
    }

    fn write_source(&mut self) {
        if !self.random.one_in(4) {
            return self.write_rows(false);
        }
        if self.random.one_in(4) {
            self.note("the source is removed");
            return self.replace_source(None, Content::Missing);
        }
        let unix = self.now().unix as u32;
        let rows = self.universe.rows(&mut self.random, None, self.next_version, unix, false);
        let text = self.universe.csv(&rows);
        let last = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
        let (kind, text) = match self.random.below(4) {
            0 => ("cut off", text[..last + 30].to_owned()),
            1 if !self.sets_aside => ("with a bad row", format!("{text}not a hash,x,y,active,,,\n")),
            2 if !self.sets_aside => ("with a repeated hash", format!("{text}{}", &text[last..])),
            _ => ("empty", String::new()),
        };
        self.note(format!("an export {kind}"));
        self.replace_source(Some(text), Content::Bad);
    }

    fn replace_source(&mut self, text: Option<String>, content: Content) {
        let path = self.fixture.root.join("keys.csv");
        match text {
            Some(text) => {
                let new = self.fixture.root.join("keys.new");
                fs::write(&new, text).expect("writes");
                fs::rename(new, path).expect("renames");
            }
            None => _ = fs::remove_file(path),
        }
        let version = if matches!(content, Content::Missing) { 0 } else { self.next_version };
        self.source = Source { version, content };
        self.next_version += 1;
        self.counts.exports += 1;
    }

    /// Whether a reload now would be accepted.
    fn guard(&self) -> Guard {
        let Content::Rows(rows) = &self.source.content else { return Guard::Refuses };
        let unix = self.now().unix;
        let Some(served) = &self.reference.served else {
            let starts = self.reference.on_disk.iter();
            let starts: Vec<_> = starts
                .flat_map(|on_disk| self.reference.start_outcomes(&self.source, on_disk, unix))
                .collect();
            return match starts.iter().filter(|start| matches!(start, Start::Source)).count() {
                0 => Guard::Refuses,
                count if count == starts.len() => Guard::Accepts,
                _ => Guard::Either,
            };
        };
        self.reference.guard_by_served(&self.universe, served, rows, unix)
    }

    fn reload(&mut self, force: bool) -> Result<(), String> {
        self.note(if force { "reload --force" } else { "reload" });
        let mut guard = self.guard();
        if force && matches!(self.source.content, Content::Rows(_)) {
            guard = Guard::Accepts;
        }
        let Some(reply) = self.command(Command::Reload { force })? else {
            if guard != Guard::Refuses {
                self.reference.may_have_accepted(&self.source);
            }
            return Ok(());
        };
        let reload = reply.map_err(|refused| format!("reload: {refused}"))?.reload.ok_or("no report")?;
        self.reloaded(guard, reload.accepted, reload.generation)
            .map_err(|problem| format!("{problem}: {:?}", reload.error))?;
        let keys = self.reference.served.as_ref().map_or(0, |served| served.rows.rows.len());
        if reload.keys != keys {
            return Err(format!("{} keys are in force, and not {keys}", reload.keys));
        }
        Ok(())
    }

    /// A reload has ended, and `generation` is in force.
    fn reloaded(&mut self, guard: Guard, is_accepted: bool, generation: u64) -> Result<(), String> {
        self.reference.last_read = self.source.version;
        let last = self.reference.last_generation;
        match (guard, is_accepted) {
            (Guard::Accepts, false) => Err("the source is refused".to_owned()),
            (Guard::Refuses, true) => Err("the source is accepted".to_owned()),
            (_, false) if generation != self.reference.generation() => {
                Err(format!("a refused reload has put generation {generation} in force"))
            }
            (_, false) => {
                self.counts.refused_reloads += 1;
                Ok(())
            }
            (_, true)
                if generation <= last
                    || (self.has_loaded && generation != last + 1 && self.disk.failed() == 0) =>
            {
                Err(format!("generation {generation} follows {last}"))
            }
            (_, true) => {
                self.has_loaded = true;
                self.reference.accept(&self.source, generation, self.disk.failed() > 0);
                self.counts.accepted_reloads += 1;
                Ok(())
            }
        }
    }

    // Revocations

    fn random_target(&mut self) -> Target {
        let random = &mut self.random;
        if random.one_in(12) {
            Target::Key("unknown".to_owned())
        } else if random.one_in(4) {
            Target::Owner(random.of(&self.universe.owners).clone())
        } else {
            Target::Key(random.of(&self.universe.keys).id.clone())
        }
    }

    fn revoke(&mut self) -> Result<(), String> {
        let target = self.random_target();
        self.note(format!("revoke {target:?}"));
        let is_known = self.reference.revoked.contains(&target);
        let is_absent =
            self.reference.served.is_some() && self.reference.rows_of(&self.universe, &target).0 == 0;
        if !is_known {
            self.reference.uncertain.insert(target.clone());
        }
        let Some(reply) = self.command(Command::Revoke(to_message(&target)))? else { return Ok(()) };
        match reply {
            Err(_) if is_absent && !is_known => {
                self.reference.uncertain.remove(&target);
                Ok(())
            }
            Err(refused) => Err(format!("refused: {refused}")),
            Ok(_) if is_absent && !is_known => Err("a target without rows was revoked".to_owned()),
            Ok(reply) => {
                self.reference.revoked.insert(target.clone());
                self.edited(&target, is_known, &reply)
            }
        }
    }

    fn unrevoke(&mut self) -> Result<(), String> {
        let known: Vec<_> = self.reference.revoked.iter().cloned().collect();
        let target = if known.is_empty() || self.random.one_in(5) {
            self.random_target()
        } else {
            self.random.of(&known).clone()
        };
        self.note(format!("unrevoke {target:?}"));
        let is_known = self.reference.revoked.contains(&target);
        let was_uncertain = self.reference.uncertain.contains(&target);
        if is_known {
            self.reference.uncertain.insert(target.clone());
        }
        let Some(reply) = self.command(Command::Unrevoke(to_message(&target)))? else { return Ok(()) };
        match reply {
            Err(_) if !is_known => Ok(()),
            Err(refused) => Err(format!("refused: {refused}, {was_uncertain}")),
            Ok(_) if !is_known => Err("a target that is not revoked was unrevoked".to_owned()),
            Ok(reply) => {
                self.reference.revoked.remove(&target);
                self.edited(&target, false, &reply)
            }
        }
    }

    /// Checks the reply to a change of the list.
    fn edited(&mut self, target: &Target, is_known: bool, reply: &Reply) -> Result<(), String> {
        let found = reply.revocation.as_ref().ok_or("no report")?;
        let expected = self.reference.rows_of(&self.universe, target);
        if (found.keys, found.revoked) != expected {
            return Err(format!("{expected:?} rows are revoked, and not {found:?}"));
        }
        if found.generation != self.reference.generation() || found.already != is_known {
            return Err(format!("not what was expected: {found:?}"));
        }
        if found.durable {
            self.reference.uncertain.clear();
        } else if self.disk.failed() == 0 {
            return Err(format!("not durable: {:?}", found.not_durable));
        }
        self.counts.revocations += 1;
        Ok(())
    }

    /// The list of revocations as the daemon shows it: all entries, and those that are durable.
    fn list(&mut self) -> Result<Option<[BTreeSet<Target>; 2]>, String> {
        let Some(reply) = self.command(Command::Revocations { after: None })? else { return Ok(None) };
        let page = reply?.revocations.ok_or("no list")?;
        let target = |entry: &message::Revoked| match &entry.target {
            message::Target { key_id: Some(id), .. } => Target::Key(id.clone()),
            message::Target { owner, .. } => Target::Owner(owner.clone().unwrap_or_default()),
        };
        let all = page.entries.iter().map(target).collect();
        let durable = page.entries.iter().filter(|entry| entry.durable).map(target).collect();
        Ok(Some([all, durable]))
    }

    /// Sends a command. `None`: the daemon has crashed meanwhile, so the reply was not received.
    fn command(&mut self, command: Command) -> Result<Option<Result<Reply, String>>, String> {
        self.counts.commands += 1;
        let result = send_command_within(&self.fixture.root.join("a"), &command, HANG);
        if self.disk.is_crashed() {
            return Ok(None);
        }
        match result {
            Ok(reply) => Ok(Some(Ok(reply))),
            Err(CommandError::Refused(refused)) => Ok(Some(Err(refused))),
            Err(error @ CommandError::Timeout { .. }) => Err(format!("{command:?} HANGS: {error}")),
            Err(error) => Err(format!("{command:?}: {error}")),
        }
    }

    // Time

    fn set_clock(&mut self) {
        let by = self.random.below(20_000) as i64 - 10_000;
        self.note(format!("the system time is set by {by} s"));
        self.time.realtime += by * SECOND;
        simulation::set(self.time);
        self.counts.clock_changes += 1;
    }

    fn advance(&mut self) -> Result<(), String> {
        let random = &mut self.random;
        let by = match random.below(5) {
            0 => random.below(1_000_000) as i64,
            1 => random.below(2 * SECOND as u64) as i64,
            2 => random.below(100 * SECOND as u64) as i64,
            3 => random.below(2000 * SECOND as u64) as i64,
            _ => random.below(10_000 * SECOND as u64) as i64,
        };
        self.note(format!("{} s pass", by as f64 / SECOND as f64));
        self.counts.clock_changes += 1;
        self.disk.take_replaced();
        self.time.boottime += by;
        self.time.realtime += by;
        let failed = self.disk.failed();
        simulation::advance(by).map_err(|error| error.to_string())?;
        let now = self.time.boottime;
        let is_crashed = self.disk.is_crashed();
        let replaced = self.disk.take_replaced();
        let saved = self.reference.save(self.time);
        let is_due = now >= self.save_due;
        if is_crashed {
            self.reference.saved.push(Some(saved));
        } else if replaced.iter().any(|name| name == "balances") {
            self.reference.saved = vec![Some(saved)];
            self.save_due = now + SAVE_INTERVAL;
            self.is_charged = false;
            self.counts.saves += 1;
        } else if is_due && self.is_charged && self.disk.failed() == failed {
            return Err("the balances were not saved".to_owned());
        } else if is_due {
            self.save_due = now + SAVE_INTERVAL;
        }
        if now >= self.polled_at + POLL {
            self.polled_at = now;
            if self.source.version != self.reference.last_read {
                self.polled(is_crashed)?;
            }
        }
        Ok(())
    }

    /// The poll has found another source.
    fn polled(&mut self, is_crashed: bool) -> Result<(), String> {
        let guard = self.guard();
        if is_crashed {
            if guard != Guard::Refuses {
                self.reference.may_have_accepted(&self.source);
            }
            return Ok(());
        }
        self.counts.polls += 1;
        let frame = self.client()?.hello();
        self.client()?.send(&frame)?;
        let generation = self.client()?.receive_welcome()?;
        let is_accepted = generation != self.reference.generation();
        self.note(format!("the poll has found another source, accepted: {is_accepted}"));
        self.reloaded(guard, is_accepted, generation)
    }

    // Files

    /// Lets the writer of the last good keys do its work.
    fn store(&mut self) -> Result<(), String> {
        self.note("the keys in force are stored");
        self.disk.take_replaced();
        let failed = self.disk.failed();
        self.disk.release_writer(true);
        if let Some(process) = &self.process {
            process.wait_stored();
        }
        self.disk.release_writer(false);
        let is_stored = self.disk.take_replaced().iter().any(|name| name == "last_good.json");
        if self.disk.is_crashed() || self.disk.failed() > failed {
            self.reference.may_have_stored();
        } else if !self.reference.unstored.is_empty() {
            if !is_stored {
                return Err("the last good keys are not stored".to_owned());
            }
            self.reference.store();
            self.counts.stores += 1;
        }
        Ok(())
    }

    fn plan_failure(&mut self) {
        let calls = self.random.below(12);
        let error = *self.random.of(&[
            io::ErrorKind::Other,
            io::ErrorKind::StorageFull,
            io::ErrorKind::ReadOnlyFilesystem,
        ]);
        self.note(format!("call {calls} from now fails: {error:?}"));
        self.disk.fail_in(calls, error);
        self.counts.failures += 1;
    }

    fn plan_crash(&mut self) {
        let calls = self.random.below(12);
        self.note(format!("a crash is planned after {calls} calls"));
        self.disk.plan_crash(calls);
    }

    // Starts and ends

    fn start(&mut self) -> Result<(), String> {
        self.counts.starts += 1;
        self.reference.restore(self.time);
        if self.disk.failed() > 0 && self.reference.last_generation >= FROM_SYSTEM_TIME {
            // A generation that could not be reserved on the disk is not known to the next daemon.
            self.reference.last_generation = 0;
        }
        let mut config = self.fixture.config.clone();
        if self.sets_aside {
            config.source.on_bad_row = BadRowPolicy::SetAside { max: 1000 };
        }
        let failed = self.disk.failed();
        let process = Process::start(Box::new(move || Ok(config.clone())), self.fixture.log.clone());
        let process = match process {
            Err(_) if self.disk.is_crashed() => return self.crash(),
            // A single error at the wrong moment ends a start. systemd starts the daemon again.
            Err(error) if self.disk.failed() > failed => {
                self.note(format!("the daemon does not start: {error}"));
                self.counts.failed_starts += 1;
                self.wait_ended()?;
                return self.start();
            }
            process => process.map_err(|error| format!("the daemon does not start: {error}"))?,
        };
        let has_loaded = process.wait_loaded(HANG);
        self.process = Some(process);
        if !has_loaded {
            return Err("the first load HANGS".to_owned());
        }
        let unix = self.now().unix;
        let may_accept = self.reference.on_disk.iter().any(|on_disk| {
            let starts = self.reference.start_outcomes(&self.source, on_disk, unix);
            starts.iter().any(|start| matches!(start, Start::Source))
        });
        if self.disk.is_crashed() {
            if may_accept {
                self.reference.may_have_accepted(&self.source);
            }
            return self.crash();
        }
        simulation::wait_started(&["audit", "balances", "keys-writer", "reload", "revocations"])
            .and_then(|()| simulation::quiesce())
            .map_err(|error| error.to_string())?;
        (self.polled_at, self.save_due) = (self.time.boottime, self.time.boottime + SAVE_INTERVAL);
        (self.is_charged, self.has_loaded) = (false, false);
        self.examine()
    }

    /// Finds out which of the possible outcomes of the start is true, and checks everything.
    fn examine(&mut self) -> Result<(), String> {
        let Some([listed, durable]) = self.list()? else { return Ok(()) };
        let (before, uncertain) = (&self.reference.revoked, &self.reference.uncertain);
        let lost: Vec<_> =
            before.iter().filter(|target| !uncertain.contains(target) && !listed.contains(target)).collect();
        if !lost.is_empty() {
            return Err(format!("revocations are LOST: {lost:?}"));
        }
        let invented: Vec<_> =
            listed.iter().filter(|target| !uncertain.contains(target) && !before.contains(target)).collect();
        if !invented.is_empty() {
            return Err(format!("these were never revoked, or unrevoked: {invented:?}"));
        }
        self.reference.uncertain.retain(|target| !listed.contains(target));
        self.reference.uncertain.extend(listed.difference(&durable).cloned());
        self.reference.revoked = listed;

        let mut requests: Vec<_> = (0..self.universe.keys.len())
            .map(|key| Request { key: Some(key), is_raw: false, cost: 0, refund: None })
            .collect();
        requests.push(Request { key: None, is_raw: false, cost: 0, refund: None });
        self.client()?;
        let Some(client) = &mut self.client else { return Ok(()) };
        let frames: Vec<_> = requests.iter().map(|request| client.encode(&self.universe, request)).collect();
        client.send(&frames.concat())?;
        // The anchor is the first key.
        let (generation, marker) =
            client.receive_answer(|answer| (answer.generation, answer.owner.to_owned()))?;
        self.identify(generation, &marker)?;
        let now = self.now();
        for request in &requests[1..] {
            let client = self.client.as_mut().expect("connected");
            let (reference, universe) = (&mut self.reference, &self.universe);
            client.receive_answer(|answer| {
                reference.check(universe, request, now, answer).map_err(|problem| {
                    format!("after the start {request:?} was answered {answer:?}: {problem}")
                })
            })??;
        }
        Ok(())
    }

    /// `generation` is in force after a start, and the owner of the anchor is `marker`.
    fn identify(&mut self, generation: u64, marker: &str) -> Result<(), String> {
        let unix = self.now().unix;
        self.reference.served = None;
        self.reference.last_read = self.source.version;
        self.reference.unstored.clear();
        let failed = self.disk.failed() > 0;
        let is = |rows: &Rows| if marker.is_empty() { rows.rows.is_empty() } else { rows.marker == marker };
        let source = match &self.source.content {
            Content::Rows(rows) => Some(Rc::clone(rows)),
            Content::Missing | Content::Bad => None,
        };
        let explains = |start: &Start| match start {
            Start::Source => generation > 0 && source.as_ref().is_some_and(|rows| is(rows)),
            Start::LastGood(stored) => generation > 0 && is(&stored.rows),
            Start::NotReady => generation == 0,
        };
        let mut explained = Vec::new();
        let on_disk = self.reference.on_disk.clone();
        let mut starts = Vec::new();
        for possible in &on_disk {
            for start in self.reference.start_outcomes(&self.source, possible, unix) {
                if explains(&start) {
                    explained.push((possible.clone(), start.clone()));
                }
                starts.push(start);
            }
        }
        let Some((_, start)) = explained.first().cloned() else {
            return Err(format!(
                "the keys in force are those of {marker:?}, generation {generation}, and not one of {starts:?}"
            ));
        };
        if generation > 0 && generation <= self.reference.last_generation {
            return Err(format!("generation {generation} follows {}", self.reference.last_generation));
        }
        self.note(format!(
            "started: {}, generation {generation}, {marker:?}",
            match &start {
                Start::Source => "the source",
                Start::LastGood(_) => "the last good keys",
                Start::NotReady => "no keys",
            }
        ));
        self.reference.on_disk = explained.into_iter().map(|(possible, _)| possible).collect();
        match start {
            Start::Source => {
                self.has_loaded = true;
                self.reference.accept(&self.source.clone(), generation, failed);
            }
            Start::LastGood(stored) => {
                self.has_loaded = true;
                self.counts.last_good += 1;
                self.reference.last_generation = generation;
                self.reference.served = Some(Served { generation, rows: stored.rows });
            }
            Start::NotReady => self.counts.not_ready += 1,
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), String> {
        self.note("an orderly restart");
        self.terminate()?;
        if self.disk.is_crashed() {
            return Ok(());
        }
        self.counts.restarts += 1;
        self.pass_time(false);
        self.start()
    }

    /// Time passes while there is no daemon.
    fn pass_time(&mut self, is_reboot: bool) {
        let by = if self.random.one_in(3) { self.random.below(1000 * SECOND as u64) as i64 } else { 0 };
        self.time.realtime += by;
        self.time.boottime += by;
        if is_reboot {
            self.time.boottime = (1 + self.random.below(100) as i64) * SECOND;
            self.time.boot_id[self.random.index(16)] ^= 1 + self.random.below(255) as u8;
        }
        simulation::set(self.time);
    }

    fn terminate(&mut self) -> Result<(), String> {
        if self.random.one_in(2) {
            self.client = None;
        }
        self.disk.take_replaced();
        let failed = self.disk.failed();
        self.disk.release_writer_by_save();
        let saved = self.reference.save(self.time);
        let Some(process) = self.process.take() else { return Ok(()) };
        let started = Instant::now();
        let result = process.terminate();
        self.client = None;
        self.disk.release_writer(false);
        self.wait_ended()?;
        if self.disk.is_crashed() {
            self.reference.saved.push(Some(saved));
            self.reference.may_have_stored();
            return Ok(());
        }
        result.map_err(|error| no_failure(&error))?;
        if started.elapsed() > HANG {
            return Err("the end HANGS".to_owned());
        }
        let replaced = self.disk.take_replaced();
        let has_replaced = |name: &str| replaced.iter().any(|replaced| replaced == name);
        let has_failed = self.disk.failed() > failed;
        if has_replaced("balances") {
            self.reference.saved = vec![Some(saved)];
        } else if has_failed {
            self.reference.saved.push(Some(saved));
        } else {
            return Err("the balances were not saved at the end".to_owned());
        }
        if has_failed {
            self.reference.may_have_stored();
        } else if !self.reference.unstored.is_empty() {
            if !has_replaced("last_good.json") {
                return Err("the last good keys were not stored at the end".to_owned());
            }
            self.reference.store();
        }
        Ok(())
    }

    /// The daemon has crashed: a kill or a power cut, and the next start.
    fn crash(&mut self) -> Result<(), String> {
        let is_power_cut = self.random.one_in(2);
        self.note(if is_power_cut { "CRASHED: a power cut" } else { "CRASHED" });
        self.client = None;
        if let Some(process) = self.process.take() {
            let _ = process.kill();
        }
        self.wait_ended()?;
        self.disk.restart(is_power_cut);
        if is_power_cut {
            self.counts.power_cuts += 1;
        } else {
            self.counts.crashes += 1;
        }
        self.pass_time(is_power_cut);
        if self.random.one_in(6) {
            self.plan_crash();
        }
        self.start()
    }

    /// Waits until all threads of the daemon have ended.
    fn wait_ended(&self) -> Result<(), String> {
        let started = Instant::now();
        while threads() > self.fixture.threads {
            if started.elapsed() > HANG {
                let tasks = fs::read_dir("/proc/self/task").expect("lists").flatten();
                let name =
                    |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
                let names: Vec<_> = tasks.map(|task| name(task).trim().to_owned()).collect();
                return Err(format!("threads do not end: HANGS: {names:?}"));
            }
            thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}

fn to_message(target: &Target) -> message::Target {
    match target {
        Target::Key(id) => message::Target { key_id: Some(id.clone()), owner: None },
        Target::Owner(owner) => message::Target { key_id: None, owner: Some(owner.clone()) },
    }
}
