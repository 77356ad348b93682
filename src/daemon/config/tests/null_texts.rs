//! `source.null_texts`: which texts stand for no value.

use super::*;

#[test]
fn null_texts_are_few_and_short() {
    let mapping = |settings: &str| valid(settings).source.mapping;
    let defaults = mapping("");
    assert_eq!(mapping("source.null_texts = ['NULL', '\\N']"), defaults);
    assert_ne!(mapping("source.null_texts = []"), defaults);
    assert_ne!(mapping("source.null_texts = ['NULL', '(none)']"), defaults);
    for text in ["", " ", " NULL", &"x".repeat(33)] {
        let message = refused(&format!("source.null_texts = ['{text}']"));
        assert!(message.contains("source.null_texts") && message.contains("1 to 32 bytes"), "{message}");
    }
    let many = vec!["'x'"; 17].join(",");
    let message = refused(&format!("source.null_texts = [{many}]"));
    assert!(message.ends_with("17 texts are too many: list at most 16"), "{message}");
    let message = refused("source.null_texts = [1]");
    assert!(message.contains("expected a text that stands for no value"), "{message}");
}
