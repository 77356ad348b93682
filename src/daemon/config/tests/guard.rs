//! The settings of the reload guard.

use super::*;
use keyward_engine::record::Field;

#[test]
fn limits_of_the_guard_are_fractions() {
    for setting in ["max_shrink", "max_reactivated", "max_loosened"] {
        for value in ["1.01", "-0.5", "nan", "2"] {
            let message = refused(&format!("source.{setting} = {value}"));
            let expected = "expected a number from 0.0 (no key) to 1.0 (every key)";
            assert!(
                message.contains(&format!("source.{setting}: ")) && message.ends_with(expected),
                "{message}"
            );
        }
    }
    let source = valid("source.max_reactivated = 0.1\nsource.max_loosened = 1").source;
    assert_eq!((source.max_reactivated.get(), source.max_loosened.get()), (0.1, 1.0));
    let source = valid("").source;
    assert_eq!((source.max_reactivated.get(), source.max_loosened.get()), (0.75, 0.75));
}

#[test]
fn required_fields_have_a_column() {
    let config = valid("source.required = ['status', 'allowed_ips']");
    assert_eq!(config.source.mapping.required(), [Field::Status, Field::AllowedIps].into_iter().collect());
    let message = refused("source.required = ['allowed_ip']");
    assert!(message.contains("source.required") && message.contains("allowed_ips"), "{message}");
    let message = refused("source.required = ['status']\nsource.ignore = ['status']");
    assert!(message.contains("source.required: status has no column"), "{message}");
}
