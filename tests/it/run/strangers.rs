//! Who may use what `run` opens, what a program gets to know, and what goes up.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Named, Running, STAYS};
use crate::attacks::memory::found_in_memory;
use crate::support::{Answer, Home, PROGRAM};

const NOBODY: u32 = 65534;
/// A person's, as the first ones of a machine have.
const SOMEBODY: u32 = 1234;

/// What the proxy answers to a CONNECT with these fields, from this process.
fn connect(running: &Running, target: &str, fields: &str) -> Answer {
    let mut stream = TcpStream::connect(running.address()).unwrap();
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n").unwrap();
    let mut raw = Vec::new();
    let _cut = stream.read_to_end(&mut raw);
    Answer::parse(&raw, "GET").unwrap()
}

#[test]
fn another_process_without_the_password_is_refused() {
    let named = Named::start();
    let running = Running::start(named.run(&STAYS));
    for target in [named.api.trim_start_matches("https://"), "www.example:443", "127.0.0.1:1"] {
        for fields in ["", "Proxy-Authorization: Basic cnVuOg==\r\n", "Proxy-Authorization: Bearer x\r\n"] {
            let answer = connect(&running, target, fields);
            assert_eq!(answer.status, 407, "{target} {fields}: {answer:?}");
            assert!(answer.field("proxy-authenticate").is_some(), "{answer:?}");
        }
    }
    assert_eq!(named.world.standin.api_requests().len(), 0);
}

/// A key in the request, whoever listens there.
#[test]
fn another_user_who_took_the_daemons_port_is_sent_nothing() {
    assert!(rustix::process::geteuid().is_root(), "only root runs a program as somebody else");
    let key = "[[callers.key]]\nname = \"k\"\nfile = \"KEY\"\n";
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("key").display().to_string();
    fs::write(&secret, "the-key\n").unwrap();
    let mut named = Named::with("", "", &key.replace("KEY", &secret));
    let running = Running::start(named.run(&[&["--key", &secret], &STAYS[..]].concat()));
    let address = named.world.daemon.authority.clone();
    named.world.daemon.stop();
    let script = "
import socket, sys
host, port = sys.argv[1].rsplit(':', 1)
listener = socket.create_server((host, int(port)))
print('listening', flush=True)
connection, _ = listener.accept()
print(connection.recv(1), flush=True)";
    let mut stranger = Command::new("python3");
    stranger.args(["-c", script, &address]).current_dir("/").stdout(Stdio::piped());
    let mut stranger = stranger.uid(SOMEBODY).gid(SOMEBODY).spawn().unwrap();
    let mut said = BufReader::new(stranger.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "listening");

    let mut curl = Command::new("curl");
    curl.args(["-sS", "--proxy", &running.proxy, "--cacert", &running.bundle, &named.url("/api/users")]);
    let output = curl.output().unwrap();

    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("urn:cnblogs-proxy:upstream-unreachable"), "{output:?}");
    assert!(printed.contains(&format!("a program of user {SOMEBODY} listens there")), "{printed}");
    assert_eq!(said.next().unwrap().unwrap(), "b''", "not a byte");
    stranger.wait().unwrap();
}

#[test]
fn another_user_is_refused() {
    let named = Named::start();
    let running = Running::start(named.run(&STAYS));
    let mut curl = Command::new("curl");
    curl.args(["-sSfk", "--proxy", &format!("http://{}", running.address()), &named.url("/api/users")]);
    // Whoever is not root is refused as another process is.
    if rustix::process::geteuid().is_root() {
        curl.uid(NOBODY).gid(NOBODY);
    }
    let output = curl.env_clear().current_dir("/").output().unwrap();

    assert!(String::from_utf8_lossy(&output.stderr).contains("407"), "{output:?}");
    assert_eq!(named.world.standin.api_requests().len(), 0);
}

#[test]
fn a_descendant_needs_no_password_and_the_same_program_elsewhere_does() {
    let named = Named::start();
    let url = named.url("/api/users");
    let bare = "env HTTPS_PROXY=http://${HTTPS_PROXY##*@} https_proxy=http://${HTTPS_PROXY##*@} \
                sh -c 'curl -sSf \"$0\"; exit $?' \"$0\"";
    assert!(named.printed(&["--", "sh", "-c", bare, &url]).contains("DisplayName"));
    named.assert_answered_with_the_token();

    let running = Running::start(named.run(&STAYS));
    let output =
        Command::new("sh").args(["-c", bare, &url]).env("HTTPS_PROXY", &running.proxy).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("407"), "{output:?}");
}

#[test]
fn plain_http_is_refused_with_words() {
    let named = Named::start();
    let script = "curl -sS --proxy $HTTPS_PROXY http://api.cnblogs.com/api/users";
    let problem: Value = serde_json::from_str(&named.printed(&["--", "sh", "-c", script])).unwrap();

    assert_eq!(problem["type"], "urn:cnblogs-proxy:bad-request");
    assert!(problem["detail"].as_str().unwrap().contains("https://"), "{problem}");
    assert_eq!(named.world.standin.api_requests().len(), 0);
}

#[test]
fn the_programs_own_credentials_do_not_go_up() {
    let named = Named::start();
    let url = named.url("/api/users");
    named.printed(&[
        "--",
        "curl",
        "-sSf",
        "-H",
        "Authorization: Bearer mine",
        "-H",
        "Proxy-Authorization: Basic bWluZQ==",
        "-H",
        "Cookie: mine=1",
        "-H",
        "Authorization-Type: pat",
        &url,
    ]);

    named.assert_answered_with_the_token();
    let request = &named.world.standin.api_requests()[0];
    assert!(!format!("{:?}", request.fields).contains("mine"), "{request:?}");
    assert_eq!(request.fields_named("host"), [named.api.trim_start_matches("https://")]);
}

#[test]
fn the_token_is_in_nothing_that_the_program_has() {
    let named = Named::start();
    let script = "
import os, sys, urllib.request as r
answer = r.urlopen(sys.argv[1])
kept = (answer.read(), answer.headers)
print(os.environ['HTTPS_PROXY'], os.environ['SSL_CERT_FILE'], os.getpid(), sep='\\n', flush=True)
sys.stdin.read()";
    let mut command = named.run(&["--", "python3", "-c", script, &named.url("/fields")]);
    command.env("CNBLOGS_CLIENT_SECRET", "a-client-secret");
    let running = Running::start(command);
    named.assert_answered_with_the_token();

    let secrets = named.world.standin.issued_secrets();
    let environment = fs::read(format!("/proc/{}/environ", running.pid)).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    for secret in secrets.iter().map(String::as_str).chain(["a-client-secret"]) {
        assert!(!environment.contains(secret), "{environment}");
        for directory in named.left_over() {
            for file in fs::read_dir(directory)
                .unwrap()
                .map(|file| file.unwrap().path())
                .filter(|path| path.is_file())
            {
                let content = fs::read(&file).unwrap();
                assert!(!String::from_utf8_lossy(&content).contains(secret), "{}", file.display());
            }
        }
    }
    for pid in [running.pid.parse().unwrap(), running.process.id()] {
        assert_eq!(found_in_memory(pid, &secrets).len(), 0, "process {pid}");
    }
}

/// `CNBLOGS_PAT=... cnblogs-proxy run` is for who has all in the environment.
#[test]
fn a_personal_access_token_in_our_environment_is_not_in_the_programs() {
    let home = Home::new(vec![
        ("CNBLOGS_PAT".to_owned(), "a-personal-access-token".to_owned()),
        ("CNBLOGS_PROXY_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
    ]);
    let _daemon = home.serve();

    let output = home.run(&["run", "--", "env"], "");

    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("HTTPS_PROXY=") && !printed.contains("a-personal-access-token"), "{printed}");
}

/// The state directory is not theirs to enter, so that the daemon is found by `listen`.
#[test]
fn another_user_whom_the_daemon_serves_runs_programs_through_it() {
    assert!(rustix::process::geteuid().is_root(), "only root runs a program as somebody else");
    let named = Named::with("", "", "[callers]\nusers = [\"self\", \"65534\"]\n");
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (program, config) = (directory.path().join("program"), directory.path().join("config.toml"));
    fs::copy(PROGRAM, &program).unwrap();
    let text = format!(
        "listen = [\"{}\"]\nstate_dir = \"{}\"\n[account.main]\nclient_id = \"x\"\n[[route]]\nupstream = \"{}\"\n",
        named.world.daemon.authority,
        named.world.home.state().display(),
        named.api
    );
    fs::write(&config, text).unwrap();

    let mut command = Command::new(program);
    command.arg("--config").arg(config).args(["run", "--", "curl", "-sSf", &named.url("/api/users")]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/").current_dir("/");
    let output = command.uid(NOBODY).gid(NOBODY).output().unwrap();

    assert!(output.status.success(), "{output:?}\n{}", named.world.daemon.output());
    named.assert_answered_with_the_token();
}

/// The authority's key can't be had, so that its certificate is signed anew with another: all else stays.
#[test]
fn the_authority_is_believed_for_no_other_host() {
    let named = Named::start();
    let script = "
set -e
cd \"$0\"
awk '/BEGIN/ { text = \"\" } { text = text $0 \"\\n\" } END { printf \"%s\", text }' \"$SSL_CERT_FILE\" >ours.pem
openssl x509 -in ours.pem -noout -text >ours.txt
openssl ecparam -genkey -name prime256v1 -out key.pem 2>/dev/null
openssl x509 -in ours.pem -signkey key.pem -out ca.pem 2>/dev/null
for name in DNS:api.cnblogs.com DNS:www.cnblogs.com DNS:bank.example IP:127.0.0.1 IP:::1; do
    echo \"subjectAltName=$name\" >name.cnf
    openssl req -new -key key.pem -subj /CN=x -out leaf.csr 2>/dev/null
    openssl x509 -req -in leaf.csr -CA ca.pem -CAkey key.pem -set_serial 1 -days 1 -extfile name.cnf \
        -out leaf.pem 2>/dev/null
    openssl verify -CAfile ca.pem leaf.pem >/dev/null 2>&1 && openssl=yes || openssl=no
    \"$1\" ca.pem leaf.pem \"${name#*:}\" && go=yes || go=no
    echo \"$name $openssl $go\"
done";
    let directory = named.world.home.path().join("openssl");
    fs::create_dir(&directory).unwrap();
    let verify = super::programs::built_with_go("verify.go");

    let printed = named.printed(&["--", "sh", "-c", script, directory.to_str().unwrap(), &verify.1]);

    let expected = "DNS:api.cnblogs.com yes yes\nDNS:www.cnblogs.com no no\nDNS:bank.example no no\n\
                    IP:127.0.0.1 no no\nIP:::1 no no\n";
    let ours = fs::read_to_string(directory.join("ours.txt")).unwrap();
    assert_eq!(printed, expected, "{ours}");
    assert!(ours.contains("X509v3 Name Constraints: critical"), "{ours}");
}

#[test]
fn a_caller_key_is_presented_and_its_limits_hold() {
    let key = "[[callers.key]]\nname = \"reader\"\nfile = \"KEY\"\nmethods = [\"GET\", \"HEAD\"]\n";
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("reader.key").display().to_string();
    fs::write(&secret, "the-readers-key\n").unwrap();
    let named = Named::with("", "", &key.replace("KEY", &secret));
    let url = named.url("/api/users");
    let problem = |arguments: &[&str]| {
        let printed = named.printed(&[arguments, &[&url]].concat());
        serde_json::from_str::<Value>(&printed).unwrap()["type"].clone()
    };

    let own = ["-H", "Authorization: Bearer the-readers-key"];
    assert_eq!(problem(&["--", "curl", "-sS"]), "urn:cnblogs-proxy:key-required");
    assert_eq!(problem(&["--", "curl", "-sS", own[0], own[1]]), "urn:cnblogs-proxy:key-required");
    assert_eq!(
        problem(&["--key", &secret, "--", "curl", "-sS", "-d", "x"]),
        "urn:cnblogs-proxy:forbidden-by-key"
    );
    assert_eq!(named.world.standin.api_requests().len(), 0);
    assert!(named.printed(&["--key", &secret, "--", "curl", "-sSf", &url]).contains("DisplayName"));
    assert!(!named.printed(&["--key", &secret, "--", "env"]).contains("the-readers-key"));
    let missing = named.output(&["--key", "/there/is/no/key", "--", "true"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(said.starts_with("error: --key: ") && !said.contains("/there/is"), "{said}");
    assert_eq!(named.left_over(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn problems_and_redirects_come_back_as_the_program_can_use_them() {
    let named = Named::with("", "", "");
    let to = |place: &str| format!("{}/redirect?to={place}", named.api);
    for (place, expected) in [
        (named.url("/echo/a?b"), named.url("/echo/a?b")),
        ("/echo/a".to_owned(), named.url("/echo/a")),
        ("https://www.example/x".to_owned(), "https://www.example/x".to_owned()),
    ] {
        let query = url::form_urlencoded::byte_serialize(place.as_bytes()).collect::<String>();
        let printed = named.printed(&["--", "curl", "-sS", "--write-out", "%header{location}", &to(&query)]);
        assert_eq!(printed, expected, "{place}");
    }
    assert!(named.printed(&["--", "curl", "-sSfL", &to("/echo/followed")]).contains("/echo/followed"));

    assert!(named.world.home.run(&["logout"], "").status.success());
    let problem = named.printed(&["--", "curl", "-sS", &named.url("/api/users")]);
    let problem: Value = serde_json::from_str(&problem).unwrap();
    assert_eq!(
        (&problem["type"], &problem["status"]),
        (&"urn:cnblogs-proxy:login-required".into(), &503.into())
    );
    assert!(problem["login_url"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{problem}");
}

#[test]
fn a_prefix_and_a_unix_socket_are_the_daemons_own_business() {
    let socket = tempfile::tempdir().unwrap();
    let listen = format!("listen = [\"127.0.0.1:0\", \"unix:{}/s\"]\n", socket.path().display());
    let named = Named::with(
        "prefix = \"/c\"\n",
        &listen,
        "[[route]]\nprefix = \"/blog\"\nupstream = \"API/echo/blog\"\n<ca>\n",
    );
    for (asked, arrived) in [("/echo/x?y=%2f", "/echo/x?y=%2f"), ("/echo/blog/1", "/echo/blog/1")] {
        named.world.standin.clear_api_requests();
        named.printed(&["--", "curl", "-sSf", &named.url(asked)]);
        assert_eq!(named.world.standin.api_requests()[0].target, arrived);
        named.assert_answered_with_the_token();
    }
}

#[test]
fn the_daemons_own_pages_are_not_at_the_upstreams_address() {
    let named = Named::start();
    let printed = named.printed(&["--", "curl", "-sS", "-X", "POST", &named.url("/-/logout/main")]);

    assert!(printed.contains("urn:cnblogs-proxy:no-route"), "{printed}");
    assert_eq!(named.world.daemon.state(), "ready");
}

/// A browser under `run` sends what a page asks for, and says that it is a page.
#[test]
fn a_web_page_in_a_program_is_refused() {
    let named = Named::start();
    let page = ["-H", "Origin: https://evil.example", "-H", "Sec-Fetch-Site: cross-site"];
    let printed = named
        .printed(&[&["--", "curl", "-sS"], &page[..], &["-d", "x", &named.url("/api/statuses")]].concat());

    assert!(printed.contains("urn:cnblogs-proxy:forbidden-origin"), "{printed}");
    assert_eq!(named.world.standin.api_requests().len(), 0);
}
