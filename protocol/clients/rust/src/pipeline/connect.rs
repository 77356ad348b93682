//! Connecting, in a task that all waiting callers share.
//!
//! It is a task so that it outlives the caller that happened to start it. If it succeeds, it
//! becomes the driver of the connection.

use std::path::Path;
use std::sync::{Arc, Weak};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::driver::Driver;
use super::{ClientInner, ConnectResult, Link};
use crate::error::Error;
use crate::failure::{CONNECTION_ENDED, Failure};
use crate::options::Options;
use crate::receive_buffer::ReceiveBuffer;
use crate::retry::{CONNECT_TIMEOUT, connect_retry_delay};
use crate::session::{Session, hello_frame};

/// Connects, publishes the result, and drives the connection until it ends.
pub(super) async fn run(client: Weak<ClientInner>, options: Options, sender: watch::Sender<ConnectResult>) {
    let result = match timeout(CONNECT_TIMEOUT.max(options.deadline), establish(&options)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::DeadlinePassed { written: false }),
    };
    // If all clients have been dropped, the connection is not needed.
    let Some(client) = client.upgrade() else { return };
    match result {
        Ok(driver) => {
            let connection = driver.connection();
            *client.link() = Link::Connected(Arc::clone(&connection));
            sender.send_replace(Some(Ok(connection)));
            drop((client, sender));
            driver.await;
        }
        Err(failure) => {
            *client.link() = Link::Disconnected;
            sender.send_replace(Some(Err(failure)));
        }
    }
}

async fn establish(options: &Options) -> Result<Driver, Failure> {
    let mut stream = connect(&options.socket).await.map_err(Failure::Final)?;
    let mut receive_buffer = ReceiveBuffer::new();
    let session = exchange_hello(&mut stream, &mut receive_buffer).await?;
    Ok(Driver::new(stream, receive_buffer, session, options, &Handle::current()))
}

/// Connects, with retries if these can help.
async fn connect(socket: &Path) -> Result<UnixStream, Error> {
    let mut calls = 0;
    loop {
        let error = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        calls += 1;
        match connect_retry_delay(calls, &error) {
            Some(delay) => sleep(delay).await,
            None => return Err(Error::Connect { path: socket.to_owned(), source: Arc::new(error) }),
        }
    }
}

/// Sends HELLO and waits for WELCOME, because the client must know how the daemon accepts keys
/// before the first request.
async fn exchange_hello(
    stream: &mut UnixStream,
    receive_buffer: &mut ReceiveBuffer,
) -> Result<Session, Failure> {
    // If the daemon has refused the connection, the write fails, but the ERROR with the reason can
    // still be read.
    let _ = stream.write_all(&hello_frame()).await;
    loop {
        let response = receive_buffer.next_response();
        if let Some(response) = response.map_err(|error| Failure::Final(Error::Protocol(error)))? {
            return Session::from_response(&response);
        }
        match stream.read(receive_buffer.free_space()).await {
            Ok(count) if count > 0 => receive_buffer.advance(count),
            _ => return Err(CONNECTION_ENDED),
        }
    }
}
