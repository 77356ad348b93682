//! The web origin of a client's request.

use http::header::{HeaderMap, ORIGIN};
use keyward_protocol::MAX_ORIGIN;

use crate::header::{HeaderError, single};

/// Why an origin is refused: it is not one of a browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header Origin is repeated, not ASCII, or longer than {MAX_ORIGIN} bytes")]
pub struct OriginError;

impl From<HeaderError> for OriginError {
    fn from(_: HeaderError) -> Self {
        Self
    }
}

/// The origin that the browser sent, if there is one.
pub(crate) fn find(headers: &HeaderMap) -> Result<Option<&str>, OriginError> {
    match single(headers, &ORIGIN)? {
        Some(origin) if origin.len() > MAX_ORIGIN => Err(OriginError),
        origin => Ok(origin),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn find_in(lines: &[&str]) -> Result<Option<String>, OriginError> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ORIGIN, HeaderValue::from_bytes(line.as_bytes()).expect("a value"));
        }
        find(&headers).map(|origin| origin.map(str::to_owned))
    }

    #[test]
    fn origin_is_there_once_and_short() {
        let [longest, longer] = [MAX_ORIGIN, MAX_ORIGIN + 1].map(|length| "o".repeat(length));
        assert_eq!(find_in(&[]), Ok(None));
        assert_eq!(find_in(&["null"]), Ok(Some("null".to_owned())));
        assert_eq!(find_in(&[&longest]), Ok(Some(longest.clone())));
        for lines in [&[&*longer][..], &["https://a", "https://b"], &["https://\u{e4}"]] {
            assert_eq!(find_in(lines), Err(OriginError), "{lines:?}");
        }
    }
}
