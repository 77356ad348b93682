//! Refunds: SPEC.md section 5, and the recommendations of section 9.

use std::borrow::Cow;
use std::fmt;

use crate::Request;
use crate::request::Operation;

/// Gives back what a key was charged for a request that came to nothing, to every limit of the key
/// or to one.
///
/// The daemon stores balances, not requests. The caller therefore has to refund only what an
/// ALLOWED has charged, once, and soon; and must not refund failures that the holder of the key can
/// cause at will. No limit rises above its burst.
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
#[derive(Clone)]
pub struct Refund<'a>(Request<'a>);

impl<'a> Refund<'a> {
    /// Gives `cost` back to every limit of `key`, which is borrowed. A cost of 0 fails with
    /// [`Error::EmptyRefund`](crate::Error::EmptyRefund).
    pub fn new<K: AsRef<[u8]> + ?Sized>(key: &'a K, cost: u32) -> Self {
        Self::from_request(Request::new(key), cost)
    }

    /// Like [`new`](Self::new), but takes ownership of the key without copying it, and wipes it on
    /// drop.
    pub fn owned(key: impl Into<Vec<u8>>, cost: u32) -> Self {
        Self::from_request(Request::owned(key), cost)
    }

    fn from_request(request: Request<'a>, cost: u32) -> Self {
        Self(request.cost(cost).operation(Operation::Refund { limit: None }))
    }

    /// Gives back only to the limit with this name of at most 64 bytes. If the key has no such
    /// limit, nothing is given back, and the answer names no [limit](crate::Decision::limit).
    #[must_use]
    pub fn limit(self, name: impl Into<Cow<'a, str>>) -> Self {
        Self(self.0.operation(Operation::Refund { limit: Some(name.into()) }))
    }

    /// Sends the key itself if the daemon accepts that, like [`Request::raw`].
    #[must_use]
    pub fn raw(self) -> Self {
        Self(self.0.raw())
    }

    /// Converts into a refund that borrows nothing, so that it can move to another task or thread.
    /// A borrowed key is copied.
    #[must_use]
    pub fn into_owned(self) -> Refund<'static> {
        Refund(self.0.into_owned())
    }

    pub(crate) fn request(&self) -> &Request<'a> {
        &self.0
    }
}

/// Prints only the length of the key, because the key must not reach a log.
impl fmt::Debug for Refund<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refund")
            .field("key", &format_args!("{} bytes", self.0.key().len()))
            .field("cost", &self.0.cost)
            .field("limit", &self.0.refunded_limit())
            .finish()
    }
}
