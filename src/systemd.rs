//! What systemd is told, and the sockets it may have opened. Outside systemd all of it does nothing.

use std::os::unix::net::UnixListener;

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

/// What `systemctl status` shows.
pub fn status(text: &str) {
    // A status is one line.
    let line: String = text.lines().next().unwrap_or_default().chars().take(MAX_STATUS).collect();
    tell(&[NotifyState::Status(&line)]);
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
