//! The proxy's own answers: each code, its status and its reason, and nothing of the proxy's insides.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;

use super::caller::Caller;
use super::{assert_problem, one_worker, over_tls, reconfigured};
use crate::standin::{Gate, Options, Scripted, Then, TlsDefect};
use crate::support::{Answer, Setup, World, eventually};

#[test]
fn a_method_that_makes_tunnels_or_echoes_is_refused() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    for method in ["CONNECT", "TRACE", "TRACK", "trace", "Connect"] {
        let answer = world.daemon.request(method, "/echo", &[], b"");
        assert_problem(&answer, "method-refused", 405, "http_request_denied");
        assert!(answer.field("allow").is_some(), "{answer:?}");
    }
    let raw = world.daemon.raw(b"CONNECT api.cnblogs.com:443 HTTP/1.1\r\nHost: api.cnblogs.com:443\r\n\r\n");
    let answer = Answer::parse(&raw, "GET").unwrap();
    assert_problem(&answer, "method-refused", 405, "http_request_denied");
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn an_unknown_local_path_is_not_forwarded() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    for target in ["/-/unknown", "/-//status", "/-/status/", "/-/Status", "/-/%73tatus", "/-/a?b=/../c"] {
        assert_problem(&world.daemon.get(target), "not-found", 404, "destination_not_found");
    }
    assert_eq!(world.standin.api_requests().len(), 0);
}

#[test]
fn a_target_of_64_kib_passes_and_a_longer_one_is_refused() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    let target = format!("/echo/{}", "a".repeat(60_000));
    assert_eq!(world.daemon.get(&target).json()["target"], target);

    for length in [66_000, 70 * 1024, 200_000] {
        let answer = world.daemon.get(&format!("/{}", "a".repeat(length)));
        assert_problem(&answer, "target-too-long", 414, "http_request_error");
    }
    assert_eq!(world.standin.api_requests().len(), 1);
}

#[test]
fn a_head_of_128_fields_passes_and_a_larger_one_is_refused() {
    let world = World::logged_in();
    world.standin.clear_api_requests();
    // Host and Connection are there already.
    let names: Vec<String> = (0..127).map(|number| format!("X-{number}")).collect();
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
    assert_eq!(world.daemon.request("GET", "/echo", &fields[..126], b"").status, 200);
    let long = "v".repeat(60_000);
    assert_eq!(world.daemon.request("GET", "/echo", &[("X-Long", &long)], b"").status, 200);

    let too_many = world.daemon.request("GET", "/echo", &fields, b"");
    assert_problem(&too_many, "head-too-large", 431, "http_request_error");
    for length in [70 * 1024, 300_000] {
        let too_long = world.daemon.request("GET", "/echo", &[("X-Long", &"v".repeat(length))], b"");
        assert_problem(&too_long, "head-too-large", 431, "http_request_error");
    }
    assert_eq!(world.standin.api_requests().len(), 2);
}

#[test]
fn without_a_login_a_caller_is_told_where_to_log_in() {
    let world = World::start();

    let answer = world.daemon.get("/api/blogposts");

    assert_problem(&answer, "login-required", 503, "proxy_internal_response");
    let url = format!("http://{}/-/login/main", world.daemon.authority);
    assert_eq!(answer.json()["login_url"], Value::from(url.clone()));
    let target = url.strip_prefix(&format!("http://{}", world.daemon.authority)).unwrap();
    assert_eq!(world.daemon.get(target).status, 200);
}

#[test]
fn without_a_usable_token_a_caller_is_told_to_come_back() {
    let options = Options { expires_in_secs: 2, ..Options::default() };
    let tables = "[limits]\ntoken_wait = \"100ms\"".to_owned();
    let world = Setup { options, tables, ..Setup::default() }.logged_in();
    world.standin.set_unavailable(true);

    let answer = eventually("the token expires", || {
        let answer = world.daemon.get("/echo");
        (answer.status == 503).then_some(answer)
    });

    assert_problem(&answer, "token-unavailable", 503, "proxy_internal_response");
    let retry_after = answer.field("retry-after").and_then(|secs| secs.parse().ok());
    assert!(retry_after.is_some_and(|secs: u64| (1..=300).contains(&secs)), "{answer:?}");
}

#[test]
fn an_upstream_that_refuses_connections_is_unreachable() {
    let world = World::logged_in();
    world.standin.set_api_down(true);
    for method in ["GET", "POST"] {
        let answer = world.daemon.request(method, "/echo", &[], b"");
        assert_problem(&answer, "upstream-unreachable", 502, "connection_refused");
        assert!(!answer.text().contains(&world.standin.api_authority()), "{answer:?}");
    }

    world.standin.set_api_down(false);
    assert_eq!(world.daemon.get("/echo").status, 200);
}

#[test]
fn an_upstream_whose_name_is_unknown_is_unreachable() {
    let mut world = World::logged_in();
    reconfigured(&mut world, "[[route]]\nprefix = \"/nowhere\"\nupstream = \"https://nowhere.invalid\"\n");

    let answer = world.daemon.get("/nowhere/x");

    assert_problem(&answer, "upstream-unreachable", 502, "dns_error");
}

#[test]
fn an_upstream_that_hangs_up_without_an_answer_is_unreachable() {
    for setup in [one_worker(), over_tls()] {
        for ending in [|| Scripted::Close, || Scripted::Reset] {
            let world = Setup { options: setup.options.clone(), ..one_worker() }.logged_in();
            world.standin.on_api(move |_| Some(ending()));
            world.standin.clear_api_requests();
            let answer = world.daemon.request("POST", "/echo", &[], b"body");
            assert_problem(&answer, "upstream-unreachable", 502, "connection_terminated");
            assert_eq!(world.standin.api_requests().len(), 1);
        }
    }
}

#[test]
fn an_upstream_with_a_wrong_certificate_gets_no_byte_of_a_request() {
    for defect in [TlsDefect::UnknownAuthority, TlsDefect::WrongName, TlsDefect::Expired] {
        let options = Options { api_tls_defect: Some(defect), ..over_tls().options };
        let world = Setup { options, ..one_worker() }.logged_in();

        let answer = world.daemon.request("POST", "/echo", &[], b"body");

        assert_problem(&answer, "upstream-untrusted", 502, "tls_certificate_error");
        assert_eq!(
            (world.standin.api_connection_count(), world.standin.api_requests().len()),
            (0, 0),
            "{defect:?}"
        );
    }
}

#[test]
fn an_upstream_that_speaks_no_tls_is_not_trusted() {
    let mut world = World::logged_in();
    for said in ["", "HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = listener.local_addr().unwrap();
        let heard = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; 16 * 1024];
            let length = stream.read(&mut heard).unwrap();
            stream.write_all(said.as_bytes()).unwrap();
            heard[..length].to_vec()
        });
        let prefix = if said.is_empty() { "/closes" } else { "/talks" };
        reconfigured(
            &mut world,
            &format!("[[route]]\nprefix = \"{prefix}\"\nupstream = \"https://{upstream}\"\n"),
        );

        let answer = world.daemon.get(&format!("{prefix}/secret-path"));

        assert_problem(&answer, "upstream-untrusted", 502, "tls_protocol_error");
        let heard = heard.join().unwrap();
        assert!(!heard.windows(6).any(|window| window == b"secret"), "a request went in clear");
    }
}

#[test]
fn an_answer_that_is_no_http_is_not_passed_on() {
    let many: String = (0..10_000).map(|number| format!("X-{number}: v\r\n")).collect();
    for bytes in [
        "garbage\r\n\r\n".to_owned(),
        "HTTP/1.1 2OO OK\r\n\r\n".to_owned(),
        "HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "v".repeat(2_000_000)),
    ] {
        for then in [Then::Continue, Then::Close] {
            let world = one_worker().logged_in();
            let said = bytes.clone();
            world.standin.on_api(move |_| Some(Scripted::Raw { bytes: said.clone().into(), then }));
            let answer = world.daemon.request("POST", "/x", &[], b"");
            let start = &bytes[..bytes.len().min(60)];
            assert_eq!(
                (answer.status, answer.field("proxy-status").is_some()),
                (502, true),
                "{start:?}: {answer:?}"
            );
            assert_problem(&answer, "upstream-invalid", 502, "http_protocol_error");
        }
    }
}

#[test]
fn an_upstream_that_does_not_answer_times_out() {
    for setup in [one_worker(), over_tls()] {
        let world = Setup { tables: "[limits]\nresponse_timeout = \"1s\"".to_owned(), ..setup }.logged_in();
        world.standin.on_api(|_| Some(Scripted::Hang));
        for (method, length) in [("GET", 0), ("POST", 10), ("POST", 100_000)] {
            let answer = world.daemon.request(method, "/x", &[], &vec![b'x'; length]);
            assert_problem(&answer, "upstream-timeout", 504, "http_response_timeout");
        }
        world.standin.clear_on_api();
        assert_eq!(world.daemon.get("/echo").status, 200);
    }
}

#[test]
fn an_upstream_that_does_not_shake_hands_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let tables = format!(
        "[[route]]\nprefix = \"/silent\"\nupstream = \"https://{}\"\n[limits]\nconnect_timeout = \"300ms\"",
        silent.local_addr().unwrap()
    );
    let world = Setup { tables, ..Setup::default() }.logged_in();

    let answer = world.daemon.get("/silent/x");

    assert_problem(&answer, "upstream-timeout", 504, "connection_timeout");
}

#[test]
fn one_connection_too_many_is_told_so_and_the_others_go_on() {
    let mut world = World::logged_in();
    reconfigured(&mut world, "[limits]\nconnections = 2\n");
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));
    let mut first = Caller::connect(&world.daemon);
    let mut second = Caller::connect(&world.daemon);
    first.send_head("GET /echo", "");
    second.send_head("GET /echo", "");
    eventually("both wait for the API", || (gate.waiting() == 2).then_some(()));

    for _ in 0..5 {
        let mut third = Caller::connect(&world.daemon);
        let answer = third.answer("GET");
        assert_problem(&answer, "too-many-connections", 503, "connection_limit_reached");
        assert!(answer.field("retry-after").is_some());
        assert!(third.ends_within(Duration::from_secs(30)));
        assert_problem(&world.daemon.get("/echo"), "too-many-connections", 503, "connection_limit_reached");
    }

    gate.open();
    assert_eq!((first.answer("GET").status, second.answer("GET").status), (200, 200));
    assert_eq!(world.daemon.get("/echo").status, 200, "there is room again");
}

#[test]
fn a_request_is_logged_without_a_query_or_a_token() {
    let world = Setup { top: "log = \"trace\"".to_owned(), ..Setup::default() }.logged_in();
    world.standin.set_api_down(true);
    assert_eq!(world.daemon.get("/path-to-find?query-to-hide=1").status, 502);

    eventually("the request is logged", || world.daemon.output().contains("/path-to-find").then_some(()));
    let output = world.daemon.output();
    for secret in world.standin.issued_secrets() {
        assert!(!output.contains(&secret), "a secret stands in the log");
    }
    assert!(!output.contains("query-to-hide"), "{output}");
}
