//! Requests: the key, and what it has to be allowed to do. A refund and a debit are requests with
//! another operation.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use keyward_protocol::{
    Adjustment as AdjustmentFrame, Costs, CostsBuf, Credential, FrameKind, InvalidCostError, ScopeMode,
    Scopes, Verify,
};
use zeroize::Zeroize;

use crate::error::Error;
use crate::{Debit, Refund};

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
    costs: LimitCosts,
    scopes: ScopeNames,
    mode: ScopeMode,
    ip: Option<IpAddr>,
    origin: Option<Cow<'a, str>>,
    environment: Option<Cow<'a, str>>,
    want_metadata: bool,
    want_balances: bool,
    prefers_raw: bool,
    operation: Operation,
}

/// What the daemon does with the key.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    Verify,
    Refund,
    Debit,
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

/// The costs of limits that have one of their own.
#[derive(Clone)]
enum LimitCosts {
    Valid(CostsBuf),
    /// A cost that no request can carry. Like an invalid scope, it is reported when the request is
    /// sent.
    Invalid {
        limit: String,
        error: InvalidCostError,
    },
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
            costs: LimitCosts::Valid(CostsBuf::new()),
            scopes: ScopeNames::None,
            mode: ScopeMode::All,
            ip: None,
            origin: None,
            environment: None,
            want_metadata: false,
            want_balances: false,
            prefers_raw: false,
            operation: Operation::Verify,
        }
    }

    /// Sets what to charge each of the key's limits that has no cost [of its own](Self::cost_of), in
    /// units of the limit. The default is 1; with 0, only limits with a cost of their own are charged.
    #[must_use]
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    /// Sets what to charge the limit with this name. All limits are charged, or none.
    ///
    /// The key need not have the limit, but some plan or key must: otherwise the answer is
    /// [`UnknownLimit`](crate::Verdict::UnknownLimit), so that a typo is noticed. At most 16 limits can
    /// have a cost of their own, each one. A name that is empty, longer than 64 bytes or repeated
    /// fails with [`Error::InvalidCost`](crate::Error::InvalidCost) when the request is sent.
    ///
    /// ```
    /// # use keyward_client::Request;
    /// // One request, and an estimate of its tokens.
    /// let request = Request::new("acme_live_0123456789").cost_of("tokens", 1500);
    /// ```
    #[must_use]
    pub fn cost_of(mut self, limit: impl AsRef<str>, cost: u32) -> Self {
        if let LimitCosts::Valid(costs) = &mut self.costs
            && let Err(error) = costs.push(limit.as_ref(), cost)
        {
            self.costs = LimitCosts::Invalid { limit: limit.as_ref().to_owned(), error };
        }
        self
    }

    /// Charges nothing: the answer contains the current balance. Removes the costs of an earlier
    /// call of [`cost`](Self::cost) or [`cost_of`](Self::cost_of).
    #[must_use]
    pub fn peek(mut self) -> Self {
        self.costs = LimitCosts::Valid(CostsBuf::new());
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

    /// Requests the balance of every limit of the key with the answer: see
    /// [`Decision::balances`](crate::Decision::balances).
    #[must_use]
    pub fn balances(mut self) -> Self {
        self.want_balances = true;
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

    /// The refund of this request: the same key and the same costs. See [`Refund`].
    #[must_use]
    pub fn refund(&self) -> Refund<'_> {
        Refund::of(Request { costs: self.costs.clone(), ..self.same_key(self.cost) })
    }

    /// The refund of a part of what this request was charged: `amount` to one limit, and nothing to
    /// others. See [`Refund`].
    #[must_use]
    pub fn refund_of(&self, limit: impl AsRef<str>, amount: u32) -> Refund<'_> {
        Refund::of(self.same_key(0).cost_of(limit, amount))
    }

    /// A charge on top of this request: `amount` to one limit, and nothing to others. See [`Debit`].
    #[must_use]
    pub fn debit_of(&self, limit: impl AsRef<str>, amount: u32) -> Debit<'_> {
        Debit::of(self.same_key(0).cost_of(limit, amount))
    }

    /// A request about the same key, in the same form.
    fn same_key(&self, cost: u32) -> Request<'_> {
        let request = Request::new(self.key()).cost(cost);
        if self.prefers_raw { request.raw() } else { request }
    }

    /// Sets what the daemon does with the key.
    pub(crate) fn operation(mut self, operation: Operation) -> Self {
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
            costs: self.costs,
            scopes: self.scopes,
            mode: self.mode,
            ip: self.ip,
            origin: self.origin.map(|origin| Cow::Owned(origin.into_owned())),
            environment: self.environment.map(|environment| Cow::Owned(environment.into_owned())),
            want_metadata: self.want_metadata,
            want_balances: self.want_balances,
            prefers_raw: self.prefers_raw,
            operation: self.operation,
        }
    }

    pub(crate) fn prefers_raw(&self) -> bool {
        self.prefers_raw
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key.0
    }

    /// The costs of limits with one of their own, for `{:?}`.
    pub(crate) fn debug_costs(&self) -> &impl fmt::Debug {
        &self.costs
    }

    /// Appends the frame. If that fails, nothing is appended.
    pub(crate) fn encode(
        &self,
        request_id: u32,
        credential: Credential<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match self.operation {
            Operation::Verify => self.verify_frame(request_id, credential)?.encode(out)?,
            Operation::Refund => self.adjustment_frame::<REFUND>(request_id, credential)?.encode(out)?,
            Operation::Debit => self.adjustment_frame::<DEBIT>(request_id, credential)?.encode(out)?,
        }
        Ok(())
    }

    fn adjustment_frame<'b, const KIND: u8>(
        &'b self,
        request_id: u32,
        credential: Credential<'b>,
    ) -> Result<AdjustmentFrame<'b, KIND>, Error> {
        let costs = self.wire_costs()?;
        if self.cost == 0 && costs.is_none() {
            return Err(Error::ZeroAdjustment);
        }
        let want_balances = self.want_balances;
        Ok(AdjustmentFrame {
            costs,
            want_balances,
            ..AdjustmentFrame::new(request_id, self.cost, credential)
        })
    }

    fn wire_costs(&self) -> Result<Option<Costs<'_>>, Error> {
        match &self.costs {
            LimitCosts::Valid(costs) => Ok(costs.as_costs()),
            LimitCosts::Invalid { limit, error } => {
                Err(Error::InvalidCost { limit: limit.clone(), source: *error })
            }
        }
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
            costs: self.wire_costs()?,
            want_metadata: self.want_metadata,
            want_balances: self.want_balances,
            ..verify
        })
    }
}

/// The kinds of frames that change what a key was charged.
pub(crate) const REFUND: u8 = FrameKind::Refund as u8;
pub(crate) const DEBIT: u8 = FrameKind::Debit as u8;

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
            .field("costs", &self.costs)
            .field("scopes", &self.scopes)
            .field("mode", &self.mode)
            .field("ip", &self.ip)
            .field("origin", &self.origin)
            .field("environment", &self.environment)
            .field("metadata", &self.want_metadata)
            .field("balances", &self.want_balances)
            .finish()
    }
}

impl fmt::Debug for LimitCosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid(costs) => write!(f, "{costs:?}"),
            Self::Invalid { limit, error } => write!(f, "invalid: {limit:?}, {error}"),
        }
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
