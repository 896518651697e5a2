//! Who is admitted: by Host, by the page that asks, and by key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{assert_problem, key_table, one_worker, reconfigured};
use crate::support::{Answer, Setup, World};

const KEY: &str = "key-of-everything-3f9a";
const READER: &str = "key-of-a-reader-77c1";
const ROUTED: &str = "key-of-a-route-0b2d";

#[test]
fn exactly_one_host_that_names_the_proxy_is_accepted() {
    let tables = "[callers]\nhosts = [\"box.example\", \"other.example:99\"]".to_owned();
    let world = Setup { tables, ..Setup::default() }.logged_in();
    world.standin.clear_api_requests();
    let port = world.daemon.authority.rsplit_once(':').unwrap().1;
    let with_port = |names: [&str; 5]| names.map(|name| format!("{name}:{port}"));
    let good = with_port(["localhost", "LocalHost", "127.0.0.1", "[::1]", "box.example"]);
    for host in good.iter().map(String::as_str).chain(["box.example", "other.example:99", "BOX.example"]) {
        assert_eq!(world.daemon.request("GET", "/echo", &[("Host", host)], b"").status, 200, "{host}");
    }
    assert_eq!(world.standin.api_requests().len(), 8);

    let bad = with_port(["evil.example", "localhost.evil.example", "127.0.0.2", "0.0.0.0", "127.1"]);
    let bad = bad.iter().map(String::as_str);
    for host in bad.chain([
        "localhost",
        "localhost:1",
        "127.0.0.1:80",
        "other.example",
        "box.example:1",
        "localhost:",
    ]) {
        let answer = world.daemon.request("GET", "/echo", &[("Host", host)], b"");
        assert_problem(&answer, "wrong-host", 421, "http_request_denied");
        let answer = world.daemon.request("GET", "/-/status", &[("Host", host)], b"");
        assert_problem(&answer, "wrong-host", 421, "http_request_denied");
    }
    assert_eq!(world.standin.api_requests().len(), 8, "nothing of it went up");
}

#[test]
fn a_host_that_is_missing_double_or_malformed_is_a_bad_request() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    let own = &world.daemon.authority;
    for fields in [
        String::new(),
        format!("Host: {own}\r\nHost: {own}\r\n"),
        format!("Host: {own}\r\nHost: evil.example\r\n"),
        "Host:\r\n".to_owned(),
        format!("Host: user@{own}\r\n"),
        format!("Host: {own}/x\r\n"),
        format!("Host: {own}, evil.example\r\n"),
        format!("Host: http://{own}\r\n"),
        "Host: [::1\r\n".to_owned(),
    ] {
        let raw = world.daemon.raw(format!("GET /echo HTTP/1.1\r\n{fields}\r\n").as_bytes());
        assert_problem(&Answer::parse(&raw, "GET").unwrap(), "bad-request", 400, "http_request_error");
    }
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn a_target_in_absolute_form_has_to_name_what_the_host_names() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    let own = world.daemon.authority.clone();
    for target in
        ["http://evil.example/echo", &format!("https://{own}/echo"), &format!("http://user@{own}/echo")]
    {
        let answer = world.daemon.get(target);
        assert!([400, 421].contains(&answer.status), "{target}: {answer:?}");
        assert!(["bad-request", "wrong-host"].contains(&answer.problem().as_str()), "{target}");
    }
    let answer = world.daemon.request("GET", "http://evil.example/echo", &[("Host", "evil.example")], b"");
    assert_problem(&answer, "wrong-host", 421, "http_request_denied");
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn a_program_that_sets_a_referer_itself_may_call_and_no_page_may_read_its_answers() {
    let world = World::logged_in();

    let answer = world.daemon.request("GET", "/api/users", &[("Referer", "https://www.cnblogs.com/")], b"");

    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (200, None), "{answer:?}");
    assert_eq!(world.standin.api_requests().last().unwrap().field("referer"), None);
}

#[test]
fn a_web_page_may_not_call() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    let port = world.daemon.authority.rsplit_once(':').unwrap().1;
    for (name, value) in [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://localhost:1"),
        ("Origin", &format!("https://127.0.0.1:{port}")),
        ("Origin", &format!("http://127.0.0.1:{port}.evil.example")),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", "SAME-ORIGIN, cross-site"),
        ("Sec-Fetch-Mode", "no-cors"),
        ("Sec-Purpose", "prefetch"),
        ("Purpose", "prefetch"),
        ("Service-Worker", "script"),
    ] {
        // Our own pages have a style, a script and an icon.
        let targets = if value == "no-cors" { &["/echo"][..] } else { &["/echo", "/-/status"] };
        for target in targets {
            let answer = world.daemon.request("GET", target, &[(name, value)], b"");
            assert_problem(&answer, "forbidden-origin", 403, "http_request_denied");
            assert_eq!(answer.field("access-control-allow-origin"), None, "{name}: {value}");
        }
    }
    for referer in ["https://evil.example/page", "about:blank"] {
        for target in ["/echo", "/-/status"] {
            // What a browser says with it, whatever site it says.
            let fields = [("Referer", referer), ("Sec-Fetch-Site", "same-origin")];
            let answer = world.daemon.request("GET", target, &fields, b"");
            assert_problem(&answer, "forbidden-origin", 403, "http_request_denied");
        }
    }
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn the_proxys_own_page_and_programs_may_call_and_leave_no_trace_upstream() {
    let world = World::logged_in();
    let own = format!("http://{}", world.daemon.authority);
    let referer = format!("{own}/-/");
    for fields in [
        vec![("Origin", own.as_str())],
        vec![("Referer", &referer)],
        vec![("Sec-Fetch-Site", "none")],
        vec![("Sec-Fetch-Site", "same-origin"), ("Origin", &own), ("Referer", &referer)],
    ] {
        assert_eq!(world.daemon.request("GET", "/echo", &fields, b"").status, 200, "{fields:?}");
        let arrived = world.standin.api_requests().pop().unwrap();
        assert_eq!((arrived.field("origin"), arrived.field("referer")), (None, None));
    }
}

#[test]
fn an_allowed_page_reads_answers_and_problems() {
    let page = "https://app.example";
    let tables = format!("[callers]\nallowed_origins = [\"{page}\"]");
    let world = Setup { tables, ..one_worker() }.logged_in();
    let fields = [("Origin", page), ("Referer", "https://app.example/x"), ("Sec-Fetch-Site", "cross-site")];

    let answer = world.daemon.request("GET", "/echo", &fields, b"");
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (200, Some(page)));
    assert_eq!(answer.field("access-control-allow-credentials"), None);
    assert!(answer.field("vary").is_some_and(|vary| vary.contains("Origin")), "{answer:?}");
    assert_eq!(world.standin.api_requests().pop().unwrap().field("origin"), None);

    world.standin.set_api_down(true);
    let answer = world.daemon.request("GET", "/echo", &fields, b"");
    assert_problem(&answer, "upstream-unreachable", 502, "connection_refused");
    assert_eq!(answer.field("access-control-allow-origin"), Some(page));

    let local = world.daemon.request("GET", "/-/status", &fields, b"");
    assert_problem(&local, "forbidden-origin", 403, "http_request_denied");
    for fields in
        [[("Origin", "https://app.example.evil"), ("X-A", "b")], [("Origin", page), ("Origin", page)]]
    {
        let answer = world.daemon.request("GET", "/echo", &fields, b"");
        assert_problem(&answer, "forbidden-origin", 403, "http_request_denied");
    }
}

#[test]
fn a_preflight_is_answered_here_and_needs_no_key() {
    let mut world = World::logged_in();
    let page = "https://app.example";
    let key = key_table(&world, "all", KEY, "");
    reconfigured(&mut world, &format!("[callers]\nallowed_origins = [\"{page}\"]\n{key}"));
    world.standin.clear_api_requests();
    let asks = [
        ("Access-Control-Request-Method", "PATCH"),
        ("Access-Control-Request-Headers", "authorization, x-a"),
    ];

    let answer = world.daemon.request("OPTIONS", "/api/x", &[asks[0], asks[1], ("Origin", page)], b"");
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (204, Some(page)), "{answer:?}");
    assert_eq!(answer.field("access-control-allow-methods"), Some("PATCH"));
    assert_eq!(answer.field("access-control-allow-headers"), Some("authorization, x-a"));
    assert_eq!(answer.field("access-control-allow-credentials"), None);

    let answer =
        world.daemon.request("OPTIONS", "/api/x", &[asks[0], ("Origin", "https://evil.example")], b"");
    assert_problem(&answer, "forbidden-origin", 403, "http_request_denied");
    let answer = world.daemon.request("OPTIONS", "/api/x", &[("Origin", page)], b"");
    assert_problem(&answer, "key-required", 401, "http_request_denied");
    assert_eq!(answer.field("access-control-allow-origin"), Some(page), "the page may read why");
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn a_key_opens_in_each_of_its_forms_and_never_reaches_the_upstream() {
    let mut world = World::logged_in();
    let key = key_table(&world, "all", KEY, "");
    reconfigured(&mut world, &key);
    world.standin.clear_api_requests();
    let (bearer, basic) = (format!("Bearer {KEY}"), basic(KEY));
    for (name, value) in [
        ("Authorization", bearer.as_str()),
        ("authorization", &format!("bearer {KEY}")),
        ("Authorization", &basic),
        ("Proxy-Authorization", &bearer),
        ("Proxy-Authorization", &basic),
    ] {
        assert_eq!(
            world.daemon.request("GET", "/echo", &[(name, value)], b"").status,
            200,
            "{name}: {value}"
        );
        assert_eq!(
            world.daemon.request("GET", "/-/status", &[(name, value)], b"").status,
            200,
            "{name}: {value}"
        );
    }
    let both =
        [("Authorization", "Bearer of-the-callers-own-library"), ("Proxy-Authorization", bearer.as_str())];
    assert_eq!(world.daemon.request("GET", "/echo", &both, b"").status, 200);

    assert_eq!(world.standin.api_requests().len(), 6);
    for connection in world.standin.api_connections() {
        let bytes = String::from_utf8_lossy(&connection.bytes).into_owned();
        assert!(!bytes.contains(KEY) && !bytes.contains(&basic[6..]), "the key went up");
    }
    assert!(!world.daemon.output().contains(KEY), "the key is in the log");
}

#[test]
fn without_the_right_key_nothing_but_probes_is_served() {
    let mut world = World::logged_in();
    let key = key_table(&world, "all", KEY, "");
    reconfigured(&mut world, &key);
    world.standin.clear_api_requests();
    let wrong_basic = basic("wrong");
    let in_the_name = format!("Basic {}", STANDARD.encode(format!("{KEY}:")));
    for (name, value) in [
        ("X-Nothing", "1"),
        ("Authorization", "Bearer wrong"),
        ("Authorization", KEY),
        ("Authorization", &format!("Bearer {}", &KEY[1..])),
        ("Authorization", &format!("Token {KEY}")),
        ("Authorization", &wrong_basic),
        ("Authorization", &in_the_name),
        ("Authorization", "Basic !!!"),
        ("Cookie", &format!("key={KEY}")),
    ] {
        for target in ["/echo", "/-/", "/-/status", "/-/login", "/-/metrics", "/-/unknown", "/echo?key=x"] {
            let answer = world.daemon.request("GET", target, &[(name, value)], b"");
            assert_problem(&answer, "key-required", 401, "http_request_denied");
            let challenge = answer.field("www-authenticate").unwrap_or_default();
            assert!(challenge.contains("Basic") && challenge.contains("Bearer"), "{challenge}");
        }
    }
    for target in ["/-/healthz", "/-/readyz", "/-/readyz/main"] {
        assert_eq!(world.daemon.request("GET", target, &[("Host", "anything")], b"").status, 200);
    }
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn a_limited_key_reaches_no_further_than_its_methods_and_paths() {
    let mut world = World::logged_in();
    let limits = "methods = [\"GET\", \"HEAD\"]\npaths = [\"/echo/read\", \"/echo/also\"]";
    let keys = key_table(&world, "all", KEY, "") + &key_table(&world, "reader", READER, limits);
    reconfigured(&mut world, &keys);
    world.standin.clear_api_requests();
    let with = |key: &str, method: &str, target: &str, more: &[(&str, &str)]| {
        let bearer = format!("Bearer {key}");
        let fields = [&[("Authorization", bearer.as_str())], more].concat();
        world.daemon.request(method, target, &fields, b"")
    };
    for target in ["/echo/read", "/echo/read/", "/echo/read/x?y=/../z", "/echo/also/@site%20home"] {
        assert_eq!(with(READER, "GET", target, &[]).status, 200, "{target}");
    }
    assert_eq!(with(KEY, "DELETE", "/echo/other", &[]).status, 200);
    assert_eq!(with(READER, "GET", "/-/status", &[]).status, 200);
    assert_eq!(world.standin.api_requests().len(), 5);

    for (method, target) in [
        ("POST", "/echo/read"),
        ("get", "/echo/read"),
        ("GET", "/echo/reader"),
        ("GET", "/echo"),
        ("GET", "/Echo/read"),
        ("GET", "/echo/read/../other"),
        ("GET", "/echo/read/%2e%2e/other"),
        ("GET", "/echo/read/%2E./other"),
        ("GET", "/echo/read/./x"),
        ("GET", "/echo/read//x"),
        ("GET", "/echo/read%2fx"),
        ("GET", "/echo/read/a%5Cb"),
        ("GET", "/echo/read/%252e%252e/other"),
        ("GET", "/-/metrics"),
        ("GET", "/-/"),
        ("POST", "/-/refresh/main"),
        ("POST", "/-/logout/main"),
    ] {
        assert_problem(&with(READER, method, target, &[]), "forbidden-by-key", 403, "http_request_denied");
    }
    for name in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"] {
        let answer = with(READER, "GET", "/echo/read", &[(name, "DELETE")]);
        assert_problem(&answer, "forbidden-by-key", 403, "http_request_denied");
    }
    assert_eq!(world.standin.api_requests().len(), 5, "nothing of it went up");
    assert_eq!(world.standin.refreshes().len(), 0);
}

#[test]
fn a_key_of_a_route_opens_no_other_route() {
    let mut world = World::logged_in();
    let api = world.standin.api_url();
    let route = format!("[[route]]\nprefix = \"/write\"\nname = \"writing\"\nupstream = \"{api}\"\n");
    let key = key_table(&world, "routed", ROUTED, "routes = [\"writing\"]");
    reconfigured(&mut world, &(route + &key));
    let fields = [("Authorization", &*format!("Bearer {ROUTED}"))];

    assert_eq!(world.daemon.request("POST", "/write/echo", &fields, b"").status, 200);
    for target in ["/echo", "/writer/echo", "/%77rite/echo"] {
        let answer = world.daemon.request("GET", target, &fields, b"");
        assert_problem(&answer, "forbidden-by-key", 403, "http_request_denied");
    }
}

fn basic(key: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("anyone:{key}")))
}
