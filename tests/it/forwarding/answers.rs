//! Answers on their way down, and what must not cross either way.

use std::fs;

use super::caller::Caller;
use super::{one_worker, over_tls, reconfigured, token};
use crate::standin::{Answer, Options, Person, Scripted};
use crate::support::{Setup, World};

#[test]
fn a_status_comes_down_as_it_is() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        for status in [
            200, 201, 206, 226, 299, 300, 400, 403, 404, 409, 410, 413, 421, 418, 429, 451, 500, 502, 503,
            599,
        ] {
            let answer = world.daemon.get(&format!("/status/{status}"));
            assert_eq!((answer.status, answer.field("proxy-status")), (status, None), "{answer:?}");
            assert_eq!(answer.text(), format!("status {status}\n"));
        }
    }
}

#[test]
fn answers_without_content_end_where_they_end() {
    let world = one_worker().logged_in();
    let mut caller = Caller::connect(&world.daemon);

    let no_content = caller.get("/status/204");
    assert_eq!((no_content.status, no_content.field("content-length")), (204, None));

    let not_modified = "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 1234\r\n\r\n";
    world.standin.on_api(move |_| Some(Scripted::raw(not_modified)));
    let answer = caller.get("/x");
    assert_eq!((answer.status, answer.field("etag")), (304, Some("\"x\"")));

    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nX-A: b\r\n\r\n";
    world.standin.on_api(move |_| Some(Scripted::raw(head)));
    caller.send_head("HEAD /x", "");
    let answer = caller.answer("HEAD");
    assert_eq!(
        (answer.status, answer.field("content-length"), answer.field("x-a")),
        (200, Some("1234"), Some("b"))
    );

    world.standin.on_api(|_| Some(Scripted::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")));
    caller.send_head("HEAD /x", "");
    assert_eq!(caller.answer("HEAD").field("content-length"), None, "nobody knows it");

    world.standin.on_api(|_| Some(Scripted::raw("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n")));
    assert_eq!(caller.get("/x").status, 205);
    world.standin.clear_on_api();
    assert_eq!(caller.get("/echo").json()["method"], "GET", "the connection is in step");
}

#[test]
fn an_interim_answer_does_not_stand_in_the_way_of_the_final_one() {
    let world = one_worker().logged_in();

    let mut caller = Caller::connect(&world.daemon);
    let answer = caller.get("/informational");

    assert_eq!((answer.status, answer.text().as_str()), (200, "after 103\n"));
    assert!(caller.interim.iter().all(|status| *status == 103), "{:?}", caller.interim);
    assert_eq!(caller.get("/echo").status, 200);
}

#[test]
fn fields_of_the_apis_own_origin_stay_behind_and_all_others_come() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        world.standin.on_api(|_| Some(Scripted::Answer(with_many_fields())));

        let answer = world.daemon.get("/x");

        let framing = ["content-length", "transfer-encoding"];
        let names = answer.fields.iter().map(|(name, _)| name.as_str());
        let mut names: Vec<_> = names.filter(|name| !framing.contains(name)).collect();
        names.sort_unstable();
        let ours = ["connection", "content-security-policy", "date", "x-content-type-options"];
        let theirs = ["cache-control", "etag", "retry-after", "vary", "www-authenticate", "x-kept", "x-kept"];
        let mut expected: Vec<_> = ours.into_iter().chain(theirs).collect();
        expected.sort_unstable();
        assert_eq!(names, expected, "{answer:?}");
        assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
        let policy = answer.field("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("sandbox"), "{policy}");
    }
}

#[test]
fn a_token_that_the_api_echoes_never_reaches_the_caller() {
    for setup in [one_worker(), over_tls()] {
        let world = setup.logged_in();
        let token = token(&world);
        let echoed = token.clone();
        world.standin.on_api(move |_| {
            let answer = Answer::full(200, "content")
                .with("X-Echo", &echoed)
                .with("X-Echo-Within", &format!("a=\"Bearer {echoed}\"; b"))
                .with("Location", &format!("/next?access_token={echoed}"))
                .with("X-Other", "kept");
            Some(Scripted::Answer(answer))
        });

        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("GET /x", "Connection: close\r\n");
        let everything = caller.rest();

        assert!(!everything.windows(token.len()).any(|window| window == token.as_bytes()));
        assert!(everything.windows(13).any(|window| window == b"x-other: kept"));
    }
}

#[test]
fn the_reason_phrase_of_the_api_is_not_passed_on() {
    let world = one_worker().logged_in();
    let token = token(&world);
    let head = format!("HTTP/1.1 200 {token}\r\nContent-Length: 0\r\n\r\n");
    world.standin.on_api(move |_| Some(Scripted::raw(head.clone())));

    let mut caller = Caller::connect(&world.daemon);
    caller.send_head("GET /x", "Connection: close\r\n");

    let everything = caller.rest();
    assert!(!everything.windows(token.len()).any(|window| window == token.as_bytes()));
}

#[test]
fn a_redirect_is_never_followed_and_only_rewritten_within_the_upstreams_origin() {
    let trap_world = World::start();
    let trap = trap_world.standin.trap();
    for prefix in ["/", "/write"] {
        let world = Setup { route: format!("prefix = \"{prefix}\""), ..one_worker() }.logged_in();
        let (api, trap) = (world.standin.api_url(), trap.authority());
        let ours = prefix.trim_end_matches('/');
        for (location, expected) in [
            (format!("{api}/a?b#c"), format!("{ours}/a?b#c")),
            (format!("{}/a", api.replace("http", "HTTP")), format!("{ours}/a")),
            ("/a/b?c".to_owned(), format!("{ours}/a/b?c")),
            ("relative".to_owned(), "relative".to_owned()),
            ("?q".to_owned(), "?q".to_owned()),
            (format!("http://{trap}/a"), format!("http://{trap}/a")),
            (format!("//{trap}/a"), format!("//{trap}/a")),
            (format!("{api}@{trap}/a"), format!("{api}@{trap}/a")),
            ("https://www.cnblogs.com/x".to_owned(), "https://www.cnblogs.com/x".to_owned()),
        ] {
            for status in [301, 302, 303, 307, 308, 201] {
                let to = location.clone();
                world
                    .standin
                    .on_api(move |_| Some(Scripted::Answer(Answer::status(status).with("Location", &to))));
                world.standin.clear_api_requests();
                let answer = world.daemon.get(&format!("{ours}/x"));
                assert_eq!(
                    (answer.status, answer.field("location")),
                    (status, Some(expected.as_str())),
                    "{location}"
                );
                assert_eq!(world.standin.api_requests().len(), 1, "{location}");
            }
        }
    }
    assert_eq!(trap.caught(), 0);
}

#[test]
fn a_redirect_to_the_upstreams_origin_comes_back_through_the_proxy_and_never_names_another_host() {
    let world = Setup { route: "prefix = \"/write\"".to_owned(), ..one_worker() }.logged_in();
    let api = world.standin.api_url();

    let answer = world.daemon.get(&format!("/write/redirect?to={api}/echo/next"));
    assert_eq!(answer.field("location"), Some("/write/echo/next"));
    assert_eq!(world.daemon.get("/write/echo/next").json()["target"], "/echo/next");

    let world = one_worker().logged_in();
    let api = world.standin.api_url();
    world.standin.on_api(move |_| {
        Some(Scripted::Answer(Answer::status(302).with("Location", &format!("{api}//evil.example/"))))
    });
    let location = world.daemon.get("/x").field("location").unwrap_or_default().to_owned();
    assert!(!location.starts_with("//"), "{location}");
}

#[test]
fn a_base_path_of_the_upstream_is_put_in_front_and_taken_off_again() {
    let mut world = one_worker().logged_in();
    let api = world.standin.api_url();
    reconfigured(&mut world, &format!("[[route]]\nprefix = \"/v2\"\nupstream = \"{api}/echo/base\"\n"));

    for (target, expected) in
        [("/v2", "/echo/base"), ("/v2?a", "/echo/base?a"), ("/v2//x/", "/echo/base//x/"), ("/echo", "/echo")]
    {
        assert_eq!(world.daemon.get(target).json()["target"], expected);
    }
    for (location, expected) in [
        (format!("{api}/echo/base/x"), "/v2/x".to_owned()),
        ("/echo/base/x".to_owned(), "/v2/x".to_owned()),
        ("/echo/basement".to_owned(), format!("{api}/echo/basement")),
    ] {
        let to = location.clone();
        world.standin.on_api(move |_| Some(Scripted::Answer(Answer::status(302).with("Location", &to))));
        assert_eq!(world.daemon.get("/v2/y").field("location"), Some(expected.as_str()), "{location}");
    }
}

#[test]
fn an_offer_to_upgrade_is_passed_over() {
    let world = one_worker().logged_in();

    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    ] {
        let mut caller = Caller::connect(&world.daemon);
        caller.send_head("GET /echo", fields);
        assert_eq!(caller.answer("GET").status, 200);
        assert_eq!(caller.get("/echo").status, 200, "the connection goes on as HTTP/1.1");
    }

    for request in world.standin.api_requests() {
        for name in ["upgrade", "http2-settings", "connection"] {
            assert_eq!(request.field(name), None);
        }
    }
}

#[test]
fn a_personal_access_token_goes_up_with_its_type() {
    let pat = "personal-token-of-alice";
    let options =
        Options { personal_access_tokens: vec![(pat.to_owned(), Person::Alice)], ..Options::default() };
    let mut world = Setup { options, ..one_worker() }.start();
    let file = world.home.secret("pat", pat);
    let api = world.standin.api_url();
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{}\"\n[account.main]\ngrant = \"personal_access_token\"\n\
         token_file = \"{}\"\n[[route]]\nupstream = \"{api}\"\n",
        world.home.state().display(),
        file.display(),
    );
    fs::write(world.home.config(), config).unwrap();
    world.restart();

    let fields = [("Authorization-Type", "evil"), ("Authorization", "Bearer evil")];
    let answer = world.daemon.request("GET", "/echo", &fields, b"");

    assert_eq!(answer.status, 200, "{answer:?}");
    let arrived = world.standin.api_requests().pop().unwrap();
    assert_eq!(arrived.fields_named("authorization"), [format!("Bearer {pat}")]);
    assert_eq!(arrived.fields_named("authorization-type"), ["pat"]);
}

#[test]
fn connections_to_the_upstream_are_used_again() {
    for (setup, most) in [(one_worker(), 1), (over_tls(), 1), (Setup::default(), 8)] {
        let world = setup.logged_in();
        let before = world.standin.api_connection_count();

        for _ in 0..100 {
            assert_eq!(world.daemon.get("/echo").status, 200);
        }
        let mut caller = Caller::connect(&world.daemon);
        for number in 0..100 {
            let answer = if number % 2 == 0 { caller.get("/echo") } else { caller.post("/echo", b"content") };
            assert_eq!(answer.status, 200);
        }

        let made = world.standin.api_connection_count() - before;
        assert!(made <= most, "{made} connections for 200 requests");
    }
}

fn with_many_fields() -> Answer {
    let mut answer = Answer::full(200, "content");
    for (name, value) in [
        ("Connection", "X-Of-This-Connection"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Upgrade", "h2c"),
        ("X-Of-This-Connection", "1"),
        ("Proxy-Authenticate", "Basic"),
        ("Set-Cookie", "a=b"),
        ("Set-Cookie", "c=d"),
        ("Strict-Transport-Security", "max-age=1"),
        ("Alt-Svc", "h3=\":443\""),
        ("Clear-Site-Data", "\"*\""),
        ("Refresh", "0; url=https://evil.example/"),
        ("Service-Worker-Allowed", "/"),
        ("Public-Key-Pins", "x"),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Expose-Headers", "*"),
        ("Content-Security-Policy", "default-src *"),
        ("X-Content-Type-Options", "sniff"),
        ("X-Kept", "1"),
        ("X-Kept", "2"),
        ("ETag", "\"x\""),
        ("Vary", "Accept"),
        ("Cache-Control", "private"),
        ("WWW-Authenticate", "Bearer"),
        ("Retry-After", "1"),
        ("Date", "Tue, 15 Nov 1994 08:12:31 GMT"),
    ] {
        answer = answer.with(name, value);
    }
    answer
}
