//! Durability of a real daemon, observed by strace: what is acknowledged has been synced, and what is charged is saved. Kills
//! cannot show that, because the kernel keeps what was written. The same order is asserted without outside programs in
//! `src/state/tests/durability.rs` and beside it, for each file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Daemon, RawClient, Received, Setup, replace_export, sha256_hex, wait_for};
use keyward_client::Request;
use keyward_daemon::admin::message::{Command as AdminCommand, Target};
use keyward_daemon::admin::send_command;
use rustix::process::{Pid, Signal, kill_process};

/// A strace of all threads of a daemon, ended when this is dropped. The daemon goes on.
struct Strace {
    child: Child,
    output: PathBuf,
}

impl Strace {
    fn attach(daemon: &Daemon, options: &[&str]) -> Self {
        let output = daemon.setup.path("strace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-s", "256"]).args(options).arg("-o").arg(&output);
        strace.arg("-p").arg(daemon.pid().to_string());
        let child = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace starts");
        let strace = Self { child, output };
        let tracer = format!("TracerPid:\t{}\n", strace.child.id());
        wait_for("strace to see every thread", || {
            let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("a process");
            let mut status = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("status")));
            status.all(|status| status.is_ok_and(|status| status.contains(&tracer))).then_some(())
        });
        strace
    }

    /// Ends it; its lines.
    fn end(mut self) -> Vec<String> {
        self.stop();
        let text = fs::read_to_string(&self.output).expect("a trace");
        text.lines().map(str::to_owned).collect()
    }

    /// With a signal that it handles, so that it lets go of the daemon.
    fn stop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _already_gone = kill_process(pid, Signal::INT);
        }
        let _reaped = self.child.wait();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// Where the calls of `name` on `path` that have `text` in their arguments have returned: line numbers.
fn returned(lines: &[String], name: &str, path: &Path, text: &str) -> Vec<usize> {
    let parts = [&format!("{name}("), &format!("<{}>", path.display()), text];
    let calls = lines.iter().enumerate().filter(|(_, line)| parts.iter().all(|part| line.contains(part)));
    let end = |(at, line): (usize, &String)| {
        if !line.ends_with("<unfinished ...>") {
            return at;
        }
        let (thread, resumed) = (line.split(' ').next().expect("a thread"), format!("<... {name} resumed>"));
        let rest = lines.iter().enumerate().skip(at);
        let mut ends = rest.filter(|(_, line)| line.starts_with(thread) && line.contains(&resumed));
        ends.next().expect("it returns").0
    };
    calls.map(end).collect()
}

fn export() -> String {
    format!(
        "key_hash,key_id,owner,limits\n{},a,acme,100/d burst 100000\n{},b,acme,\n",
        sha256_hex("a"),
        sha256_hex("b")
    )
}

#[test]
#[ignore = "needs root and strace: tests/run runs it"]
fn commands_are_acknowledged_after_what_they_wrote_is_synced() {
    let daemon = Setup::new(&export()).config("[source]\npoll = \"1h\"\nsettle = \"0s\"").start();
    let strace = Strace::attach(&daemon, &["-e", "trace=write,writev,sendto,sendmsg,fdatasync,fsync"]);
    let target = |key_id: Option<&str>, owner: Option<&str>| Target {
        key_id: key_id.map(str::to_owned),
        owner: owner.map(str::to_owned),
    };
    let list = |action: &str| (daemon.setup.path("revocations.jsonl"), format!(r#"\"action\":\"{action}\""#));
    let trail = |event: &str| (daemon.setup.path("audit.jsonl"), format!(r#"\"event\":\"{event}\""#));
    // With the lines that have to be durable by then.
    let commands = [
        (AdminCommand::Revoke(target(Some("a"), None)), vec![list("revoke"), trail("revoke")]),
        (AdminCommand::Revoke(target(None, Some("acme"))), vec![list("revoke"), trail("revoke")]),
        (AdminCommand::Unrevoke(target(Some("a"), None)), vec![list("unrevoke"), trail("unrevoke")]),
        (AdminCommand::Reload { force: false }, vec![trail("reload")]),
        (AdminCommand::Reload { force: true }, vec![trail("reload")]),
    ];
    for (command, _) in &commands {
        replace_export(&daemon.setup.source(), &export());
        send_command(&daemon.admin_socket(), command).expect("carried out");
    }
    let lines = strace.end();
    let is_reply = |line: &String| {
        line.contains(r#""{\"ok\":true"#) && ["write(", "sendto("].iter().any(|call| line.contains(call))
    };
    let replies: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| is_reply(line)).map(|(at, _)| at).collect();
    assert_eq!(replies.len(), commands.len(), "{lines:#?}");
    let mut before = 0;
    for ((command, files), reply) in commands.iter().zip(replies) {
        for (file, text) in files {
            let own = |name, text| {
                let all = returned(&lines, name, file, text).into_iter();
                all.filter(|at| (before..reply).contains(at)).collect::<Vec<_>>()
            };
            let (written, synced) = (own("write", text), own("fdatasync", ""));
            assert!(
                !written.is_empty() && synced.last() > written.last(),
                "{command:?}: {} is written at {written:?} and synced at {synced:?}; the reply is at {reply} of {lines:#?}",
                file.display()
            );
        }
        before = reply;
    }
}

/// The last save takes a second here: whatever is answered in that time is not in it.
#[test]
#[ignore = "needs root and strace: tests/run runs it"]
fn nothing_is_charged_during_the_last_save() {
    let config = "[server]\ndrain_timeout = \"300ms\"\n[state]\nsave_interval = \"1h\"";
    let mut daemon = Setup::new(&export()).config(config).start();
    let new = daemon.setup.path("balances.new");
    let path = new.to_str().expect("UTF-8");
    let mut peers: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        assert!(peer.send_until_blocked(&crate::support::encode_verify(1, "a")) > 0);
    }
    let strace =
        Strace::attach(&daemon, &["-P", path, "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=1000000"]);
    daemon.signal(Signal::TERM);
    wait_for("the last save", || new.exists().then_some(()));
    let is_allowed = |said: &Received| matches!(said, Received::Answer { verdict: "ALLOWED", .. });
    let received =
        |peer: &mut RawClient| peer.receive_until_close().iter().filter(|said| is_allowed(said)).count();
    let received: usize = peers.iter_mut().map(received).sum();
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
    assert!(!returned(&strace.end(), "fsync", &new, "").is_empty(), "the save was held up");
    let daemon = daemon.restart();
    let answer = daemon.client().verify(&Request::new("a").peek()).expect("an answer");
    let charged = 100_000 - answer.limit().expect("a limit").remaining as usize;
    assert!(charged >= received, "{received} were admitted, and {charged} are in the last save");
}
