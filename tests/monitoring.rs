//! The alerts and the dashboard of systemd/prometheus name metrics that systemd/METRICS.md lists, and pages
//! and sections that exist. What Prometheus makes of them is tested in tests/integration/prometheus.

#![allow(clippy::expect_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of the repository")
}

/// A metric as METRICS.md describes it.
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

/// The inline code of a cell.
fn code_spans(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// All metrics that METRICS.md lists, and the names that it lists twice.
fn documented() -> (BTreeMap<String, Metric>, Vec<String>) {
    let (mut metrics, mut repeated) = (BTreeMap::new(), Vec::new());
    for line in read("systemd/METRICS.md").lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", names, kind, labels, meaning, ""] = cells[..] else { continue };
        let names: Vec<String> = if names == "`process_*`" {
            // The first is the name of the program.
            code_spans(meaning).skip(1).map(|name| format!("process_{name}")).collect()
        } else {
            code_spans(names).collect()
        };
        for name in names {
            let metric = Metric { kind: kind.to_owned(), labels: code_spans(labels).collect() };
            if metrics.insert(name.clone(), metric).is_some() {
                repeated.push(name);
            }
        }
    }
    assert!(metrics.len() > 40, "{} metrics were found", metrics.len());
    (metrics, repeated)
}

/// The series of an expression: names of metrics of keyward, each with the labels in its braces.
fn series(expression: &str) -> Vec<(String, BTreeSet<String>)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(is_part) {
        rest = &rest[start..];
        let (word, after) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
        rest = after;
        if word.starts_with("keyward_") || word.starts_with("process_") {
            let selector = after.strip_prefix('{').and_then(|after| after.split('}').next());
            let matchers = selector.unwrap_or_default().split(',');
            let labels = matchers.filter_map(|matcher| matcher.split(['=', '!']).next());
            let labels = labels.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
            found.push((word.to_owned(), labels.collect()));
        }
    }
    found
}

/// The alerts by name, each with its expression and its annotations, as one text.
fn alerts() -> Vec<(String, String)> {
    let text = read("systemd/prometheus/alerts.yml");
    let alerts = text.split("- alert: ").skip(1).map(|alert| {
        let (name, rest) = alert.split_once('\n').expect("a name");
        // A comment belongs to the next alert.
        let lines = rest.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        (name.to_owned(), lines.collect::<Vec<_>>().join(" "))
    });
    let alerts: Vec<_> = alerts.collect();
    assert!(alerts.len() > 20, "{} alerts were found", alerts.len());
    alerts
}

/// Every string with the key `expr` or `query` in a JSON document.
fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    serde_json::Value::String(text) if key == "expr" || key == "query" => {
                        found.push(text.clone())
                    }
                    value => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn metrics_page_lists_no_name_twice() {
    let (_, repeated) = documented();
    assert!(repeated.is_empty(), "{repeated:?}");
}

#[test]
fn alerts_and_dashboard_use_documented_metrics_and_labels() {
    let (metrics, _) = documented();
    let dashboard = serde_json::from_str(&read("systemd/prometheus/dashboard.json")).expect("JSON");
    let mut used: Vec<String> = alerts().into_iter().map(|(_, text)| text).collect();
    expressions(&dashboard, &mut used);
    assert!(used.len() > 70, "{} expressions were found", used.len());

    let mut problems = Vec::new();
    for (name, labels) in used.iter().flat_map(|text| series(text)) {
        let of_histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .filter(|base| metrics.get(*base).is_some_and(|metric| metric.kind == "histogram"));
        let Some(metric) = metrics.get(of_histogram.unwrap_or(&name)) else {
            problems.push(format!("{name} is not in METRICS.md"));
            continue;
        };
        if of_histogram.is_none() && metric.kind == "histogram" {
            problems.push(format!("{name} is a histogram, and no series"));
        }
        let of_target = ["job", "instance"];
        for label in labels.iter().filter(|label| !of_target.contains(&label.as_str())) {
            if !metric.labels.contains(label) {
                problems.push(format!("{name} has no label {label} in METRICS.md"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn names_of_alerts_are_unique_and_unit_tested() {
    let unit_tests = read("tests/integration/prometheus/alerts.test.yml");
    let mut names = BTreeSet::new();
    for (name, _) in alerts() {
        assert!(unit_tests.contains(&format!("alertname=\"{name}\"")), "{name} has no unit test");
        assert!(names.insert(name.clone()), "two alerts are called {name}");
    }
}

/// An alert says how bad it is, what has happened, and what to do, and names the section that says more.
#[test]
fn alerts_have_all_that_an_operator_needs() {
    const PAGES: [&str; 5] = ["OPERATION.md", "FAILURES.md", "METRICS.md", "POLICY.md", "HTTP.md"];
    for (name, text) in alerts() {
        let severities = ["severity: critical", "severity: warning"];
        assert!(severities.iter().any(|severity| text.contains(severity)), "{name} has no severity");
        for field in [" for: ", " summary: ", " description: "] {
            assert_eq!(text.matches(field).count(), 1, "{name}: {field}");
        }
        let mut named = 0;
        for page in PAGES {
            for after in text.split(&format!("{page}, \"")).skip(1) {
                let section = after.split('"').next().expect("a section");
                let exists =
                    read(&format!("systemd/{page}")).lines().any(|line| line == format!("## {section}"));
                assert!(exists, "{name}: {page} has no section {section:?}");
                named += 1;
            }
        }
        assert!(named > 0, "{name} names no section");
    }
}

/// Rules of the dashboard that Grafana does not check: ids, places and data sources.
#[test]
fn panels_of_the_dashboard_have_a_place_and_a_data_source() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("systemd/prometheus/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is taken");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().expect("a place"));
        assert!(x + w <= 24 && w > 0 && h > 0, "{title}: not on the grid of 24 columns");
        for cell in (y..y + h).flat_map(|y| (x..x + w).map(move |x| (x, y))) {
            assert!(taken.insert(cell), "{title}: on top of another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
        let targets = panel["targets"].as_array().expect("queries");
        assert!(!targets.is_empty(), "{title} has no query");
        for query in targets.iter().chain([panel]) {
            assert_eq!(query["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    assert!(
        variables.iter().any(|variable| variable["name"] == "datasource" && variable["type"] == "datasource")
    );
}
