//! Where the daemon listens on a machine of its own.

use crate::support::Home;
use crate::system::in_a_network_of_its_own;

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

#[track_caller]
fn in_a_network(script: &str) -> String {
    in_a_network_of_its_own(&format!("{BEGIN}{script}"), &Home::new(Vec::new()))
}
