//! Ordered parallel work: several threads process items, and results arrive in the order of the
//! items.
//!
//! Items go to the workers round-robin, and results are taken in the same order. Bounded channels
//! limit how much is in flight.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Items queued for each worker besides the one in progress, so that a worker need not wait for the
/// next.
const QUEUED_ITEMS: usize = 2;

/// Maximum number of workers for one load: the thread that inserts rows keeps no more than a few
/// busy.
const MAX_WORKERS: usize = 6;

/// Name of the threads that [`map_ordered`] and [`join`] start.
const THREAD_NAME: &str = "load-worker";

fn spawn_error(error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!(
            "cannot start a thread to read it: {error}; TasksMax= and LimitNPROC= limit how many there can be"
        ),
    )
}

/// How many workers a load may have on this machine.
pub(super) fn worker_count() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS)
}

/// Runs each of `workers` on a thread of its own. They map the items that `next` yields to results,
/// and `merge` receives the results in the order of the items. `next` also has a thread of its own,
/// so the calling thread only merges.
///
/// # Errors
/// The first error of `merge`, after which it is not called again; an error of `next`; or that a
/// thread cannot be started.
pub(super) fn map_ordered<P, R, E, W>(
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
        let spawn_worker = |work: W| -> io::Result<(SyncSender<P>, Receiver<R>)> {
            let (items, queued_items) = sync_channel(QUEUED_ITEMS);
            let (done, results) = sync_channel(QUEUED_ITEMS);
            let run = move || _ = queued_items.into_iter().map(work).try_for_each(|result| done.send(result));
            thread::Builder::new().name(THREAD_NAME.into()).spawn_scoped(scope, run).map_err(spawn_error)?;
            Ok((items, results))
        };
        let channels = workers.into_iter().map(spawn_worker).collect::<io::Result<Vec<_>>>()?;
        let (items, results): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        let feed = move || {
            for worker in items.iter().cycle() {
                // A send fails only after `merge` has failed and its receivers are gone.
                if next()?.is_none_or(|item| worker.send(item).is_err()) {
                    break;
                }
            }
            Ok(())
        };
        let feeder =
            thread::Builder::new().name(THREAD_NAME.into()).spawn_scoped(scope, feed).map_err(spawn_error)?;
        // The first worker without another result is the one that received no further item: the
        // results of all workers before it have been taken.
        results.iter().cycle().map_while(|worker| worker.recv().ok()).try_for_each(&mut merge)?;
        feeder.join().unwrap_or_else(|_| Err(io::Error::other("a thread that reads has ended").into()))
    })
}

/// Runs `a` on another thread and `b` on this one, at the same time.
///
/// # Errors
/// When a thread cannot be started.
pub(super) fn join<A: Send, B>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B,
) -> Result<(A, B), io::Error> {
    thread::scope(|scope| {
        let a =
            thread::Builder::new().name(THREAD_NAME.into()).spawn_scoped(scope, a).map_err(spawn_error)?;
        let b = b();
        let a = a.join().map_err(|_| io::Error::other("a thread that indexes has ended"))?;
        Ok((a, b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum TestError {
        Io(#[expect(dead_code, reason = "shown by Debug")] io::Error),
        Here(usize),
    }

    impl From<io::Error> for TestError {
        fn from(error: io::Error) -> Self {
            Self::Io(error)
        }
    }

    fn square(number: usize) -> usize {
        // The first item of each round is the slowest.
        if number.is_multiple_of(3) {
            thread::yield_now();
        }
        number * number
    }

    #[test]
    fn results_arrive_in_item_order() {
        for threads in 1..5 {
            let (mut numbers, mut results) = (0..100, Vec::new());
            let merge = |result| {
                results.push(result);
                Ok::<_, TestError>(())
            };
            map_ordered((0..threads).map(|_| square), || Ok(numbers.next()), merge).expect("no errors");
            assert!(results.iter().copied().eq((0..100).map(|number| number * number)), "{threads}");
        }
    }

    #[test]
    fn error_of_next_or_merge_ends_the_work() {
        let next_fails = |at: usize| {
            let mut numbers = 0..;
            move || numbers.next().filter(|number| *number < at).map(Some).ok_or(TestError::Here(at))
        };
        let result = map_ordered([square; 3], next_fails(20), |_| Ok(()));
        assert!(matches!(result, Err(TestError::Here(20))));
        let merge = |result| if result < 400 { Ok(()) } else { Err(TestError::Here(result)) };
        let result = map_ordered([square; 2], next_fails(1000), merge);
        assert!(matches!(result, Err(TestError::Here(400))));
        let nothing = map_ordered([square; 2], || Ok(None), |_| Err(TestError::Here(0)));
        assert!(nothing.is_ok());
    }

    #[test]
    fn join_runs_both_closures() {
        let mut done = 0;
        assert_eq!(join(|| 1, || done += 1).expect("a thread"), (1, ()));
        assert_eq!(done, 1);
    }
}
