//! Queries of operators.

/// Whose usage to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageQuery {
    /// One key, by its id.
    Key(String),
    /// All keys of an owner.
    Owner(String),
    /// This many of the keys with the highest cost.
    Top(usize),
}
