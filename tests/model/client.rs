//! A client of the verify socket: sends requests, and checks that each gets one response, in order.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use keyward_protocol::{
    Answer, CostsBuf, Credential, Debit, Hello, MAX_ANSWER_LENGTH, ParsedFrame, Refund, Response, VERSION,
    Verify, parse_frame,
};

use crate::keys::Universe;
use crate::reference::{Kind, Request};
use crate::wait::{HANG, wait_until};

pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    next_id: u32,
    /// The id of the next response.
    next_response: u32,
}

impl Client {
    pub fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("cannot connect: {error}"))?;
        stream.set_read_timeout(Some(HANG)).expect("a timeout");
        stream.set_write_timeout(Some(HANG)).expect("a timeout");
        Ok(Self { stream, received: Vec::new(), next_id: 1, next_response: 1 })
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id - 1
    }

    pub fn hello(&mut self) -> Vec<u8> {
        let mut frame = Vec::new();
        let request_id = self.id();
        Hello { request_id, min_version: VERSION, max_version: VERSION }.encode(&mut frame);
        frame
    }

    /// The frame of a request.
    pub fn encode(&mut self, universe: &Universe, request: &Request) -> Vec<u8> {
        let key = request.key.map(|key| &universe.keys[key]);
        let credential = match key {
            Some(key) if request.is_raw => Credential::RawKey(&key.raw),
            Some(key) => Credential::Digest(key.digest),
            None => Credential::Digest([7; 32]),
        };
        let (request_id, cost) = (self.id(), request.cost);
        let mut frame = Vec::new();
        let mut costs = CostsBuf::new();
        request.cost_of.into_iter().for_each(|(name, cost)| costs.push(name, cost).expect("a valid cost"));
        let costs = costs.as_costs();
        match request.kind {
            Kind::Verify => Verify { cost, costs, ..Verify::new(request_id, credential) }.encode(&mut frame),
            Kind::Refund => Refund { costs, ..Refund::new(request_id, cost, credential) }.encode(&mut frame),
            Kind::Debit => Debit { costs, ..Debit::new(request_id, cost, credential) }.encode(&mut frame),
        }
        .expect("short fields");
        frame
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|error| format!("cannot send: {error}"))
    }

    /// Receives the next response, and passes it to `check`.
    pub fn receive<T>(&mut self, check: impl FnOnce(&Response<'_>) -> T) -> Result<T, String> {
        loop {
            match parse_frame(&self.received, MAX_ANSWER_LENGTH) {
                ParsedFrame::Complete { header, body, size } => {
                    let response = Response::decode(&header, body).map_err(|error| format!("{error:?}"))?;
                    if response.request_id() != self.next_response {
                        let expected = self.next_response;
                        return Err(format!("not the response to request {expected}: {response:?}"));
                    }
                    self.next_response += 1;
                    let checked = check(&response);
                    self.received.drain(..size);
                    return Ok(checked);
                }
                ParsedFrame::Invalid(error) => return Err(format!("not a response: {error:?}")),
                ParsedFrame::Incomplete => {}
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(format!("no response to request {}: closed", self.next_response)),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(format!("no response to request {}: HANGS", self.next_response));
                }
                Err(error) => return Err(format!("no response to request {}: {error}", self.next_response)),
            }
        }
    }

    /// Receives the next response, which must be an answer.
    pub fn receive_answer<T>(&mut self, check: impl FnOnce(&Answer<'_>) -> T) -> Result<T, String> {
        self.receive(|response| match response {
            Response::Answer(answer) => Ok(check(answer)),
            other => Err(format!("not an answer: {other:?}")),
        })?
    }

    /// Receives the response to HELLO: the generation in it.
    pub fn receive_welcome(&mut self) -> Result<u64, String> {
        self.receive(|response| match response {
            Response::Welcome(welcome) => Ok(welcome.generation),
            other => Err(format!("not a WELCOME: {other:?}")),
        })?
    }

    /// Waits until something can be received.
    pub fn wait_received(&self) -> Result<(), String> {
        if !wait_until(|| rustix::io::ioctl_fionread(&self.stream).expect("a socket") > 0) {
            return Err("no response: HANGS".to_owned());
        }
        Ok(())
    }

    /// Whether more has been received than was requested.
    pub fn has_rest(&mut self) -> bool {
        let mut buffer = [0; 1];
        self.stream.set_nonblocking(true).expect("non-blocking");
        let is_empty =
            matches!(self.stream.read(&mut buffer), Err(error) if error.kind() == ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).expect("blocking");
        !is_empty || !self.received.is_empty()
    }
}
