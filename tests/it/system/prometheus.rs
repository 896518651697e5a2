//! What Prometheus itself says of a scrape, and of the files of `deploy/prometheus`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::metrics::{
    FILES, dashboard_expressions, file, forwarded, oddly_named, refreshed_with_every_outcome,
};
use crate::support::World;

#[test]
fn promtool_finds_nothing_wrong_with_a_scrape() {
    let world = World::logged_in();
    assert_is_right(&world);
    forwarded(&world);
    refreshed_with_every_outcome(&world);
    assert_is_right(&world);
    assert_is_right(&oddly_named().0);
}

#[test]
fn promtool_finds_the_rules_and_their_tests_and_the_scrape_configuration_right() {
    let directory = TempDir::new().unwrap();
    for name in ["alerts.yaml", "alerts.test.yaml", "prometheus.yaml"] {
        fs::copy(Path::new(FILES).join(name), directory.path().join(name)).unwrap();
    }
    fs::write(directory.path().join("cnblogs-proxy.key"), "a key").unwrap();

    for arguments in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts.test.yaml"],
        ["check", "config", "prometheus.yaml"],
    ] {
        promtool(directory.path(), &arguments, "");
    }

    let rules = file("alerts.yaml");
    let tests = file("alerts.test.yaml");
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(alerts.len(), 8);
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}, eval_time")), "{alert}: when it is silent");
        assert!(tests.contains(&format!("- alertname: {alert}\n")), "{alert}: when it fires");
    }
}

#[test]
fn promtool_finds_the_expressions_of_the_dashboard_right() {
    let rules: Vec<_> = dashboard_expressions()
        .iter()
        .enumerate()
        .map(|(number, expression)| {
            let expression = expression.replace("$instance", ".*").replace("$__rate_interval", "5m");
            assert!(!expression.contains('$'), "{expression}");
            json!({ "record": format!("panel_{number}"), "expr": expression })
        })
        .collect();
    let directory = TempDir::new().unwrap();
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(directory.path().join("dashboard.yaml"), rules.to_string()).unwrap();
    promtool(directory.path(), &["check", "rules", "dashboard.yaml"], "");
}

#[track_caller]
fn assert_is_right(world: &World) {
    promtool(Path::new("/"), &["check", "metrics"], &world.daemon.get("/-/metrics").text());
}

/// Runs promtool on an input; it must be content.
#[track_caller]
fn promtool(directory: &Path, arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(directory);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("promtool runs: tests/run --set-up-only installs it");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    // What it would have otherwise, it says and succeeds.
    assert!(input.is_empty() || said.is_empty(), "promtool {arguments:?}: {said}");
}
