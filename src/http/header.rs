//! Headers that may be there once.

use http::header::{HeaderMap, HeaderName};

/// Why a header cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is there more than once, so one may be the client's.
    #[error("the header {0} is there more than once: the gateway has to set it, not to append to it")]
    Repeated(HeaderName),
    /// It has other characters than visible ASCII and spaces.
    #[error("the header {0} has characters that are not ASCII")]
    NotText(HeaderName),
}

/// The value of a header that may be there once.
pub(crate) fn single<'r>(headers: &'r HeaderMap, name: &HeaderName) -> Result<Option<&'r str>, HeaderError> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeaderError::Repeated(name.clone()));
    }
    first.to_str().map(Some).map_err(|_| HeaderError::NotText(name.clone()))
}
