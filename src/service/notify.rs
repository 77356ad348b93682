//! Notifications to systemd: readiness, reloads, shutdown and the status line. Outside of systemd
//! they do nothing.

use std::sync::{Mutex, PoisonError};

use sd_notify::NotifyState;
use tracing::warn;

use keyward_engine::record::Printable;

/// Maximum length of a status line in characters. systemd's datagram is one page.
const MAX_STATUS: usize = 512;

/// The parts of the status line. Different threads set them, and systemd shows only the latest
/// line.
static STATUS: Mutex<StatusLine> = Mutex::new(StatusLine { text: String::new(), unwritten: String::new() });

/// The service answers requests, after the start or again after a reload.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// A reload begins. [`ready`] ends it. `Type=notify-reload` requires its time.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(time) => notify(&[NotifyState::Reloading, time]),
        Err(error) => warn!(%error, "cannot read the monotonic clock"),
    }
}

/// The service is draining.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Sets the text that `systemctl status` shows.
pub fn status(text: &str) {
    let line = text.lines().next().unwrap_or_default();
    update_status(|status| status.text = Printable(line).to_string());
}

/// Sets the names of the files that cannot be written, which are shown before the text.
pub fn unwritten(files: &str) {
    update_status(|status| files.clone_into(&mut status.unwritten));
}

struct StatusLine {
    text: String,
    unwritten: String,
}

impl StatusLine {
    /// The line, cut to [`MAX_STATUS`].
    fn line(&self) -> String {
        let unwritten = match self.unwritten.as_str() {
            "" => String::new(),
            files => format!("NOT WRITTEN: {files}; "),
        };
        unwritten.chars().chain(self.text.chars()).take(MAX_STATUS).collect()
    }
}

fn update_status(update: impl FnOnce(&mut StatusLine)) {
    let mut status = STATUS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = status.line();
    update(&mut status);
    let line = status.line();
    // Sent under the lock, so that the latest state is sent last.
    if line != before {
        notify(&[NotifyState::Status(&line)]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_line_begins_with_the_unwritten_files() {
        let mut status = StatusLine { text: "serving 3 keys".to_owned(), unwritten: String::new() };
        assert_eq!(status.line(), "serving 3 keys");
        "balances, usage.jsonl".clone_into(&mut status.unwritten);
        assert_eq!(status.line(), "NOT WRITTEN: balances, usage.jsonl; serving 3 keys");
        status.text = "x".repeat(2 * MAX_STATUS);
        assert_eq!(status.line().chars().count(), MAX_STATUS);
    }
}
