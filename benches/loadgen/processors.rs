//! Which processors the client and the server ran on. Figures depend on it: on one core, the two
//! sides take turns; on two cores, they wake each other.

use std::fs;
use std::os::unix::net::UnixStream;
use std::thread::available_parallelism;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::system::uname;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use serde::Serialize;

use crate::error::LoadError;

/// Where a thread of the client ran.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CpuPlacement {
    /// The processors that it was allowed to use.
    pub(crate) allowed: Vec<usize>,
    /// The processors that it ran on at the start and at the end.
    pub(crate) ran_on: [usize; 2],
}

impl CpuPlacement {
    /// The placement of the current thread at its start.
    pub(crate) fn at_start() -> Self {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let allowed = (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect();
        Self { allowed, ran_on: [sched_getcpu(); 2] }
    }

    /// Records where the current thread is at its end.
    pub(crate) fn record_end(&mut self) {
        self.ran_on[1] = sched_getcpu();
    }
}

/// Pins the current thread to `processor`.
///
/// # Errors
/// When the processor does not exist, or this process may not use it.
pub(crate) fn pin(processor: usize) -> Result<(), LoadError> {
    let unusable = |error: Errno| LoadError::Pin { processor, source: error.into() };
    // A larger number does not fit in the set.
    if processor >= CpuSet::MAX_CPU {
        return Err(unusable(Errno::INVAL));
    }
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).map_err(unusable)
}

/// The server's process, as /proc shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Server {
    /// Process that called listen(2) on the socket.
    pub(crate) pid: i32,
    /// Name of the program.
    pub(crate) name: String,
    /// The threads that ran during the load.
    pub(crate) threads: Vec<ServerThread>,
}

/// A thread of the server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ServerThread {
    /// Name of the thread.
    pub(crate) name: String,
    /// The processors that it is allowed to use, in the form `0-3,8`.
    pub(crate) allowed: String,
    /// The processors that it ran on before and after the load.
    pub(crate) ran_on: [usize; 2],
    /// Processor time during the load, in hundredths of a second.
    pub(crate) ran_for: u64,
}

/// A sample of the server's threads, taken before the load.
pub(crate) struct ServerSample {
    pid: i32,
    threads: Vec<(String, Stat)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Stat {
    name: String,
    ticks: u64,
    processor: usize,
}

impl ServerSample {
    /// Samples the process at the other end of `stream`. Returns `None` if it is not visible (it is
    /// in another container), or if systemd created the socket and the server is unknown.
    pub(crate) fn take(stream: &UnixStream) -> Option<Self> {
        let pid = socket_peercred(stream).ok()?.pid.as_raw_nonzero().get();
        (pid != 1).then(|| Self { pid, threads: threads(pid) })
    }

    /// Samples the process again, and returns what has happened in between.
    pub(crate) fn finish(self) -> Server {
        let threads = threads(self.pid).into_iter().filter_map(|(id, after)| {
            let before = self.threads.iter().find(|(other, _)| *other == id).map(|(_, stat)| stat);
            let ran_for = after.ticks.saturating_sub(before.map_or(0, |stat| stat.ticks));
            let ran_on = [before.map_or(after.processor, |stat| stat.processor), after.processor];
            let allowed = allowed(self.pid, &id);
            (ran_for > 0).then_some(ServerThread { name: after.name, allowed, ran_on, ran_for })
        });
        let mut threads: Vec<_> = threads.collect();
        threads.sort_by_key(|thread| std::cmp::Reverse(thread.ran_for));
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        Server { pid: self.pid, name: name.trim().to_owned(), threads }
    }
}

fn threads(pid: i32) -> Vec<(String, Stat)> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), parse_stat(&stat)?))
        })
        .collect()
}

/// Parses proc_pid_stat(5): field 2 is comm, 14 utime, 15 stime, 39 processor. A name may contain
/// spaces and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, rest) = text.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let field = |number: usize| rest.split(' ').nth(number - 3)?.trim().parse::<u64>().ok();
    Some(Stat { name: name.to_owned(), ticks: field(14)? + field(15)?, processor: field(39)? as usize })
}

fn allowed(pid: i32, thread: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap_or_default().trim().to_owned()
}

/// The machine that the load ran on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Model name of the processor.
    pub(crate) processor: String,
    /// Processors that this process may use.
    pub(crate) processors: usize,
    /// Kernel and architecture, in the form `Linux 6.18.1 x86_64`.
    pub(crate) kernel: String,
}

impl Machine {
    /// The current machine.
    pub(crate) fn current() -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let name = uname();
        let [system, release, machine] =
            [name.sysname(), name.release(), name.machine()].map(|text| text.to_string_lossy());
        Self {
            processor: model.map_or("unknown processor", |(_, model)| model).trim().to_owned(),
            processors: available_parallelism().map_or(1, usize::from),
            kernel: format!("{system} {release} {machine}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn thread_name_may_contain_parentheses() {
        let fields: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let stat = parse_stat(&format!("7 (a) (b) S {}", fields.join(" "))).expect("a valid line");
        assert_eq!(stat, Stat { name: "a) (b".into(), ticks: 14 + 15, processor: 39 });
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn thread_is_pinned_to_an_existing_processor() {
        std::thread::spawn(|| {
            let before = CpuPlacement::at_start();
            pin(before.allowed[0]).expect("the processor is allowed");
            let pinned = CpuPlacement::at_start();
            assert_eq!((pinned.allowed, pinned.ran_on), (vec![before.allowed[0]], [before.allowed[0]; 2]));
            assert!(
                pin(CpuSet::MAX_CPU - 1)
                    .expect_err("no such processor")
                    .to_string()
                    .contains("does not exist")
            );
            assert!(pin(CpuSet::MAX_CPU).is_err());
        })
        .join()
        .expect("the thread does not panic");
    }

    #[test]
    fn threads_of_the_server_are_sampled() {
        let (client, _server) = UnixStream::pair().expect("a socket pair");
        let sample = ServerSample::take(&client).expect("this process is visible");
        assert_eq!(sample.pid, rustix::process::getpid().as_raw_nonzero().get());
        // Use some processor time: the sample counts hundredths of a second.
        let used = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let start = used();
        while Duration::try_from(used() - start).is_ok_and(|used| used < Duration::from_millis(60)) {}
        let server = sample.finish();
        assert!(!server.threads.is_empty() && !server.threads[0].allowed.is_empty(), "{server:?}");
        assert!(!Machine::current().kernel.is_empty());
    }
}
