//! Durability of a daemon, observed by strace: writes are synced before they are acknowledged, and
//! charges are saved. Killing the daemon cannot show that, because the kernel keeps unsynced
//! writes. `src/state/tests/durability.rs` asserts the same order without strace for each file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{
    Daemon, Export, RawClient, Received, Setup, encode_verify, key_target, owner_target, replace_export, row,
    wait_until,
};
use keyward_admin::message::Command as AdminCommand;
use keyward_admin::send_command;
use keyward_client::Request;
use rustix::process::{Pid, Signal, kill_process};

/// strace attached to all threads of a daemon. It is detached when this is dropped.
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
        wait_until("strace to attach to every thread", || {
            let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("a process");
            let mut status = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("status")));
            status.all(|status| status.is_ok_and(|status| status.contains(&tracer)))
        });
        strace
    }

    /// Detaches strace and returns its lines.
    fn finish(mut self) -> Vec<String> {
        self.detach();
        let text = fs::read_to_string(&self.output).expect("a trace");
        text.lines().map(str::to_owned).collect()
    }

    /// strace handles SIGINT by detaching from the daemon.
    fn detach(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // Fails only if strace has exited already.
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.detach();
        }
    }
}

/// Line numbers at which the calls of `name` on `path` with `text` in their arguments returned.
fn return_lines(lines: &[String], name: &str, path: &Path, text: &str) -> Vec<usize> {
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

fn export() -> Export {
    Export::new([row("a").owner("acme").limits("100/d burst 100000"), row("b").owner("acme")])
}

#[test]
#[ignore = "needs root and strace: tests/run runs it"]
fn commands_are_acknowledged_after_their_writes_are_synced() {
    let daemon = Setup::new(export()).config("[source]\npoll = \"1h\"\nsettle = \"0s\"").start();
    let strace = Strace::attach(&daemon, &["-e", "trace=write,writev,sendto,sendmsg,fdatasync,fsync"]);
    let list = |action: &str| (daemon.setup.path("revocations.jsonl"), format!(r#"\"action\":\"{action}\""#));
    let trail = |event: &str| (daemon.setup.path("audit.jsonl"), format!(r#"\"event\":\"{event}\""#));
    // Each with the lines that must be durable before its reply.
    let commands = [
        (AdminCommand::Revoke(key_target("a")), vec![list("revoke"), trail("revoke")]),
        (AdminCommand::Revoke(owner_target("acme")), vec![list("revoke"), trail("revoke")]),
        (AdminCommand::Unrevoke(key_target("a")), vec![list("unrevoke"), trail("unrevoke")]),
        (AdminCommand::Reload { force: false }, vec![trail("reload")]),
        (AdminCommand::Reload { force: true }, vec![trail("reload")]),
    ];
    for (command, _) in &commands {
        replace_export(&daemon.setup.source(), export());
        send_command(&daemon.admin_socket(), command).expect("a reply");
    }
    let lines = strace.finish();
    let is_reply = |line: &String| {
        line.contains(r#""{\"ok\":true"#) && ["write(", "sendto("].iter().any(|call| line.contains(call))
    };
    let replies: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| is_reply(line)).map(|(at, _)| at).collect();
    assert_eq!(replies.len(), commands.len(), "{lines:#?}");
    let mut before = 0;
    for ((command, files), reply) in commands.iter().zip(replies) {
        for (file, text) in files {
            let lines_before_reply = |name, text| {
                let all = return_lines(&lines, name, file, text).into_iter();
                all.filter(|at| (before..reply).contains(at)).collect::<Vec<_>>()
            };
            let (written, synced) = (lines_before_reply("write", text), lines_before_reply("fdatasync", ""));
            assert!(
                !written.is_empty() && synced.last() > written.last(),
                "{command:?}: {} is written at {written:?} and synced at {synced:?}; the reply is at {reply} of {lines:#?}",
                file.display()
            );
        }
        before = reply;
    }
}

/// strace delays the last save by a second. Requests answered in that time would not be saved.
#[test]
#[ignore = "needs root and strace: tests/run runs it"]
fn nothing_is_charged_during_the_last_save() {
    let config = "[server]\ndrain_timeout = \"300ms\"\n[state]\nsave_interval = \"1h\"";
    let mut daemon = Setup::new(export()).config(config).start();
    let new = daemon.setup.path("balances.new");
    let path = new.to_str().expect("UTF-8");
    let mut peers: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        assert!(peer.send_until_blocked(&encode_verify(1, "a")) > 0);
    }
    let strace =
        Strace::attach(&daemon, &["-P", path, "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=1000000"]);
    daemon.signal(Signal::TERM);
    wait_until("the last save", || new.exists());
    let is_allowed = |received: &Received| matches!(received, Received::Answer { verdict: "ALLOWED", .. });
    let count_allowed =
        |peer: &mut RawClient| peer.receive_until_close().into_iter().filter(is_allowed).count();
    let received: usize = peers.iter_mut().map(count_allowed).sum();
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
    assert!(!return_lines(&strace.finish(), "fsync", &new, "").is_empty(), "the save was delayed");
    let daemon = daemon.kill_and_restart();
    let answer = daemon.client().verify(&Request::new("a").peek()).expect("an answer");
    let charged = 100_000 - answer.limit().expect("a limit").remaining as usize;
    assert!(charged >= received, "{received} were admitted, but only {charged} are in the last save");
}
