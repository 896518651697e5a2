//! Where the daemon listens: both loopback addresses unless somebody says otherwise, and nothing that it can't have.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use tempfile::TempDir;

use crate::support::{Home, in_a_network_of_its_own};

/// What every script begins with: `serve` starts the daemon with nothing but variables, and waits until it listens or
/// has ended; `ask` prints what an address answers.
const BEGIN: &str = r#"
trap 'kill $(jobs -p) 2>/dev/null' EXIT
ip link set lo up
export CNBLOGS_CLIENT_ID=id CNBLOGS_CLIENT_SECRET=s3cret CNBLOGS_PROXY_STATE_DIR="$2/state"
serve() {
    "$1" >"$2/output" 2>"$2/errors" &
    until grep -q 'login required' "$2/output" || ! kill -0 $! 2>/dev/null; do sleep 0.05; done
    cat "$2/output"
}
ask() {
    for address in "$@"; do
        curl --silent --max-time 10 --noproxy '*' --globoff --output /dev/null --write-out "$address %{http_code}
" "http://$address/-/status"
    done
}
"#;

#[test]
fn both_loopback_addresses_are_listened_on_when_nobody_says_where() {
    let said = in_a_network(
        r#"serve "$1" "$2"
ask 127.0.0.1:8262 '[::1]:8262' localhost:8262"#,
    );

    assert_eq!(
        said,
        "listening on http://127.0.0.1:8262\nlistening on http://[::1]:8262\n\
         login required: http://127.0.0.1:8262/-/login/main\n\
         127.0.0.1:8262 200\n[::1]:8262 200\nlocalhost:8262 200\n"
    );
}

#[test]
fn a_machine_without_ipv6_has_the_other_address_alone_unless_it_was_written() {
    let said = in_a_network(
        r#"echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
"$1" check | grep -E '^listen|^warning' | sed "s/\(now: \).*/\1.../"
serve "$1" "$2"
kill $! && wait $!
CNBLOGS_PROXY_LISTEN='[::1]:8262' "$1" check | grep -E '^warning' | sed "s/\(now: \).*/\1.../"
CNBLOGS_PROXY_LISTEN='127.0.0.1:8262,[::1]:8262' "$1" 2>&1 | grep -o "error: can't listen on [^ ]*"
echo "${PIPESTATUS[0]}""#,
    );

    let limits =
        |said: &str| said.lines().filter(|line| !line.contains("limits.")).collect::<Vec<_>>().join("\n");
    assert_eq!(
        limits(&said),
        "listen         http://127.0.0.1:8262\nlisten         http://[::1]:8262\n\
         listening on http://127.0.0.1:8262\nlogin required: http://127.0.0.1:8262/-/login/main\n\
         warning: [::1]:8262 can't be listened on now: ...\n\
         error: can't listen on http://[::1]:8262:\n1"
    );
}

/// Nobody can log in where nothing is listened on: that is not what is said first.
#[test]
fn a_taken_second_address_ends_the_daemon_before_anybody_is_asked_to_log_in() {
    let said = in_a_network(
        r#"python3 -c 'import socket, time
listener = socket.create_server(("::1", 8262), family=socket.AF_INET6)
print(flush=True)
time.sleep(600)' >"$2/taken" &
until [ -s "$2/taken" ]; do sleep 0.05; done
"$1" 2>&1
echo $?"#,
    );

    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "error: http://[::1]:8262 is in use by another process", "{said}");
    assert!(
        lines[1].starts_with("hint: ") && lines[1].contains("`listen` or CNBLOGS_PROXY_LISTEN"),
        "{said}"
    );
    assert_eq!(lines[2..], ["1"], "{said}");
}

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

#[track_caller]
fn in_a_network(script: &str) -> String {
    in_a_network_of_its_own(&format!("{BEGIN}{script}"), &Home::new(Vec::new()))
}
