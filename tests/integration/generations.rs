//! Generations name a content for good: whatever ends the daemon, no number comes back with other keys.

use std::collections::HashMap;

use crate::support::{Daemon, sha256_hex};

fn export(number: usize) -> String {
    format!("key_hash,key_id\n{},k{number}\n", sha256_hex(&format!("k{number}")))
}

#[test]
fn generations_never_repeat_over_50_kills() {
    const KILLS: usize = 50;
    let mut daemon = Daemon::serving_text(&export(0));
    let mut contents = HashMap::from([(daemon.status().generation, 0)]);
    let mut last = 0;
    for number in 1..=KILLS {
        let outcome = daemon.publish(&export(number));
        assert!(outcome.accepted && outcome.generation > last, "{outcome:?}");
        last = outcome.generation;
        assert_eq!(contents.insert(outcome.generation, number), None, "it had another content");
        daemon = daemon.restart();
        let generation = daemon.status().generation;
        assert!(generation > last, "{generation} after {last}");
        last = generation;
        assert_eq!(contents.insert(generation, number), None);
    }
}
