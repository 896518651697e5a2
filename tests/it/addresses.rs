//! Where the daemon listens: both loopback addresses unless somebody says otherwise, and nothing that it can't have.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use tempfile::TempDir;

use crate::support::Home;

#[test]
fn each_listener_on_port_0_has_a_port_of_its_own_and_takes_that_alone_for_its_name() {
    let state = TempDir::new().unwrap();
    let environment = [
        ("CNBLOGS_CLIENT_ID", "id"),
        ("CNBLOGS_CLIENT_SECRET", "s3cret"),
        ("CNBLOGS_PROXY_LISTEN", "127.0.0.1:0, [::1]:0"),
        ("CNBLOGS_PROXY_STATE_DIR", state.path().to_str().unwrap()),
    ];
    let home = Home::new(environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
    let mut daemon = home.serve();

    let second = daemon.line();
    let second = second.strip_prefix("listening on http://").unwrap().to_owned();
    assert_eq!(daemon.line(), format!("login required: http://{}/-/login/main", daemon.authority));
    assert!(second.starts_with("[::1]:") && !second.ends_with(":0"), "{second}");
    let holder = fs::read_to_string(state.path().join("lock")).unwrap();
    assert!(holder.contains(&format!("http://{}, http://{second}", daemon.authority)), "{holder}");
    let first = std::mem::replace(&mut daemon.authority, second.clone());
    for (host, status) in [(&second, 200), (&second.replace("[::1]", "localhost"), 200), (&first, 421)] {
        assert_eq!(daemon.request("GET", "/-/status", &[("Host", host)], b"").status, status, "{host}");
    }
    let listening = daemon.status()["listening"].clone();
    assert_eq!(listening, serde_json::json!([format!("http://{first}"), format!("http://{second}")]));
}

#[test]
fn a_taken_port_names_both_ways_to_another_one() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::new(Vec::new());
    let mut command = home.command(&["serve"]);
    command.env("CNBLOGS_CLIENT_ID", "id").env("CNBLOGS_CLIENT_SECRET", "s3cret");
    command.env("CNBLOGS_PROXY_LISTEN", taken.local_addr().unwrap().to_string());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

    let said: Vec<_> = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap).collect();

    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].ends_with("is in use by another process"), "{said:?}");
    assert!(said[1].contains("`listen` or CNBLOGS_PROXY_LISTEN"), "{said:?}");
}
