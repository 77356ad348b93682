//! Messages about unknown and missing columns: they name the field that is probably meant, and the
//! setting that resolves the problem.

use std::fmt;

use keyward_engine::record::{Field, Quoted};

/// A name within this edit distance (exclusive) of a field's name may be a misspelling of it.
const MAX_DISTANCE: usize = 3;

/// Common names of the fields in database tables, normalised by [`normalise`].
const ALIASES: [(Field, &[&str]); Field::COUNT] = [
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

/// A column is not a field of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnknownColumn<'a>(pub(crate) &'a str);

impl fmt::Display for UnknownColumn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Quoted(self.0);
        write!(f, "{name} is not a field of a key.")?;
        let suggestion = suggest(self.0);
        if let Some(field) = suggestion {
            write!(f, " Did you mean {}?", field.name())?;
        }
        let field = suggestion.map_or("FIELD", Field::name);
        write!(
            f,
            " Map it to a field with source.columns (under [source.columns]: {field} = {name}), or skip it with \
             source.ignore (under [source]: ignore = [{name}]). The fields are {}",
            Field::ALL.map(Field::name).join(", ")
        )
    }
}

/// A header lacks a column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MissingColumn<'a> {
    pub(crate) field: Field,
    /// The expected name of the column.
    pub(crate) column: &'a str,
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

/// The field that `name` probably stands for: an exact match first, then an alias, then a
/// misspelling.
fn suggest(name: &str) -> Option<Field> {
    let name = normalise(name);
    if name.is_empty() {
        return None;
    }
    let distance_to = |field: Field| strsim::damerau_levenshtein(&name, &normalise(field.name()));
    let nearest = Field::ALL
        .into_iter()
        .map(|field| (distance_to(field), field))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, field)| *distance < MAX_DISTANCE && 2 * distance < field.name().len());
    let alias = || ALIASES.into_iter().find(|(_, names)| names.contains(&&*name)).map(|(field, _)| field);
    match nearest {
        Some((0, field)) => Some(field),
        nearest => alias().or(nearest.map(|(_, field)| field)),
    }
}

/// The letters and digits of a name, in lower case.
fn normalise(name: &str) -> String {
    // Bounds the work for a text that is not a name.
    let letters = name.chars().take(64).filter(|c| c.is_alphanumeric());
    letters.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_name_is_recognised() {
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
            assert_eq!(suggest(name), field, "{name}");
        }
        for (field, names) in ALIASES {
            assert!(names.iter().all(|name| normalise(name) == *name), "{}", field.name());
        }
        assert_eq!(ALIASES.map(|(field, _)| field), Field::ALL);
    }

    #[test]
    fn message_names_both_settings_and_shows_an_example() {
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
    fn key_in_the_header_is_not_quoted() {
        let text = UnknownColumn("acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT").to_string();
        assert!(!text.contains("acme_live_"), "{text}");
    }
}
