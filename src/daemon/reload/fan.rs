//! Work for several threads whose results are wanted in the order of the work.
//!
//! The threads are given pieces in turn, and their results are taken in the same turn: that is all the order there is, and what is
//! under way is bounded.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Pieces that each thread has beside the one that it works on: so that it need not wait for the next.
const AHEAD: usize = 2;

/// Most threads for one reading: the one that inserts keeps no more than a few busy.
const MAX_THREADS: usize = 6;

fn no_thread(error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!(
            "cannot start a thread to read it: {error}; TasksMax= and LimitNPROC= limit how many there can be"
        ),
    )
}

/// How many threads a reading may have on this machine.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// Has each of `workers`, on a thread of its own, turn pieces that `next` yields into results, and hands these to `merge` in the
/// order of the pieces. `next` has a thread of its own too, so that the calling one has nothing to do but to merge.
///
/// # Errors
/// The first of `merge`, after which it is not called again; or that of `next`; or that a thread cannot be started.
pub(super) fn in_order<P, R, E, W>(
    workers: impl IntoIterator<Item = W>,
    mut next: impl FnMut() -> Result<Option<P>, E> + Send,
    mut merge: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E>
where
    P: Send,
    R: Send,
    E: From<io::Error> + Send,
    W: FnMut(P) -> R + Send,
{
    thread::scope(|scope| {
        let lane = |work: W| -> io::Result<(SyncSender<P>, Receiver<R>)> {
            let (give, given) = sync_channel(AHEAD);
            let (done, results) = sync_channel(AHEAD);
            let run = move || _ = given.into_iter().map(work).try_for_each(|result| done.send(result));
            thread::Builder::new().name("load".into()).spawn_scoped(scope, run).map_err(no_thread)?;
            Ok((give, results))
        };
        let lanes = workers.into_iter().map(lane).collect::<io::Result<Vec<_>>>()?;
        let (gives, results): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        let feed = move || {
            for lane in gives.iter().cycle() {
                // A lane that takes no more is one whose results nobody wants any more.
                if next()?.is_none_or(|piece| lane.send(piece).is_err()) {
                    break;
                }
            }
            Ok(())
        };
        let feeder =
            thread::Builder::new().name("load".into()).spawn_scoped(scope, feed).map_err(no_thread)?;
        // A lane that has no more is the first in turn that was given no more: those before it have been emptied.
        results.iter().cycle().map_while(|lane| lane.recv().ok()).try_for_each(&mut merge)?;
        feeder.join().unwrap_or_else(|_| Err(io::Error::other("a thread that reads has ended").into()))
    })
}

/// Does two things at the same time.
///
/// # Errors
/// When a thread cannot be started.
pub(super) fn both<A: Send, B>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B,
) -> Result<(A, B), io::Error> {
    thread::scope(|scope| {
        let a = thread::Builder::new().name("load".into()).spawn_scoped(scope, a).map_err(no_thread)?;
        let b = b();
        let a = a.join().map_err(|_| io::Error::other("a thread that indexes has ended"))?;
        Ok((a, b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum Stop {
        Io(#[expect(dead_code, reason = "to be shown")] io::Error),
        Here(usize),
    }

    impl From<io::Error> for Stop {
        fn from(error: io::Error) -> Self {
            Self::Io(error)
        }
    }

    fn square(number: usize) -> usize {
        // The first of each round is the slowest.
        if number.is_multiple_of(3) {
            thread::yield_now();
        }
        number * number
    }

    #[test]
    fn results_come_in_the_order_of_the_work() {
        for threads in 1..5 {
            let (mut numbers, mut results) = (0..100, Vec::new());
            let merge = |result| {
                results.push(result);
                Ok::<_, Stop>(())
            };
            in_order((0..threads).map(|_| square), || Ok(numbers.next()), merge).expect("no errors");
            assert!(results.iter().copied().eq((0..100).map(|number| number * number)), "{threads}");
        }
    }

    #[test]
    fn an_error_on_either_side_ends_it() {
        let next_fails = |at: usize| {
            let mut numbers = 0..;
            move || numbers.next().filter(|number| *number < at).map(Some).ok_or(Stop::Here(at))
        };
        let result = in_order([square; 3], next_fails(20), |_| Ok(()));
        assert!(matches!(result, Err(Stop::Here(20))));
        let merge = |result| if result < 400 { Ok(()) } else { Err(Stop::Here(result)) };
        let result = in_order([square; 2], next_fails(1000), merge);
        assert!(matches!(result, Err(Stop::Here(400))));
        let nothing = in_order([square; 2], || Ok(None), |_| Err(Stop::Here(0)));
        assert!(nothing.is_ok());
    }

    #[test]
    fn two_things_are_done() {
        let mut done = 0;
        assert_eq!(both(|| 1, || done += 1).expect("a thread"), (1, ()));
        assert_eq!(done, 1);
    }
}
