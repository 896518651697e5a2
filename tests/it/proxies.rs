//! The key `proxy`: servers that are reached by `CONNECT` through an HTTP proxy, and proxies that are none.

pub(crate) mod scripted;

use std::fs;
use std::io::Write;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use socket2::{Domain, Socket, Type};
use tempfile::NamedTempFile;

use crate::standin::{Options, Person, Standin, TlsDefect};
use crate::support::{Answer, Home, Setup, World, config, eventually};
use crate::tokens::{main_account, refresh};
use scripted::{Does, ESTABLISHED, ONLY_HERE, Scripted};

const CREDENTIALS: &str = "user:p4ss:wörd";

/// A file that `proxy_auth_file` may name.
pub(crate) fn auth_file(credentials: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "{credentials}").unwrap();
    file
}

/// Servers behind TLS, the API by that host's name; these lines are in the tables.
pub(crate) fn with_upstream_at(host: &str, route: &str, account: &str, tables: &str) -> World {
    with_options(Options { tls: true, ..Options::default() }, host, route, account, tables)
}

/// The same for an account that needs no person.
pub(crate) fn application(host: &str, route: &str, account: &str, tables: &str) -> World {
    let account = format!("{account}grant = \"client_credentials\"\n");
    with_upstream_at(host, route, &account, tables)
}

fn with_options(options: Options, host: &str, route: &str, account: &str, tables: &str) -> World {
    let standin = Standin::start(options);
    let home = Home::new(Vec::new());
    let api = standin.api_url();
    let text = config(&standin, &home, "workers = 1", account, route, tables);
    fs::write(home.config(), text.replace(&api, &api.replace("127.0.0.1", host))).unwrap();
    World { daemon: home.serve(), standin, home }
}

/// All that was logged, when these words are among it: a line may come later than an answer.
#[track_caller]
pub(crate) fn logs(world: &World, words: &str) -> String {
    let output = || Some(world.daemon.output()).filter(|output| output.contains(words));
    eventually(&format!("it logs {words:?}"), output)
}

fn port(authority: &str) -> &str {
    authority.rsplit_once(':').unwrap().1
}

#[track_caller]
fn assert_unreachable(answer: &Answer, error: &str) {
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"), "{answer:?}");
    let proxy_status = format!("cnblogs-proxy; error={error}");
    assert_eq!(answer.field("proxy-status"), Some(proxy_status.as_str()), "{answer:?}");
}

#[test]
fn a_request_goes_through_the_proxy_and_the_proxy_sees_nothing_of_it() {
    let (proxy, auth) = (Scripted::start(), auth_file(CREDENTIALS));
    let keys = proxy.keys(&auth.path().display().to_string());
    let world = application(ONLY_HERE, &keys, "", "");

    for _ in 0..3 {
        let answer = world.daemon.request("POST", "/echo/a-secret-path", &[], b"a secret body");
        assert_eq!(answer.status, 200, "{answer:?}\n{}", world.daemon.output());
    }

    let authority = format!("{ONLY_HERE}:{}", port(&world.standin.api_authority()));
    let head = format!(
        "CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\nproxy-authorization: Basic {}\r\n\r\n",
        STANDARD.encode(CREDENTIALS)
    );
    assert_eq!(proxy.heads(), [head], "one tunnel, which is used again");
    let requests = world.standin.api_requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| request.field("proxy-authorization").is_none()), "{requests:?}");
    let authorization = requests[0].field("authorization").unwrap();
    let token = authorization.strip_prefix("Bearer ").unwrap();
    let sent_up = proxy.sent_up();
    let has = |text: &str| sent_up.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(sent_up.starts_with(&[22, 3]) && has(ONLY_HERE), "TLS whose server name is the upstream's");
    assert!(!has(token) && !has("Bearer") && !has("secret"), "{}", String::from_utf8_lossy(&sent_up));
}

#[test]
fn whatever_a_proxy_says_beside_2xx_a_tunnel_is_one() {
    let proxy = Scripted::start();
    let world = application("localhost", &proxy.keys(""), "", "");
    let heads = [
        ESTABLISHED,
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 299 Fine\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ];
    for (at, head) in heads.into_iter().enumerate() {
        proxy.does(Does::Tunnel(head));

        let answer = world.daemon.get("/echo");

        assert_eq!(answer.status, 200, "{head}: {answer:?}\n{}", world.daemon.output());
        assert_eq!(proxy.heads().len(), at + 1, "{head}");
        // Ends the tunnel.
        world.standin.set_api_down(true);
        world.standin.set_api_down(false);
    }
}

/// What proxies do that make no tunnel, the error that callers are told, and what is logged.
fn no_tunnels() -> Vec<(Does, &'static str, &'static str)> {
    let say = |text: &str| Does::Say(text.as_bytes().to_vec());
    let endless = format!("HTTP/1.1 200 OK\r\nX-Long: {}", "c4n4ry".repeat(1 << 20));
    let long = endless[..20_000].to_owned() + "\r\n\r\n";
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: c4n4ry\r\n".repeat(500));
    let behind = [ESTABLISHED.as_bytes(), &[21, 3, 3, 0, 2, 2, 40]].concat();
    let unavailable = "destination_unavailable";
    vec![
        (say("HTTP/1.1 403 c4n4ry\r\nContent-Length: 6\r\n\r\nc4n4ry"), unavailable, "403 Forbidden"),
        (
            say("HTTP/1.1 407 c4n4ry\r\nProxy-Authenticate: NTLM\r\n\r\n"),
            unavailable,
            "see proxy_auth_file (407",
        ),
        (say("HTTP/1.1 401 c4n4ry\r\n\r\n"), unavailable, "see proxy_auth_file (401"),
        (say("HTTP/1.1 502 c4n4ry\r\nTransfer-Encoding: chunked\r\n\r\n"), unavailable, "502 Bad Gateway"),
        (say("HTTP/1.1 503 c4n4ry\r\n\r\n"), unavailable, "503 Service Unavailable"),
        (say("HTTP/1.1 301 c4n4ry\r\nLocation: http://c4n4ry/\r\n\r\n"), unavailable, "301 Moved"),
        (
            say("HTTP/1.1 101 c4n4ry\r\nUpgrade: c4n4ry\r\nConnection: upgrade\r\n\r\n"),
            unavailable,
            "101 Switching",
        ),
        (say("220 c4n4ry ready\r\n"), unavailable, "asking the proxy"),
        (say("<html>c4n4ry</html>"), unavailable, "asking the proxy"),
        (say(&endless), unavailable, "asking the proxy"),
        (say(&long), unavailable, "asking the proxy"),
        (say(&many), unavailable, "asking the proxy"),
        (Does::Say(behind), unavailable, "something of its own"),
        (say(&format!("{ESTABLISHED}<html>c4n4ry</html>")), unavailable, "something of its own"),
        (Does::Close(""), "connection_terminated", "asking the proxy"),
        (Does::Close("HTTP/1.1 200 OK\r\nX-C4n4ry"), "connection_terminated", "asking the proxy"),
    ]
}

#[test]
fn a_proxy_that_makes_no_tunnel_is_told_and_sees_no_more_than_the_upstream_s_name() {
    let (proxy, auth) = (Scripted::start(), auth_file(CREDENTIALS));
    let world = application(ONLY_HERE, &proxy.keys(&auth.path().display().to_string()), "", "");
    for (does, error, logged) in no_tunnels() {
        proxy.does(does.clone());

        let answer = world.daemon.request("POST", "/echo", &[], b"body");

        assert_unreachable(&answer, error);
        assert!(answer.text().contains("the proxy on the way to it"), "{answer:?}");
        let output = logs(&world, logged);
        for hidden in ["c4n4ry", CREDENTIALS, "p4ss", &STANDARD.encode(CREDENTIALS)] {
            assert!(!answer.text().contains(hidden) && !output.contains(hidden), "{answer:?}\n{output}");
        }
    }
    assert!(world.standin.api_requests().is_empty());
    proxy.is_left();
    let sent_up = proxy.sent_up();
    assert_eq!(String::from_utf8_lossy(&sent_up), "", "nothing goes to what is no tunnel");
}

#[test]
fn a_proxy_that_hangs_is_given_up_within_the_time_to_connect() {
    let proxy = Scripted::start();
    let world = application(ONLY_HERE, &proxy.keys(""), "", "[limits]\nconnect_timeout = \"700ms\"\n");
    for does in [
        Does::Say(Vec::new()),
        Does::Say(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Does::Repeat("HTTP/1.1 100 Continue\r\n\r\n"),
        Does::Say(ESTABLISHED.into()),
    ] {
        proxy.does(does.clone());

        let answer = world.daemon.get("/echo");

        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (504, "upstream-timeout"),
            "{does:?}: {answer:?}"
        );
        assert_eq!(answer.field("proxy-status"), Some("cnblogs-proxy; error=connection_timeout"));
    }
}

#[test]
fn a_proxy_that_is_not_there_is_told_apart_from_the_api() {
    // Bound, so that nobody else gets it, and never listened on.
    let closed = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    closed.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let closed_at = closed.local_addr().unwrap().as_socket().unwrap();
    for (proxy, error, says) in [
        (
            "http://nowhere.invalid:3128".to_owned(),
            "dns_error",
            "the name of the proxy on the way to it can't be",
        ),
        (format!("http://{closed_at}"), "connection_refused", "the proxy on the way to it refused"),
    ] {
        let world = application("127.0.0.1", &format!("proxy = \"{proxy}\"\n"), "", "");

        let answer = world.daemon.get("/echo");

        assert_unreachable(&answer, error);
        assert!(answer.text().contains(says), "{answer:?}");
        assert!(world.standin.api_requests().is_empty());
    }
}

#[test]
fn a_proxy_at_our_own_address_is_a_loop_that_is_not_entered() {
    let mut world = application("127.0.0.1", "", "", "");
    let own = world.daemon.authority.clone();
    let text = fs::read_to_string(world.home.config()).unwrap().replace("127.0.0.1:0", &own);
    let own = own.replace("127.0.0.1", "localhost");
    let text = text.replace("[[route]]\n", &format!("[[route]]\nproxy = \"http://{own}\"\n"));
    fs::write(world.home.config(), text).unwrap();
    world.restart();

    assert_unreachable(&world.daemon.get("/echo"), "proxy_loop_detected");
}

#[test]
fn a_server_that_is_not_trusted_is_not_trusted_behind_a_proxy_either() {
    let proxy = Scripted::start();
    let options = Options { tls: true, api_tls_defect: Some(TlsDefect::WrongName), ..Options::default() };
    let account = "grant = \"client_credentials\"\n";
    let world = with_options(options, "127.0.0.1", &proxy.keys(""), account, "");

    let answer = world.daemon.get("/echo");

    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-untrusted"), "{answer:?}");
    assert!(world.standin.api_requests().is_empty());
}

#[test]
fn the_upstream_is_named_by_host_and_port() {
    for (upstream, authority) in [
        ("https://api.cnblogs.com", "api.cnblogs.com:443"),
        ("https://api.cnblogs.com:443/base", "api.cnblogs.com:443"),
        ("https://API.cnblogs.com.:8443/", "api.cnblogs.com.:8443"),
        ("https://192.0.2.1", "192.0.2.1:443"),
        ("https://[2001:DB8::1]", "[2001:db8::1]:443"),
        ("https://[::1]:8443", "[::1]:8443"),
        ("https://博客园.invalid", "xn--9kr06fj5e.invalid:443"),
    ] {
        let proxy = Scripted::start();
        // By a name that has several addresses, of which the proxy listens on one.
        let named = proxy.keys("").replace("127.0.0.1", "localhost");
        let world = application("127.0.0.1", &named, "", "");
        let api = world.standin.api_url();
        let text = fs::read_to_string(world.home.config()).unwrap();
        fs::write(world.home.config(), text.replace(&api, upstream)).unwrap();
        let mut world = world;
        world.restart();
        proxy.does(Does::Close("HTTP/1.1 403 Forbidden\r\n\r\n"));

        assert_unreachable(&world.daemon.get("/echo"), "destination_unavailable");

        assert_eq!(proxy.authorities(), [authority], "{upstream}");
        let host = format!("\r\nhost: {authority}\r\n");
        assert!(proxy.heads()[0].contains(&host), "{:?}", proxy.heads());
    }
}

#[test]
fn everything_that_an_account_asks_goes_through_its_proxy() {
    let (proxy, auth) = (Scripted::start(), auth_file(CREDENTIALS));
    let keys = proxy.keys(&auth.path().display().to_string());
    let world = with_upstream_at(ONLY_HERE, "", &format!("<discovered>{keys}"), "");

    world.log_in(Person::Alice);
    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);

    assert!(!world.standin.revocations().is_empty() && world.standin.key_set_fetches() > 0);
    let asked = world.standin.auth_connections().len();
    let auth_authority = world.standin.auth_url().replace("https://", "");
    let authorities = proxy.authorities();
    let to_auth = authorities.iter().filter(|authority| **authority == auth_authority).count();
    assert_eq!((to_auth, asked > 4), (asked, true), "{authorities:?}");
    let basic = format!("\r\nproxy-authorization: Basic {}\r\n", STANDARD.encode(CREDENTIALS));
    assert!(proxy.heads().iter().all(|head| head.to_ascii_lowercase().contains(&basic.to_ascii_lowercase())));
    let sent_up = String::from_utf8_lossy(&proxy.sent_up()).into_owned();
    for secret in world.standin.issued_secrets() {
        assert!(!sent_up.contains(&secret));
    }
}

/// It is of this machine, and would be sent through the proxy in clear.
#[test]
fn an_address_without_tls_is_asked_directly() {
    let proxy = Scripted::start();
    let world = Setup { account: proxy.keys(""), ..Setup::default() }.logged_in();

    assert_eq!(refresh(&world.daemon).status, 200);
    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);

    assert_eq!(proxy.heads(), Vec::<String>::new());
}

#[test]
fn a_proxy_that_makes_no_tunnel_spends_no_refresh_token() {
    let (proxy, auth) = (Scripted::start(), auth_file(CREDENTIALS));
    let keys = proxy.keys(&auth.path().display().to_string());
    let world = with_upstream_at("127.0.0.1", "", &keys, "");
    world.log_in(Person::Alice);
    let asked = world.standin.token_requests().len();
    for (does, says) in [
        (Does::Say(b"HTTP/1.1 407 c4n4ry\r\n\r\n".to_vec()), "see proxy and proxy_auth_file"),
        (Does::Say(b"HTTP/1.1 403 c4n4ry\r\n\r\n".to_vec()), "no tunnel through the account's proxy"),
        (Does::Say(b"220 c4n4ry\r\n".to_vec()), "no tunnel through the account's proxy"),
        (Does::Close(""), "no tunnel through the account's proxy"),
        (Does::Close(ESTABLISHED), ""),
    ] {
        proxy.does(does.clone());

        let refused = refresh(&world.daemon);

        assert_eq!((refused.status, refused.problem().as_str()), (503, "token-unavailable"), "{refused:?}");
        let last = main_account(&world.daemon)["last_refresh"].take();
        assert_eq!(last["outcome"], "unavailable", "{does:?}: {last}");
        assert!(last["error"].as_str().unwrap().contains(says), "{last}");
        logs(&world, says);
    }
    assert_eq!(world.standin.token_requests().len(), asked);
    for hidden in ["c4n4ry", "p4ss", &STANDARD.encode(CREDENTIALS)] {
        assert!(!world.daemon.output().contains(hidden), "{}", world.daemon.output());
    }

    proxy.does(Does::Tunnel(ESTABLISHED));
    assert_eq!((refresh(&world.daemon).status, world.standin.superseded_presentations()), (200, 0));
}

#[test]
fn proxies_of_the_environment_are_ignored() {
    let proxy = Scripted::start();
    let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];
    let address = format!("http://{}", proxy.address);
    let environment = names.map(|name| (name.to_owned(), address.clone())).to_vec();
    let options = Options { tls: true, ..Options::default() };
    let world = Setup { options, environment, ..Setup::default() }.logged_in();

    assert_eq!(world.daemon.get("/echo").status, 200);

    assert_eq!(proxy.heads(), Vec::<String>::new());
}

#[test]
fn other_credentials_are_taken_over_while_it_runs() {
    let (proxy, auth) = (Scripted::start(), auth_file("user:before"));
    let path = auth.path();
    let keys = proxy.keys(&path.display().to_string());
    let world = application("127.0.0.1", &keys, &keys, "");
    let shown = |credentials: &str| {
        let before = proxy.heads().len();
        // Ends the tunnel.
        world.standin.set_api_down(true);
        world.standin.set_api_down(false);
        assert_eq!((refresh(&world.daemon).status, world.daemon.get("/echo").status), (200, 200));
        let basic = format!("Basic {}\r\n", STANDARD.encode(credentials));
        let heads = proxy.heads().split_off(before);
        assert_eq!(heads.len(), 2, "{heads:?}");
        assert!(heads.iter().all(|head| head.contains(&basic)), "{heads:?}");
    };
    // Until then, a refresh may share the one of the start.
    assert_eq!(world.daemon.get("/echo").status, 200);
    shown("user:before");

    for (content, is_taken_over) in [("user:after", true), ("nobody", false), (":p4ss", false), ("", false)] {
        fs::write(path, content).unwrap();
        let said = world.home.run(&["reload"], "");
        assert_eq!(said.status.success(), is_taken_over, "{said:?}");
        shown("user:after");
    }
}

#[test]
fn what_goes_through_which_proxy_is_said_and_tried() {
    let (proxy, auth) = (Scripted::start(), auth_file(CREDENTIALS));
    let auth_path = auth.path().display().to_string();
    let keys = proxy.keys(&auth_path);
    let standin = Standin::start(Options { tls: true, ..Options::default() });
    let home = Home::new(vec![("HTTPS_PROXY".to_owned(), "http://127.0.0.1:9".to_owned())]);
    let api = standin.api_url();
    let text = config(&standin, &home, "", &keys, &keys, "[limits]\nconnections = 500\n");
    fs::write(home.config(), text.replace(&api, &api.replace("127.0.0.1", ONLY_HERE))).unwrap();
    let check = |arguments: &[&str]| {
        let output = home.run(&[&["check"], arguments].concat(), "");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };

    let (code, said, _) = check(&[]);
    let through = format!(", through http://{} (credentials from file {auth_path})\n", proxy.address);
    assert_eq!((code, said.matches(&through).count()), (Some(0), 2), "{said}");
    assert_eq!(proxy.heads(), Vec::<String>::new());

    let (code, said, error) = check(&["--connect"]);
    assert_eq!((code, said.matches("ms, trusted in ").count()), (Some(0), 2), "{said}{error}");
    assert!(said.contains(&format!("(route /){through}")), "{said}");
    let authority = format!("{ONLY_HERE}:{}", port(&standin.api_authority()));
    assert!(proxy.authorities().contains(&authority), "{:?}", proxy.authorities());
    assert_eq!(proxy.authorities().len(), 3, "the API, the authorization server, and its keys");

    proxy.does(Does::Say(b"HTTP/1.1 407 c4n4ry\r\n\r\n".to_vec()));
    let (code, said, error) = check(&["--connect"]);
    assert_eq!((code, said.matches("see proxy_auth_file (407").count()), (Some(1), 2), "{said}");
    assert!(
        error.starts_with("error: 3 of the servers can't be used\nhint: HTTPS_PROXY is set, and ignored"),
        "{error}"
    );
    for hidden in ["c4n4ry", "p4ss"] {
        assert!(!said.contains(hidden) && !error.contains(hidden), "{said}{error}");
    }

    fs::set_permissions(auth.path(), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let (_, said, _) = check(&[]);
    assert!(said.contains(&format!("warning: {auth_path} can be read by others (mode 0640)")), "{said}");
}
