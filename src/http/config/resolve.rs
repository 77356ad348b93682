//! Checks settings that depend on each other, and converts them into the types of the modules that use
//! them.

use std::collections::HashSet;
use std::path::Path;

use keyward_protocol::{MAX_COSTS, MAX_NAME, MAX_SCOPES};
use keyward_settings::file::FileError;
use keyward_settings::{Group, Id, SocketMode};

use super::file::{
    ClientAddress, ConfigFile, Cost, Credentials, GatewayTable, HintsTable, Identity, MetricsTable,
    RateLimits, RequestIdTable, RouteTable, SettlementTable,
};
use super::value::{
    HeaderText, HostText, ListenText, MethodText, NameText, PathText, PrefixText, SocketText, WordText,
};
use super::{
    Config, GatewayListener, ListenAddress, ListenSettings, METRICS_NAME, MetricsListener, SETTLEMENT_NAME,
    Server, SettlementListener,
};
use crate::charge_once::RequestId;
use crate::check::CheckRules;
use crate::client_address::AddressSource;
use crate::credential::CredentialPlaces;
use crate::gateway::Gateway;
use crate::hint::{HintPlace, Hints};
use crate::identity::{IdentityHeaders, MetadataHeader};
use crate::limits::ServerLimits;
use crate::rate_limit::RateLimitHeaders;
use crate::reserved_header;
use crate::route::{Access, Requirements, Route, Routes};
use crate::settlement::SettlementRules;

/// What all gateways have in common.
struct CommonRules {
    credentials: CredentialPlaces,
    routes: Routes,
    identity: IdentityHeaders,
    rate_limits: RateLimitHeaders,
}

pub(super) fn resolve(file: &Path, settings: ConfigFile) -> Result<Config, FileError> {
    let common = CommonRules {
        credentials: credentials(file, settings.credentials)?,
        routes: routes(file, settings.routes)?,
        identity: identity(file, settings.identity)?,
        rate_limits: rate_limits(settings.rate_limits),
    };
    let server = settings.server;
    let gateways = gateways(file, settings.gateways, &common)?;
    let settlement =
        settings.settlement.map(|table| settlement(file, table, &common, &gateways)).transpose()?;
    Ok(Config {
        server: Server {
            keyward: server.keyward,
            deadline: server.deadline,
            workers: server.workers as usize,
            limits: ServerLimits {
                max_connections: server.max_connections as usize,
                // In range: at most a mebibyte.
                max_header_bytes: usize::try_from(server.max_header_size.bytes()).unwrap_or(usize::MAX),
                idle_timeout: server.idle_timeout,
                drain_timeout: server.drain_timeout,
            },
        },
        metrics: metrics(file, settings.metrics, &gateways, settlement.as_ref())?,
        gateways,
        settlement,
        log: settings.log,
    })
}

fn gateways(
    file: &Path,
    tables: Vec<GatewayTable>,
    common: &CommonRules,
) -> Result<Vec<GatewayListener>, FileError> {
    if tables.is_empty() {
        let problem = "there is none: add [[gateways]] with name, kind and listen, so that a gateway can ask";
        return Err(FileError::setting(file, "gateways", problem));
    }
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    let mut listeners = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let error = |setting: &str, problem: &str| {
            FileError::setting(file, format!("gateways[{index}].{setting}"), problem)
        };
        let NameText(name) = table.name;
        let ListenText(listen) = table.listen;
        if [METRICS_NAME, SETTLEMENT_NAME].contains(&name.as_str()) {
            return Err(error(
                "name",
                "is systemd's name for a socket that is not a gateway's: choose another",
            ));
        }
        if !names.insert(name.clone()) {
            return Err(error("name", "another gateway has this name: choose another"));
        }
        if !addresses.insert(listen.clone()) {
            return Err(error("listen", "another gateway listens there: each needs its own"));
        }
        if table.path_prefix.is_some() && table.kind != Gateway::Envoy {
            return Err(error("path_prefix", "only Envoy forwards the client's path: leave it out"));
        }
        let hints = table
            .hints
            .map_or(Hints { place: HintPlace::Query, kinds: Vec::new() }, |HintsTable { place, kinds }| {
                Hints { place, kinds }
            });
        if !hints.kinds.is_empty()
            && let Some(problem) = untrusted_hints(table.kind, hints.place)
        {
            return Err(error("hints.place", problem));
        }
        let client_address = table.client_address.map(|ClientAddress { header, trusted_hops }| {
            let HeaderText(header) = header;
            AddressSource { header, trusted_hops: trusted_hops as usize }
        });
        listeners.push(GatewayListener {
            name,
            listen: listen_settings(listen, table.socket_mode, table.socket_group),
            rules: CheckRules {
                gateway: table.kind,
                path_prefix: table.path_prefix.map(|PrefixText(prefix)| prefix).unwrap_or_default(),
                credentials: common.credentials.clone(),
                client_address,
                hints,
                request_id: table.request_id.map(|RequestIdTable { header: HeaderText(header), within }| {
                    RequestId { header, within }
                }),
                routes: common.routes.clone(),
                identity: common.identity.clone(),
                rate_limits: common.rate_limits,
            },
        });
    }
    Ok(listeners)
}

/// Why hints in this place can be the client's, or cannot be there; `None` if they are the gateway's.
fn untrusted_hints(kind: Gateway, place: HintPlace) -> Option<&'static str> {
    match place {
        HintPlace::Context if kind.sets_context() => None,
        HintPlace::Context => Some("only envoy-grpc sends context extensions: use \"query\" or \"headers\""),
        // Envoy sends what the client has sent; it changes headers only after the check.
        _ if kind.sets_context() => {
            Some("only context extensions are never the client's, which could write hints: use \"context\"")
        }
        HintPlace::Query if !kind.sets_query() => Some(
            "the query can be the client's, which could write hints: use \"headers\", which the gateway sets",
        ),
        HintPlace::Query | HintPlace::Headers => None,
    }
}

fn metrics(
    file: &Path,
    table: Option<MetricsTable>,
    gateways: &[GatewayListener],
    settlement: Option<&SettlementListener>,
) -> Result<Option<MetricsListener>, FileError> {
    let Some(MetricsTable { listen: ListenText(listen), socket_mode, socket_group, admin }) = table else {
        return Ok(None);
    };
    let others = gateways.iter().map(|gateway| &gateway.listen);
    let mut others = others.chain(settlement.map(|settlement| &settlement.listen));
    if others.any(|other| other.address == listen) {
        let problem = "another listener has this address: metrics need one of their own";
        return Err(FileError::setting(file, "metrics.listen", problem));
    }
    Ok(Some(MetricsListener { listen: listen_settings(listen, socket_mode, socket_group), admin }))
}

fn listen_settings(
    address: ListenAddress,
    socket_mode: Option<SocketMode>,
    socket_group: Option<Group>,
) -> ListenSettings {
    ListenSettings { address, socket_mode: socket_mode.unwrap_or(SocketMode::DEFAULT), socket_group }
}

fn settlement(
    file: &Path,
    table: SettlementTable,
    common: &CommonRules,
    gateways: &[GatewayListener],
) -> Result<SettlementListener, FileError> {
    let SettlementTable { listen: SocketText(listen), socket_mode, socket_group, uids, deadline } = table;
    if uids.is_empty() {
        let problem =
            "is empty, so no process could settle: list users (`id -u NAME`), or leave [settlement] out";
        return Err(FileError::setting(file, "settlement.uids", problem));
    }
    let address = ListenAddress::Unix(listen);
    if gateways.iter().any(|gateway| gateway.listen.address == address) {
        let problem = "a gateway listens there: settlements need a socket of their own";
        return Err(FileError::setting(file, "settlement.listen", problem));
    }
    Ok(SettlementListener {
        listen: listen_settings(address, socket_mode, socket_group),
        rules: SettlementRules { uids: Id::sorted(uids), credentials: common.credentials.clone(), deadline },
    })
}

fn credentials(file: &Path, settings: Credentials) -> Result<CredentialPlaces, FileError> {
    let Credentials { bearer, api_key, basic, headers, query } = settings;
    let headers: Vec<_> = headers.into_iter().map(|HeaderText(name)| name).collect();
    let has_place = bearer || api_key || basic.is_some() || !headers.is_empty() || query.is_some();
    if !has_place {
        let problem = "no place is left for a key: switch one on";
        return Err(FileError::setting(file, "credentials", problem));
    }
    if headers.contains(&http::header::AUTHORIZATION) {
        let problem = "Authorization has a scheme before the key: use bearer, api_key or basic";
        return Err(FileError::setting(file, "credentials.headers", problem));
    }
    Ok(CredentialPlaces { bearer, api_key, basic, headers, query: query.map(|WordText(name)| name) })
}

fn identity(file: &Path, Identity { metadata }: Identity) -> Result<IdentityHeaders, FileError> {
    for HeaderText(header) in metadata.keys() {
        if let Some(reason) = reserved_header::reason(header) {
            let problem = format!("this header {reason}: choose another, such as \"X-Tenant\"");
            return Err(FileError::setting(file, format!("identity.metadata.{header}"), problem));
        }
    }
    let headers = metadata.into_iter().map(|(HeaderText(header), field)| MetadataHeader { header, field });
    Ok(IdentityHeaders::new(headers.collect()))
}

fn rate_limits(RateLimits { standard, all, legacy }: RateLimits) -> RateLimitHeaders {
    RateLimitHeaders { standard, all, legacy }
}

fn routes(file: &Path, tables: Vec<RouteTable>) -> Result<Routes, FileError> {
    let routes = tables.into_iter().enumerate().map(|(index, table)| {
        route(index, table).map_err(|(setting, problem)| {
            FileError::setting(file, format!("routes[{index}].{setting}"), problem)
        })
    });
    Ok(Routes::new(routes.collect::<Result<_, _>>()?))
}

/// A route. The error is the setting, and what is wrong with it.
fn route(index: usize, table: RouteTable) -> Result<Route, (&'static str, String)> {
    let empty = "is empty, which would match nothing: leave it out for any";
    if table.methods.as_ref().is_some_and(Vec::is_empty) {
        return Err(("methods", empty.to_owned()));
    }
    let requirements = requirements(&table)?;
    if table.access != Access::Key {
        let needs_key = requirements != Requirements::default() || table.fail_open || table.cors_preflight;
        if needs_key {
            let problem = "is not \"key\", but the route says what a key needs: leave one of them out";
            return Err(("access", problem.to_owned()));
        }
    }
    Ok(Route {
        name: table.name.map_or_else(|| (index + 1).to_string(), |NameText(name)| name),
        host: table.host.map(|HostText(host)| host),
        path: table.path.map(|PathText(path)| path),
        methods: table.methods.into_iter().flatten().map(|MethodText(method)| method).collect(),
        access: table.access,
        requirements,
        fail_open: table.fail_open,
        cors_preflight: table.cors_preflight,
    })
}

fn requirements(table: &RouteTable) -> Result<Requirements, (&'static str, String)> {
    if table.scopes.is_some() && table.any_scope.is_some() {
        let problem =
            "is there beside `scopes`: a request asks for all scopes of a list or for any, not for both";
        return Err(("any_scope", problem.to_owned()));
    }
    // An empty list may have been meant as "no key will do".
    for (setting, list) in [("scopes", &table.scopes), ("any_scope", &table.any_scope)] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            return Err((setting, "is empty: name a scope, or leave it out if none is needed".to_owned()));
        }
    }
    let words = |list: &Option<Vec<WordText>>| -> Vec<String> {
        list.iter().flatten().map(|WordText(word)| word.clone()).collect()
    };
    let (scopes, any_scope) = (words(&table.scopes), words(&table.any_scope));
    for (setting, list) in [("scopes", &scopes), ("any_scope", &any_scope)] {
        if list.join(" ").len() > MAX_SCOPES {
            return Err((setting, format!("has more than {MAX_SCOPES} bytes: a request cannot carry that")));
        }
    }
    if table.costs.len() > MAX_COSTS {
        return Err(("costs", format!("names more than {MAX_COSTS} limits: a request cannot carry that")));
    }
    if let Some(name) = table.costs.keys().find(|name| name.is_empty() || name.len() > MAX_NAME) {
        return Err(("costs", format!("{name:?} is not the name of a limit: it has 1 to {MAX_NAME} bytes")));
    }
    if table.environment.as_ref().is_some_and(|WordText(name)| name.len() > MAX_NAME) {
        return Err(("environment", format!("has more than {MAX_NAME} bytes: a request cannot carry that")));
    }
    Ok(Requirements {
        scopes,
        any_scope,
        cost: table.cost,
        costs: table.costs.iter().map(|(limit, Cost(cost))| (limit.clone(), *cost)).collect(),
        environment: table.environment.as_ref().map(|WordText(name)| name.clone()),
    })
}
