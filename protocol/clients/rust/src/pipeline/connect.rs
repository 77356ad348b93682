//! One attempt to connect, shared by everyone who waits for it; the task that makes it becomes the connection's driver.
//!
//! It is a task, so that the attempt outlives the caller that happened to start it.

use std::path::Path;
use std::sync::{Arc, Weak};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::driver::Driver;
use super::{Attempt, Link, Shared};
use crate::error::{ENDED, Error, Failure};
use crate::options::Options;
use crate::retry::{CONNECT_LIMIT, knock_again};
use crate::wire::{self, Inbox, Session};

/// Connects, tells those who wait, and drives the connection until it ends.
pub(super) async fn run(shared: Weak<Shared>, options: Options, outcome: watch::Sender<Attempt>) {
    let attempt = match timeout(CONNECT_LIMIT.max(options.time()), establish(&options)).await {
        Ok(attempt) => attempt,
        Err(_) => Err(Failure::Late { written: false }),
    };
    // Where every client is gone by now, so is the reason to connect.
    let Some(owner) = shared.upgrade() else { return };
    match attempt {
        Ok(driver) => {
            let connection = driver.connection();
            *owner.link() = Link::Up(Arc::clone(&connection));
            outcome.send_replace(Some(Ok(connection)));
            drop((owner, outcome));
            driver.await;
        }
        Err(error) => {
            *owner.link() = Link::Down;
            outcome.send_replace(Some(Err(error)));
        }
    }
}

async fn establish(options: &Options) -> Result<Driver, Failure> {
    let mut stream = knock(options.socket()).await.map_err(Failure::Final)?;
    let mut inbox = Inbox::new();
    let session = greet(&mut stream, &mut inbox).await?;
    Ok(Driver::new(stream, inbox, session, options, &Handle::current()))
}

/// Connects, and again after a moment where that may help.
async fn knock(socket: &Path) -> Result<UnixStream, Error> {
    let mut knocks = 0;
    loop {
        let error = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        knocks += 1;
        match knock_again(knocks, &error) {
            Some(pause) => sleep(pause).await,
            None => return Err(Error::Connect { path: socket.to_owned(), source: Arc::new(error) }),
        }
    }
}

/// HELLO and WELCOME: how the daemon takes keys has to be known before the first request.
async fn greet(stream: &mut UnixStream, inbox: &mut Inbox) -> Result<Session, Failure> {
    // A daemon that turns us away has said why, and closed: the reason is there to be read although the write fails.
    let _ = stream.write_all(&wire::hello()).await;
    loop {
        if let Some(response) = inbox.response().map_err(Failure::Final)? {
            return wire::greeted(&response);
        }
        match stream.read(inbox.space()).await {
            Ok(count) if count > 0 => inbox.filled(count),
            _ => return Err(ENDED),
        }
    }
}
