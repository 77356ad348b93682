//! The configuration as the daemon's parts take it, so that none of them has to know the configuration.

use crate::reload::{Policy, SourceFile};
use crate::verify::Rules;

use super::{Config, Source};

impl Config {
    /// What [`verify`](crate::verify) has to keep to.
    pub fn rules(&self) -> Rules {
        let seconds = |age: std::time::Duration| u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        Rules {
            minted: self.keys.minted_prefixes.clone(),
            max_staleness: self.source.max_staleness.map(seconds),
        }
    }
}

impl Source {
    /// Where [`reload`](crate::reload) reads keys.
    pub fn file(&self) -> SourceFile {
        SourceFile { path: self.path.as_path().into(), format: self.format, layout: self.layout.clone() }
    }

    /// When it does, and what it believes.
    pub fn policy(&self) -> Policy {
        Policy { poll: self.poll, settle: self.settle, max_shrink: self.max_shrink.get() }
    }
}
