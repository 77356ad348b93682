//! Which processors each side ran on. A figure without that says little: on one core the two sides take turns, on two
//! they wake each other.

use std::fs;
use std::os::unix::net::UnixStream;
use std::thread::available_parallelism;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::system::uname;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use serde::Serialize;

use super::fault::Fault;

/// Where a thread of ours ran.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Seat {
    /// The processors that it might use.
    pub(crate) allowed: Vec<usize>,
    /// Where it was at the beginning and at the end.
    pub(crate) ran_on: [usize; 2],
}

impl Seat {
    /// That of this thread, which begins.
    pub(crate) fn taken() -> Self {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let allowed = (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect();
        Self { allowed, ran_on: [sched_getcpu(); 2] }
    }

    /// It ends.
    pub(crate) fn left(&mut self) {
        self.ran_on[1] = sched_getcpu();
    }
}

/// Keeps this thread on `processor`.
///
/// # Errors
/// When there is no such processor, or it may not be used.
pub(super) fn pin(processor: usize) -> Result<(), Fault> {
    let refuse = |error: &str| Fault::Unfit(format!("--pin: processor {processor} {error}"));
    if processor >= CpuSet::MAX_CPU {
        return Err(refuse("is beyond all that Linux can have"));
    }
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).map_err(|error| match error {
        Errno::INVAL => refuse("is not there, or may not be used by this process"),
        error => refuse(&error.to_string()),
    })
}

/// The server's process, as the kernel knows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Server {
    /// Of whoever listened at the socket.
    pub(crate) pid: i32,
    /// Its program.
    pub(crate) name: String,
    /// Its threads that did anything meanwhile.
    pub(crate) threads: Vec<ServerThread>,
}

/// One of its threads.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ServerThread {
    /// What it calls itself.
    pub(crate) name: String,
    /// The processors that it may use, as in `0-3,8`.
    pub(crate) allowed: String,
    /// Where it was before and after.
    pub(crate) ran_on: [usize; 2],
    /// How long it ran, in hundredths of a second.
    pub(crate) ran_for: u64,
}

/// The server's threads before the load.
pub(super) struct Before {
    pid: i32,
    threads: Vec<(String, Stat)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Stat {
    name: String,
    ticks: u64,
    processor: usize,
}

/// Looks at the process at the other end. `None` where it cannot be seen: in another container, or another user's.
///
/// Under socket activation whoever made the socket is systemd, which is not the daemon: `None` as well.
pub(super) fn before(stream: &UnixStream) -> Option<Before> {
    let pid = socket_peercred(stream).ok()?.pid.as_raw_nonzero().get();
    (pid != 1).then(|| Before { pid, threads: threads(pid) })
}

impl Before {
    /// Looks again.
    pub(super) fn after(self) -> Server {
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

/// Fields of proc_pid_stat(5): comm is 2, utime 14, stime 15, processor 39. A name may have spaces and brackets.
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

/// What all of it ran on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// As the processor names itself.
    pub(crate) processor: String,
    /// How many this process may use.
    pub(crate) processors: usize,
    /// As in `Linux 6.18.1 x86_64`.
    pub(crate) kernel: String,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
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
    fn a_thread_may_be_called_anything() {
        let fields: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let stat = parse_stat(&format!("7 (a) (b) S {}", fields.join(" "))).expect("a stat");
        assert_eq!(stat, Stat { name: "a) (b".into(), ticks: 14 + 15, processor: 39 });
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn a_thread_is_pinned_where_it_can_be() {
        std::thread::spawn(|| {
            let seat = Seat::taken();
            pin(seat.allowed[0]).expect("allowed");
            let pinned = Seat::taken();
            assert_eq!((pinned.allowed, pinned.ran_on), (vec![seat.allowed[0]], [seat.allowed[0]; 2]));
            assert!(pin(CpuSet::MAX_CPU - 1).expect_err("no such").to_string().contains("is not there"));
            assert!(pin(CpuSet::MAX_CPU).is_err());
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn the_other_end_is_seen() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let before = before(&ours).expect("this process");
        assert_eq!(before.pid, rustix::process::getpid().as_raw_nonzero().get());
        // Something to see: at least a hundredth of a second, of the processor's and not of a clock on the wall.
        let used = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let start = used();
        while Duration::try_from(used() - start).is_ok_and(|used| used < Duration::from_millis(60)) {}
        let server = before.after();
        assert!(!server.threads.is_empty() && !server.threads[0].allowed.is_empty(), "{server:?}");
        assert!(!Machine::here().kernel.is_empty());
    }
}
