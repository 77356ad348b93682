//! Busy polling: looking for an answer for a while before sleeping on it.
//!
//! Where the daemon has a processor of its own, to fall asleep and be woken takes several times as long as the answer. It ends
//! where it does not pay: where looking was in vain, or came too late because something else had the processor, the next
//! answers are slept on, twice as many each time; each answer that was found makes it an eighth fewer. So it goes on
//! where five of six are found, and costs next to nothing where the daemon shares the client's processor.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Looks between two at the clock: some three microseconds.
const LOOKS: u32 = 16;

/// Answers that are slept on before looking is tried again, at most.
const LONGEST_REST: u32 = 1023;

/// One answer, in [`Busy::caution`], whose eighths have to be told apart.
const ONE: u32 = 64;

/// Whether and how long to look.
pub(crate) struct Busy {
    limit: Duration,
    /// When looking for the answer that is due has begun.
    began: Option<Instant>,
    /// The answer that is due is slept on.
    sleeps: bool,
    /// Answers still to be slept on.
    rest: u32,
    /// How many they were the last time, in parts of [`ONE`], less what has been found since.
    caution: u32,
}

impl Busy {
    /// Looks for up to `limit`; zero is never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, began: None, sleeps: false, rest: 0, caution: 0 }
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Looks a few times: what has been read, or `WouldBlock`. `None`: it is time to sleep.
    pub(crate) fn look(&mut self, socket: impl AsFd, space: &mut [u8]) -> Option<io::Result<usize>> {
        if !self.goes_on() {
            return None;
        }
        for _ in 0..LOOKS {
            match recv(&socket, &mut *space, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                read => return Some(read.map(|(_, count)| count).map_err(Into::into)),
            }
        }
        Some(Err(io::ErrorKind::WouldBlock.into()))
    }

    /// An answer has come.
    pub(crate) fn answered(&mut self) {
        self.sleeps = false;
        match self.began.take() {
            Some(began) if began.elapsed() > self.limit => self.in_vain(),
            Some(_) => self.caution -= self.caution / 8,
            None => {}
        }
    }

    fn goes_on(&mut self) -> bool {
        if self.sleeps || !self.is_on() {
            return false;
        }
        match self.began {
            Some(began) if began.elapsed() > self.limit => {
                self.in_vain();
                self.began = None;
                self.sleeps = true;
            }
            Some(_) => {}
            None if self.rest > 0 => {
                self.rest -= 1;
                self.sleeps = true;
            }
            None => self.began = Some(Instant::now()),
        }
        !self.sleeps
    }

    fn in_vain(&mut self) {
        self.caution = (2 * self.caution + ONE).min(LONGEST_REST * ONE);
        self.rest = self.caution / ONE;
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Answers that are slept on from here.
    fn sleeps(busy: &mut Busy, socket: &UnixStream) -> u32 {
        for sleeps in 0..=LONGEST_REST {
            if busy.look(socket, &mut [0; 8]).is_some() {
                return sleeps;
            }
            busy.answered();
        }
        panic!("it never looks again");
    }

    #[test]
    fn it_looks_until_there_is_something() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut busy = Busy::new(Duration::from_secs(60));
        let nothing = busy.look(&ours, &mut [0; 8]).unwrap().unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(b"abc").unwrap();
        assert_eq!(busy.look(&ours, &mut [0; 8]).unwrap().unwrap(), 3);
        assert!(Busy::new(Duration::ZERO).look(&ours, &mut [0; 8]).is_none());
    }

    #[test]
    fn it_rests_longer_each_time_that_it_was_in_vain() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut busy = Busy::new(Duration::from_nanos(1));
        let mut slept = Vec::new();
        for _ in 0..5 {
            slept.push(sleeps(&mut busy, &ours));
            assert!((0..100).any(|_| busy.look(&ours, &mut [0; 8]).is_none()), "it looks for ever");
            busy.answered();
        }
        assert_eq!(slept, [0, 1, 3, 7, 15]);
    }

    #[test]
    fn it_rests_no_longer_than_is_sensible_and_forgets_in_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut busy = Busy::new(Duration::from_secs(60));
        (0..100).for_each(|_| busy.in_vain());
        assert_eq!(sleeps(&mut busy, &ours), LONGEST_REST);
        busy.answered();
        for _ in 0..100 {
            theirs.write_all(b"abc").unwrap();
            assert_eq!(busy.look(&ours, &mut [0; 8]).unwrap().unwrap(), 3);
            busy.answered();
        }
        busy.in_vain();
        assert_eq!(sleeps(&mut busy, &ours), 1);
    }

    #[test]
    fn an_answer_that_is_found_late_is_found_in_vain() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"abc").unwrap();
        let mut busy = Busy::new(Duration::from_nanos(1));
        assert_eq!(busy.look(&ours, &mut [0; 8]).unwrap().unwrap(), 3);
        busy.answered();
        assert_eq!(sleeps(&mut busy, &ours), 1);
    }
}
