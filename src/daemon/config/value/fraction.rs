//! Limits of the reload guard, as fractions of the keys.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A fraction of the keys: `0.0..=1.0`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Fraction(f64);

impl Fraction {
    /// The default of `max_shrink`. An export that lost more than half of its keys is more likely
    /// broken than intended.
    pub(in crate::config) const MAX_SHRINK: Self = Self(0.5);
    /// The default of `max_reactivated` and `max_loosened`: wide enough for a campaign or a new
    /// price list.
    pub(in crate::config) const WIDE: Self = Self(0.75);

    /// The fraction, `0.0..=1.0`.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FractionVisitor;

        impl Visitor<'_> for FractionVisitor {
            type Value = Fraction;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0.0 (no key) to 1.0 (every key)")
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Fraction, E> {
                // The range does not contain NaN.
                if (0.0..=1.0).contains(&value) {
                    Ok(Fraction(value))
                } else {
                    Err(E::invalid_value(Unexpected::Float(value), &self))
                }
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Fraction, E> {
                match value {
                    0 => Ok(Fraction(0.0)),
                    1 => Ok(Fraction(1.0)),
                    _ => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }
        }

        deserializer.deserialize_f64(FractionVisitor)
    }
}
