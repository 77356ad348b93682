//! SIGKILL of the daemon and of `keyward http` while requests are checked: no request is let through
//! that the daemon did not allow.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    Daemon, Export, Random, SetOnDrop, TIMEOUT, dose, free_port, key_target, row, start_companion, wait_until,
};

/// Keys that are revoked, one after each kill.
const REVOKED: usize = 500;
const CREDITS: usize = 400;
const CLIENTS: u64 = 4;

fn write_config(directory: &Path, daemon: &Daemon) -> u16 {
    let port = free_port();
    let config = format!(
        "server = {{ keyward = {:?}, deadline = \"1s\" }}\n\
         [[gateways]]\nname = \"g\"\nkind = \"traefik\"\nlisten = \"127.0.0.1:{port}\"\n",
        daemon.socket()
    );
    fs::write(directory.join("http.toml"), config).expect("writes");
    port
}

/// The status of a check of `key`. `None`: the companion is not there, or was killed.
fn check(port: u16, key: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
    let lines = "GET / HTTP/1.1\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Uri: /\r\nConnection: close\r\n";
    stream.write_all(format!("{lines}X-API-Key: {key}\r\n\r\n").as_bytes()).ok()?;
    let mut reply = Vec::new();
    match stream.read_to_end(&mut reply) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("no answer within {TIMEOUT:?}")
        }
        // What came before a reset counts.
        _ => String::from_utf8_lossy(&reply).split(' ').nth(1)?.parse().ok(),
    }
}

#[test]
fn kills_of_the_daemon_and_of_the_companion_let_nothing_through() {
    let directory = TempDir::new().expect("a directory");
    let keys = (0..REVOKED).map(|number| row(format!("r{number}"))).chain([row("a")]);
    let mut daemon = Daemon::serving(Export::new(keys));
    let port = write_config(directory.path(), &daemon);
    let mut companion = start_companion(directory.path());
    // How many keys are revoked for certain, and what was answered.
    let (revoked, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (allowed, unavailable) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut random = Random::new(1);
    thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        for client in 0..CLIENTS {
            let (revoked, stop, allowed, unavailable) = (&revoked, &stop, &allowed, &unavailable);
            scope.spawn(move || {
                let mut random = Random::new(100 + client);
                while !stop.load(Ordering::Acquire) {
                    let denied = match revoked.load(Ordering::Acquire) {
                        0 => "unknown".to_owned(),
                        count => format!("r{}", random.below(count)),
                    };
                    for (key, may_be_allowed) in [("a", true), ("unknown", false), (&*denied, false)] {
                        match check(port, key) {
                            Some(200) if may_be_allowed => _ = allowed.fetch_add(1, Ordering::Relaxed),
                            Some(401) if !may_be_allowed => {}
                            Some(503) => _ = unavailable.fetch_add(1, Ordering::Relaxed),
                            None => {}
                            Some(status) => panic!("{key}: {status}"),
                        }
                    }
                }
            });
        }
        for number in 0..dose(20, 200) {
            thread::sleep(Duration::from_millis(random.below(60) as u64));
            if random.below(2) == 0 {
                daemon.kill();
                thread::sleep(Duration::from_millis(random.below(60) as u64));
                daemon = daemon.kill_and_restart();
            } else {
                companion.end(Signal::KILL);
                companion = start_companion(directory.path());
            }
            assert!(daemon.revoke(key_target(&format!("r{number}"))).durable);
            revoked.store(number + 1, Ordering::Release);
        }
        let before = allowed.load(Ordering::Relaxed);
        wait_until("checks to be allowed after the kills", || allowed.load(Ordering::Relaxed) >= before + 10);
    });
    drop(companion);
    assert!(unavailable.load(Ordering::Relaxed) > 0, "no check met a killed daemon");
}

/// The companion holds no balances: however often it is killed, not more is admitted than was granted.
#[test]
fn kills_of_the_companion_forget_no_charge() {
    let directory = TempDir::new().expect("a directory");
    let daemon = Daemon::serving(Export::new([row("prepaid").limits(format!("credits={CREDITS}"))]));
    let port = write_config(directory.path(), &daemon);
    let mut companion = start_companion(directory.path());
    let (admitted, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut random = Random::new(2);
    thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    match check(port, "prepaid") {
                        Some(200) => _ = admitted.fetch_add(1, Ordering::Relaxed),
                        Some(402) => thread::sleep(Duration::from_millis(1)),
                        Some(503) | None => {}
                        Some(status) => panic!("{status}"),
                    }
                }
            });
        }
        for _ in 0..dose(10, 100) {
            thread::sleep(Duration::from_millis(random.below(30) as u64));
            companion.end(Signal::KILL);
            companion = start_companion(directory.path());
        }
        wait_until("the credits to be spent", || match check(port, "prepaid") {
            Some(200) => {
                admitted.fetch_add(1, Ordering::Relaxed);
                false
            }
            status => status == Some(402),
        });
    });
    let admitted = admitted.load(Ordering::Relaxed);
    // A check that was charged can lack its answer: at most one for each client and kill.
    let lost = CLIENTS as usize * dose(10, 100);
    assert!((CREDITS - lost..=CREDITS).contains(&admitted), "{admitted} of {CREDITS}");
}
