//! What is asked: the key, and what it has to be allowed to do. A refund takes the same way to the daemon.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use keyward_protocol::{Credential, Refund as RefundFrame, ScopeMode, Scopes, Verify};
use zeroize::Zeroize;

use crate::Refund;
use crate::error::Error;

/// The cost of an ordinary request.
const ORDINARY_COST: u32 = 1;

/// One question: may this key do this, now?
///
/// A request can be asked any number of times. It borrows what it is given where it can; what it owns of the key is
/// overwritten when it is dropped, and `{:?}` does not show the key.
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
    cost: u32,
    scopes: ScopeNames,
    mode: ScopeMode,
    ip: Option<IpAddr>,
    origin: Option<Cow<'a, str>>,
    environment: Option<Cow<'a, str>>,
    want_metadata: bool,
    raw: bool,
    purpose: Purpose<'a>,
}

/// What the daemon is to do for the key.
#[derive(Clone)]
pub(crate) enum Purpose<'a> {
    Verify,
    /// Give the cost back: to the limit of this name, or to all of the key's.
    Refund(Option<Cow<'a, str>>),
}

/// The raw key. It wipes its own copy, never a borrowed one.
#[derive(Clone)]
struct Key<'a>(Cow<'a, [u8]>);

impl Drop for Key<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(bytes) = &mut self.0 {
            bytes.zeroize();
        }
    }
}

/// Required scopes as they are written: names separated by single spaces.
#[derive(Clone)]
enum ScopeNames {
    None,
    Joined(String),
    /// Kept until the request is asked, so that the builder needs no `Result`.
    Invalid(String),
}

impl<'a> Request<'a> {
    /// Asks about a key that stays where it is: a `&str`, `&String`, `&[u8]`, `&[u8; N]`...
    pub fn new<K: AsRef<[u8]> + ?Sized>(key: &'a K) -> Self {
        Self::with(Key(Cow::Borrowed(key.as_ref())))
    }

    /// Asks about a key that the request takes over (without copying it) and wipes when it is dropped.
    pub fn owned(key: impl Into<Vec<u8>>) -> Self {
        Self::with(Key(Cow::Owned(key.into())))
    }

    fn with(key: Key<'a>) -> Self {
        Self {
            key,
            cost: ORDINARY_COST,
            scopes: ScopeNames::None,
            mode: ScopeMode::All,
            ip: None,
            origin: None,
            environment: None,
            want_metadata: false,
            raw: false,
            purpose: Purpose::Verify,
        }
    }

    /// What to charge each of the key's limits, in units of the limit; 1 unless this is called. 0 is a
    /// [`peek`](Self::peek).
    #[must_use]
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    /// Charges nothing: the answer tells the balance as it is.
    #[must_use]
    pub fn peek(self) -> Self {
        self.cost(0)
    }

    /// The key must have every one of these scopes. An empty list asks for none. Replaces what an earlier call of
    /// this or of [`any_scope`](Self::any_scope) asked for.
    ///
    /// A name that is empty or has a space in it makes the request fail with
    /// [`Error::InvalidScope`](crate::Error::InvalidScope); together the names may have 1024 bytes.
    #[must_use]
    pub fn scopes<S: AsRef<str>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.scopes = ScopeNames::join(names);
        self.mode = ScopeMode::All;
        self
    }

    /// The key must have at least one of these scopes. An empty list can be satisfied by no key, and fails with
    /// [`Error::InvalidScope`](crate::Error::InvalidScope) rather than asking for nothing. Otherwise as
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

    /// The address that the caller's own request came from, for keys that are bound to networks.
    #[must_use]
    pub fn ip(mut self, ip: IpAddr) -> Self {
        self.ip = Some(ip);
        self
    }

    /// The web origin of the caller's own request as the browser sent it (`https://app.example.com`), for keys that
    /// are bound to origins. At most 512 bytes.
    #[must_use]
    pub fn origin(mut self, origin: impl Into<Cow<'a, str>>) -> Self {
        self.origin = Some(origin.into());
        self
    }

    /// The environment that the caller serves (`live`, `test`): a key of another one is refused. At most 64 bytes.
    #[must_use]
    pub fn environment(mut self, environment: impl Into<Cow<'a, str>>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// Asks for the key's metadata with the answer, up to 4 KiB.
    #[must_use]
    pub fn metadata(mut self) -> Self {
        self.want_metadata = true;
        self
    }

    /// Sends the key itself, where the daemon takes it, and not its digest: only then can the daemon tell a typo
    /// ([`MalformedKey`](crate::Verdict::MalformedKey)) from a key that it does not know. For tools; an application has
    /// no reason to let the key out of its process.
    #[must_use]
    pub fn raw(mut self) -> Self {
        self.raw = true;
        self
    }

    /// Gives back what this request was charged: the same key, the same cost, every limit. See [`Refund`].
    #[must_use]
    pub fn refund(&self) -> Refund<'_> {
        let refund = Refund::new(self.key(), self.cost);
        if self.raw { refund.raw() } else { refund }
    }

    /// The same request, for something else than to be verified.
    pub(crate) fn meant_to(mut self, purpose: Purpose<'a>) -> Self {
        self.purpose = purpose;
        self
    }

    /// The same request with nothing borrowed, to be moved to another task or thread. The key is copied.
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
            raw: self.raw,
            purpose: self.purpose.into_owned(),
        }
    }

    pub(crate) fn is_raw(&self) -> bool {
        self.raw
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key.0
    }

    pub(crate) fn units(&self) -> u32 {
        self.cost
    }

    pub(crate) fn purpose(&self) -> &Purpose<'a> {
        &self.purpose
    }

    /// Appends the frame; where that fails, nothing has been appended.
    pub(crate) fn encode(
        &self,
        request_id: u32,
        credential: Credential<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match &self.purpose {
            Purpose::Verify => self.verify_frame(request_id, credential)?.encode(out)?,
            Purpose::Refund(_) if self.cost == 0 => return Err(Error::EmptyRefund),
            Purpose::Refund(limit) => {
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
            verify = verify.from_ip(ip);
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

impl Purpose<'_> {
    fn into_owned(self) -> Purpose<'static> {
        match self {
            Self::Verify => Purpose::Verify,
            Self::Refund(limit) => Purpose::Refund(limit.map(|name| Cow::Owned(name.into_owned()))),
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
            // A space would turn one required scope into two, and ANY_SCOPE would then be easier to satisfy.
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

/// The key must not reach a log: only its length is shown.
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
