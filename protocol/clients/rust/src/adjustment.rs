//! Refunds and debits: SPEC.md section 5, and the recommendations of section 9.

use std::fmt;

use crate::Request;
use crate::request::{DEBIT, Operation, REFUND};

/// Gives back what a key was charged for a request that came to nothing.
///
/// The daemon stores balances, not requests. The caller therefore has to refund only what an
/// ALLOWED has charged, once, and soon; and must not refund failures that the holder of the key can
/// cause at will. No limit rises above its burst, its count or its grant.
///
/// The key is hashed and wiped as that of a [`Request`].
///
/// ```no_run
/// # fn render() -> std::io::Result<()> { Ok(()) }
/// use keyward_client::{Error, Request, blocking};
///
/// # fn example(key: &str, mut keyward: blocking::Client) -> Result<(), Error> {
/// let request = Request::new(key).cost(5);
/// if keyward.verify(&request)?.is_allowed() && render().is_err() {
///     keyward.refund(&request.refund())?;
/// }
/// # Ok(())
/// # }
/// ```
pub type Refund<'a> = Adjustment<'a, REFUND>;

/// Charges what a response has cost, whatever the state and the balance of the key, down to the
/// floor of each limit. The key cannot be used until its limits have refilled above zero.
///
/// Together with a [`Refund`], this settles a request whose cost is known only afterwards: charge an
/// estimate before, and the difference after. The answer is ALLOWED, or that the key was not found;
/// with [`balances`](Adjustment::balances), it says what each limit was charged.
///
/// ```no_run
/// # fn generate() -> u32 { 0 }
/// use keyward_client::{Error, Request, blocking};
///
/// # fn example(key: &str, mut keyward: blocking::Client) -> Result<(), Error> {
/// const ESTIMATE: u32 = 1500;
/// let request = Request::new(key).cost_of("tokens", ESTIMATE);
/// if keyward.verify(&request)?.is_allowed() {
///     let tokens = generate();
///     if tokens > ESTIMATE {
///         keyward.debit(&request.debit_of("tokens", tokens - ESTIMATE))?;
///     } else if tokens < ESTIMATE {
///         keyward.refund(&request.refund_of("tokens", ESTIMATE - tokens))?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub type Debit<'a> = Adjustment<'a, DEBIT>;

/// A [`Refund`] or a [`Debit`]. `KIND` is the kind of its frame.
#[derive(Clone)]
pub struct Adjustment<'a, const KIND: u8>(Request<'a>);

impl<'a, const KIND: u8> Adjustment<'a, KIND> {
    /// `cost` for every limit of `key`, which is borrowed, that has no cost [of its
    /// own](Self::cost_of). A cost of 0 without such a limit fails with
    /// [`Error::ZeroAdjustment`](crate::Error::ZeroAdjustment).
    pub fn new<K: AsRef<[u8]> + ?Sized>(key: &'a K, cost: u32) -> Self {
        Self::of(Request::new(key).cost(cost))
    }

    /// Like [`new`](Self::new), but takes ownership of the key without copying it, and wipes it on
    /// drop.
    pub fn owned(key: impl Into<Vec<u8>>, cost: u32) -> Self {
        Self::of(Request::owned(key).cost(cost))
    }

    /// The adjustment with the key and the costs of `request`.
    pub(crate) fn of(request: Request<'a>) -> Self {
        Self(request.operation(if KIND == DEBIT { Operation::Debit } else { Operation::Refund }))
    }

    /// Sets the amount for the limit with this name, like [`Request::cost_of`].
    #[must_use]
    pub fn cost_of(self, limit: impl AsRef<str>, cost: u32) -> Self {
        Self(self.0.cost_of(limit, cost))
    }

    /// Requests the balance of every limit of the key with the answer, like [`Request::balances`].
    #[must_use]
    pub fn balances(self) -> Self {
        Self(self.0.balances())
    }

    /// Sends the key itself if the daemon accepts that, like [`Request::raw`].
    #[must_use]
    pub fn raw(self) -> Self {
        Self(self.0.raw())
    }

    /// Converts into an adjustment that borrows nothing, so that it can move to another task or
    /// thread. A borrowed key is copied.
    #[must_use]
    pub fn into_owned(self) -> Adjustment<'static, KIND> {
        Adjustment(self.0.into_owned())
    }

    pub(crate) fn request(&self) -> &Request<'a> {
        &self.0
    }
}

/// Prints only the length of the key, because the key must not reach a log.
impl<const KIND: u8> fmt::Debug for Adjustment<'_, KIND> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(if KIND == DEBIT { "Debit" } else { "Refund" })
            .field("key", &format_args!("{} bytes", self.0.key().len()))
            .field("cost", &self.0.cost)
            .field("costs", self.0.debug_costs())
            .finish()
    }
}
