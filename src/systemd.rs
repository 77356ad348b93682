//! What systemd is told, and the sockets it may have opened. Outside systemd all of it does nothing.

use std::os::unix::net::UnixListener;
use std::sync::{Mutex, PoisonError};

use sd_notify::NotifyState;
use tracing::warn;

/// Longest status line: systemd's datagram is one page, and nobody reads more.
const MAX_STATUS: usize = 512;

/// The daemon answers requests, from the start or again after a reload.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins; [`ready`] ends it. `Type=notify-reload` wants the time of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(time) => tell(&[NotifyState::Reloading, time]),
        Err(error) => warn!(%error, "cannot read the monotonic clock"),
    }
}

/// The status line's parts. They are set by different threads, and systemd shows the latest line only.
static STATUS: Mutex<StatusLine> = Mutex::new(StatusLine { text: String::new(), unwritten: String::new() });

struct StatusLine {
    text: String,
    unwritten: String,
}

/// What `systemctl status` shows.
pub fn status(text: &str) {
    set(|status| text.lines().next().unwrap_or_default().clone_into(&mut status.text));
}

/// What it shows before that: the names of the files that are not being written, if there are any.
pub fn unwritten(files: &str) {
    set(|status| files.clone_into(&mut status.unwritten));
}

fn set(change: impl FnOnce(&mut StatusLine)) {
    let mut status = STATUS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = status.line();
    change(&mut status);
    let line = status.line();
    // Under the lock, so that the latest state is told last.
    if line != before {
        tell(&[NotifyState::Status(&line)]);
    }
}

impl StatusLine {
    /// A status is one line, and what is shown first is cut off last.
    fn line(&self) -> String {
        let unwritten = match self.unwritten.as_str() {
            "" => String::new(),
            files => format!("NOT WRITTEN: {files}; "),
        };
        unwritten.chars().chain(self.text.chars()).take(MAX_STATUS).collect()
    }
}

/// The daemon is draining.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot notify systemd");
    }
}

/// A socket that systemd passed.
pub struct Passed {
    /// `FileDescriptorName=` of its unit.
    pub name: String,
    /// The socket, listening.
    pub listener: UnixListener,
}

/// Takes the sockets that systemd passed, by name; none outside systemd. To be called once, at the start.
///
/// # Errors
/// When a descriptor is not a listening Unix socket in stream mode, or the environment is not as systemd writes it.
pub fn take_listeners() -> std::io::Result<Vec<Passed>> {
    let names: Vec<String> = sd_notify::listen_fds_with_names()?.map(|(_, name)| name).collect();
    let mut descriptors = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        if let Some(listener) = descriptors.take_unix_listener(index)? {
            listeners.push(Passed { name, listener });
        }
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_line_begins_with_what_is_not_written() {
        let mut status = StatusLine { text: "serving 3 keys".to_owned(), unwritten: String::new() };
        assert_eq!(status.line(), "serving 3 keys");
        "balances, usage.jsonl".clone_into(&mut status.unwritten);
        assert_eq!(status.line(), "NOT WRITTEN: balances, usage.jsonl; serving 3 keys");
        status.text = "x".repeat(2 * MAX_STATUS);
        assert_eq!(status.line().chars().count(), MAX_STATUS);
    }
}
