//! Recognises common mistakes in `key_hash`: password hashes, other digests, and SHA-256 with a
//! prefix.
//!
//! The messages describe the text and never quote it, because it may be the key itself.

/// What a text that is not a SHA-256 looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HashHint {
    #[error(
        "this looks like {0}, which is salted, so that no key can be looked up by it; key_hash must be the plain SHA-256 of \
         the key. Keys that are kept as such have to be replaced, or hashed anew when they are next presented"
    )]
    Salted(&'static str),
    #[error(
        "this has the length of {0}; key_hash must be the SHA-256 of the key, as 64 hex digits or base64"
    )]
    Digest(&'static str),
    #[error(
        "{0} hex digits have the length of {1}, or are the key itself; key_hash must be the SHA-256 of the key, \
         which has 64"
    )]
    ShortDigest(usize, &'static str),
    #[error("this is a SHA-256 with {0}; export its 64 hex digits or its base64 alone")]
    Tagged(&'static str),
    #[error("this is {0}, with its name before it; key_hash must be the plain SHA-256 of the key")]
    Named(&'static str),
}

/// Prefixes of salted hashes in lower case, and their names. The first match applies.
const SALTED_PREFIXES: [(&str, &str); 25] = [
    ("$2a$", "bcrypt"),
    ("$2b$", "bcrypt"),
    ("$2x$", "bcrypt"),
    ("$2y$", "bcrypt"),
    ("bcrypt", "bcrypt"),
    ("{bcrypt}", "bcrypt"),
    ("{crypt}", "crypt"),
    ("$argon2", "argon2"),
    ("argon2", "argon2"),
    ("{argon2", "argon2"),
    ("$pbkdf2", "PBKDF2"),
    ("pbkdf2", "PBKDF2"),
    ("{pbkdf2", "PBKDF2"),
    ("$scrypt$", "scrypt"),
    ("scrypt", "scrypt"),
    ("{scrypt}", "scrypt"),
    ("$7$", "scrypt"),
    ("$1$", "MD5-crypt"),
    ("$apr1$", "MD5-crypt"),
    ("$5$", "SHA-256-crypt"),
    ("$6$", "SHA-512-crypt"),
    ("$y$", "yescrypt"),
    ("scram-sha-256$", "SCRAM"),
    ("{ssha", "a salted LDAP hash"),
    ("{smd5}", "a salted LDAP hash"),
];

/// Names of digests in lower case, and their canonical names. A name comes before its own prefixes.
const DIGEST_NAMES: [(&str, &str); 12] = [
    ("sha2-256", "SHA-256"),
    ("sha-256", "SHA-256"),
    ("sha_256", "SHA-256"),
    ("sha256", "SHA-256"),
    ("sha-512", "SHA-512"),
    ("sha512", "SHA-512"),
    ("sha-384", "SHA-384"),
    ("sha384", "SHA-384"),
    ("sha-1", "SHA-1"),
    ("sha1", "SHA-1"),
    ("md5", "MD5"),
    ("blake2b", "BLAKE2"),
];

/// Separators between the name of a digest and the digest.
const SEPARATORS: [&str; 6] = ["$", ":", "-", "=", "}", "("];

/// Recognises `text`, if possible. `is_digest` tests for a SHA-256 in an accepted form.
pub(crate) fn recognise(text: &str, is_digest: impl Fn(&str) -> bool) -> Option<HashHint> {
    let lower: String = text.chars().take(32).map(|c| c.to_ascii_lowercase()).collect();
    if let Some((_, name)) = SALTED_PREFIXES.into_iter().find(|(begin, _)| lower.starts_with(begin)) {
        return Some(HashHint::Salted(name));
    }
    let trimmed = text.trim();
    if trimmed.len() < text.len() && is_digest(trimmed) {
        return Some(HashHint::Tagged("blanks around it"));
    }
    if lower.starts_with("0x") && text.get(2..).is_some_and(&is_digest) {
        return Some(HashHint::Tagged("0x before it"));
    }
    recognise_named(text, &lower, is_digest).or_else(|| recognise_length(text))
}

/// Recognises `sha256$<hex>`, `sha256:<hex>`, `{SHA256}<base64>` and `SHA256(<hex>)`, also with a
/// salt after the name, as Django writes it.
fn recognise_named(text: &str, lower: &str, is_digest: impl Fn(&str) -> bool) -> Option<HashHint> {
    let brace = usize::from(lower.starts_with('{'));
    let (name, digest) = DIGEST_NAMES.into_iter().find(|(name, _)| lower[brace..].starts_with(name))?;
    let rest = text.get(brace + name.len()..)?;
    let separator = SEPARATORS.into_iter().find(|separator| rest.starts_with(separator))?;
    let rest = &rest[separator.len()..];
    if digest != "SHA-256" {
        return Some(HashHint::Named(digest));
    }
    if is_digest(rest.strip_suffix(')').unwrap_or(rest)) {
        return Some(HashHint::Tagged("the name of its algorithm before it"));
    }
    let is_salted =
        rest.rsplit_once(['$', ':']).is_some_and(|(salt, last)| !salt.is_empty() && is_digest(last));
    is_salted.then_some(HashHint::Salted("a SHA-256 with a salt"))
}

fn recognise_length(text: &str) -> Option<HashHint> {
    let digits = text.strip_prefix("\\x").unwrap_or(text);
    if digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return match digits.len() {
            32 => Some(HashHint::ShortDigest(32, "MD5")),
            40 => Some(HashHint::ShortDigest(40, "SHA-1")),
            56 => Some(HashHint::Digest("SHA-224")),
            96 => Some(HashHint::Digest("SHA-384")),
            128 => Some(HashHint::Digest("SHA-512")),
            _ => None,
        };
    }
    // 64 bytes in base64. Shorter texts in base64 may be keys.
    let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_');
    let bare = text.strip_suffix("==").unwrap_or(text);
    (bare.len() == 86 && bare.bytes().all(base64)).then_some(HashHint::Digest("SHA-512"))
}

#[cfg(test)]
mod tests {
    use crate::field;

    #[test]
    fn common_mistakes_are_named() {
        let hex = "a".repeat(64);
        let base64 = format!("{}=", "A".repeat(43));
        for (text, part) in [
            ("$2b$12$LQv3c1yqBWVHxkd0LHAkCOYz6TtxMQJqhN8/LewdBPj4J/HS.iK8i", "looks like bcrypt"),
            ("$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaA", "looks like argon2"),
            ("argon2$argon2id$v=19$m=102400,t=2,p=8$c29t$aGFzaA", "looks like argon2"),
            ("pbkdf2_sha256$600000$salt$aGFzaGhhc2g=", "looks like PBKDF2"),
            ("pbkdf2:sha256:600000$salt$abcdef", "looks like PBKDF2"),
            ("$pbkdf2-sha256$29000$c2FsdA$aGFzaA", "looks like PBKDF2"),
            ("scrypt:32768:8:1$salt$abcdef", "looks like scrypt"),
            ("$6$salt$hash", "looks like SHA-512-crypt"),
            ("$5$salt$hash", "looks like SHA-256-crypt"),
            ("{SSHA}aGFzaA==", "a salted LDAP hash"),
            (&format!("sha256$salt${hex}"), "looks like a SHA-256 with a salt"),
            (&format!("sha256${hex}"), "with the name of its algorithm"),
            (&format!("sha256:{hex}"), "with the name of its algorithm"),
            (&format!("SHA-256={hex}"), "with the name of its algorithm"),
            (&format!("sha256-{base64}"), "with the name of its algorithm"),
            (&format!("{{SHA256}}{base64}"), "with the name of its algorithm"),
            (&format!("SHA256({hex})"), "with the name of its algorithm"),
            (&format!("0x{hex}"), "0x before it"),
            (&format!("0X{hex}"), "0x before it"),
            (&format!(" {hex}"), "blanks"),
            (&"a".repeat(128), "the length of SHA-512"),
            (&format!("\\x{}", "b".repeat(128)), "the length of SHA-512"),
            (&format!("{}==", "A".repeat(86)), "the length of SHA-512"),
            (&"a".repeat(96), "the length of SHA-384"),
            (&"a".repeat(56), "the length of SHA-224"),
            (&"a".repeat(40), "40 hex digits have the length of SHA-1, or are the key itself"),
            (&"a".repeat(32), "32 hex digits have the length of MD5, or are the key itself"),
            (&format!("sha512:{}", "a".repeat(128)), "is SHA-512, with its name"),
            (&format!("md5:{}", "a".repeat(32)), "is MD5, with its name"),
        ] {
            let message = field::hash(text).expect_err("not a SHA-256").to_string();
            assert!(message.contains(part) && message.contains("SHA-256"), "{text}: {message}");
            assert!(!message.contains("not the key itself"), "{text}: {message}");
        }
    }

    #[test]
    fn unrecognised_text_gets_the_general_message() {
        for text in [
            "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT",
            "sha256",
            "sha256$",
            "sha256$x",
            "0x12",
            "$",
            "{",
        ] {
            let message = field::hash(text).expect_err("not a SHA-256").to_string();
            assert!(message.contains("not the key itself"), "{text}: {message}");
        }
    }
}
