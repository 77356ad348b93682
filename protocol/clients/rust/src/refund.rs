//! What is given back: SPEC.md section 5, and the advice of section 9.

use std::borrow::Cow;
use std::fmt;

use crate::Request;
use crate::request::Purpose;

/// Gives back what a key was charged for a request that came to nothing: its cost, to every limit of the key or to one.
///
/// The daemon remembers balances and not requests, so it is for the caller to refund only what an ALLOWED has charged, once,
/// and soon; and not what the key's holder can make fail at will. No limit is filled above its burst.
///
/// A refund takes the same way as a [`Request`]: the key is hashed, and wiped with it.
///
/// ```no_run
/// # fn example(key: &str, mut keyward: keyward_client::blocking::Client) -> Result<(), keyward_client::Error> {
/// # let render = || Err::<(), ()>(());
/// use keyward_client::Request;
///
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
    /// Gives `cost` back to every limit of a key that stays where it is. A cost of 0 fails with
    /// [`Error::EmptyRefund`](crate::Error::EmptyRefund).
    pub fn new<K: AsRef<[u8]> + ?Sized>(key: &'a K, cost: u32) -> Self {
        Self::of(Request::new(key), cost)
    }

    /// The same for a key that the refund takes over (without copying it) and wipes when it is dropped.
    pub fn owned(key: impl Into<Vec<u8>>, cost: u32) -> Self {
        Self::of(Request::owned(key), cost)
    }

    fn of(request: Request<'a>, cost: u32) -> Self {
        Self(request.cost(cost).meant_to(Purpose::Refund(None)))
    }

    /// Gives back to the limit of this name only, of at most 64 bytes. Where the key has no such limit, nothing is given
    /// back, and the answer names no [limit](crate::Decision::limit).
    #[must_use]
    pub fn limit(self, name: impl Into<Cow<'a, str>>) -> Self {
        Self(self.0.meant_to(Purpose::Refund(Some(name.into()))))
    }

    /// Sends the key itself, where the daemon takes it: as [`Request::raw`].
    #[must_use]
    pub fn raw(self) -> Self {
        Self(self.0.raw())
    }

    /// The same refund with nothing borrowed, to be moved to another task or thread. The key is copied.
    #[must_use]
    pub fn into_owned(self) -> Refund<'static> {
        Refund(self.0.into_owned())
    }

    pub(crate) fn request(&self) -> &Request<'a> {
        &self.0
    }
}

/// The key must not reach a log: only its length is shown.
impl fmt::Debug for Refund<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.0.purpose() {
            Purpose::Refund(Some(name)) => Some(name),
            _ => None,
        };
        f.debug_struct("Refund")
            .field("key", &format_args!("{} bytes", self.0.key().len()))
            .field("cost", &self.0.units())
            .field("limit", &limit)
            .finish()
    }
}
