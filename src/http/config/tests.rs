//! The configuration as a whole: from texts to settings or exact error messages.

use std::collections::BTreeSet;

use http::Method;

use super::*;
use crate::credential::{BasicPart, CredentialPlaces};
use crate::gateway::Gateway;
use crate::hint::{HintKind, HintPlace, Hints};
use crate::route::Access;
use crate::target::Target;

const EXAMPLE: &str = include_str!("../../../systemd/http.toml");

/// The shortest valid file, to which a test adds settings.
const GATEWAY: &str = "gateways = [{ name = 'g', kind = 'nginx', listen = '/run/g.sock' }]\n";

fn parse(text: &str) -> Result<Config, FileError> {
    Config::parse(Path::new("/etc/keyward/http.toml"), text)
}

/// The message about settings that are added to a valid file, without the name of the file.
fn refused(settings: &str) -> String {
    refused_file(&format!("{GATEWAY}{settings}"))
}

fn refused_file(text: &str) -> String {
    let message = parse(text).expect_err(text).to_string();
    message.strip_prefix("/etc/keyward/http.toml").expect("the name of the file").to_owned()
}

#[test]
fn example_has_the_defaults() {
    let example = parse(EXAMPLE).expect("it is valid");
    let minimal =
        parse("[[gateways]]\nname = 'nginx'\nkind = 'nginx'\nlisten = '/run/keyward-http/nginx.sock'\n");
    let minimal = minimal.expect("it is valid");
    assert_eq!(format!("{example:?}"), format!("{minimal:?}"));
}

/// Each setting that is commented out in the example is valid as it stands there.
#[test]
fn example_names_every_setting() {
    let is_setting = |line: &&str| {
        let name = line.strip_prefix('#').unwrap_or_default().split([' ', '=']).next().unwrap_or_default();
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let commented_out: Vec<&str> = EXAMPLE.lines().filter(is_setting).collect();
    let names: BTreeSet<&str> =
        commented_out.iter().map(|line| &line[1..line.find([' ', '=']).expect("a name")]).collect();
    let expected = [
        "access",
        "admin",
        "any_scope",
        "basic",
        "client_address",
        "cors_preflight",
        "cost",
        "costs",
        "deadline",
        "environment",
        "fail_open",
        "hints",
        "host",
        "listen",
        "metadata",
        "methods",
        "name",
        "path",
        "path_prefix",
        "query",
        "request_id",
        "scopes",
        "socket_group",
        "socket_mode",
        "uids",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    // Those of [settlement] are commented out together: two of them have no default.
    let [begin, end] = ["#[settlement]", "#[[routes]]"].map(|table| EXAMPLE.find(table).expect("a table"));
    let of_settlement = EXAMPLE[begin..end].lines().filter(is_setting);
    let rest = format!("{}{}", &EXAMPLE[..begin], &EXAMPLE[end..]);
    let settlement: String = of_settlement.map(|line| format!("{}\n", &line[1..])).collect();
    let with_settlement = |text: &str| parse(&format!("{GATEWAY}[settlement]\n{text}")).expect("it is valid");
    let required = "listen = '/run/keyward-http/settlement.sock'\nsocket_group = 'www-data'\nuids = [33]\n";
    assert_eq!(
        format!("{:?}", with_settlement(&settlement)),
        format!("{:?}", with_settlement(required)),
        "{settlement}"
    );
    for line in rest.lines().filter(is_setting) {
        let only = rest.replace(&format!("\n{line}\n"), &format!("\n{}\n", &line[1..]));
        let is_of_metrics = ["#listen", "#admin"].iter().any(|setting| line.starts_with(setting));
        let only = if is_of_metrics {
            only.replace("#[metrics]", "[metrics]").replace("\n#listen", "\nlisten")
        } else {
            only
        };
        let is_of_route = rest.find(line) > rest.find("#[[routes]]") && line != "#[[routes]]";
        let text = if is_of_route { only.replace("#[[routes]]", "[[routes]]") } else { only };
        let text = if line.starts_with("#path_prefix") {
            text.replace("kind = \"nginx\"", "kind = \"envoy\"")
        } else {
            text
        };
        parse(&text).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn settings_are_those_of_the_file() {
    let config = parse(
        "[server]\nkeyward = '/k.sock'\ndeadline = '20ms'\nworkers = 2\nmax_connections = 7\nmax_header_size = '8KiB'\n\
         [[gateways]]\nname = 'e'\nkind = 'envoy'\nlisten = '[::1]:9180'\npath_prefix = '/check/'\n\
         client_address = { header = 'X-Forwarded-For', trusted_hops = 2 }\n\
         hints = { place = 'headers', kinds = ['scopes', 'costs'] }\n\
         [credentials]\nbearer = false\nbasic = 'user'\nheaders = []\nquery = 'key'\n\
         [[routes]]\nname = 'r'\nhost = '*.a.b'\npath = '/x/**'\nmethods = ['PUT']\nany_scope = ['s']\ncost = 0\n\
         costs = { tokens = 9 }\nenvironment = 'live'\nfail_open = true\n\
         [[routes]]\naccess = 'open'\n",
    );
    let config = config.expect("it is valid");
    assert_eq!((config.server.workers, config.server.limits.max_connections), (2, 7));
    assert_eq!(
        (config.server.deadline, config.server.limits.max_header_bytes),
        (Duration::from_millis(20), 8192)
    );
    let [GatewayListener { name, listen, rules, .. }] = &*config.gateways else { panic!("one gateway") };
    assert_eq!((name.as_str(), rules.gateway, rules.path_prefix.as_str()), ("e", Gateway::Envoy, "/check"));
    assert_eq!(listen.address, ListenAddress::Tcp("[::1]:9180".parse().expect("an address")));
    assert_eq!(rules.client_address.as_ref().map(|source| source.trusted_hops), Some(2));
    let kinds = vec![HintKind::Scopes, HintKind::Costs];
    assert_eq!(rules.hints, Hints { place: HintPlace::Headers, kinds });
    let places = CredentialPlaces {
        bearer: false,
        api_key: true,
        basic: Some(BasicPart::User),
        headers: Vec::new(),
        query: Some("key".to_owned()),
    };
    assert_eq!(rules.credentials, places);
    let target = Target::parse("/x/y").expect("a target");
    let route = rules.routes.find(Some("q.a.b"), &target, &Method::PUT).expect("a route");
    assert_eq!((route.name.as_str(), route.access, route.fail_open), ("r", Access::Key, true));
    assert_eq!((&*route.requirements.any_scope, route.requirements.cost), (&["s".to_owned()][..], Some(0)));
    let other = rules.routes.find(None, &target, &Method::PUT).expect("a route");
    assert_eq!((other.name.as_str(), other.access), ("2", Access::Open));
}

#[test]
fn metrics_have_a_listener_of_their_own() {
    assert!(parse(GATEWAY).expect("it is valid").metrics.is_none());
    let metrics = |settings: &str| {
        let config = parse(&format!("{GATEWAY}[metrics]\n{settings}")).expect("it is valid");
        let MetricsListener { listen, admin } = config.metrics.expect("a listener");
        (listen.address.to_string(), listen.socket_mode.bits(), admin.as_path().display().to_string())
    };
    let (default_mode, default_admin) = (SocketMode::DEFAULT.bits(), "/run/keyward/admin.sock".to_owned());
    let tcp = metrics("listen = '127.0.0.1:9181'");
    assert_eq!(tcp, ("127.0.0.1:9181".to_owned(), default_mode, default_admin));
    let unix = metrics("listen = '/run/m.sock'\nsocket_mode = '0666'\nadmin = '/run/a.sock'");
    assert_eq!(unix, ("/run/m.sock".to_owned(), 0o666, "/run/a.sock".to_owned()));
    for (settings, expected) in [
        (
            "[metrics]\nlisten = '/run/g.sock'",
            "another listener has this address: metrics need one of their own",
        ),
        ("[metrics]\nadmin = '/run/a.sock'", "missing field `listen`"),
    ] {
        let message = refused(settings);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn settlement_is_off_unless_users_are_listed() {
    assert!(parse(GATEWAY).expect("it is valid").settlement.is_none());
    let config = parse(&format!(
        "{GATEWAY}[credentials]\nbearer = false\n[settlement]\nlisten = '/s.sock'\nsocket_mode = '0600'\nuids = [7, 5, 7]\n\
         deadline = '9s'"
    ));
    let settlement = config.expect("it is valid").settlement.expect("there is one");
    assert_eq!(settlement.listen.address.to_string(), "/s.sock");
    assert_eq!((settlement.listen.socket_mode.bits(), &*settlement.rules.uids), (0o600, &[5, 7][..]));
    assert_eq!(
        (settlement.rules.deadline, settlement.rules.credentials.bearer),
        (Duration::from_secs(9), false)
    );
}

#[test]
fn invalid_setting_is_refused_with_its_place() {
    for (settings, expected) in [
        (
            "[server]\nworkers = 0",
            ":3:11: server.workers: invalid value: integer `0`, expected an integer from 1 to 64",
        ),
        ("[server]\ndeadline = '0s'", ":3:12: server.deadline: 0s is out of range: write 1ms to 1m"),
        (
            "[server]\nmax_header_size = '2MiB'",
            ":3:19: server.max_header_size: \"2MiB\" is out of range: write \"8KiB\" to \"1MiB\"",
        ),
        (
            "[servers]",
            ":2:2: servers: unknown field `servers`, expected one of `server`, `gateways`, `metrics`, `credentials`, `identity`, `rate_limits`, `settlement`, `routes`, `log`",
        ),
        (
            "[settlement]\nlisten = '127.0.0.1:9181'\nuids = [33]",
            ":3:10: settlement.listen: \"127.0.0.1:9181\" is a TCP port, and a TCP connection does not state which user has opened \
             it, so `uids` would mean nothing: write the path of a socket such as \"/run/keyward-http/settlement.sock\"",
        ),
        (
            "[settlement]\nlisten = 's.sock'\nuids = [33]",
            ":3:10: settlement.listen: \"s.sock\" is no address: write the path of a socket such as \
             \"/run/keyward-http/settlement.sock\"",
        ),
        ("[settlement]\nlisten = '/s.sock'", ":2:1: settlement: missing field `uids`"),
        (
            "[settlement]\nlisten = '/s.sock'\nuids = []",
            ": settlement.uids: is empty, so no process could settle: list users (`id -u NAME`), or leave [settlement] out",
        ),
        (
            "[settlement]\nlisten = '/s.sock'\nuids = ['www-data']",
            ":4:9: settlement.uids[0]: invalid type: string \"www-data\", expected an integer from 0 to 4294967294",
        ),
        (
            "[settlement]\nlisten = '/run/g.sock'\nuids = [33]",
            ": settlement.listen: a gateway listens there: settlements need a socket of their own",
        ),
        (
            "[settlement]\nlisten = '/s.sock'\nuids = [33]\ndeadline = '2m'",
            ":5:12: settlement.deadline: 2m is out of range: write 1ms to 1m",
        ),
        (
            "[credentials]\nbasic = 'both'",
            ":3:9: credentials.basic: unknown variant `both`, expected `user` or `password`",
        ),
        (
            "[credentials]\nheaders = ['a b']",
            ":3:12: credentials.headers[0]: \"a b\" is not the name of a header: write one such as \"x-api-key\"",
        ),
        (
            "[credentials]\nheaders = ['Authorization']",
            ": credentials.headers: Authorization has a scheme before the key: use bearer, api_key or basic",
        ),
        (
            "[credentials]\nbearer = false\napi_key = false\nheaders = []",
            ": credentials: no place is left for a key: switch one on",
        ),
        (
            "[identity]\nmetadata = { X-Keyward-Owner = 'o' }",
            ": identity.metadata.x-keyward-owner: this header has a meaning of its own in the reply of keyward: choose another, such as \"X-Tenant\"",
        ),
        (
            "[identity]\nmetadata = { Content-Length = 'size' }",
            ": identity.metadata.content-length: this header belongs to the connection between two programs: choose another, such as \"X-Tenant\"",
        ),
        (
            "[identity]\nmetadata = { X-Tenant = 't', Authorization = 'a' }",
            ": identity.metadata.authorization: this header holds the credentials of a request: choose another, such as \"X-Tenant\"",
        ),
        (
            "[[routes]]\npath = '/a/../b'",
            ":3:8: routes[0].path: \"/a/../b\" is not a path pattern: the path has a dot segment",
        ),
        (
            "[[routes]]\nmethods = ['get']",
            ":3:12: routes[0].methods[0]: \"get\" is not a method: write one such as \"GET\", in capitals",
        ),
        (
            "[[routes]]\nmethods = []",
            ": routes[0].methods: is empty, which would match nothing: leave it out for any",
        ),
        (
            "[[routes]]\nscopes = []",
            ": routes[0].scopes: is empty: name a scope, or leave it out if none is needed",
        ),
        (
            "[[routes]]\nscopes = ['a b']",
            ":3:11: routes[0].scopes[0]: \"a b\" is not one word: it has 1 to 256 bytes and no spaces",
        ),
        (
            "[[routes]]\nscopes = ['a']\nany_scope = ['b']",
            ": routes[0].any_scope: is there beside `scopes`: a request asks for all scopes of a list or for any, not for both",
        ),
        (
            "[[routes]]\naccess = 'open'\nscopes = ['a']",
            ": routes[0].access: is not \"key\", but the route says what a key needs: leave one of them out",
        ),
        (
            "[[routes]]\naccess = 'closed'\nfail_open = true",
            ": routes[0].access: is not \"key\", but the route says what a key needs: leave one of them out",
        ),
        (
            "[[routes]]\ncost = -1",
            ":3:8: routes[0].cost: invalid value: integer `-1`, expected an integer from 0 to 4294967295",
        ),
        (
            "[[routes]]\nhost = 'https://a'",
            ":3:8: routes[0].host: \"https://a\" is not a host: expected a name such as api.example.com, or *.example.com for all names below",
        ),
    ] {
        assert_eq!(refused(settings), expected, "{settings}");
    }
}

#[test]
fn invalid_gateway_is_refused_with_its_place() {
    let gateway =
        |settings: &str| format!("[[gateways]]\nname = 'g'\nkind = 'nginx'\nlisten = '/g.sock'\n{settings}");
    for (text, expected) in [
        (
            String::new(),
            ": gateways: there is none: add [[gateways]] with name, kind and listen, so that a gateway can ask",
        ),
        ("[[gateways]]\nname = 'g'\nkind = 'nginx'".to_owned(), ":1:1: gateways[0]: missing field `listen`"),
        (
            gateway("").replace("'/g.sock'", "'0.0.0.0:9180'"),
            ":4:10: gateways[0].listen: \"0.0.0.0:9180\" is not on the loopback interface: write 127.0.0.1 or [::1] and a port, or \
             the path of a socket; a proxy has to be in front",
        ),
        (
            gateway("").replace("'/g.sock'", "'g.sock'"),
            ":4:10: gateways[0].listen: \"g.sock\" is no address: write the path of a socket such as \
             \"/run/keyward-http/nginx.sock\", or \"127.0.0.1:9180\"",
        ),
        (
            gateway("path_prefix = '/c'"),
            ": gateways[0].path_prefix: only Envoy forwards the client's path: leave it out",
        ),
        (
            gateway("hints = { place = 'context', kinds = ['cost'] }"),
            ": gateways[0].hints.place: only envoy-grpc sends context extensions: use \"query\" or \"headers\"",
        ),
        (
            gateway("hints = { place = 'query', kinds = ['cost'] }").replace("nginx", "envoy-grpc"),
            ": gateways[0].hints.place: only context extensions are never the client's, which could write hints: use \"context\"",
        ),
        (
            gateway("hints = { place = 'headers', kinds = ['cost'] }").replace("nginx", "envoy-grpc"),
            ": gateways[0].hints.place: only context extensions are never the client's, which could write hints: use \"context\"",
        ),
        (
            gateway("hints = { place = 'query', kinds = ['cost'] }").replace("nginx", "envoy"),
            ": gateways[0].hints.place: the query can be the client's, which could write hints: use \"headers\", which the gateway sets",
        ),
        (
            gateway("").replace("'g'", "'settlement'"),
            ": gateways[0].name: is systemd's name for a socket that is not a gateway's: choose another",
        ),
        (
            gateway("").replace("'g'", "'metrics'"),
            ": gateways[0].name: is systemd's name for a socket that is not a gateway's: choose another",
        ),
        (gateway(&gateway("")), ": gateways[1].name: another gateway has this name: choose another"),
        (
            gateway(&gateway("").replace("'g'", "'h'")),
            ": gateways[1].listen: another gateway listens there: each needs its own",
        ),
        (
            gateway("client_address = { header = 'x', trusted_hops = 33 }"),
            ":5:49: gateways[0].client_address.trusted_hops: invalid value: integer `33`, expected an integer from 0 to 32",
        ),
    ] {
        assert_eq!(refused_file(&text), expected, "{text}");
    }
}
