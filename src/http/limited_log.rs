//! A line of the log about requests of one kind, which can be many.

use std::cell::Cell;

use keyward_service::log_limit::LogLimit;

/// A line that is logged about once a second, with the number of requests that it stands for.
#[derive(Default)]
pub(crate) struct LimitedLog {
    limit: LogLimit,
    count: Cell<u64>,
}

impl LimitedLog {
    /// Counts a request, and logs `line` unless there was one within the last second.
    pub(crate) fn log(&self, line: impl FnOnce(u64)) {
        self.count.set(self.count.get() + 1);
        if self.limit.may_log() {
            line(self.count.take());
        }
    }

    /// Logs `line` about the requests that no line stands for yet.
    pub(crate) fn flush(&self, line: impl FnOnce(u64)) {
        if self.count.get() > 0 {
            line(self.count.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_counted_in_one_line() {
        let log = LimitedLog::default();
        let lines = Cell::new((0, 0));
        let line = |requests| {
            let (count, total) = lines.get();
            lines.set((count + 1, total + requests));
        };
        (0..1000).for_each(|_| log.log(line));
        log.flush(line);
        log.flush(line);
        let (count, total) = lines.get();
        assert_eq!(total, 1000);
        assert!((2..100).contains(&count), "{count} lines");
    }
}
