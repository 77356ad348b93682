//! Applies the command line options to the file, and checks settings that depend on each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{self, ConfigFile};
use super::plan::{Plan, RateText};
use super::value::{BadRowAction, ColumnName, FieldText, FileSize, FormatText, PrefixText};
use super::{
    Adjusters, Clients, Config, ConfigError, DEFAULT_STATE_DIR, Keys, MAX_WORKERS, Overrides, Server, Source,
};
use crate::admin::AdminUsers;
use crate::connection::UidQuotas;
use crate::reload::BadRowPolicy;
use crate::usage;
use keyward_engine::record::{Plans, PlansError};
use keyward_settings::file::FileError;
use keyward_settings::{AbsolutePath, Id, SocketPath, check_usable};
use keyward_source::{ColumnMapping, ColumnMappingError, Format};
use keyward_state::Rotation;

/// Where a value comes from. An error about the value names it.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Setting(Option<&'a Path>, &'static str),
    Option(&'static str),
}

impl Origin<'_> {
    fn error(self, problem: impl ToString) -> ConfigError {
        match self {
            Self::Setting(file, setting) => setting_error(file, setting, problem),
            Self::Option(option) => ConfigError::Option { option, problem: problem.to_string() },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Setting(_, name) | Self::Option(name) => name,
        }
    }
}

/// Resolves the configuration. `file` is `None` if there are only options.
pub(super) fn resolve(
    file: Option<&Path>,
    mut settings: ConfigFile,
    overrides: Overrides,
) -> Result<Config, ConfigError> {
    let Overrides { source, socket, admin_socket, state_dir } = overrides;
    Ok(Config {
        server: resolve_server(file, settings.server, socket, admin_socket, state_dir)?,
        max_connections_per_uid: settings.uid_quotas.connections.map(|connections| connections as usize),
        uid_quotas: resolve_uid_quotas(settings.uid_quotas),
        source: resolve_source(file, settings.source, source)?,
        plans: resolve_plans(file, settings.plans, settings.keys.default_plan.take())?,
        keys: resolve_keys(file, settings.keys)?,
        save_interval: settings.state.save_interval,
        keep_snapshot: settings.state.keep_snapshot,
        revocation_retention: settings.revocation.keep,
        usage: usage::UsagePolicy {
            interval: settings.usage.interval,
            files: rotation(settings.usage.max_file_size, settings.usage.keep),
        },
        audit: rotation(settings.audit.max_file_size, settings.audit.keep),
        log: settings.log,
        file: file.map(Path::to_owned),
    })
}

fn resolve_server(
    file: Option<&Path>,
    settings: file::Server,
    socket: Option<PathBuf>,
    admin_socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
) -> Result<Server, ConfigError> {
    let (socket, socket_origin) = match socket {
        Some(path) => (option_socket(path, "--socket")?, Origin::Option("--socket")),
        None => (settings.socket, Origin::Setting(file, "server.socket")),
    };
    let (admin_socket, admin_origin) = match (admin_socket, settings.admin_socket) {
        (Some(path), _) => (option_socket(path, "--admin-socket")?, Origin::Option("--admin-socket")),
        (None, Some(path)) => (path, Origin::Setting(file, "server.admin_socket")),
        (None, None) => (admin_beside(&socket, socket_origin)?, socket_origin),
    };
    if socket == admin_socket {
        let problem = if admin_origin.name() == socket_origin.name() {
            "is the admin socket's path: choose another, or set server.admin_socket".to_owned()
        } else {
            format!("is the path of {} too: each socket needs its own", socket_origin.name())
        };
        return Err(admin_origin.error(problem));
    }
    let state_dir = match state_dir {
        Some(path) => Some(option_path(path, "--state-dir")?),
        None => settings.state_dir.map(|AbsolutePath(path)| path),
    };
    Ok(Server {
        socket,
        socket_mode: settings.socket_mode,
        socket_group: settings.socket_group,
        admin_socket,
        state_dir_is_explicit: state_dir.is_some(),
        state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        workers: settings.workers.map_or_else(available_workers, |workers| workers as usize),
        busy_poll: settings.busy_poll,
        huge_pages: settings.huge_pages,
        max_connections: settings.max_connections as usize,
        idle_timeout: settings.idle_timeout,
        drain_timeout: settings.drain_timeout,
        clients: Clients { uids: Id::sorted(settings.allow_uids), gids: Id::sorted(settings.allow_gids) },
        adjusters: Adjusters {
            refund_uids: settings.refund_uids.map(Id::sorted),
            debit_uids: settings.debit_uids.map(Id::sorted),
        },
        admin_users: AdminUsers {
            uids: Id::sorted(settings.admin_uids),
            read_uids: Id::sorted(settings.admin_read_uids),
        },
    })
}

fn resolve_uid_quotas(settings: file::UidQuotas) -> UidQuotas {
    UidQuotas {
        buffered_bytes: settings
            .buffered
            .map(|size| size.bytes())
            .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        in_flight: settings.in_flight.map(|requests| requests as usize),
        rate: settings.rate.map(|RateText(rate)| rate),
    }
}

fn resolve_source(
    file: Option<&Path>,
    settings: file::Source,
    option: Option<PathBuf>,
) -> Result<Source, ConfigError> {
    if let Some(staleness) = settings.max_staleness.filter(|staleness| *staleness <= settings.poll) {
        let [staleness, poll] = [staleness, settings.poll].map(humantime::format_duration);
        let problem =
            format!("{staleness} would pass between two polls: make it longer than source.poll ({poll})");
        return Err(setting_error(file, "source.max_staleness", problem));
    }
    let on_bad_row = match settings.on_bad_row {
        BadRowAction::Refuse => BadRowPolicy::Refuse,
        BadRowAction::SetAside => BadRowPolicy::SetAside { max: settings.max_bad_rows },
    };
    let file_format = settings.format.map(|FormatText(format)| format);
    let (path, format) = match (option, &settings.path) {
        // `source.format` describes `source.path`. An option's own extension takes precedence.
        (Some(path), _) => {
            let path = option_path(path, "--source")?;
            let format = Format::from_path(&path).ok().or(file_format);
            let Some(format) = format else {
                return Err(Origin::Option("--source").error(no_format(&path)));
            };
            (path, format)
        }
        (None, Some(path)) => {
            let format = file_format.or_else(|| Format::from_path(&path.0).ok());
            let Some(format) = format else {
                return Err(setting_error(file, "source.path", no_format(&path.0)));
            };
            if format == Format::Compiled {
                check_compiled(file, &settings)?;
            }
            (path.0.clone(), format)
        }
        (None, None) => return Err(ConfigError::NoSource { file: file.map(Path::to_owned) }),
    };
    let mapping = mapping(file, settings.columns, settings.ignore, settings.required)?
        .with_null_texts(settings.null_texts.0);
    Ok(Source {
        path,
        format,
        poll: settings.poll,
        settle: settings.settle,
        max_shrink: settings.max_shrink,
        max_reactivated: settings.max_reactivated,
        max_loosened: settings.max_loosened,
        max_staleness: settings.max_staleness,
        on_bad_row,
        apply_takeaways_of_refused: settings.apply_takeaways_of_refused,
        mapping,
    })
}

/// Refuses settings for bad rows if the source is compiled: `keyward compile` refuses such
/// rows.
fn check_compiled(file: Option<&Path>, settings: &file::Source) -> Result<(), ConfigError> {
    let setting = if settings.on_bad_row == BadRowAction::SetAside {
        "source.on_bad_row"
    } else if settings.apply_takeaways_of_refused {
        "source.apply_takeaways_of_refused"
    } else {
        return Ok(());
    };
    let problem = "the source is a compiled snapshot, which has no rows that cannot be understood: keyward compile \
                   refuses them. Serve the text itself, or leave this out";
    Err(setting_error(file, setting, problem))
}

fn no_format(path: &Path) -> String {
    format!(
        "{}: the extension of its name is not that of a format: name it .csv, .jsonl or .kwc, or set source.format to \"csv\", \
         \"jsonl\" or \"compiled\"",
        path.display()
    )
}

fn mapping(
    file: Option<&Path>,
    columns: BTreeMap<FieldText, ColumnName>,
    ignore: Vec<ColumnName>,
    required: Vec<FieldText>,
) -> Result<ColumnMapping, ConfigError> {
    let columns = columns.into_iter().map(|(FieldText(field), ColumnName(column))| (field, column)).collect();
    let ignore = ignore.into_iter().map(|ColumnName(column)| column).collect();
    let mapping = ColumnMapping::new(&columns, ignore)
        .and_then(|mapping| mapping.requiring(required.into_iter().map(|FieldText(field)| field)));
    mapping.map_err(|error| {
        let setting = match error {
            ColumnMappingError::MappedTwice { second: field, .. }
            | ColumnMappingError::RequiredTaken { by: field, .. } => {
                format!("source.columns.{}", field.name())
            }
            ColumnMappingError::MappedAndIgnored { .. } | ColumnMappingError::RequiredIgnored { .. } => {
                "source.ignore".to_owned()
            }
            ColumnMappingError::RequiredHasNoColumn { .. } => "source.required".to_owned(),
        };
        setting_error(file, setting, error)
    })
}

fn resolve_plans(
    file: Option<&Path>,
    plans: BTreeMap<Box<str>, Plan>,
    default: Option<Box<str>>,
) -> Result<Arc<Plans>, ConfigError> {
    let plans = plans.into_iter().map(|(name, plan)| (name, plan.limits()));
    Plans::new(plans, default).map(Arc::new).map_err(|error| {
        let setting = match &error {
            PlansError::Name(name) | PlansError::TooMany(name) => format!("plans.{name}"),
            PlansError::NoDefault(_) => "keys.default_plan".to_owned(),
        };
        setting_error(file, setting, error)
    })
}

fn resolve_keys(file: Option<&Path>, keys: file::Keys) -> Result<Keys, ConfigError> {
    let file::Keys { pepper_file, previous_pepper_file, .. } = &keys;
    if let (None, Some(_)) = (pepper_file, previous_pepper_file) {
        let problem = "is set without keys.pepper_file: the current pepper belongs there";
        return Err(setting_error(file, "keys.previous_pepper_file", problem));
    }
    let minted_prefixes: Vec<_> = keys.minted_prefixes.into_iter().map(|PrefixText(prefix)| prefix).collect();
    for (index, prefix) in minted_prefixes.iter().enumerate() {
        if minted_prefixes[..index].contains(prefix) {
            let problem = format!("\"{prefix}\" is listed already: leave one out");
            return Err(setting_error(file, format!("keys.minted_prefixes[{index}]"), problem));
        }
    }
    Ok(Keys {
        minted_prefixes,
        time_zone: keys.time_zone.0,
        pepper_file: keys.pepper_file.map(|path| path.0),
        previous_pepper_file: keys.previous_pepper_file.map(|path| path.0),
    })
}

fn rotation(max_file_size: FileSize, keep: u32) -> Rotation {
    Rotation { max_file_size: max_file_size.bytes(), keep }
}

/// An error about a setting. Without a file all settings have their defaults, which are valid, so
/// that the placeholder for its name is never shown.
fn setting_error(file: Option<&Path>, setting: impl Into<String>, problem: impl ToString) -> ConfigError {
    FileError::setting(file.unwrap_or(Path::new("defaults")), setting, problem).into()
}

fn option_socket(path: PathBuf, option: &'static str) -> Result<SocketPath, ConfigError> {
    SocketPath::new(path).map_err(|error| Origin::Option(option).error(error))
}

fn option_path(path: PathBuf, option: &'static str) -> Result<PathBuf, ConfigError> {
    check_usable(&path).map_err(|problem| Origin::Option(option).error(problem))?;
    Ok(path)
}

fn admin_beside(socket: &SocketPath, origin: Origin<'_>) -> Result<SocketPath, ConfigError> {
    socket.admin_beside().map_err(|_| {
        origin.error(
            "leaves no room for admin.sock beside it: choose a shorter path, or set server.admin_socket",
        )
    })
}

/// The number of available processors, or 1 if it is not known.
fn available_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS as usize)
}
