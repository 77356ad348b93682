//! Values of `[keys]`: prefixes and time zones.

use jiff::tz::TimeZone;

use keyward_engine::key_format::Prefix;
use keyward_settings::deserialize_text;
use keyward_settings::text::Text;

/// A prefix of minted keys.
#[derive(Debug)]
pub(in crate::config) struct PrefixText(pub(in crate::config) Prefix);

impl Text for PrefixText {
    const EXPECTED: &'static str = "a prefix such as \"acme_live_\"";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("{text:?} is not a prefix: {error}"))
    }
}

/// A time zone of this host.
#[derive(Debug)]
pub(in crate::config) struct TimeZoneText(pub(in crate::config) TimeZone);

impl Text for TimeZoneText {
    const EXPECTED: &'static str = "a time zone such as \"UTC\" or \"Europe/Berlin\"";

    fn parse(text: &str) -> Result<Self, String> {
        TimeZone::get(text).map(Self).map_err(|_| {
            format!(
                "{text:?} is not a time zone of this host: write a name of the tz database, such as \
                 \"Europe/Berlin\" (Debian's package tzdata has them), or \"UTC\""
            )
        })
    }
}

deserialize_text!(PrefixText, TimeZoneText);
