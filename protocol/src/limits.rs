//! The limits of the protocol, each with its reason. SPEC.md section 3 lists the same numbers.

/// The version of the protocol that this crate speaks.
pub const VERSION: u8 = 1;

/// Bytes of the `length` field, which the length itself does not include.
pub const LENGTH_BYTES: usize = 4;

/// Bytes of a header: length, version, kind, flags, request id.
pub const HEADER_BYTES: usize = 12;

/// Smallest `length`: the rest of the header, and an empty body.
pub const MIN_LENGTH: u32 = (HEADER_BYTES - LENGTH_BYTES) as u32;

/// Longest raw key. The longest in common use are signed tokens of a few hundred bytes.
pub const MAX_KEY: usize = 1024;

/// Longest list of required scopes in one request, in bytes including the separators: tens of
/// names.
pub const MAX_SCOPES: usize = 1024;

/// Longest origin: a scheme, a DNS name (253 bytes) and a port, with room to spare.
pub const MAX_ORIGIN: usize = 512;

/// Longest name of an environment, a plan or a limit.
pub const MAX_NAME: usize = 64;

/// Most costs that a request names: one for each limit of a key.
pub const MAX_COSTS: usize = MAX_KEY_LIMITS;

/// Most limits of a key: more than policies need, and few enough to charge at once.
pub const MAX_KEY_LIMITS: usize = 16;

/// Longest key id: the text of a UUID has 36 bytes.
pub const MAX_KEY_ID: usize = 64;

/// Longest owner: an e-mail address or a URN.
pub const MAX_OWNER: usize = 128;

/// Longest metadata, in bytes of its JSON text: one page of memory. It is returned on request only.
pub const MAX_METADATA: usize = 4096;

/// Longest message of an ERROR and longest `server` of a WELCOME: what a `text8` can hold.
pub const MAX_MESSAGE: usize = u8::MAX as usize;

/// Largest `length` of a frame that a client sends.
pub const MAX_REQUEST_LENGTH: u32 = 4096;

/// Largest `length` of a frame that the daemon sends.
pub const MAX_ANSWER_LENGTH: u32 = 8192;

const LARGEST_VERIFY: usize = HEADER_BYTES - LENGTH_BYTES
    + 4
    + (2 + MAX_KEY)
    + (2 + MAX_SCOPES)
    + 16
    + (2 + MAX_ORIGIN)
    + (1 + MAX_NAME)
    + LARGEST_COSTS;
const LARGEST_ADJUSTMENT: usize = HEADER_BYTES - LENGTH_BYTES + 4 + (2 + MAX_KEY) + LARGEST_COSTS;
const LARGEST_COSTS: usize = 1 + MAX_COSTS * (1 + MAX_NAME + 4);

const _: () = assert!(LARGEST_VERIFY == 3764 && LARGEST_VERIFY <= MAX_REQUEST_LENGTH as usize);
const _: () = assert!(LARGEST_ADJUSTMENT == 2143 && LARGEST_ADJUSTMENT <= LARGEST_VERIFY);
