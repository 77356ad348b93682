//! The notation of bytes in the files of `vectors`.

/// Parses hex digits, in which spaces and `|` separate, and `61*1024` is `61`, 1024 times.
pub(crate) fn parse_bytes(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for token in text.split([' ', '|']) {
        let (hex, times) = token.split_once('*').unwrap_or((token, "1"));
        let unit = const_hex::decode(hex).map_err(|error| format!("{token}: {error}"))?;
        let times = times.parse().map_err(|error| format!("{token}: {error}"))?;
        bytes.extend(unit.repeat(times));
    }
    Ok(bytes)
}
