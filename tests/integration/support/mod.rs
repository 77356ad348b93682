//! Support of the integration tests: exports, daemons, connections and waiting.

pub(crate) mod bad_rows;
mod companion;
mod daemon;
mod dose;
mod export;
pub(crate) mod http_client;
pub(crate) mod memory_scan;
pub(crate) mod mode;
mod process;
mod programs;
mod random;
mod raw_client;
pub(crate) mod revocation_load;
pub(crate) mod serve_process;
mod set_on_drop;
mod setup;
mod wait;

pub(crate) use companion::start_companion;
pub(crate) use daemon::{Daemon, key_target, owner_target};
pub(crate) use dose::dose;
pub(crate) use export::{Export, Row, line, row, sha256_hex};
pub(crate) use process::{Process, free_port};
pub(crate) use programs::{CommandOutput, keyward, keyward_bench, run};
pub(crate) use random::Random;
pub(crate) use raw_client::{RawClient, Received, encode_verify};
pub(crate) use set_on_drop::SetOnDrop;
pub(crate) use setup::{Setup, replace_export};
pub(crate) use wait::{TIMEOUT, remove_dir_in_use, wait_for, wait_until};
