//! Generates the rule by which [gitleaks](https://github.com/gitleaks/gitleaks) finds minted keys
//! in repositories, logs and pastes.
//!
//! The pattern matches the prefix and the length of a key. The key must begin at a word boundary,
//! or after an escape that ends in a letter or digit (`%3D`, `\n`, `\u003d`), as in URLs, nested
//! JSON and coloured logs. The pattern uses the syntax of RE2, which has neither look-around nor
//! backreferences. It cannot verify the checksum; `keyward key check` does.
//!
//! `gitleaks.toml` next to this file is the rule for the default prefix. A test compares it with
//! the output of [`rule`].

use super::{CHECKSUM_CHARACTERS, Prefix, RANDOM_CHARACTERS};

/// The id of the rule in reports and in `.gitleaksignore`. It does not depend on the prefixes, so
/// that ignored matches stay ignored when a prefix is added.
const RULE_ID: &str = "keyward-api-key";

/// Matches with a Shannon entropy of at most this many bits per character are placeholders such as
/// `acme_live_xxxx…`. Minted keys have more than 4, except with negligible probability.
const MIN_ENTROPY: u32 = 3;

/// Escapes that end in a letter or digit and may precede a key: percent encoding, escapes in
/// strings, and terminal colours.
const ESCAPES: &str = r"%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\[abfnrtv0]|\x1b\[[0-9;]*m";

/// The regular expression. Its first group is the key.
pub(crate) fn pattern(prefixes: &[Prefix]) -> String {
    // A prefix has no character with a special meaning in a pattern.
    let prefixes = prefixes.iter().map(Prefix::as_str).collect::<Vec<_>>().join("|");
    let digits = RANDOM_CHARACTERS + CHECKSUM_CHARACTERS;
    format!(r"(?:\b|{ESCAPES})((?:{prefixes})[0-9A-Za-z]{{{digits}}})\b")
}

/// The rule for keys with these prefixes, in TOML: part of a gitleaks configuration, or a whole
/// one.
pub fn rule(prefixes: &[Prefix]) -> String {
    let options: String = prefixes.iter().map(|prefix| format!(" --prefix {prefix}")).collect();
    let named = prefixes.iter().map(Prefix::as_str).collect::<Vec<_>>().join(" or ");
    let keywords: Vec<_> = prefixes.iter().map(|prefix| format!("\"{prefix}\"")).collect();
    format!(
        "# Made by: keyward key rule{options}\n\
         # For gitleaks: alone with --config, or in a .gitleaks.toml that begins with [extend] useDefault = true.\n\
         # Nothing is exempt: there is no allowlist. Text that only resembles a key fails `keyward key check`.\n\
         \n\
         [[rules]]\n\
         id = \"{RULE_ID}\"\n\
         description = \"An API key minted by keyward (it begins with {named}): revoke it, and mint another.\"\n\
         regex = '''{pattern}'''\n\
         secretGroup = 1\n\
         entropy = {MIN_ENTROPY}\n\
         keywords = [{keywords}]\n",
        pattern = pattern(prefixes),
        keywords = keywords.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use regex::bytes::{Regex, RegexBuilder};

    use super::super::mint;
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    /// Compiles the pattern as Go does: `\b` and the character classes are ASCII.
    fn compiled(texts: &[&str]) -> Regex {
        RegexBuilder::new(&pattern(&prefixes(texts))).unicode(false).build().expect("a pattern")
    }

    fn found(regex: &Regex, text: &str) -> Vec<String> {
        let keys = regex.captures_iter(text.as_bytes()).filter_map(|captures| captures.get(1));
        keys.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()).collect()
    }

    fn minted(prefix: &str) -> String {
        mint(&prefix.parse().expect("a prefix")).expect("randomness").to_string()
    }

    /// Bits per character, as gitleaks computes them.
    fn entropy(text: &str) -> f64 {
        let mut counts: HashMap<char, f64> = HashMap::new();
        text.chars().for_each(|c| *counts.entry(c).or_default() += 1.0);
        let length = text.chars().count() as f64;
        counts.values().map(|count| -(count / length) * (count / length).log2()).sum()
    }

    /// Contexts in which keys occur; `{}` stands for the key.
    const CONTEXTS: [&str; 44] = [
        "{}",
        "{}\n",
        "{}\r\n",
        "\t{}\t",
        "KEYWARD_KEY={}",
        "export API_KEY={}\n",
        "API_KEY=\"{}\"",
        "API_KEY='{}'",
        "API_KEY = `{}`;",
        "api_key: {}\n",
        "api_key: \"{}\" # production",
        "{\"key\":\"{}\",\"id\":1}",
        "{\"env\":\"A=1\\nKEY={}\\nB=2\"}",
        "{\"env\":\"A=1\\n{}\\n\"}",
        "{\"line\":\"\\t{}\"}",
        "{\"url\":\"https://api.example.com/?a\\u003d1\\u0026key\\u003d{}\\u0026b=2\"}",
        "<key>{}</key>",
        "<input value='{}'/>",
        "[\"{}\",\"{}\"]",
        "https://api.example.com/v1?key={}&page=2",
        "https://api.example.com/v1?key={}#top",
        "https://{}@api.example.com/",
        "https://{}:@api.example.com/",
        "https://api.example.com/keys/{}/usage",
        "https://login.example.com/?next=%2Fv1%3Fkey%3D{}%26page%3D2",
        "https://login.example.com/?next=%2fkeys%2f{}",
        "curl -u {}: https://api.example.com",
        "curl -H 'Authorization: Bearer {}' https://api.example.com",
        "curl -H \"X-Api-Key:{}\"",
        "cmd --key={} --verbose",
        "cmd -k {}|tee log",
        "echo {}>key.txt",
        "$(printf %s {})",
        "Authorization: Bearer {}\r\nHost: api.example.com\r\n",
        "the key is {}.",
        "the key ({}), which",
        "die Schlüssel „{}“",
        "{},ci-1,acme,,100/s",
        "a;{};b",
        "-const KEY: &str = \"{}\";",
        "+    key = b\"{}\"",
        "\x1b[32m{}\x1b[0m",
        "KEY=\\x22{}\\x22",
        "key\\0{}\\0",
    ];

    #[test]
    fn minted_key_is_found_in_every_context() {
        let all = ["acme_live_", "acme_test_", "acme_", "x2_", "_"];
        for prefix in all {
            for regex in [compiled(&[prefix]), compiled(&all)] {
                for number in 0..600 {
                    let key = minted(prefix);
                    // Each key is tried in a few contexts, and each context with many keys.
                    for text in CONTEXTS.iter().cycle().skip(number).take(8) {
                        let text = text.replace("{}", &key);
                        let keys = found(&regex, &text);
                        assert!(!keys.is_empty() && keys.iter().all(|found| *found == key), "{text}");
                    }
                    assert!(entropy(&key) > f64::from(MIN_ENTROPY) + 0.5, "{key}");
                }
            }
        }
        for text in CONTEXTS {
            let key = minted("acme_live_");
            let keys = found(&compiled(&["acme_live_"]), &text.replace("{}", &key));
            assert_eq!(keys.len(), text.matches("{}").count(), "{text}");
        }
    }

    /// A random text. It is generated so that scanners do not report this file as a leak.
    fn random(alphabet: &str, length: usize) -> String {
        let alphabet: Vec<char> = alphabet.chars().collect();
        let mut bytes = vec![0; length];
        getrandom::fill(&mut bytes).expect("randomness");
        bytes.iter().map(|byte| alphabet[usize::from(*byte) % alphabet.len()]).collect()
    }

    #[test]
    fn text_that_only_resembles_a_key_is_not_found() {
        const BASE62: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        const HEX: &str = "0123456789abcdef";
        let regex = compiled(&["acme_live_"]);
        for _ in 0..500 {
            let key = minted("acme_live_");
            let rest = &key["acme_live_".len()..];
            let (half, other) = rest.split_at(18);
            let near_misses = [
                key[..key.len() - 1].to_owned(),
                key[..20].to_owned(),
                "acme_live_".to_owned(),
                format!("{key}0"),
                format!("{key}_"),
                format!("{key}{rest}"),
                format!("{key}_old"),
                format!("acme_test_{rest}"),
                format!("acme_{rest}"),
                format!("live_{rest}"),
                format!("acme-live-{rest}"),
                format!("acme.live.{rest}"),
                format!("acmelive{rest}"),
                format!("acme_live-{rest}"),
                format!("acme_live_ {rest}"),
                format!("ACME_LIVE_{rest}"),
                format!("Acme_live_{rest}"),
                format!("acme_live_{half}-{other}"),
                format!("acme_live_{half}_{other}"),
                format!("acme_live_{half} {other}"),
                format!("acme_live_{half}\n{other}"),
                format!("acme_live_{half}é{}", &other[1..]),
                format!("my{key}"),
                format!("my_{key}"),
                format!("0{key}"),
                format!("X{key}X"),
                format!("test_{key}.txt"),
                rest.to_owned(),
            ];
            let hex = random(HEX, 64);
            let [a, b, c] = [36, 60, 43].map(|length| random(BASE62, length));
            let others = [
                // A UUID, digests, and tokens in three parts.
                format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30]),
                hex.clone(),
                format!("sha256:{hex}"),
                format!("{}.{b}.{c}", ["ey", &a].concat()),
                // Keys of other vendors.
                format!("{}_live_{}", "sk", &b[..24]),
                format!("{}_test_{b}", "rk"),
                format!("{}_{a}", "ghp"),
                format!("{}_pat_{b}", "github"),
                format!("{}-{}", "glpat", &a[..20]),
                format!("{}{}", "AKIA", a[..16].to_uppercase()),
                format!("{}-{a}", "xoxb"),
                format!("{}{}", "AIza", &a[..35]),
                format!("{}.{}.{c}", "SG", &a[..22]),
                format!("{}-proj-{b}", "sk"),
                format!("{}_{}", "npm", &a[..36]),
                format!("acme_live_id={}", &hex[..32]),
            ];
            for text in near_misses.iter().chain(&others) {
                for text in [text.clone(), format!("KEY={text}\n"), format!("{{\"key\":\"{text}\"}}")] {
                    assert_eq!(found(&regex, &text), Vec::<String>::new(), "{text}");
                }
            }
        }
        // The entropy excludes placeholders, which the pattern matches.
        for placeholder in ["x", "0", "X0", "abcd"] {
            let text: String = ["acme_live_", &placeholder.repeat(36 / placeholder.len())].concat();
            assert!(entropy(&text) <= f64::from(MIN_ENTROPY), "{text}");
        }
    }

    #[test]
    fn pattern_uses_no_syntax_that_re2_lacks() {
        let pattern = pattern(&prefixes(&["acme_live_", "acme_test_"]));
        for unknown in ["(?=", "(?!", "(?<", "(?>", "(?P=", "\\1", "\\K", "\\Z", "++", "*+", "}+", "'''"] {
            assert!(!pattern.contains(unknown), "{unknown} in {pattern}");
        }
        assert!(!pattern.replace("(?:", "").contains("(?"), "no other group: {pattern}");
    }

    #[test]
    fn rule_is_valid_toml_and_equals_the_shipped_file() {
        assert_eq!(rule(&[Prefix::default()]), include_str!("gitleaks.toml"));
        let all = prefixes(&["acme_live_", "acme_test_"]);
        let table: toml::Table = rule(&all).parse().expect("TOML");
        let rules = table["rules"].as_array().expect("a list");
        let [rule] = rules.as_slice() else { panic!("{rules:?}") };
        assert_eq!(rule["regex"].as_str(), Some(pattern(&all).as_str()));
        let keywords: Vec<_> =
            rule["keywords"].as_array().expect("a list").iter().map(|k| k.as_str()).collect();
        assert_eq!(keywords, [Some("acme_live_"), Some("acme_test_")]);
        let mut known: Vec<_> = rule.as_table().expect("a table").keys().map(String::as_str).collect();
        known.sort_unstable();
        assert_eq!(known, ["description", "entropy", "id", "keywords", "regex", "secretGroup"]);
        for (key, keys) in [(minted("acme_test_"), 1), (minted("acme_prod_"), 0)] {
            assert_eq!(found(&compiled(&["acme_live_", "acme_test_"]), &key).len(), keys);
        }
    }
}
