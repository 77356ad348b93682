//! Evaluates the restrictions of a key, except its limits.
//!
//! A new restriction is checked here, at its place in the order of SPEC.md section 7. If it is
//! checked after the fast path of [`first_denial`], it must also be part of the fast path's
//! condition, or the fast path would allow requests that the restriction denies. "Adding a
//! restriction" in `.github/CONTRIBUTING.md` lists all other places.

use keyward_protocol::{ScopeMode, Verdict, Verify};

use crate::record::Status;
use crate::snapshot::{Access, Key, Overlay, Policy};

/// Returns the verdict of the first restriction that denies `request` at the Unix second `now`, in
/// the order of SPEC.md section 7; `None` if the key may be used in this way.
#[inline]
pub(super) fn first_denial(
    request: &Verify<'_>,
    key: Key<'_>,
    overlay: Option<&Overlay>,
    now: u32,
) -> Option<Verdict> {
    match overlay {
        None => first_denial_of(request, key, key.access(), now),
        Some(overlay) => first_denial_by_overlay(request, key, overlay, now),
    }
}

/// Apart from the common case, in which there is no overlay.
#[cold]
#[inline(never)]
fn first_denial_by_overlay(
    request: &Verify<'_>,
    key: Key<'_>,
    overlay: &Overlay,
    now: u32,
) -> Option<Verdict> {
    first_denial_of(request, key, overlay.access(key), now)
}

#[inline(always)]
fn first_denial_of(
    request: &Verify<'_>,
    key: Key<'_>,
    Access { status, expires_at }: Access,
    now: u32,
) -> Option<Verdict> {
    match status {
        Status::Revoked => return Some(Verdict::Revoked),
        Status::Disabled => return Some(Verdict::Disabled),
        Status::Active => {}
    }
    if now < key.not_before() {
        return Some(Verdict::NotYetValid);
    }
    if now >= expires_at {
        return Some(Verdict::Expired);
    }
    let policy = key.policy();
    // Fast path: most keys allow any network and origin, and most requests name no environment and
    // no scopes.
    if request.environment.is_none() && request.scopes.is_none() && policy.accepts_any_request_context() {
        return None;
    }
    first_denial_by_policy(request, policy)
}

fn first_denial_by_policy(request: &Verify<'_>, policy: Policy<'_>) -> Option<Verdict> {
    if !matches_environment(request, policy) {
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

/// A request that names no environment matches every key. A request that names an empty one matches
/// none, not even a key without an environment.
fn matches_environment(request: &Verify<'_>, policy: Policy<'_>) -> bool {
    request.environment.is_none_or(|name| !name.is_empty() && name == policy.environment())
}

fn has_scopes(request: &Verify<'_>, policy: Policy<'_>) -> bool {
    request.scopes.is_none_or(|required| {
        let mut names = required.names.split(' ');
        match required.mode {
            ScopeMode::All => names.all(|name| policy.has_scope(name)),
            ScopeMode::Any => names.any(|name| policy.has_scope(name)),
        }
    })
}
