//! What is said about a column that is no field of a key, and about a field that has no column: which setting changes that,
//! and which field may be meant.

use std::fmt;

use keyward_engine::record::{Field, Quoted};

/// A name that differs from a field's in fewer letters than this may be a misspelling of it.
const NEAR: usize = 3;

/// What tables call the fields, in lower case and without anything but letters and digits.
const OTHER_NAMES: [(Field, &[&str]); Field::COUNT] = [
    (
        Field::KeyHash,
        &["hash", "sha256", "digest", "hashedkey", "keysha256", "tokenhash", "keydigest", "apikeyhash"],
    ),
    (Field::KeyId, &["id", "kid", "uuid", "keyname", "apikeyid", "tokenid"]),
    (
        Field::Owner,
        &[
            "ownerid",
            "customer",
            "customerid",
            "tenant",
            "tenantid",
            "account",
            "accountid",
            "user",
            "userid",
            "org",
            "orgid",
        ],
    ),
    (Field::Environment, &["env", "mode", "stage"]),
    (Field::Plan, &["planid", "tier", "subscription"]),
    (Field::Status, &["state", "enabled", "active", "isactive", "revoked", "disabled"]),
    (Field::NotBefore, &["validfrom", "startsat", "start", "activefrom", "nbf"]),
    (
        Field::ExpiresAt,
        &["expires", "expiry", "expiration", "expiresat", "validuntil", "validto", "notafter", "exp"],
    ),
    (Field::Scopes, &["scope", "permissions", "permission", "roles", "grants"]),
    (Field::AllowedIps, &["ips", "ip", "ipallowlist", "ipwhitelist", "allowedcidrs", "cidrs", "networks"]),
    (Field::AllowedOrigins, &["origins", "origin", "corsorigins", "referrers", "domains"]),
    (Field::Limits, &["limit", "ratelimit", "ratelimits", "quota", "rate", "rps"]),
    (Field::Metadata, &["meta", "attributes", "extra", "data", "tags"]),
];

/// Why a column that is no field is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnknownColumn<'a>(pub(super) &'a str);

impl fmt::Display for UnknownColumn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Quoted(self.0);
        write!(f, "{name} is not a field of a key.")?;
        let meant = meant(self.0);
        if let Some(field) = meant {
            write!(f, " Did you mean {}?", field.name())?;
        }
        let field = meant.map_or("FIELD", Field::name);
        write!(
            f,
            " Read it as a field by source.columns (under [source.columns]: {field} = {name}), or skip it by \
             source.ignore (under [source]: ignore = [{name}]). The fields are {}",
            Field::ALL.map(Field::name).join(", ")
        )
    }
}

/// Why a header without a column is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct MissingColumn<'a> {
    pub(super) field: Field,
    /// What its column should be called.
    pub(super) column: &'a str,
}

impl fmt::Display for MissingColumn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, column } = self;
        write!(
            f,
            "there is no column {} in the header; if it has another name, set source.columns (under [source.columns]: {} = \
             \"COLUMN\")",
            Quoted(column),
            field.name()
        )
    }
}

/// The field that a name is probably meant for.
fn meant(name: &str) -> Option<Field> {
    let plain = plain(name);
    if plain.is_empty() {
        return None;
    }
    let by_name = |known: &str| distance(&plain, &self::plain(known));
    let nearest =
        Field::ALL.into_iter().map(|field| (by_name(field.name()), field)).min_by_key(|(far, _)| *far);
    let near = nearest.filter(|(far, field)| *far < NEAR && 2 * far < field.name().len());
    let other =
        || OTHER_NAMES.into_iter().find(|(_, names)| names.contains(&&*plain)).map(|(field, _)| field);
    match near {
        Some((0, field)) => Some(field),
        near => other().or(near.map(|(_, field)| field)),
    }
}

fn distance(a: &str, b: &str) -> usize {
    strsim::damerau_levenshtein(a, b)
}

fn plain(name: &str) -> String {
    // A name that is no name need not be compared to its end.
    let letters = name.chars().take(64).filter(|c| c.is_alphanumeric());
    letters.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised() {
        for (name, field) in [
            ("owners", Some(Field::Owner)),
            ("Key_ID", Some(Field::KeyId)),
            ("keyHash", Some(Field::KeyHash)),
            ("expire_at", Some(Field::ExpiresAt)),
            ("allowed_ip", Some(Field::AllowedIps)),
            ("allowed-origin", Some(Field::AllowedOrigins)),
            ("sttaus", Some(Field::Status)),
            ("scope", Some(Field::Scopes)),
            ("customer_id", Some(Field::Owner)),
            ("sha256", Some(Field::KeyHash)),
            ("valid_until", Some(Field::ExpiresAt)),
            ("rate_limit", Some(Field::Limits)),
            ("id", Some(Field::KeyId)),
            ("created_at", None),
            ("notes", None),
            ("", None),
            ("é", None),
        ] {
            assert_eq!(meant(name), field, "{name}");
        }
        for (field, names) in OTHER_NAMES {
            assert!(names.iter().all(|name| plain(name) == *name), "{}", field.name());
        }
        assert_eq!(OTHER_NAMES.map(|(field, _)| field), Field::ALL);
    }

    #[test]
    fn the_message_names_both_settings_with_a_line_to_paste() {
        let text = UnknownColumn("owners").to_string();
        assert!(text.starts_with("\"owners\" is not a field of a key. Did you mean owner?"), "{text}");
        for part in [
            "source.columns",
            "[source.columns]: owner = \"owners\"",
            "source.ignore",
            "ignore = [\"owners\"]",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = UnknownColumn("created_at").to_string();
        assert!(text.contains("FIELD = \"created_at\"") && !text.contains("Did you mean"), "{text}");
        let text = MissingColumn { field: Field::KeyHash, column: "key_hash" }.to_string();
        assert!(text.ends_with("(under [source.columns]: key_hash = \"COLUMN\")"), "{text}");
    }

    #[test]
    fn a_key_in_the_header_is_not_repeated() {
        let text = UnknownColumn("acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT").to_string();
        assert!(!text.contains("acme_live_"), "{text}");
    }
}
