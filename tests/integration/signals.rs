//! Many SIGHUPs, and SIGTERM at any moment.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keyward_admin::message::Command;
use keyward_admin::send_command_within;
use keyward_client::Request;
use rustix::process::Signal;

use crate::support::serve_process::handles_signals;
use crate::support::{
    Daemon, Export, Random, RawClient, SetOnDrop, Setup, TIMEOUT, dose, encode_verify, key_target,
    replace_export, row, wait_until,
};

/// Enough that a load takes some milliseconds.
const KEYS: usize = 2_000;

fn export(version: usize) -> Export {
    Export::new((0..KEYS).map(|number| row(format!("k{number}")).owner(format!("v{version}")).plan("pro")))
}

/// A configuration in which the limit of all keys has this burst.
fn configuration(burst: usize) -> String {
    format!(
        "source.settle = '0s'\nsource.poll = '1h'\nserver.drain_timeout = '1s'\n\
         [plans.pro]\nrequests = '10000000/s burst {burst}'\n"
    )
}

/// A thousand SIGHUPs a second, while the source and the configuration change: requests go on being
/// answered, signals share reloads, and the last state is in force in the end.
#[test]
fn storm_of_sighups_is_coalesced_and_the_last_one_wins() {
    let seconds = dose(2, 10) as u64;
    let setup = Setup::text(export(0)).config(&configuration(1_000_000));
    let mut daemon = setup.start();
    let (first, stop) = (daemon.status().generation, AtomicBool::new(false));
    let (mut signals, mut version) = (0, 0);
    thread::scope(|scope| {
        let _end = SetOnDrop(&stop);
        scope.spawn(|| {
            let mut client = daemon.client();
            while !stop.load(Ordering::Acquire) {
                let answer = client.verify(&Request::new("k0")).expect("an answer");
                assert_eq!(answer.verdict().name(), "ALLOWED");
            }
        });
        let start = Instant::now();
        while signals < 1_000 * seconds {
            if signals % 100 == 0 {
                version += 1;
                replace_export(&daemon.setup.source(), export(version));
                // Replaced at once: a reload never reads half a file.
                let path = daemon.setup.path("keyward.toml");
                let new = daemon.setup.path("keyward.toml.new");
                fs::write(&new, configuration(1_000_000 + version)).expect("written");
                fs::rename(new, path).expect("renamed");
            }
            daemon.signal(Signal::HUP);
            signals += 1;
            let due = Duration::from_millis(signals);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    });
    // The watch would find the export, but only a signal has the configuration read.
    wait_until("the last export and configuration", || {
        let answer = daemon.client().verify(&Request::new("k0")).expect("an answer");
        let burst = answer.limit().map(|limit| limit.limit as usize);
        answer.owner() == Some(&*format!("v{version}")) && burst == Some(1_000_000 + version)
    });
    // One reload may be running and one may wait, and the command may need its own. Without coalescing,
    // a queue of signals would come before the command.
    let before = daemon.status().generation;
    let left = daemon.reload().generation - before;
    eprintln!("{signals} signals, {} reloads, {version} exports", before - first);
    assert!(left <= 3, "{left} reloads were left after the last signal");
    assert_eq!(daemon.status().errors, 0);
    daemon.stop();
}

/// What a daemon is doing when it is stopped.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Start,
    Idle,
    Requests,
    Reload,
    Revocations,
    Hangups,
    /// A peer does not read its answers, another has sent half a request: the drain takes its whole
    /// time, and a second SIGTERM arrives in it.
    Drain,
}

const PHASES: [Phase; 7] = [
    Phase::Start,
    Phase::Idle,
    Phase::Requests,
    Phase::Reload,
    Phase::Revocations,
    Phase::Hangups,
    Phase::Drain,
];

/// Keeps the daemon busy until it is stopped. Returns the number of revocations, of the keys from
/// `next` on, that were acknowledged.
fn keep_busy(daemon: &Daemon, phase: Phase, next: usize, stop: &AtomicBool) -> usize {
    let (admin, source) = (daemon.admin_socket(), daemon.setup.source());
    let command = |command| send_command_within(&admin, &command, TIMEOUT).ok();
    let mut client = daemon.client();
    let mut rounds = 0;
    while !stop.load(Ordering::Acquire) {
        let is_stopped = match phase {
            Phase::Start | Phase::Idle | Phase::Drain => return 0,
            Phase::Requests => client.verify(&Request::new("k0")).is_err(),
            Phase::Reload => {
                replace_export(&source, export(rounds));
                command(Command::Reload { force: false }).is_none()
            }
            Phase::Revocations => {
                let target = key_target(&format!("k{}", next + rounds));
                let reply = command(Command::Revoke(target)).and_then(|reply| reply.revocation);
                reply.is_none_or(|revocation| !revocation.durable)
            }
            Phase::Hangups => {
                daemon.signal(Signal::HUP);
                false
            }
        };
        if is_stopped {
            break;
        }
        rounds += 1;
    }
    if matches!(phase, Phase::Revocations) { rounds } else { 0 }
}

#[test]
fn sigterm_at_any_moment_is_a_clean_end() {
    let stops = dose(3 * PHASES.len(), 210);
    let mut daemon = Setup::text(export(0)).config(&configuration(1_000_000)).start();
    let mut random = Random::new(1);
    let mut revoked = 0;
    for number in 0..stops {
        let phase = PHASES[number % PHASES.len()];
        let delay = Duration::from_millis(random.below(40) as u64);
        if !matches!(phase, Phase::Start) {
            wait_until("the keys", || daemon.try_status().is_some_and(|status| status.ready));
            for key in 0..revoked {
                assert_eq!(daemon.verdict(&format!("k{key}")), "REVOKED", "k{key} before stop {number}");
            }
        }
        let mut peers: Vec<RawClient> = match phase {
            Phase::Drain => (0..2).map(|_| daemon.connect()).collect(),
            _ => Vec::new(),
        };
        if let [unread, half] = &mut peers[..] {
            assert!(unread.send_until_blocked(&encode_verify(1, "k0")) > 0);
            half.send(&encode_verify(1, "k0")[..20]);
        }
        let stop = AtomicBool::new(false);
        revoked += thread::scope(|scope| {
            let _end = SetOnDrop(&stop);
            let busy = scope.spawn(|| keep_busy(&daemon, phase, revoked, &stop));
            if matches!(phase, Phase::Start) {
                wait_until("the signal handlers", || handles_signals(daemon.pid()));
            }
            thread::sleep(delay);
            daemon.signal(Signal::TERM);
            if matches!(phase, Phase::Drain) {
                thread::sleep(delay);
                daemon.signal(Signal::TERM);
            }
            if matches!(phase, Phase::Hangups) {
                stop.store(true, Ordering::Release);
            }
            busy.join().expect("no panic")
        });
        let status = daemon.wait_for_exit();
        assert!(status.success(), "{phase:?} after {delay:?}: {status}\n{}", daemon.log());
        for socket in [daemon.socket(), daemon.admin_socket()] {
            assert!(!socket.exists(), "{phase:?} after {delay:?}: {} is left", socket.display());
        }
        daemon = daemon.respawn();
    }
}
