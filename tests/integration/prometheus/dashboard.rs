//! The queries of the dashboard, in a real Prometheus.

use serde_json::Value;

use super::server::read;
use super::stack::Stack;
use super::traffic;
use crate::support::wait_until;

/// The queries of all panels, each with the title of its panel.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for query in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            queries.push((text(&panel["title"]), text(&query["expr"])));
        }
    }
    assert!(queries.len() > 40, "{} queries were found", queries.len());
    queries
}

#[test]
#[ignore = "needs Prometheus"]
fn every_query_of_the_dashboard_returns_a_series() {
    let stack = Stack::start(traffic::daemon());
    let mut unanswered = queries();
    wait_until("two scrapes of all metrics", || {
        traffic::send_all(&stack);
        unanswered.retain(|(_, expression)| {
            // Grafana replaces these.
            let expression = expression
                .replace("$__rate_interval", "5s")
                .replace("$__range", "5s")
                .replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            stack.prometheus.query(&expression).is_empty()
        });
        unanswered.is_empty() || stack.prometheus.value("count_over_time(keyward_up[1m])") > Some(20.0)
    });
    assert!(unanswered.is_empty(), "{unanswered:#?}");
}
