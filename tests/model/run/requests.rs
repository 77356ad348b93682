//! Steps with requests: batches, lost connections, and a peer that does not read.

use std::thread;
use std::time::{Duration, Instant};

use keyward_admin::message::Command;
use keyward_admin::send_command_within;
use keyward_daemon::connection::simulation as sockets;

use super::Run;
use super::revocations::to_message;
use crate::client::Client;
use crate::keys::UNKNOWN_LIMIT;
use crate::reference::{Guard, Kind, Request, Target};
use crate::wait::{HANG, wait_until};

/// The smallest send buffer, and requests whose answers do not fit it.
const SMALL_SEND_BUFFER: usize = 4096;
const STALLED_REQUESTS: usize = 300;

/// How long the test waits for an acknowledgement that must not come, and how long the daemon waits
/// for a peer to read its answers, with a margin.
const EARLY: Duration = Duration::from_millis(2);
const UNSENT_ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

impl Run<'_> {
    pub(super) fn client(&mut self) -> Result<&mut Client, String> {
        if self.client.is_none() {
            self.client = Some(Client::connect(&self.fixture.root.join("s"))?);
        }
        Ok(self.client.as_mut().expect("connected"))
    }

    fn random_request(&mut self) -> Request {
        let random = &mut self.random;
        let key = (!random.one_in(12)).then(|| random.index(self.universe.keys.len()));
        let limits = key.map_or(&[][..], |key| self.universe.keys[key].limits());
        let kind = match random.below(16) {
            0..2 => Kind::Refund,
            2 => Kind::Debit,
            _ => Kind::Verify,
        };
        let cost = match random.below(10) {
            0 => 0,
            1..6 => 1,
            6..8 => 1 + random.below(4) as u32,
            8 => 1 + random.below(8) as u32,
            _ => 100 + random.below(300) as u32,
        };
        // Another key's limit, one that no key has, or mostly one of this key.
        let name = match random.below(8) {
            0 => "slow",
            1 => UNKNOWN_LIMIT,
            _ if limits.is_empty() => "default",
            _ => random.of(limits).0,
        };
        let cost_of = random.one_in(5).then(|| (name, random.below(6) as u32));
        // Without a cost of a limit, one of 0 would be an error.
        let cost = if kind != Kind::Verify && cost_of.is_none() { cost.max(1) } else { cost };
        Request { key, is_raw: random.one_in(6), kind, cost, cost_of }
    }

    /// Sends a batch, in one or several parts, and checks every answer.
    pub(super) fn requests(&mut self) -> Result<(), String> {
        let count = if self.random.one_in(10) { 100 } else { 1 + self.random.index(10) };
        let requests: Vec<_> = (0..count).map(|_| self.random_request()).collect();
        let max_read = if self.random.one_in(3) { 1 + self.random.index(200) } else { usize::MAX };
        sockets::set_max_read(max_read);
        self.note(format!("{count} requests"));
        let has_hello = self.random.one_in(4);
        let cut = self.random.one_in(3).then(|| self.random.number());
        self.client()?;
        let client = self.client.as_mut().expect("connected");
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
                    .map(|()| answer.verdict)
            })?;
            let verdict = checked?;
            self.counts.answer(verdict);
            if verdict.is_allowed() {
                self.is_charged |= self.enter(request)?;
            }
        }
        if self.client()?.has_rest() {
            return Err("there are more responses than requests".to_owned());
        }
        Ok(())
    }

    /// Enters an allowed request into the ledger. Returns whether it has changed a limit.
    fn enter(&mut self, request: &Request) -> Result<bool, String> {
        let buckets = self.reference.buckets_of(&self.universe, request);
        let has_limits = !buckets.is_empty();
        for (id, (period, burst), amount) in buckets {
            match request.kind {
                Kind::Verify => {
                    self.counts.charges += 1;
                    self.ledger.charge(id, (period, burst), amount, self.time)?;
                }
                Kind::Refund => {
                    self.counts.refunds += 1;
                    self.ledger.refund(id, period, amount, self.time);
                }
                // It admits nothing.
                Kind::Debit => self.counts.debits += 1,
            }
        }
        Ok(has_limits)
    }

    /// Sends a batch, and closes the connection without reading the answers.
    pub(super) fn lose_connection(&mut self) -> Result<(), String> {
        let requests: Vec<_> = (0..1 + self.random.index(6)).map(|_| self.random_request()).collect();
        self.note(format!("{} requests, and the connection is lost", requests.len()));
        sockets::set_max_read(usize::MAX);
        let rest = self.random.number();
        self.client()?;
        let mut client = self.client.take().expect("connected");
        let mut bytes =
            requests.iter().flat_map(|request| client.encode(&self.universe, request)).collect::<Vec<_>>();
        // The last request may be incomplete.
        bytes.truncate(bytes.len().saturating_sub(rest as usize % 40));
        client.send(&bytes)?;
        let wait_for = |has_connections: bool| {
            let process = self.process.as_ref();
            wait_until(|| process.is_none_or(|process| (process.connections() > 0) == has_connections))
        };
        // On a busy machine, it may not have been accepted yet.
        if !wait_for(true) {
            return Err("the connection is not accepted: HANGS".to_owned());
        }
        drop(client);
        if !wait_for(false) {
            return Err("the connection does not end: HANGS".to_owned());
        }
        let now = self.now();
        for request in &requests {
            self.reference.lose(&self.universe, request, now);
            // It may have been made. A charge that was not answered has admitted nothing.
            if request.kind == Kind::Refund {
                self.enter(request)?;
            }
        }
        self.counts.lost_connections += 1;
        Ok(())
    }

    /// A peer does not read its answers. A command is not acknowledged until it does.
    pub(super) fn stalled_peer(&mut self) -> Result<(), String> {
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
        let request = Request::peek(Some(key));
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
}
