//! Steps with the source: it is replaced and reloaded.

use std::fs;
use std::rc::Rc;

use keyward_admin::message::Command;

use super::Run;
use crate::keys::{ANCHOR, Content, Source};
use crate::reference::{Guard, Start};

impl Run<'_> {
    pub(super) fn write_rows(&mut self, is_first: bool) {
        let unix = self.now().unix as u32;
        let before = match &self.source.content {
            Content::Rows(rows) if !rows.rows.is_empty() => Some(Rc::clone(rows)),
            _ => self.reference.served.as_ref().map(|served| Rc::clone(&served.rows)),
        };
        let before = before.filter(|_| !is_first);
        let has_bad = self.sets_aside && !is_first && self.random.one_in(3);
        let mut rows =
            self.universe.rows(&mut self.random, before.as_deref(), self.next_version, unix, has_bad);
        if !is_first {
            match self.random.below(12) {
                0 => rows.rows.clear(),
                1 => rows.has_limits = false,
                2 => rows.rows.retain(|row| row.key == ANCHOR),
                _ => {}
            }
        }
        self.note(format!("export {}: {} rows, limits: {}", rows.marker, rows.rows.len(), rows.has_limits));
        let text = self.universe.csv(&rows);
        self.replace_source(Some(text), Content::Rows(Rc::new(rows)));
    }

    pub(super) fn write_source(&mut self) {
        if !self.random.one_in(4) {
            return self.write_rows(false);
        }
        if self.random.one_in(4) {
            self.note("the source is removed");
            return self.replace_source(None, Content::Missing);
        }
        let unix = self.now().unix as u32;
        let rows = self.universe.rows(&mut self.random, None, self.next_version, unix, false);
        let text = self.universe.csv(&rows);
        let last = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
        let (kind, text) = match self.random.below(4) {
            0 => ("cut off", text[..last + 30].to_owned()),
            1 if !self.sets_aside => ("with a bad row", format!("{text}not a hash,x,y,active,,,\n")),
            2 if !self.sets_aside => ("with a repeated hash", format!("{text}{}", &text[last..])),
            _ => ("empty", String::new()),
        };
        self.note(format!("an export {kind}"));
        self.replace_source(Some(text), Content::Bad);
    }

    fn replace_source(&mut self, text: Option<String>, content: Content) {
        let path = self.fixture.root.join("keys.csv");
        match text {
            Some(text) => {
                let new = self.fixture.root.join("keys.new");
                fs::write(&new, text).expect("writes");
                fs::rename(new, path).expect("renames");
            }
            None => _ = fs::remove_file(path),
        }
        let version = if matches!(content, Content::Missing) { 0 } else { self.next_version };
        self.source = Source { version, content };
        self.next_version += 1;
        self.counts.exports += 1;
    }

    /// Whether a reload now would be accepted.
    pub(super) fn guard(&self) -> Guard {
        let Content::Rows(rows) = &self.source.content else { return Guard::Refuses };
        let unix = self.now().unix;
        let Some(served) = &self.reference.served else {
            let starts = self.reference.on_disk.iter();
            let starts: Vec<_> = starts
                .flat_map(|on_disk| self.reference.start_outcomes(&self.source, on_disk, unix))
                .collect();
            return match starts.iter().filter(|start| matches!(start, Start::Source)).count() {
                0 => Guard::Refuses,
                count if count == starts.len() => Guard::Accepts,
                _ => Guard::Either,
            };
        };
        self.reference.guard_by_served(&self.universe, served, rows, unix)
    }

    pub(super) fn reload(&mut self, force: bool) -> Result<(), String> {
        self.note(if force { "reload --force" } else { "reload" });
        let mut guard = self.guard();
        if force && matches!(self.source.content, Content::Rows(_)) {
            guard = Guard::Accepts;
        }
        let Some(reply) = self.command(Command::Reload { force })? else {
            if guard != Guard::Refuses {
                self.reference.may_have_accepted(&self.source);
            }
            return Ok(());
        };
        let reload = reply.map_err(|refused| format!("reload: {refused}"))?.reload.ok_or("no report")?;
        self.reloaded(guard, reload.accepted, reload.generation)
            .map_err(|problem| format!("{problem}: {:?}", reload.error))?;
        let keys = self.reference.served.as_ref().map_or(0, |served| served.rows.rows.len());
        if reload.keys != keys {
            return Err(format!("{} keys are in force, and not {keys}", reload.keys));
        }
        Ok(())
    }

    /// A reload has ended, and `generation` is in force.
    pub(super) fn reloaded(
        &mut self,
        guard: Guard,
        is_accepted: bool,
        generation: u64,
    ) -> Result<(), String> {
        self.reference.last_read = self.source.version;
        let last = self.reference.last_generation;
        match (guard, is_accepted) {
            (Guard::Accepts, false) => Err("the source is refused".to_owned()),
            (Guard::Refuses, true) => Err("the source is accepted".to_owned()),
            (_, false) if generation != self.reference.generation() => {
                Err(format!("a refused reload has put generation {generation} in force"))
            }
            (_, false) => {
                self.counts.refused_reloads += 1;
                Ok(())
            }
            (_, true)
                if generation <= last
                    || (self.has_loaded && generation != last + 1 && !self.has_failed()) =>
            {
                Err(format!("generation {generation} follows {last}"))
            }
            (_, true) => {
                self.has_loaded = true;
                self.reference.accept(&self.source, generation, self.has_failed());
                self.counts.accepted_reloads += 1;
                Ok(())
            }
        }
    }
}
