//! Sizes in bytes, such as `usage.max_file_size`.

use crate::text::{Text, text};

/// A size of `MIN_KIB` to `MAX_KIB` kibibytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize<const MIN_KIB: u64, const MAX_KIB: u64>(u64);

/// Units that follow the number.
const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl<const MIN_KIB: u64, const MAX_KIB: u64> ByteSize<MIN_KIB, MAX_KIB> {
    /// So many kibibytes, which have to be in range.
    pub const fn kibibytes(number: u64) -> Self {
        debug_assert!(MIN_KIB <= number && number <= MAX_KIB);
        Self(number << 10)
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// A number of kibibytes in the largest unit that divides it.
fn in_units(kibibytes: u64) -> String {
    let bytes = kibibytes << 10;
    let fitting = UNITS.iter().rev().find(|(_, unit)| bytes.is_multiple_of(*unit));
    fitting.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

impl<const MIN_KIB: u64, const MAX_KIB: u64> Text for ByteSize<MIN_KIB, MAX_KIB> {
    const EXPECTED: &'static str = "a size such as \"64MiB\"";

    fn parse(text: &str) -> Result<Self, String> {
        let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), bytes)));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let Some((digits, unit)) = unit.filter(|(digits, _)| is_number(digits)) else {
            return Err(format!(
                "{text:?} is not a size: write a number and KiB, MiB or GiB, such as \"64MiB\""
            ));
        };
        match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit)) {
            Some(bytes) if (MIN_KIB << 10..=MAX_KIB << 10).contains(&bytes) => Ok(Self(bytes)),
            _ => {
                let [min, max] = [MIN_KIB, MAX_KIB].map(in_units);
                Err(format!("{text:?} is out of range: write \"{min}\" to \"{max}\""))
            }
        }
    }
}

impl<'de, const MIN_KIB: u64, const MAX_KIB: u64> serde::Deserialize<'de> for ByteSize<MIN_KIB, MAX_KIB> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type FileSize = ByteSize<4, { 1 << 30 }>;
    type BufferSize = ByteSize<128, 1024>;

    #[test]
    fn size_has_a_unit_and_a_range() {
        for (text, bytes) in [("4KiB", 4096), ("64MiB", 64 << 20), ("1024 GiB", 1 << 40)] {
            assert_eq!(FileSize::parse(text).map(FileSize::bytes), Ok(bytes), "{text}");
        }
        for text in ["", "64", "MiB", "64MB", "-1MiB", "1.5MiB", "0x1MiB"] {
            let refused = FileSize::parse(text).expect_err("not a size");
            assert!(refused.ends_with("write a number and KiB, MiB or GiB, such as \"64MiB\""), "{refused}");
        }
        for text in ["3KiB", "0MiB", "1025GiB", "99999999999999999999GiB"] {
            let refused = FileSize::parse(text).expect_err("out of range");
            assert_eq!(refused, format!("{text:?} is out of range: write \"4KiB\" to \"1024GiB\""));
        }
        assert_eq!(BufferSize::parse("128KiB").map(BufferSize::bytes), Ok(128 << 10));
        for text in ["3KiB", "127KiB", "1025KiB", "1025GiB"] {
            let refused = BufferSize::parse(text).expect_err("out of range");
            assert_eq!(refused, format!("{text:?} is out of range: write \"128KiB\" to \"1MiB\""));
        }
    }
}
