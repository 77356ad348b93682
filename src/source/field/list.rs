//! Parses lists: items separated by spaces or commas, a JSON array, or a PostgreSQL array literal.
//!
//! An empty item is refused instead of skipped: an `allowed_ips` of `,` must not allow every
//! address.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use keyward_engine::record::{MAX_SCOPE, Origin, OriginError, Quoted};

use crate::field::null::NullTexts;

/// Why a text is not a list of valid items.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListError {
    #[error("it has an empty item; separate items by one comma or by spaces")]
    EmptyItem,
    #[error(
        "{} in it stands for no value (source.null_texts); remove it from the list, or take the text out of \
         source.null_texts if it is a value",
        Quoted(.0)
    )]
    Null(Box<str>),
    #[error("it begins like a JSON array, but is not an array of strings, as in [\"a\",\"b\"]")]
    Json,
    #[error("it begins like a PostgreSQL array, but is not an array of texts, as in {{a,b}}")]
    Postgres,
    #[error(
        "{} is not a scope: it has 1 to {MAX_SCOPE} printable ASCII characters, but no space, comma or quote",
        Quoted(.0)
    )]
    Scope(Box<str>),
    #[error("{} has a * before its end; * is a wildcard at the end only, as in orders:*", Quoted(.0))]
    Star(Box<str>),
    #[error("{} is not an IP address or network; write it as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32", Quoted(.0))]
    Ip(Box<str>),
    #[error("{} is an address, not a network; the network is {}, the address alone {}", Quoted(.0), .1, .2)]
    HostBits(Box<str>, IpNet, IpAddr),
    #[error("{}: {}", Quoted(.0), .1)]
    Origin(Box<str>, OriginError),
}

/// Parses scopes, in the order written.
pub(crate) fn scopes(text: &str, nulls: &NullTexts) -> Result<Vec<Box<str>>, ListError> {
    parse_list(text, nulls, parse_scope)
}

fn parse_scope(text: &str) -> Result<Box<str>, ListError> {
    let printable = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b'"' | b'\'' | b'`');
    if !(1..=MAX_SCOPE).contains(&text.len()) || !text.bytes().all(printable) {
        return Err(ListError::Scope(text.into()));
    }
    if text.bytes().rev().skip(1).any(|b| b == b'*') {
        return Err(ListError::Star(text.into()));
    }
    Ok(text.into())
}

/// Parses networks. An address is a network of one address. An IPv4-mapped IPv6 network
/// (`::ffff:192.0.2.7`) becomes an IPv4 network, so that addresses and networks are compared in the
/// same form.
pub(crate) fn networks(text: &str, nulls: &NullTexts) -> Result<Vec<IpNet>, ListError> {
    parse_list(text, nulls, parse_network)
}

fn parse_network(text: &str) -> Result<IpNet, ListError> {
    let address = text.parse::<IpAddr>().map(IpNet::from).ok();
    let network = address.or_else(|| text.parse().ok()).ok_or_else(|| ListError::Ip(text.into()))?;
    if network != network.trunc() {
        return Err(ListError::HostBits(text.into(), network.trunc(), network.addr()));
    }
    Ok(unmap(network))
}

fn unmap(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let length = v6.prefix_len().checked_sub(96);
    let v4 = v6.addr().to_ipv4_mapped().zip(length).and_then(|(address, n)| Ipv4Net::new(address, n).ok());
    v4.map_or(network, IpNet::V4)
}

/// Parses web origins and patterns of them.
pub(crate) fn origins(text: &str, nulls: &NullTexts) -> Result<Vec<Origin>, ListError> {
    parse_list(text, nulls, |item| Origin::parse(item).map_err(|error| ListError::Origin(item.into(), error)))
}

/// Parses a list. Refuses null texts as items: without them, the list would have another meaning.
fn parse_list<T>(
    text: &str,
    nulls: &NullTexts,
    parse_item: impl Fn(&str) -> Result<T, ListError>,
) -> Result<Vec<T>, ListError> {
    let parse_item = |text: &str| {
        if nulls.contains(text) { Err(ListError::Null(text.into())) } else { parse_item(text) }
    };
    match text.trim_start().as_bytes().first() {
        Some(b'[') => {
            let items: Vec<String> = serde_json::from_str(text).map_err(|_| ListError::Json)?;
            items.iter().map(|text| parse_item(text)).collect()
        }
        Some(b'{') => split_array(text.trim())?.iter().map(|text| parse_item(text)).collect(),
        _ => parse_separated(text, parse_item),
    }
}

fn parse_separated<T>(
    text: &str,
    parse_item: impl Fn(&str) -> Result<T, ListError>,
) -> Result<Vec<T>, ListError> {
    let mut items = Vec::new();
    for part in text.split(',') {
        let before = items.len();
        for text in part.split_ascii_whitespace() {
            items.push(parse_item(text)?);
        }
        if items.len() == before {
            return Err(ListError::EmptyItem);
        }
    }
    Ok(items)
}

/// Splits a PostgreSQL array literal such as `{a,"b \"c"}`, with one dimension and without NULL.
/// Items with a brace, comma, quote, backslash or space are quoted; a backslash escapes the next
/// character.
fn split_array(text: &str) -> Result<Vec<String>, ListError> {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or(ListError::Postgres)?;
    let mut items = Vec::new();
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let (item, after) = match rest.strip_prefix('"') {
            Some(quoted) => split_quoted_item(quoted).ok_or(ListError::Postgres)?,
            None => split_bare_item(rest)?,
        };
        items.push(item);
        rest = match after.trim_start().strip_prefix(',') {
            // A comma must be followed by another item, and the last item by the end.
            Some(more) if more.trim_start().is_empty() => return Err(ListError::EmptyItem),
            Some(more) => more.trim_start(),
            None if after.trim_start().is_empty() => "",
            None => return Err(ListError::Postgres),
        };
    }
    Ok(items)
}

/// The item up to its closing quote, and the text after the quote.
fn split_quoted_item(text: &str) -> Option<(String, &str)> {
    let mut item = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some((item, characters.as_str())),
            '\\' => item.push(characters.next()?),
            character => item.push(character),
        }
    }
}

fn split_bare_item(text: &str) -> Result<(String, &str), ListError> {
    let (item, after) = text.split_at(text.find(',').unwrap_or(text.len()));
    let item = item.trim_end();
    if item.is_empty() {
        return Err(ListError::EmptyItem);
    }
    if item.eq_ignore_ascii_case("null") {
        return Err(ListError::Null(item.into()));
    }
    if item.contains(['{', '}', '"', '\\']) {
        return Err(ListError::Postgres);
    }
    Ok((item.to_owned(), after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failed<T, E: ToString>(result: Result<T, E>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn texts(text: &str) -> Result<Vec<String>, ListError> {
        parse_list(text, &NullTexts::default(), |item| Ok(item.to_owned()))
    }

    #[test]
    fn every_form_of_a_list_is_parsed() {
        for text in [
            "a b",
            "a,b",
            "a, b",
            " a\t b\n",
            r#"["a","b"]"#,
            r#" [ "a" , "\u0062" ] "#,
            "{a,b}",
            "{ a , b }",
            r#"{"a","b"}"#,
            r#"{"\a",b}"#,
        ] {
            assert_eq!(texts(text), Ok(vec!["a".to_owned(), "b".to_owned()]), "{text}");
        }
        assert_eq!(texts(r#"{"b c","x\"\\,}"}"#), Ok(vec!["b c".to_owned(), "x\"\\,}".to_owned()]));
        for text in ["[]", "{}", "{ }", " [ ] "] {
            assert_eq!(texts(text), Ok(vec![]), "{text}");
        }
    }

    #[test]
    fn invalid_list_is_refused_with_a_reason() {
        let empty = "it has an empty item; separate items by one comma or by spaces";
        let json = r#"it begins like a JSON array, but is not an array of strings, as in ["a","b"]"#;
        let postgres = "it begins like a PostgreSQL array, but is not an array of texts, as in {a,b}";
        for text in ["", " ", ",", "a,", ",a", "a,,b", "a, ,b", "{a,}", "{,a}", "{a,,b}", "{,}"] {
            assert_eq!(failed(texts(text)), empty, "{text}");
        }
        for text in ["[", "[1]", "[null]", r#"["a""#, r#"["a"] b"#, r#"[["a"]]"#, r#"["a",]"#] {
            assert_eq!(failed(texts(text)), json, "{text}");
        }
        for text in ["{", "{a", "{{a}}", r#"{"a}"#, r#"{"a\"}"#, r#"{"a"b}"#, r"{a\b}"] {
            assert_eq!(failed(texts(text)), postgres, "{text}");
        }
    }

    #[test]
    fn null_text_in_a_list_is_refused() {
        let nulls = NullTexts::default();
        for text in
            ["NULL", "a NULL", "null,a", "a,\\N", r#"["a","NULL"]"#, "{NULL}", "{a,null}", r#"{a,"NULL"}"#]
        {
            for message in [failed(scopes(text, &nulls)), failed(texts(text))] {
                assert!(
                    message.ends_with("if it is a value") && message.contains("source.null_texts"),
                    "{text}: {message}"
                );
            }
        }
        // PostgreSQL writes NULL for a null element, regardless of the configured null texts.
        let no_nulls = NullTexts::new([]);
        assert!(failed(scopes("{a,NULL}", &no_nulls)).contains("stands for no value"));
        assert_eq!(scopes(r#"{a,"NULL"}"#, &no_nulls), Ok(vec!["a".into(), "NULL".into()]));
        assert!(
            failed(networks("{10.0.0.0/8,NULL}", &nulls)).starts_with("\"NULL\" in it stands for no value")
        );
        assert!(failed(origins("https://a.example NULL", &nulls)).starts_with("\"NULL\" in it"));
    }

    fn scopes_of(text: &str) -> Result<Vec<Box<str>>, ListError> {
        scopes(text, &NullTexts::default())
    }

    #[test]
    fn scope_is_printable_and_may_end_in_a_wildcard() {
        for text in ["orders:read", "*", "orders:*", "https://api.example.com/a?b=c#d", "{}[]"] {
            assert_eq!(parse_scope(text), Ok(text.into()), "{text}");
        }
        let message = |text: &str| {
            format!(
                "{text:?} is not a scope: it has 1 to 1024 printable ASCII characters, but no space, comma or quote"
            )
        };
        assert_eq!(failed(scopes_of(r#"["a b"]"#)), message("a b"));
        assert_eq!(failed(scopes_of(r#"{"b c"}"#)), message("b c"));
        assert_eq!(failed(scopes_of(r#"["a,b"]"#)), message("a,b"));
        assert_eq!(failed(scopes_of(r#"[""]"#)), message(""));
        assert_eq!(failed(scopes_of("it's")), message("it's"));
        assert_eq!(failed(scopes_of("größe")), message("größe"));
        assert!(parse_scope(&"a.".repeat(512)).is_ok() && parse_scope(&"a.".repeat(513)).is_err());
        for text in ["*:read", "**", "a*b"] {
            assert_eq!(
                failed(scopes_of(text)),
                format!("\"{text}\" has a * before its end; * is a wildcard at the end only, as in orders:*")
            );
        }
    }

    #[test]
    fn network_must_not_have_host_bits() {
        let read = |text: &str| {
            networks(text, &NullTexts::default())
                .map(|nets| nets.iter().map(IpNet::to_string).collect::<Vec<_>>())
        };
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:DB8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(read(text), Ok(vec![expected.to_owned()]), "{text}");
        }
        assert_eq!(read("{10.0.0.0/8,::1}"), Ok(vec!["10.0.0.0/8".to_owned(), "::1/128".to_owned()]));
        assert_eq!(
            failed(read("10.1.2.3/8")),
            "\"10.1.2.3/8\" is an address, not a network; the network is 10.0.0.0/8, the address alone 10.1.2.3"
        );
        assert_eq!(
            failed(read("2001:db8::1/32")),
            "\"2001:db8::1/32\" is an address, not a network; the network is 2001:db8::/32, the address alone \
             2001:db8::1"
        );
        for text in [
            "10.0.0.0/33",
            "10.0.0",
            "10.0.0.0/-1",
            "010.0.0.1",
            "10.0.0.0/255.0.0.0",
            "fe80::1%eth0",
            "host",
        ] {
            assert_eq!(
                failed(read(text)),
                format!(
                    "\"{text}\" is not an IP address or network; write it as 192.0.2.7, 192.0.2.0/24 or \
                     2001:db8::/32"
                )
            );
        }
    }

    #[test]
    fn error_names_the_invalid_origin() {
        assert_eq!(
            origins("https://a.example https://*.b.example", &NullTexts::default()).map(|list| list.len()),
            Ok(2)
        );
        assert_eq!(
            failed(origins("https://a.example,b.example", &NullTexts::default())),
            "\"b.example\": an origin begins with a scheme, as in https://app.example.com"
        );
    }

    proptest! {
        #[test]
        fn quoted_items_of_a_postgresql_array_are_unescaped(names in prop::collection::vec("\\PC*", 0..5)) {
            let items: Vec<_> = names
                .iter()
                .map(|name| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")))
                .collect();
            prop_assert_eq!(texts(&format!("{{{}}}", items.join(","))), Ok(names));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "[\\[{}\\]\",\\\\ abé/.:0-9]{0,30}") {
            let nulls = NullTexts::default();
            let _ = (scopes(&text, &nulls), networks(&text, &nulls), origins(&text, &nulls));
        }
    }
}
