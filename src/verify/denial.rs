//! What forbids a use of a key, its limits apart.

use keyward_protocol::{ScopeMode, Verdict, Verify};

use crate::record::Status;
use crate::snapshot::{Key, Policy};

/// In SPEC.md's order; `None`: nothing does.
#[inline]
pub(super) fn denial(request: &Verify<'_>, key: Key<'_>, unix: u32) -> Option<Verdict> {
    match key.status() {
        Status::Revoked => return Some(Verdict::Revoked),
        Status::Disabled => return Some(Verdict::Disabled),
        Status::Active => {}
    }
    if unix < key.not_before() {
        return Some(Verdict::NotYetValid);
    }
    if unix >= key.expires_at() {
        return Some(Verdict::Expired);
    }
    let policy = key.policy();
    // Most keys may be used from anywhere, and most requests ask for nothing in particular.
    if request.environment.is_none() && request.scopes.is_none() && policy.is_for_everyone() {
        return None;
    }
    denial_by_policy(request, policy)
}

fn denial_by_policy(request: &Verify<'_>, policy: &Policy) -> Option<Verdict> {
    if !in_environment(request, policy) {
        return Some(Verdict::WrongEnvironment);
    }
    if !policy.allows_ip(request.ip) {
        return Some(Verdict::IpNotAllowed);
    }
    if !policy.allows_origin(request.origin) {
        return Some(Verdict::OriginNotAllowed);
    }
    if !has_scopes(request, policy) {
        return Some(Verdict::MissingScope);
    }
    None
}

/// A caller that names no environment does not ask; one that names an empty one is in none that a key could be in.
fn in_environment(request: &Verify<'_>, policy: &Policy) -> bool {
    request.environment.is_none_or(|asked| !asked.is_empty() && asked == policy.environment())
}

fn has_scopes(request: &Verify<'_>, policy: &Policy) -> bool {
    request.scopes.is_none_or(|required| {
        let mut names = required.names.split(' ');
        match required.mode {
            ScopeMode::All => names.all(|name| policy.has_scope(name)),
            ScopeMode::Any => names.any(|name| policy.has_scope(name)),
        }
    })
}
