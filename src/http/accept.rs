//! The header Accept: which media types a client takes, and how much it prefers each (RFC 9110,
//! section 12.5.1).

use http::header::{ACCEPT, HeaderMap};

/// The media ranges of a request, with their weights.
pub(crate) struct Accept<'h>(Vec<(&'h str, u32)>);

impl<'h> Accept<'h> {
    pub(crate) fn of(headers: &'h HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        Self(lines.flat_map(|line| line.split(',')).map(media_range).collect())
    }

    /// The greatest weight of the media types that are named, in thousandths. 0: none is.
    pub(crate) fn weight(&self, names: &[&str]) -> u32 {
        let weights = self.0.iter().filter(|(name, _)| names.contains(name)).map(|(_, weight)| *weight);
        weights.max().unwrap_or(0)
    }
}

/// The name of a media range, and its weight in thousandths.
fn media_range(range: &str) -> (&str, u32) {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let weight = quality.map_or(Some(1.0), |text| text.parse::<f32>().ok()).unwrap_or(0.0);
    (name, (weight.clamp(0.0, 1.0) * 1000.0) as u32)
}
