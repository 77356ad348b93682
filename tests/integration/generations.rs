//! A generation identifies one set of keys forever: after a crash, no number returns with other
//! keys.

use std::collections::HashMap;

use crate::support::{Daemon, Export};

#[test]
fn generations_do_not_repeat_over_50_kills() {
    const KILLS: usize = 50;
    let export = |number: usize| Export::of([format!("k{number}")]);
    let mut daemon = Daemon::serving_text(export(0));
    let mut exports = HashMap::from([(daemon.status().generation, 0)]);
    let mut last = 0;
    for number in 1..=KILLS {
        let outcome = daemon.publish(export(number));
        assert!(outcome.accepted && outcome.generation > last, "{outcome:?}");
        last = outcome.generation;
        assert_eq!(exports.insert(outcome.generation, number), None, "a generation of another export");
        daemon = daemon.kill_and_restart();
        let generation = daemon.status().generation;
        assert!(generation > last, "{generation} after {last}");
        last = generation;
        assert_eq!(exports.insert(generation, number), None);
    }
}
