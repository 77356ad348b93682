//! Steps that revoke and unrevoke.

use std::collections::BTreeSet;

use keyward_admin::message;
use keyward_admin::message::{Command, Reply};

use super::Run;
use crate::reference::Target;

impl Run<'_> {
    fn random_target(&mut self) -> Target {
        let random = &mut self.random;
        if random.one_in(12) {
            Target::Key("unknown".to_owned())
        } else if random.one_in(4) {
            Target::Owner(random.of(&self.universe.owners).clone())
        } else {
            Target::Key(random.of(&self.universe.keys).id.clone())
        }
    }

    pub(super) fn revoke(&mut self) -> Result<(), String> {
        let target = self.random_target();
        self.note(format!("revoke {target:?}"));
        let is_known = self.reference.revoked.contains(&target);
        let is_absent =
            self.reference.served.is_some() && self.reference.rows_of(&self.universe, &target).0 == 0;
        if !is_known {
            self.reference.uncertain.insert(target.clone());
        }
        let Some(reply) = self.command(Command::Revoke(to_message(&target)))? else { return Ok(()) };
        match reply {
            Err(_) if is_absent && !is_known => {
                self.reference.uncertain.remove(&target);
                Ok(())
            }
            Err(refused) => Err(format!("refused: {refused}")),
            Ok(_) if is_absent && !is_known => Err("a target without rows was revoked".to_owned()),
            Ok(reply) => {
                self.reference.revoked.insert(target.clone());
                self.edited(&target, is_known, &reply)
            }
        }
    }

    pub(super) fn unrevoke(&mut self) -> Result<(), String> {
        let known: Vec<_> = self.reference.revoked.iter().cloned().collect();
        let target = if known.is_empty() || self.random.one_in(5) {
            self.random_target()
        } else {
            self.random.of(&known).clone()
        };
        self.note(format!("unrevoke {target:?}"));
        let is_known = self.reference.revoked.contains(&target);
        if is_known {
            self.reference.uncertain.insert(target.clone());
        }
        let Some(reply) = self.command(Command::Unrevoke(to_message(&target)))? else { return Ok(()) };
        match reply {
            Err(_) if !is_known => Ok(()),
            Err(refused) => Err(format!("refused: {refused}")),
            Ok(_) if !is_known => Err("a target that is not revoked was unrevoked".to_owned()),
            Ok(reply) => {
                self.reference.revoked.remove(&target);
                self.edited(&target, false, &reply)
            }
        }
    }

    /// Checks the reply to a change of the list.
    pub(super) fn edited(&mut self, target: &Target, is_known: bool, reply: &Reply) -> Result<(), String> {
        let found = reply.revocation.as_ref().ok_or("no report")?;
        let expected = self.reference.rows_of(&self.universe, target);
        // A repeated revocation writes nothing. The first one may not be written yet.
        let may_be_unwritten = self.has_failed() || (is_known && self.reference.uncertain.contains(target));
        if (found.keys, found.revoked) != expected {
            return Err(format!("{expected:?} rows are revoked, and not {found:?}"));
        }
        // A change of a target with rows moves the generation.
        if !is_known && expected.0 > 0 {
            self.reference.move_generation();
        }
        if found.generation != self.reference.generation() || found.already != is_known {
            return Err(format!("not what was expected: {found:?}"));
        }
        if found.durable && is_known {
            self.reference.uncertain.remove(target);
        } else if found.durable {
            // Lines are written in order.
            self.reference.uncertain.clear();
        } else if !may_be_unwritten {
            return Err(format!("not durable: {:?}", found.not_durable));
        }
        self.counts.edits_of_revocations += 1;
        Ok(())
    }

    /// The list of revocations as the daemon shows it: all entries, and those that are durable.
    pub(super) fn list(&mut self) -> Result<Option<[BTreeSet<Target>; 2]>, String> {
        let Some(reply) = self.command(Command::Revocations { after: None })? else { return Ok(None) };
        let page = reply?.revocations.ok_or("no list")?;
        let target = |entry: &message::Revoked| match &entry.target {
            message::Target { key_id: Some(id), .. } => Target::Key(id.clone()),
            message::Target { owner, .. } => Target::Owner(owner.clone().unwrap_or_default()),
        };
        let all = page.entries.iter().map(target).collect();
        let durable = page.entries.iter().filter(|entry| entry.durable).map(target).collect();
        Ok(Some([all, durable]))
    }
}

pub(super) fn to_message(target: &Target) -> message::Target {
    match target {
        Target::Key(id) => message::Target { key_id: Some(id.clone()), owner: None },
        Target::Owner(owner) => message::Target { key_id: None, owner: Some(owner.clone()) },
    }
}
