//! A connection of the blocking client.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{sleep_before, time_left};
use crate::Options;
use crate::busy_poll::BusyPoll;
use crate::credential_mode::CredentialMode;
use crate::error::{Error, ProtocolViolationError};
use crate::failure::{CONNECTION_ENDED, CloseReason, Failure};
use crate::receive_buffer::ReceiveBuffer;
use crate::retry::{STALL_TIMEOUT, connect_retry_delay};
use crate::send_buffer::SendBuffer;
use crate::sequence::FIRST_SEQUENCE;
use crate::session::{Session, hello_frame};
use crate::socket::{CHECK_AFTER, MIN_TIMEOUT, ReadState, connect_with_timeout, peek};

/// How much longer than requested a read may block, so that the timeout of the socket does not have
/// to be set for each request. The clock of the kernel has no finer resolution.
const TIMEOUT_SLACK: Duration = Duration::from_millis(4);

pub(super) struct Connection {
    stream: UnixStream,
    session: Session,
    pub(super) credential_mode: CredentialMode,
    pub(super) send_buffer: SendBuffer,
    pub(super) receive_buffer: ReceiveBuffer,
    /// Sequence number of the next request.
    pub(super) next_request: u64,
    /// Sequence number of the request whose response is due.
    pub(super) next_response: u64,
    /// Since when a response has been due to a request whose deadline has passed.
    pub(super) overdue_since: Option<Instant>,
    /// When something was last sent to the daemon.
    last_sent: Instant,
    /// The current read timeout of the socket.
    read_timeout: Duration,
    busy_poll: BusyPoll,
}

/// Why an exchange stopped before all requests were answered.
pub(super) enum ExchangeError {
    /// The deadline has passed; the connection remains usable.
    DeadlinePassed,
    /// The connection ended.
    Closed(CloseReason),
}

impl From<CloseReason> for ExchangeError {
    fn from(reason: CloseReason) -> Self {
        Self::Closed(reason)
    }
}

impl From<ProtocolViolationError> for ExchangeError {
    fn from(error: ProtocolViolationError) -> Self {
        Self::Closed(CloseReason::Violation(error))
    }
}

impl ExchangeError {
    /// The failure of a request that has no answer; `written` tells whether any part of it had been
    /// written.
    pub(super) fn failure(&self, written: bool) -> Failure {
        match self {
            Self::DeadlinePassed => Failure::DeadlinePassed { written },
            Self::Closed(reason) => reason.failure(written),
        }
    }
}

impl Connection {
    /// Connects and exchanges HELLO and WELCOME.
    pub(super) fn open(options: &Options, deadline: Instant) -> Result<Self, Failure> {
        let stream = connect(&options.socket, deadline)?;
        let mut receive_buffer = ReceiveBuffer::new();
        // If the daemon has refused the connection, the write fails, but the ERROR with the reason
        // can still be read.
        let _ = send(&stream, &hello_frame(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        let session = loop {
            let response = receive_buffer.next_response();
            if let Some(response) = response.map_err(|error| Failure::Final(Error::Protocol(error)))? {
                break Session::from_response(&response)?;
            }
            let left = time_left(deadline).ok_or(Failure::DeadlinePassed { written: false })?;
            set_read_timeout(&stream, left);
            match (&stream).read(receive_buffer.free_space()) {
                Ok(0) => return Err(CONNECTION_ENDED),
                Ok(count) => receive_buffer.advance(count),
                Err(error) if is_temporary(&error) => {}
                Err(_) => return Err(CONNECTION_ENDED),
            }
        };
        Ok(Self {
            stream,
            session,
            credential_mode: CredentialMode::new(session.credentials),
            send_buffer: SendBuffer::new(session),
            receive_buffer,
            next_request: FIRST_SEQUENCE,
            next_response: FIRST_SEQUENCE,
            overdue_since: None,
            last_sent: Instant::now(),
            read_timeout: Duration::ZERO,
            busy_poll: BusyPoll::new(options.busy_poll),
        })
    }

    /// Whether requests can be written: the daemon has not closed the connection, is not about to
    /// do so because of its idle timeout (SPEC.md section 9), and has no response overdue for too
    /// long.
    pub(super) fn is_usable(&self) -> bool {
        let silence = self.last_sent.elapsed();
        if self.session.max_silence.is_some_and(|max| silence > max)
            || self.overdue_since.is_some_and(|since| since.elapsed() > STALL_TIMEOUT)
        {
            return false;
        }
        // Without a response that is due, the only thing that the daemon can send is a closing
        // ERROR.
        silence < CHECK_AFTER
            || match peek(&self.stream) {
                ReadState::Empty => true,
                ReadState::Readable => self.overdue_since.is_some(),
                ReadState::Closed => false,
            }
    }

    /// Writes as much as the socket accepts. Returns whether the socket is full.
    /// `expects_responses` tells whether a request that has been written is waiting for its
    /// response.
    pub(super) fn write(&mut self, expects_responses: impl Fn(&Self) -> bool) -> Result<bool, ExchangeError> {
        while !self.send_buffer.unsent().is_empty() {
            match send(&self.stream, self.send_buffer.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.send_buffer.advance(count);
                    self.last_sent = Instant::now();
                }
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                // Responses to earlier requests may still be readable.
                Err(_) if expects_responses(self) => return Ok(false),
                Err(_) => return Err(CloseReason::Lost.into()),
            }
        }
        Ok(false)
    }

    /// Waits until the socket is writable or readable.
    pub(super) fn wait(&self, deadline: Instant) -> Result<(), ExchangeError> {
        let left = time_left(deadline).ok_or(ExchangeError::DeadlinePassed)?;
        let left = Timespec::try_from(left).map_err(|_| ExchangeError::DeadlinePassed)?;
        let mut socket = [PollFd::new(&self.stream, PollFlags::IN | PollFlags::OUT)];
        match poll(&mut socket, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(_) => Err(CloseReason::Lost.into()),
        }
    }

    /// Reads what has arrived. Blocks until something arrives, unless the socket is full and there
    /// is more to write.
    pub(super) fn read(&mut self, socket_full: bool, deadline: Instant) -> Result<(), ExchangeError> {
        let read = if socket_full {
            recv(&self.stream, self.receive_buffer.free_space(), RecvFlags::DONTWAIT)
                .map(|(count, _)| count)
                .map_err(io::Error::from)
        } else if let Some(read) = self.busy_poll.try_recv(&self.stream, self.receive_buffer.free_space()) {
            read
        } else {
            self.update_read_timeout(deadline)?;
            (&self.stream).read(self.receive_buffer.free_space())
        };
        match read {
            Ok(0) => Err(CloseReason::Lost.into()),
            Ok(count) => {
                self.busy_poll.record_answer();
                self.receive_buffer.advance(count);
                Ok(())
            }
            Err(error) if is_temporary(&error) => {
                if time_left(deadline).is_none() {
                    Err(ExchangeError::DeadlinePassed)
                } else {
                    Ok(())
                }
            }
            Err(_) => Err(CloseReason::Lost.into()),
        }
    }

    /// Sets the read timeout of the socket, unless the current one is close enough.
    fn update_read_timeout(&mut self, deadline: Instant) -> Result<(), ExchangeError> {
        let left = time_left(deadline).ok_or(ExchangeError::DeadlinePassed)?;
        if self.read_timeout < left || self.read_timeout > left + TIMEOUT_SLACK {
            // A little longer than necessary, so that it is still close enough for the next
            // request.
            self.read_timeout = left + TIMEOUT_SLACK / 2;
            set_read_timeout(&self.stream, self.read_timeout);
        }
        Ok(())
    }
}

/// Connects, with retries if these can help.
fn connect(socket: &Path, deadline: Instant) -> Result<UnixStream, Failure> {
    let mut calls = 0;
    loop {
        let left = time_left(deadline).ok_or(Failure::DeadlinePassed { written: false })?;
        let error = match connect_with_timeout(socket, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        calls += 1;
        match connect_retry_delay(calls, &error) {
            Some(delay) if sleep_before(delay, deadline) => {}
            Some(_) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Failure::DeadlinePassed { written: false });
            }
            _ => {
                let connect = Error::Connect { path: socket.to_owned(), source: Arc::new(error) };
                return Err(Failure::Final(connect));
            }
        }
    }
}

fn set_read_timeout(stream: &UnixStream, timeout: Duration) {
    // Cannot fail: the socket is valid, and the timeout is not zero.
    let _ = stream.set_read_timeout(Some(timeout.max(MIN_TIMEOUT)));
}

/// Whether a read can be repeated if there is time.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
