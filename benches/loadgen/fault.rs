//! What ends a load early. There are no figures then: a broken protocol is an error, not a number.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a load could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// There is nobody to load.
    #[error("cannot connect to {} at {}: {error}", .target, .path.display())]
    Connect {
        /// Its name.
        target: &'static str,
        /// Where it should have been.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The peer said that it will not.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// Something in what was asked for does not fit.
    #[error("{0}")]
    Unfit(String),
    /// Bytes that are no answer, or not the one that was due.
    #[error("the server broke the protocol: {0}")]
    Broken(String),
    /// Before all answers had come.
    #[error("the server ended a connection with {unanswered} requests unanswered")]
    Ended {
        /// On that connection.
        unanswered: usize,
    },
    /// Nothing for too long.
    #[error("the server has not answered for {} s", .0.as_secs())]
    Stalled(Duration),
    /// The system would not.
    #[error("cannot {what}: {error}")]
    System {
        /// In the infinitive.
        what: String,
        /// Why not.
        error: io::Error,
    },
}

impl Fault {
    /// For `map_err`: what could not be done.
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| Self::System { what, error: error.into() }
    }
}
