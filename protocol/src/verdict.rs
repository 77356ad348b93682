//! Verdicts (SPEC.md section 7).

/// Whether a request may go ahead, and why not (SPEC.md section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The request may go ahead; the cost has been charged (REFUND: given back; DEBIT: down to the floor).
    Allowed,
    /// The daemon has no snapshot yet.
    NotReady,
    /// The snapshot is older than the daemon is allowed to serve.
    StaleSnapshot,
    /// A raw key has a prefix of keyward's own, but a wrong checksum or form.
    MalformedKey,
    /// The key is unknown.
    UnknownKey,
    /// The key is revoked permanently.
    Revoked,
    /// The key is disabled.
    Disabled,
    /// The key is not valid yet.
    NotYetValid,
    /// The key has expired.
    Expired,
    /// The request names an environment that is not the key's.
    WrongEnvironment,
    /// The request's address is absent, or in none of the key's networks.
    IpNotAllowed,
    /// The request's origin is absent, or matches none of the key's origins.
    OriginNotAllowed,
    /// The key lacks a required scope.
    MissingScope,
    /// The cost is larger than the burst of a bucket or the count of a window: the request can never
    /// succeed.
    CostExceedsBurst,
    /// The balance of a limit is too low now.
    RateLimited,
    /// The request names a limit that no plan and no key has.
    UnknownLimit,
    /// The credits are too low: waiting does not help, a top-up does.
    OutOfCredit,
    /// A value that this version does not know; a client treats it as a denial.
    Other(UnknownVerdict),
}

/// A value on the wire that is not the value of a known verdict. Only [`Verdict::from_value`]
/// creates it, so no known verdict is ever taken for an unknown one, nor an unknown one for
/// ALLOWED.
///
/// ```compile_fail,E0423
/// let _ = keyward_protocol::Verdict::Other(keyward_protocol::UnknownVerdict(0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnknownVerdict(u8);

/// The values of all verdicts of this version are below this limit, so that a table for each
/// verdict can have a fixed size. It leaves room for more verdicts.
pub const VERDICT_LIMIT: u8 = 32;

/// The verdicts and their names, indexed by the value on the wire.
const VERDICTS: [(Verdict, &str); 17] = [
    (Verdict::Allowed, "ALLOWED"),
    (Verdict::NotReady, "NOT_READY"),
    (Verdict::StaleSnapshot, "STALE_SNAPSHOT"),
    (Verdict::MalformedKey, "MALFORMED_KEY"),
    (Verdict::UnknownKey, "UNKNOWN_KEY"),
    (Verdict::Revoked, "REVOKED"),
    (Verdict::Disabled, "DISABLED"),
    (Verdict::NotYetValid, "NOT_YET_VALID"),
    (Verdict::Expired, "EXPIRED"),
    (Verdict::WrongEnvironment, "WRONG_ENVIRONMENT"),
    (Verdict::IpNotAllowed, "IP_NOT_ALLOWED"),
    (Verdict::OriginNotAllowed, "ORIGIN_NOT_ALLOWED"),
    (Verdict::MissingScope, "MISSING_SCOPE"),
    (Verdict::CostExceedsBurst, "COST_EXCEEDS_BURST"),
    (Verdict::RateLimited, "RATE_LIMITED"),
    (Verdict::UnknownLimit, "UNKNOWN_LIMIT"),
    (Verdict::OutOfCredit, "OUT_OF_CREDIT"),
];

impl Verdict {
    /// Every verdict of this version, in the order of the values.
    pub fn all() -> impl Iterator<Item = Self> {
        VERDICTS.iter().map(|(verdict, _)| *verdict)
    }

    /// The value on the wire.
    pub const fn value(self) -> u8 {
        match self {
            Self::Allowed => 0,
            Self::NotReady => 1,
            Self::StaleSnapshot => 2,
            Self::MalformedKey => 3,
            Self::UnknownKey => 4,
            Self::Revoked => 5,
            Self::Disabled => 6,
            Self::NotYetValid => 7,
            Self::Expired => 8,
            Self::WrongEnvironment => 9,
            Self::IpNotAllowed => 10,
            Self::OriginNotAllowed => 11,
            Self::MissingScope => 12,
            Self::CostExceedsBurst => 13,
            Self::RateLimited => 14,
            Self::UnknownLimit => 15,
            Self::OutOfCredit => 16,
            Self::Other(UnknownVerdict(value)) => value,
        }
    }

    /// The verdict with this value.
    pub fn from_value(value: u8) -> Self {
        VERDICTS.get(usize::from(value)).map_or(Self::Other(UnknownVerdict(value)), |(verdict, _)| *verdict)
    }

    /// SPEC.md's name, for example `RATE_LIMITED`; `OTHER` for an unknown value.
    pub fn name(self) -> &'static str {
        VERDICTS.get(usize::from(self.value())).map_or("OTHER", |(_, name)| name)
    }

    /// Whether the request may go ahead. An unknown value is a denial.
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
}

const _: () = {
    assert!(VERDICTS.len() <= VERDICT_LIMIT as usize, "every verdict has a value below VERDICT_LIMIT");
    let mut value = 0;
    while value < VERDICTS.len() {
        assert!(VERDICTS[value].0.value() as usize == value, "VERDICTS is indexed by the value on the wire");
        value += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_values_are_denials_without_a_name_of_their_own() {
        for value in 0..=u8::MAX {
            let verdict = Verdict::from_value(value);
            assert_eq!(verdict.value(), value);
            assert_eq!(verdict.is_allowed(), value == 0);
            let is_known = Verdict::all().any(|known| known == verdict);
            assert_eq!(is_known, !matches!(verdict, Verdict::Other(_)));
            assert_eq!(is_known, verdict.name() != "OTHER");
        }
    }
}
