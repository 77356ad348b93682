//! The rule by which [gitleaks](https://github.com/gitleaks/gitleaks) finds minted keys in repositories, logs and pastes.
//!
//! A key is found by its prefix and its length, and by where it begins and ends: at the edge of a word, or behind an
//! escape whose last character is a letter (`%3D`, `\n`, `\u003d`), which is how keys stand in URLs, in JSON inside of
//! JSON, and in coloured logs. The pattern is RE2's syntax: no look-around, no references. The checksum is beyond a
//! pattern; `keyward key check` tells a key from what looks like one.
//!
//! `gitleaks.toml` beside this file is the rule for the default prefix; a test holds it to what [`rule`] makes.

use super::{CHECKSUM_CHARACTERS, Prefix, RANDOM_CHARACTERS};

/// What the rule is called in reports and in `.gitleaksignore`. The same for every list of prefixes: what was ignored
/// stays ignored when a prefix is added.
const ID: &str = "keyward-api-key";

/// Shannon entropy, in bits a character, up to which a match is taken for a placeholder (`acme_live_xxxx…`). KeyFormat keys
/// have more than 4, but for one in more than there will ever be.
const ENTROPY: u32 = 3;

/// What may stand before a key although it ends in a letter or digit: a percent escape, the escapes of strings, and the
/// sequence that colours a terminal.
const ESCAPES: &str = r"%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\[abfnrtv0]|\x1b\[[0-9;]*m";

/// The regular expression; its first group is the key.
pub fn pattern(prefixes: &[Prefix]) -> String {
    // A prefix has no character that means something in a pattern.
    let prefixes = prefixes.iter().map(Prefix::as_str).collect::<Vec<_>>().join("|");
    let digits = RANDOM_CHARACTERS + CHECKSUM_CHARACTERS;
    format!(r"(?:\b|{ESCAPES})((?:{prefixes})[0-9A-Za-z]{{{digits}}})\b")
}

/// The rule for keys with these prefixes, in TOML: a part of a configuration of gitleaks, or all of one.
pub fn rule(prefixes: &[Prefix]) -> String {
    let options: String = prefixes.iter().map(|prefix| format!(" --prefix {prefix}")).collect();
    let named = prefixes.iter().map(Prefix::as_str).collect::<Vec<_>>().join(" or ");
    let keywords: Vec<_> = prefixes.iter().map(|prefix| format!("\"{prefix}\"")).collect();
    format!(
        "# Made by: keyward key rule{options}\n\
         # For gitleaks: alone with --config, or in a .gitleaks.toml that begins with [extend] useDefault = true.\n\
         # Nothing is exempt: there is no allowlist. What is no key although it looks like one fails `keyward key check`.\n\
         \n\
         [[rules]]\n\
         id = \"{ID}\"\n\
         description = \"An API key minted by keyward (it begins with {named}): revoke it, and mint another.\"\n\
         regex = '''{pattern}'''\n\
         secretGroup = 1\n\
         entropy = {ENTROPY}\n\
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

    /// As Go compiles it: `\b` and classes are ASCII.
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

    /// Bits a character, as gitleaks counts it.
    fn entropy(text: &str) -> f64 {
        let mut counts: HashMap<char, f64> = HashMap::new();
        text.chars().for_each(|c| *counts.entry(c).or_default() += 1.0);
        let length = text.chars().count() as f64;
        counts.values().map(|count| -(count / length) * (count / length).log2()).sum()
    }

    /// Where keys are found in the world; `{}` is the key.
    const SURROUNDINGS: [&str; 44] = [
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
    fn every_minted_key_is_found_wherever_it_stands() {
        let all = ["acme_live_", "acme_test_", "acme_", "x2_", "_"];
        for prefix in all {
            for regex in [compiled(&[prefix]), compiled(&all)] {
                for number in 0..600 {
                    let key = minted(prefix);
                    // Each key in a few of the places, each place with many keys.
                    for text in SURROUNDINGS.iter().cycle().skip(number).take(8) {
                        let text = text.replace("{}", &key);
                        let keys = found(&regex, &text);
                        assert!(!keys.is_empty() && keys.iter().all(|found| *found == key), "{text}");
                    }
                    assert!(entropy(&key) > f64::from(ENTROPY) + 0.5, "{key}");
                }
            }
        }
        for text in SURROUNDINGS {
            let key = minted("acme_live_");
            let keys = found(&compiled(&["acme_live_"]), &text.replace("{}", &key));
            assert_eq!(keys.len(), text.matches("{}").count(), "{text}");
        }
    }

    /// A text as random as a key, made here so that no scanner takes this file for a leak.
    fn random(alphabet: &str, length: usize) -> String {
        let alphabet: Vec<char> = alphabet.chars().collect();
        let mut bytes = vec![0; length];
        getrandom::fill(&mut bytes).expect("randomness");
        bytes.iter().map(|byte| alphabet[usize::from(*byte) % alphabet.len()]).collect()
    }

    #[test]
    fn what_only_looks_like_a_key_is_not_found() {
        const BASE62: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        const HEX: &str = "0123456789abcdef";
        let regex = compiled(&["acme_live_"]);
        for _ in 0..500 {
            let key = minted("acme_live_");
            let rest = &key["acme_live_".len()..];
            let (half, other) = rest.split_at(18);
            let own = [
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
                // What other vendors mint.
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
            for text in own.iter().chain(&others) {
                for text in [text.clone(), format!("KEY={text}\n"), format!("{{\"key\":\"{text}\"}}")] {
                    assert_eq!(found(&regex, &text), Vec::<String>::new(), "{text}");
                }
            }
        }
        // What a pattern cannot tell, the entropy does.
        for placeholder in ["x", "0", "X0", "abcd"] {
            let text: String = ["acme_live_", &placeholder.repeat(36 / placeholder.len())].concat();
            assert!(entropy(&text) <= f64::from(ENTROPY), "{text}");
        }
    }

    #[test]
    fn the_pattern_is_one_that_re2_has() {
        let pattern = pattern(&prefixes(&["acme_live_", "acme_test_"]));
        for unknown in ["(?=", "(?!", "(?<", "(?>", "(?P=", "\\1", "\\K", "\\Z", "++", "*+", "}+", "'''"] {
            assert!(!pattern.contains(unknown), "{unknown} in {pattern}");
        }
        assert!(!pattern.replace("(?:", "").contains("(?"), "no other group: {pattern}");
    }

    #[test]
    fn the_rule_is_toml_that_gitleaks_reads_and_the_shipped_one_is_the_commands() {
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
