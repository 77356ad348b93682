//! The start, the orderly end and the crash of a daemon, and what must be in force after them.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::rc::Rc;

use keyward_daemon::reload::BadRowPolicy;
use keyward_daemon::server::StartError;
use keyward_daemon::server::simulation::Process;
use keyward_state::{StateDirError, simulation};

use super::{Run, SAVE_INTERVAL, SECOND, threads};
use crate::keys::{Content, Rows};
use crate::reference::{Request, Served, Start};
use crate::wait::{HANG, wait_until};

/// What may refuse a start: the file that the error names, and the errors of the call. A full or
/// read-only disk does not, unless the directory has to be made.
const REFUSALS: [(&str, &[ErrorKind]); 2] = [
    ("state", &[ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem]),
    ("audit.jsonl", &[ErrorKind::Other]),
];

/// Whether a failed call may refuse a start with this error.
fn may_refuse(error: &StartError) -> bool {
    let (StartError::File(error) | StartError::State(StateDirError::Unusable(error))) = error else {
        return false;
    };
    let name = error.path.file_name().unwrap_or_default();
    REFUSALS.iter().any(|(file, kinds)| name == *file && kinds.contains(&error.error.kind()))
}

/// Waits until a daemon that ends has done so. The result is that of serving.
fn join(process: Process) -> Result<Result<(), StartError>, String> {
    if !wait_until(|| process.has_ended()) {
        return Err("the end HANGS".to_owned());
    }
    Ok(process.join())
}

impl Run<'_> {
    pub(super) fn start(&mut self) -> Result<(), String> {
        self.counts.starts += 1;
        self.reference.restore(self.time);
        self.ledger.start(self.time);
        // One that could not be reserved on the disk is not known to the next daemon.
        self.reference.last_generation = self.reference.reserved_generation;
        self.failed_before = self.disk.failed();
        let mut config = self.fixture.config.clone();
        if self.sets_aside {
            config.source.on_bad_row = BadRowPolicy::SetAside { max: 1000 };
        }
        let process = Process::start(Box::new(move || Ok(config.clone())), self.fixture.log.clone());
        let process = match process {
            Err(_) if self.disk.is_crashed() => return self.crash(),
            // A single error at the wrong moment ends a start. systemd starts the daemon again.
            Err(error) if self.has_failed() && may_refuse(&error) => {
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

        let mut requests: Vec<_> =
            (0..self.universe.keys.len()).map(|key| Request::peek(Some(key))).collect();
        requests.push(Request::peek(None));
        self.client()?;
        let client = self.client.as_mut().expect("connected");
        let frames: Vec<_> = requests.iter().map(|request| client.encode(&self.universe, request)).collect();
        client.send(&frames.concat())?;
        // The anchor is the first key.
        let (generation, marker) =
            client.receive_answer(|answer| (answer.generation, answer.owner.to_owned()))?;
        self.identify(generation, &marker)?;
        let now = self.now();
        let is_spent = |states: &BTreeSet<i128>| states.iter().all(|full_at| *full_at > now.ticks);
        self.counts.starts_with_spent_buckets += u64::from(self.reference.buckets.values().any(is_spent));
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
        self.reference.forget_verdicts();
        self.reference.last_read = self.source.version;
        self.reference.unstored.clear();
        let failed = self.has_failed();
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
        // Without any rows, the source and the last good keys look the same.
        let is_ambiguous = explained.iter().any(|(_, start)| matches!(start, Start::LastGood(_)));
        self.reference.on_disk = explained.into_iter().map(|(possible, _)| possible).collect();
        match start {
            Start::Source => {
                self.has_loaded = true;
                self.reference.accept(&self.source.clone(), generation, failed || is_ambiguous);
                if is_ambiguous {
                    self.reference.may_have_stored();
                }
            }
            Start::LastGood(stored) => {
                self.has_loaded = true;
                self.counts.starts_with_last_good_keys += 1;
                self.reference.use_generation(generation, failed);
                self.reference.served = Some(Served { generation, rows: stored.rows });
            }
            Start::NotReady => self.counts.starts_without_keys += 1,
        }
        Ok(())
    }

    pub(super) fn restart(&mut self) -> Result<(), String> {
        self.note("an orderly restart");
        self.terminate()?;
        if self.disk.is_crashed() {
            return Ok(());
        }
        self.counts.orderly_restarts += 1;
        self.pass_time(false);
        if self.random.one_in(4) {
            self.plan_failure();
        }
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

    pub(super) fn terminate(&mut self) -> Result<(), String> {
        if self.random.one_in(2) {
            self.client = None;
        }
        self.disk.take_replaced();
        let failed = self.disk.failed();
        self.disk.release_writer_by_save();
        let saved = self.reference.save(self.time);
        let Some(process) = self.process.take() else { return Ok(()) };
        process.terminate();
        let result = join(process)?;
        self.client = None;
        // On a busy machine, the daemon may have stopped waiting for the writer.
        self.wait_ended()?;
        self.disk.release_writer(false);
        if self.disk.is_crashed() {
            self.reference.saved.push(Some(saved));
            self.ledger.may_have_saved(self.time);
            self.reference.may_have_stored();
            return Ok(());
        }
        result.map_err(|error| format!("an unexpected error: {error}"))?;
        let replaced = self.disk.take_replaced();
        let has_replaced = |name: &str| replaced.iter().any(|replaced| replaced == name);
        let has_failed = self.disk.failed() > failed;
        if has_replaced("balances") && !has_failed {
            self.reference.saved = vec![Some(saved)];
            self.ledger.save(self.time);
        } else if has_failed {
            self.reference.saved.push(Some(saved));
            self.ledger.may_have_saved(self.time);
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
    pub(super) fn crash(&mut self) -> Result<(), String> {
        let is_power_cut = self.random.one_in(2);
        self.note(if is_power_cut { "CRASHED: a power cut" } else { "CRASHED" });
        self.client = None;
        self.kill()?;
        self.disk.restart(is_power_cut);
        if is_power_cut {
            self.counts.power_cuts += 1;
        } else {
            self.counts.crashes += 1;
        }
        self.pass_time(is_power_cut);
        match self.random.below(6) {
            0 => self.plan_crash(),
            1 => self.plan_failure(),
            _ => {}
        }
        self.start()
    }

    /// Ends the daemon, if there is one, without an orderly shutdown.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        if let Some(process) = self.process.take() {
            process.kill();
            // A daemon that is killed while it ends in order may report an error.
            let _ = join(process)?;
        }
        self.wait_ended()
    }

    /// Waits until all threads of the daemon have ended.
    fn wait_ended(&self) -> Result<(), String> {
        if wait_until(|| threads() <= self.fixture.threads) {
            return Ok(());
        }
        let tasks = fs::read_dir("/proc/self/task").expect("lists").flatten();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let names: Vec<_> = tasks.map(|task| name(task).trim().to_owned()).collect();
        Err(format!("threads do not end: HANGS: {names:?}"))
    }
}
