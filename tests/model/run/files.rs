//! Steps with files: the last good keys are stored, and calls are planned to fail.

use std::io;

use super::Run;

impl Run<'_> {
    /// Lets the writer of the last good keys do its work.
    pub(super) fn store(&mut self) -> Result<(), String> {
        self.note("the keys in force are stored");
        self.disk.take_replaced();
        let failed = self.disk.failed();
        self.disk.release_writer(true);
        if let Some(process) = &self.process {
            process.wait_stored();
        }
        self.disk.release_writer(false);
        let is_stored = self.disk.take_replaced().iter().any(|name| name == "last_good.json");
        if self.disk.is_crashed() || self.disk.failed() > failed {
            self.reference.may_have_stored();
        } else if !self.reference.unstored.is_empty() {
            if !is_stored {
                return Err("the last good keys are not stored".to_owned());
            }
            self.reference.store();
            self.counts.writes_of_last_good_keys += 1;
        }
        Ok(())
    }

    pub(super) fn plan_failure(&mut self) {
        let calls = self.random.below(12);
        let error = *self.random.of(&[
            io::ErrorKind::Other,
            io::ErrorKind::StorageFull,
            io::ErrorKind::ReadOnlyFilesystem,
        ]);
        self.note(format!("call {calls} from now fails: {error:?}"));
        self.disk.fail_in(calls, error);
    }

    pub(super) fn plan_crash(&mut self) {
        let calls = self.random.below(12);
        self.note(format!("a crash is planned after {calls} calls"));
        self.disk.plan_crash(calls);
    }
}
