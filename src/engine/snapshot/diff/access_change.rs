//! The ways in which the access of a key can change.

/// A change in what a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessChange {
    /// The key works and would stop working. Denominator: keys that work.
    Stops,
    /// The row says revoked and would say active. Denominator: revoked keys.
    RevokedReturns,
    /// The row says disabled and would say active. Denominator: disabled keys.
    DisabledReturns,
    /// The key has expired, or is not valid yet, and would be valid. Denominator: all such keys.
    ExpiredReturns,
    /// The access is withheld because of bad rows, and the key would work: its own row was set
    /// aside, or a source that was refused for other rows took the access away. Denominator: all
    /// such keys.
    WithheldReturns,
    /// The environment disappears or changes. Denominator: keys that have one.
    LosesEnvironment,
    /// Addresses are admitted that were refused. Denominator: keys that are limited to networks.
    LosesNetworks,
    /// Origins are admitted that were refused. Denominator: keys that are limited to origins.
    LosesOrigins,
    /// A limit disappears or becomes a shadow limit. Denominator: keys that have limits.
    LosesLimits,
    /// A limit is replaced by an unspent one of the same name: one of another kind, or one that other
    /// keys share. Denominator: keys that have limits.
    ReplacesLimits,
    /// A limit admits more, or starts over because the key has another id or owner. Denominator: keys
    /// that have limits.
    RaisesLimits,
    /// The expiry disappears. Denominator: keys that have one.
    LosesExpiry,
    /// The key gains scopes. Denominator: all keys that remain.
    GainsScopes,
    /// The key gains an environment and had none. Denominator: all keys that remain.
    GainsEnvironment,
}

impl AccessChange {
    /// The number of variants.
    pub(super) const COUNT: usize = 14;

    /// Changes by which a key that does not work starts to work.
    pub const STARTS: [Self; 4] =
        [Self::RevokedReturns, Self::DisabledReturns, Self::ExpiredReturns, Self::WithheldReturns];

    /// Changes by which a key loses a restriction.
    pub(crate) const LOOSENS: [Self; 9] = [
        Self::LosesEnvironment,
        Self::LosesNetworks,
        Self::LosesOrigins,
        Self::LosesLimits,
        Self::ReplacesLimits,
        Self::RaisesLimits,
        Self::LosesExpiry,
        Self::GainsScopes,
        Self::GainsEnvironment,
    ];

    pub(super) const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// The changes that apply to one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessChanges(pub(super) u16);

impl AccessChanges {
    /// Whether `change` applies.
    pub fn has(self, change: AccessChange) -> bool {
        self.0 & change.bit() != 0
    }
}
