//! The configuration file as it is written: the types that serde fills, with the default of every
//! setting.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use keyward_protocol::DEFAULT_SOCKET;
use keyward_settings::text::{self, MAX_DURATION};
use keyward_settings::{ByteSize, Group, Id, Log, SocketMode, SocketPath};
use serde::Deserialize;
use serde::de::Deserializer;

use super::value::{
    HeaderText, HostText, ListenText, MethodText, NameText, PathText, PrefixText, SocketText, WordText,
};
use super::{MAX_CONNECTIONS, MAX_WORKERS};
use crate::credential::{BasicPart, CredentialPlaces};
use crate::gateway::Gateway;
use crate::hint::{HintKind, HintPlace};
use crate::rate_limit::RateLimitHeaders;
use crate::route::Access;

/// A shorter time would refuse requests because of a busy processor; a longer one would let them pile up.
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
/// The daemon's admin socket, if its configuration names no other.
const DEFAULT_ADMIN_SOCKET: &str = "/run/keyward/admin.sock";
/// A shorter timeout would make gateways reconnect after every pause.
const IDLE_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=MAX_DURATION;
/// Longer than a check takes, and shorter than ids are likely to come again.
const REPEATED_WITHIN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Zero closes connections at once.
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// More proxies than any request passes.
const MAX_HOPS: u32 = 32;

/// The size of the headers of a request. hyper's smallest buffer has 8 KiB.
type HeaderSize = ByteSize<8, 1024>;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    #[serde(default)]
    pub(super) server: Server,
    #[serde(default)]
    pub(super) gateways: Vec<GatewayTable>,
    #[serde(default)]
    pub(super) metrics: Option<MetricsTable>,
    #[serde(default)]
    pub(super) credentials: Credentials,
    #[serde(default)]
    pub(super) identity: Identity,
    #[serde(default)]
    pub(super) rate_limits: RateLimits,
    #[serde(default)]
    pub(super) settlement: Option<SettlementTable>,
    #[serde(default)]
    pub(super) routes: Vec<RouteTable>,
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [server]")]
pub(super) struct Server {
    pub(super) keyward: SocketPath,
    #[serde(deserialize_with = "deadline")]
    pub(super) deadline: Duration,
    #[serde(deserialize_with = "workers")]
    pub(super) workers: u32,
    #[serde(deserialize_with = "max_connections")]
    pub(super) max_connections: u32,
    pub(super) max_header_size: HeaderSize,
    #[serde(deserialize_with = "idle_timeout")]
    pub(super) idle_timeout: Duration,
    #[serde(deserialize_with = "drain_timeout")]
    pub(super) drain_timeout: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, [[gateways]]")]
pub(super) struct GatewayTable {
    pub(super) name: NameText,
    pub(super) kind: Gateway,
    pub(super) listen: ListenText,
    #[serde(default)]
    pub(super) socket_mode: Option<SocketMode>,
    #[serde(default)]
    pub(super) socket_group: Option<Group>,
    #[serde(default)]
    pub(super) path_prefix: Option<PrefixText>,
    #[serde(default)]
    pub(super) client_address: Option<ClientAddress>,
    #[serde(default)]
    pub(super) hints: Option<HintsTable>,
    #[serde(default)]
    pub(super) request_id: Option<RequestIdTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { header = \"x-request-id\" }")]
pub(super) struct RequestIdTable {
    pub(super) header: HeaderText,
    #[serde(default = "repeated_within", deserialize_with = "request_id_within")]
    pub(super) within: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, [metrics]")]
pub(super) struct MetricsTable {
    pub(super) listen: ListenText,
    #[serde(default)]
    pub(super) socket_mode: Option<SocketMode>,
    #[serde(default)]
    pub(super) socket_group: Option<Group>,
    #[serde(default = "admin_socket")]
    pub(super) admin: SocketPath,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { header = \"x-real-ip\" }")]
pub(super) struct ClientAddress {
    pub(super) header: HeaderText,
    #[serde(default, deserialize_with = "trusted_hops")]
    pub(super) trusted_hops: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { place = \"query\", kinds = [\"scopes\"] }")]
pub(super) struct HintsTable {
    pub(super) place: HintPlace,
    pub(super) kinds: Vec<HintKind>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [credentials]")]
pub(super) struct Credentials {
    pub(super) bearer: bool,
    pub(super) api_key: bool,
    pub(super) basic: Option<BasicPart>,
    pub(super) headers: Vec<HeaderText>,
    pub(super) query: Option<WordText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [identity]")]
pub(super) struct Identity {
    pub(super) metadata: BTreeMap<HeaderText, String>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [rate_limits]")]
pub(super) struct RateLimits {
    pub(super) standard: bool,
    pub(super) all: bool,
    pub(super) legacy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, [settlement]")]
pub(super) struct SettlementTable {
    pub(super) listen: SocketText,
    #[serde(default)]
    pub(super) socket_mode: Option<SocketMode>,
    #[serde(default)]
    pub(super) socket_group: Option<Group>,
    pub(super) uids: Vec<Id>,
    #[serde(default = "settlement_deadline", deserialize_with = "deadline")]
    pub(super) deadline: Duration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [[routes]]")]
pub(super) struct RouteTable {
    pub(super) name: Option<NameText>,
    pub(super) host: Option<HostText>,
    pub(super) path: Option<PathText>,
    pub(super) methods: Option<Vec<MethodText>>,
    pub(super) scopes: Option<Vec<WordText>>,
    pub(super) any_scope: Option<Vec<WordText>>,
    #[serde(deserialize_with = "cost")]
    pub(super) cost: Option<u32>,
    pub(super) costs: BTreeMap<String, Cost>,
    pub(super) environment: Option<WordText>,
    pub(super) access: Access,
    pub(super) cors_preflight: bool,
    pub(super) fail_open: bool,
}

/// A cost of a limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost(pub(super) u32);

impl Default for Server {
    fn default() -> Self {
        Self {
            keyward: SocketPath::from_static(DEFAULT_SOCKET),
            deadline: Duration::from_millis(50),
            workers: 1,
            max_connections: 1024,
            max_header_size: HeaderSize::kibibytes(64),
            idle_timeout: Duration::from_secs(90),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Credentials {
    fn default() -> Self {
        let CredentialPlaces { bearer, api_key, basic, headers, query } = CredentialPlaces::default();
        let headers = headers.into_iter().map(HeaderText).collect();
        Self { bearer, api_key, basic, headers, query: query.map(WordText) }
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        let RateLimitHeaders { standard, all, legacy } = RateLimitHeaders::default();
        Self { standard, all, legacy }
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::integer(deserializer, 0..=u32::MAX).map(Self)
    }
}

fn admin_socket() -> SocketPath {
    SocketPath::from_static(DEFAULT_ADMIN_SOCKET)
}

fn repeated_within() -> Duration {
    Duration::from_secs(10)
}

fn request_id_within<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, REPEATED_WITHIN)
}

/// The default: it outlasts most restarts of the daemon.
fn settlement_deadline() -> Duration {
    Duration::from_secs(2)
}

fn cost<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    text::integer(deserializer, 0..=u32::MAX).map(Some)
}

fn deadline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, DEADLINE)
}

fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    text::integer(deserializer, 1..=MAX_WORKERS)
}

fn max_connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    text::integer(deserializer, 1..=MAX_CONNECTIONS)
}

fn idle_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, IDLE_TIMEOUT)
}

fn drain_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text::duration(deserializer, DRAIN_TIMEOUT)
}

fn trusted_hops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    text::integer(deserializer, 0..=MAX_HOPS)
}
