//! Settings that are more than a number, a text or a duration.

mod fraction;
mod key;
mod source;

use keyward_settings::ByteSize;

pub use fraction::Fraction;
pub(super) use key::{PrefixText, TimeZoneText};
pub(super) use source::{BadRowAction, ColumnName, FieldText, FormatText, NullTextList};

/// The size of a file, up to more than any tool reads in one piece. Smaller ones would be rotated after
/// a few lines.
pub(super) type FileSize = ByteSize<4, { 1 << 30 }>;

/// The size of the buffers of a uid: the answers to one full read can be larger than the read.
pub(super) type BufferSize = ByteSize<128, { 1 << 30 }>;
