//! Requests: the key, and what it has to be allowed to do. A refund is a request with another
//! operation.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use keyward_protocol::{Credential, Refund as RefundFrame, ScopeMode, Scopes, Verify};
use zeroize::Zeroize;

use crate::Refund;
use crate::error::Error;

/// The default cost of a request.
const DEFAULT_COST: u32 = 1;

/// Asks whether a key may do something now.
///
/// A request can be sent any number of times. It borrows its arguments if possible. If it owns the
/// key, it overwrites the key on drop, and `{:?}` does not print the key.
///
/// ```
/// use keyward_client::Request;
///
/// let header = String::from("acme_live_0123456789");
/// let request = Request::new(&header)
///     .scopes(["invoices:read"])
///     .ip("203.0.113.7".parse().unwrap())
///     .cost(5);
/// assert!(!format!("{request:?}").contains("acme"));
/// ```
#[derive(Clone)]
pub struct Request<'a> {
    key: Key<'a>,
    pub(crate) cost: u32,
    scopes: ScopeNames,
    mode: ScopeMode,
    ip: Option<IpAddr>,
    origin: Option<Cow<'a, str>>,
    environment: Option<Cow<'a, str>>,
    want_metadata: bool,
    prefers_raw: bool,
    operation: Operation<'a>,
}

/// What the daemon does with the key.
#[derive(Clone)]
pub(crate) enum Operation<'a> {
    Verify,
    Refund {
        /// Name of the only limit to give back to; `None` means every limit of the key.
        limit: Option<Cow<'a, str>>,
    },
}

/// The raw key. An owned key is wiped on drop, a borrowed one is not.
#[derive(Clone)]
struct Key<'a>(Cow<'a, [u8]>);

impl Drop for Key<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(bytes) = &mut self.0 {
            bytes.zeroize();
        }
    }
}

/// Required scopes.
#[derive(Clone)]
enum ScopeNames {
    None,
    /// Names separated by single spaces, as on the wire.
    Joined(String),
    /// An invalid name. The error is reported when the request is sent, so that the builder needs
    /// no `Result`.
    Invalid(String),
}

impl<'a> Request<'a> {
    /// A request about a borrowed key: a `&str`, `&String`, `&[u8]`, `&[u8; N]`...
    pub fn new<K: AsRef<[u8]> + ?Sized>(key: &'a K) -> Self {
        Self::with_key(Key(Cow::Borrowed(key.as_ref())))
    }

    /// A request that takes ownership of the key without copying it, and wipes it on drop.
    pub fn owned(key: impl Into<Vec<u8>>) -> Self {
        Self::with_key(Key(Cow::Owned(key.into())))
    }

    fn with_key(key: Key<'a>) -> Self {
        Self {
            key,
            cost: DEFAULT_COST,
            scopes: ScopeNames::None,
            mode: ScopeMode::All,
            ip: None,
            origin: None,
            environment: None,
            want_metadata: false,
            prefers_raw: false,
            operation: Operation::Verify,
        }
    }

    /// Sets what to charge each of the key's limits, in units of the limit. The default is 1; 0 is
    /// a [`peek`](Self::peek).
    #[must_use]
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    /// Charges nothing: the answer contains the current balance.
    #[must_use]
    pub fn peek(self) -> Self {
        self.cost(0)
    }

    /// Requires all of these scopes. An empty list requires none. Replaces the scopes of an earlier
    /// call of this method or of [`any_scope`](Self::any_scope).
    ///
    /// If a name is empty or contains a space, sending the request fails with
    /// [`Error::InvalidScope`](crate::Error::InvalidScope). The names together may have 1024 bytes,
    /// including separators.
    #[must_use]
    pub fn scopes<S: AsRef<str>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.scopes = ScopeNames::join(names);
        self.mode = ScopeMode::All;
        self
    }

    /// Requires at least one of these scopes. No key could satisfy an empty list, so sending it
    /// fails with [`Error::InvalidScope`](crate::Error::InvalidScope). Otherwise like
    /// [`scopes`](Self::scopes).
    #[must_use]
    pub fn any_scope<S: AsRef<str>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.scopes = match ScopeNames::join(names) {
            ScopeNames::None => ScopeNames::Invalid(String::new()),
            names => names,
        };
        self.mode = ScopeMode::Any;
        self
    }

    /// Sets the address that the caller's own request came from, for keys that are bound to
    /// networks.
    #[must_use]
    pub fn ip(mut self, ip: IpAddr) -> Self {
        self.ip = Some(ip);
        self
    }

    /// Sets the web origin of the caller's own request as the browser sent it
    /// (`https://app.example.com`), for keys that are bound to origins: at most 512 bytes.
    #[must_use]
    pub fn origin(mut self, origin: impl Into<Cow<'a, str>>) -> Self {
        self.origin = Some(origin.into());
        self
    }

    /// Sets the environment that the caller serves (`live`, `test`), at most 64 bytes. A key of
    /// another environment is denied.
    #[must_use]
    pub fn environment(mut self, environment: impl Into<Cow<'a, str>>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// Requests the key's metadata with the answer, up to 4 KiB.
    #[must_use]
    pub fn metadata(mut self) -> Self {
        self.want_metadata = true;
        self
    }

    /// Sends the key itself instead of its digest, if the daemon accepts that. Only then can the
    /// daemon distinguish a typo ([`MalformedKey`](crate::Verdict::MalformedKey)) from an unknown
    /// key. This is meant for tools; an application has no reason to let the key leave its process.
    #[must_use]
    pub fn raw(mut self) -> Self {
        self.prefers_raw = true;
        self
    }

    /// The refund of this request: the same key, the same cost, every limit. See [`Refund`].
    #[must_use]
    pub fn refund(&self) -> Refund<'_> {
        let refund = Refund::new(self.key(), self.cost);
        if self.prefers_raw { refund.raw() } else { refund }
    }

    /// Sets what the daemon does with the key.
    pub(crate) fn operation(mut self, operation: Operation<'a>) -> Self {
        self.operation = operation;
        self
    }

    /// Converts into a request that borrows nothing, so that it can move to another task or thread.
    /// A borrowed key is copied.
    #[must_use]
    pub fn into_owned(mut self) -> Request<'static> {
        let key = std::mem::replace(&mut self.key, Key(Cow::Borrowed(&[])));
        Request {
            key: key.into_owned(),
            cost: self.cost,
            scopes: self.scopes,
            mode: self.mode,
            ip: self.ip,
            origin: self.origin.map(|origin| Cow::Owned(origin.into_owned())),
            environment: self.environment.map(|environment| Cow::Owned(environment.into_owned())),
            want_metadata: self.want_metadata,
            prefers_raw: self.prefers_raw,
            operation: self.operation.into_owned(),
        }
    }

    pub(crate) fn prefers_raw(&self) -> bool {
        self.prefers_raw
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key.0
    }

    /// The name of the only limit to refund, if this is a refund and there is one.
    pub(crate) fn refunded_limit(&self) -> Option<&str> {
        match &self.operation {
            Operation::Refund { limit } => limit.as_deref(),
            Operation::Verify => None,
        }
    }

    /// Appends the frame. If that fails, nothing is appended.
    pub(crate) fn encode(
        &self,
        request_id: u32,
        credential: Credential<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match &self.operation {
            Operation::Verify => self.verify_frame(request_id, credential)?.encode(out)?,
            Operation::Refund { .. } if self.cost == 0 => return Err(Error::EmptyRefund),
            Operation::Refund { limit } => {
                RefundFrame { request_id, cost: self.cost, credential, limit: limit.as_deref() }
                    .encode(out)?;
            }
        }
        Ok(())
    }

    fn verify_frame<'b>(&'b self, request_id: u32, credential: Credential<'b>) -> Result<Verify<'b>, Error> {
        let scopes = match &self.scopes {
            ScopeNames::None => None,
            ScopeNames::Joined(names) => Some(Scopes { names, mode: self.mode }),
            ScopeNames::Invalid(name) => return Err(Error::InvalidScope { name: name.clone() }),
        };
        let mut verify = Verify::new(request_id, credential);
        if let Some(ip) = self.ip {
            verify = verify.with_ip(ip);
        }
        Ok(Verify {
            cost: self.cost,
            scopes,
            origin: self.origin.as_deref(),
            environment: self.environment.as_deref(),
            want_metadata: self.want_metadata,
            ..verify
        })
    }
}

impl Operation<'_> {
    fn into_owned(self) -> Operation<'static> {
        match self {
            Self::Verify => Operation::Verify,
            Self::Refund { limit } => {
                Operation::Refund { limit: limit.map(|name| Cow::Owned(name.into_owned())) }
            }
        }
    }
}

impl Key<'_> {
    fn into_owned(mut self) -> Key<'static> {
        Key(Cow::Owned(std::mem::take(&mut self.0).into_owned()))
    }
}

impl ScopeNames {
    fn join<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        let mut joined = String::new();
        for name in names {
            let name = name.as_ref();
            // A space would turn one required scope into two, which would make ANY_SCOPE easier to
            // satisfy.
            if name.is_empty() || name.contains(' ') {
                return Self::Invalid(name.to_owned());
            }
            if !joined.is_empty() {
                joined.push(' ');
            }
            joined.push_str(name);
        }
        if joined.is_empty() { Self::None } else { Self::Joined(joined) }
    }
}

/// Prints only the length of the key, because the key must not reach a log.
impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("key", &format_args!("{} bytes", self.key().len()))
            .field("cost", &self.cost)
            .field("scopes", &self.scopes)
            .field("mode", &self.mode)
            .field("ip", &self.ip)
            .field("origin", &self.origin)
            .field("environment", &self.environment)
            .field("metadata", &self.want_metadata)
            .finish()
    }
}

impl fmt::Debug for ScopeNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Joined(names) => write!(f, "{names:?}"),
            Self::Invalid(name) => write!(f, "invalid: {name:?}"),
        }
    }
}
