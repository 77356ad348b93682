//! The lines of the admin socket: commands as the daemon reads them, and replies as clients do.
//!
//! * What decodes encodes to one line, which decodes to the same.
//! * The reply to a line that is no command is one line, and not much longer than that line.

use std::fmt::Debug;

use keyward_admin::message::{Command, Reply};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Outcome;

/// Longest line that the daemon reads.
const MAX_LINE: usize = 6 * 4096 + 256;

/// Longest reply to a line that is no command, apart from parts of the line that it quotes.
const MAX_REPLY: usize = 1024;

pub(crate) fn run(data: &[u8]) -> Outcome {
    let line = &data[..data.len().min(MAX_LINE)];
    let is_command = encodes_to_the_same::<Command>(line);
    if !is_command {
        let error = serde_json::from_slice::<Command>(line).expect_err("no command");
        let reply = encode(&Reply::error(format!("not a command: {error}")));
        // A byte may be quoted as a replacement character, or escaped.
        assert!(reply.len() <= MAX_REPLY + 6 * line.len(), "{} bytes", reply.len());
    }
    let is_reply = encodes_to_the_same::<Reply>(line);
    Outcome::accepted_if(is_command || is_reply)
}

/// Whether `line` decodes as a message.
fn encodes_to_the_same<T: Serialize + DeserializeOwned + PartialEq + Debug>(line: &[u8]) -> bool {
    let Ok(message) = serde_json::from_slice::<T>(line) else { return false };
    let again = serde_json::from_slice::<T>(&encode(&message)).expect("it was just encoded");
    assert_eq!(again, message);
    true
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let encoded = serde_json::to_vec(message).expect("it can be encoded");
    assert!(!encoded.contains(&b'\n'), "it is not one line");
    encoded
}
