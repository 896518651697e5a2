//! The pages around a login, and who may post to them.

use crate::standin::{Options, Person};
use crate::support::{Answer, Setup, World};

use super::{Before, page_secret, post_as_browser, post_from_page};

/// Method, target, fields and content.
type Request<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8]);

/// web-021: what every answer of this origin says, refusals included.
#[track_caller]
fn assert_inert(what: &str, answer: &Answer) {
    for (name, expected) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(answer.field(name), Some(expected), "{name} of {what}: {answer:?}");
    }
    let csp = answer.field("content-security-policy").unwrap_or_default();
    assert!(csp.contains("default-src 'none'") && csp.contains("frame-ancestors 'none'"), "{what}: {csp}");
    assert!(!csp.contains("unsafe") && !csp.contains('*') || is_loopback_only(csp), "{what}: {csp}");
    assert_eq!(answer.field("access-control-allow-origin"), None, "{what}");
}

/// The one wildcard is the port of a loopback authorization server.
fn is_loopback_only(csp: &str) -> bool {
    !csp.contains("unsafe") && !csp.replace("127.0.0.1:*", "").replace("localhost:*", "").contains('*')
}

/// web-021
#[test]
fn every_local_answer_is_inert() {
    let world = World::logged_in();
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let large = vec![b'a'; 1 << 20];
    let requests: [Request<'_>; 32] = [
        ("GET", "/-/", &[], b""),
        ("HEAD", "/-/", &[], b""),
        ("GET", "/-/login", &[], b""),
        ("GET", "/-/login/main", &[], b""),
        ("GET", "/-/login/nobody", &[], b""),
        ("POST", "/-/login/main/start", &form, b""),
        ("GET", "/-/login/main/start", &[], b""),
        ("POST", "/-/login/nobody/start", &form, b""),
        ("POST", "/-/login/main", &form, b"callback=x"),
        ("POST", "/-/login/main", &[("Accept", "text/html"), form[0]], b"callback=x"),
        ("POST", "/-/login/main", &form, &large),
        ("POST", "/-/login/main", &[("Content-Type", "application/json")], b"{}"),
        ("GET", "/-/callback", &[], b""),
        ("GET", "/-/callback?code=a&state=b", &[], b""),
        ("POST", "/-/callback", &form, b"code=a&state=b"),
        ("GET", "/-/status", &[], b""),
        ("POST", "/-/status", &form, b""),
        ("POST", "/-/refresh/main", &form, b""),
        ("POST", "/-/refresh/nobody", &form, b""),
        ("POST", "/-/logout/main", &form, b""),
        ("POST", "/-/logout/main", &form, b""),
        ("GET", "/-/healthz", &[], b""),
        ("GET", "/-/readyz", &[], b""),
        ("GET", "/-/readyz/main", &[], b""),
        ("GET", "/-/readyz/nobody", &[], b""),
        ("GET", "/-/metrics", &[], b""),
        ("GET", "/-/page.css", &[], b""),
        ("GET", "/-/page.js", &[], b""),
        ("GET", "/-/icon.svg", &[], b""),
        ("GET", "/-/unknown", &[], b""),
        ("GET", "/-/status", &[("Origin", "https://evil.example")], b""),
        ("GET", "/-/status", &[("Host", "evil.example")], b""),
    ];

    for (method, target, fields, body) in requests {
        let answer = world.daemon.request(method, target, fields, body);
        assert_inert(&format!("{method} {target} {fields:?}"), &answer);
    }
}

/// Every local route, and the methods that it takes.
const ROUTES: [(&str, &[&str]); 18] = [
    ("/-/", &["GET", "HEAD"]),
    ("/-/login", &["GET", "HEAD"]),
    ("/-/login/main", &["GET", "HEAD", "POST"]),
    ("/-/login/main/start", &["POST"]),
    ("/-/callback", &["GET", "HEAD", "POST"]),
    ("/-/status", &["GET", "HEAD"]),
    ("/-/refresh/main", &["POST"]),
    ("/-/logout/main", &["POST"]),
    ("/-/healthz", &["GET", "HEAD"]),
    ("/-/readyz", &["GET", "HEAD"]),
    ("/-/readyz/main", &["GET", "HEAD"]),
    ("/-/metrics", &["GET", "HEAD"]),
    ("/-/page.css", &["GET", "HEAD"]),
    ("/-/page.js", &["GET", "HEAD"]),
    ("/-/icon.svg", &["GET", "HEAD"]),
    ("/-/token/main", &[]),
    ("/-/login/start", &["GET", "HEAD", "POST"]),
    ("/-/unknown", &[]),
];

/// web-021, web-023
#[test]
fn a_method_that_a_local_route_does_not_take_is_refused_and_the_refusal_is_inert() {
    let world = World::logged_in();
    let mut refused = 0;
    for (target, methods) in ROUTES {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get"] {
            if methods.contains(&method) {
                continue;
            }
            let answer = world.daemon.request(method, target, &[("Accept", "text/html")], b"");
            assert!([404, 405].contains(&answer.status), "{method} {target}: {answer:?}");
            assert_inert(&format!("{method} {target}"), &answer);
            refused += 1;
        }
    }
    assert!(refused > 100, "only {refused} were tried");
    assert_eq!((world.standin.revocations().len(), world.daemon.state().as_str()), (0, "ready"));
}

/// Errors of the local routes are problems like all others.
#[test]
fn what_a_local_route_can_t_read_is_a_problem() {
    let world = World::start();
    let form = "application/x-www-form-urlencoded";
    for (method, target, kind, body) in [
        ("POST", "/-/login/main", form, vec![b'a'; 1 << 20]),
        ("POST", "/-/login/main/start", form, vec![b'a'; 1 << 20]),
        ("POST", "/-/callback", form, vec![b'a'; 1 << 20]),
        ("POST", "/-/login/main", "application/json", b"{}".to_vec()),
        ("POST", "/-/login/%ff", form, b"callback=x".to_vec()),
        ("GET", "/-/login/main/start", form, Vec::new()),
        ("GET", "/-/login/nobody", form, Vec::new()),
    ] {
        let answer = world.daemon.request(method, target, &[("Content-Type", kind)], &body);
        assert!((400..500).contains(&answer.status), "{method} {target}: {answer:?}");
        answer.problem();
    }
}

/// web-022: a browser can only post what comes from our own page.
#[test]
fn a_browser_posts_from_our_own_page_or_not_at_all() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let callback = world.standin.authorize(&world.begin_login(), Person::Alice);
    let own = format!("http://{}", world.daemon.authority);
    let (page, login) = (page_secret(&world), format!("{own}/-/login"));
    let altered = format!("{}{}", &page[..page.len() - 1], if page.ends_with('0') { '1' } else { '0' });
    let later = format!("9{page}");
    let tries: [(&[(&str, &str)], &str); 14] = [
        (&[("Origin", "https://evil.example")], &page),
        (&[("Origin", "null")], &page),
        (&[("Origin", "http://localhost:1")], &page),
        (&[("Sec-Fetch-Site", "cross-site")], &page),
        (&[("Sec-Fetch-Site", "same-site")], &page),
        (&[("Referer", "https://evil.example/")], &page),
        (&[("Origin", &own), ("Sec-Fetch-Site", "cross-site")], &page),
        (&[("Origin", &own)], ""),
        (&[("Sec-Fetch-Site", "same-origin")], ""),
        (&[("Referer", &login)], ""),
        (&[("Origin", &own)], "guessed"),
        (&[("Origin", &own)], &altered),
        (&[("Origin", &own)], &later),
        (&[("Origin", &own)], "-9223372036854775808.00"),
    ];

    for (from, secret) in tries {
        for target in ["/-/login/main", "/-/login/main/start", "/-/refresh/main", "/-/logout/main"] {
            let answer = post_as_browser(&world, target, from, &[("page", secret), ("callback", &callback)]);
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (403, "forbidden-origin"),
                "{from:?} {secret}"
            );
        }
    }

    before.assert_unchanged(0, &world);
    assert_eq!((world.standin.revocations().len(), world.daemon.state().as_str()), (0, "ready"));
    let form = [("page", page.as_str()), ("callback", callback.as_str())];
    assert_eq!(post_from_page(&world, "/-/login/main", &form).status, 200);
}

/// A text browser or an old one, or one that hides where it comes from, says at least that a person reads its answer.
#[test]
fn a_browser_that_hides_where_it_comes_from_needs_a_page_s_secret_as_well() {
    let world = World::logged_in();
    let page = page_secret(&world);
    let own = "application/x-www-form-urlencoded";
    for mark in [
        ("Accept", "text/html, text/*;q=0.5, image/*, application/*"),
        ("Accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
        ("Accept-Language", "en"),
        ("Accept-Language", "en,*;q=0.1"),
        ("Sec-Fetch-Dest", "document"),
    ] {
        for target in ["/-/login/main", "/-/login/main/start", "/-/refresh/main", "/-/logout/main"] {
            let answer = world.daemon.request("POST", target, &[("Content-Type", own), mark], b"callback=x");
            assert_eq!((answer.status, answer.problem().as_str()), (403, "forbidden-origin"), "{mark:?}");
        }
        let (fields, body) = ([("Content-Type", own), mark], format!("page={page}"));
        let answer = world.daemon.request("POST", "/-/login/main/start", &fields, body.as_bytes());
        assert_eq!(answer.status, 303, "{mark:?}: {answer:?}");
    }
    assert_eq!((world.standin.revocations().len(), world.standin.refreshes().len()), (0, 0));
}

/// What curl and the clients of Node, Python and Java say of themselves beside `User-Agent`.
#[test]
fn a_program_needs_no_page() {
    let world = World::logged_in();
    let programs: [&[(&str, &str)]; 3] = [
        &[("Accept", "*/*")],
        &[("Accept", "*/*"), ("Accept-Language", "*"), ("Sec-Fetch-Mode", "cors")],
        &[("Accept", "application/json"), ("Accept-Encoding", "gzip, deflate")],
    ];
    for fields in programs {
        for (target, status) in [("/-/login/main/start", 303), ("/-/refresh/main", 200)] {
            let answer = world.daemon.request("POST", target, fields, b"");
            assert_eq!(answer.status, status, "{target} {fields:?}: {answer:?}");
        }
    }
}

#[test]
fn the_page_s_own_button_begins_a_login() {
    let world = World::start();
    let page = page_secret(&world);

    let answer = post_from_page(&world, "/-/login/main/start", &[("page", &page)]);

    assert_eq!(answer.status, 303, "{answer:?}");
    assert_eq!(world.standin.authorize_refusal(answer.field("location").unwrap()), None);
}

#[test]
fn a_page_s_secret_is_worth_nothing_to_the_next_daemon() {
    let mut world = World::start();
    let page = page_secret(&world);

    world.restart();

    assert_eq!(post_from_page(&world, "/-/login/main/start", &[("page", &page)]).status, 403);
}

/// web-023: a GET makes no login, replaces none and ends none. One that made a login would be the newest, of which the
/// login page says how long it can be finished.
#[test]
fn gets_of_every_local_route_change_nothing_about_a_login() {
    let world = World::start();
    let callback = world.standin.authorize(&world.begin_login(), Person::Alice);
    let newest = || super::attribute(&world.daemon.get("/-/login").text(), "<span data-at=\"");
    let begun = newest();
    let image = "Sec-Fetch-Dest: image\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Site: same-origin\r\n";

    for (target, _) in ROUTES {
        for line in [format!("GET {target}"), format!("HEAD {target}")] {
            let request = format!("{line} HTTP/1.1\r\nHost: {}\r\n{image}", world.daemon.authority);
            let many = format!("{request}\r\n").repeat(257) + &format!("{request}Connection: close\r\n\r\n");
            let answers = String::from_utf8(world.daemon.raw(many.as_bytes())).unwrap();
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 258, "{line}");
            assert!(!answers.to_ascii_lowercase().contains("\r\nlocation:"), "{line}");
        }
    }
    assert_eq!(world.daemon.get("/-/login/main/start").status, 405);
    assert_eq!(newest(), begun);

    assert_eq!(world.paste(&callback).status, 200);
}

/// A page in each language.
fn in_both_languages(world: &World, target: &str) -> [String; 2] {
    ["en", "zh-CN"]
        .map(|language| world.daemon.request("GET", target, &[("Accept-Language", language)], b"").text())
}

/// What a person reads is about the flow that is configured.
#[test]
fn the_pages_speak_of_the_parts_that_the_address_has() {
    for (settings, mark, sample) in [
        ("", "#", "#code=…&amp;id_token=…&amp;state=…"),
        ("response_type = \"code\"", "?", "?code=…&amp;state=…"),
        ("response_type = \"code\"\nresponse_mode = \"fragment\"", "#", "#code=…&amp;state=…"),
    ] {
        let world = Setup { account: settings.to_owned(), ..Setup::default() }.start();
        let address = format!("{}/auth/callback", world.standin.auth_url());

        for page in in_both_languages(&world, "/-/login") {
            assert!(page.contains(sample), "{settings}: {page}");
            assert!(page.contains(&format!("data-mark=\"{mark}\"")), "{settings}: {page}");
            assert_eq!(page.contains("id_token"), settings.is_empty(), "{settings}: {page}");
            assert!(!page.contains("behind the #") && !page.contains("# 后面"), "{settings}: {page}");
        }
        let answer = world.paste(&address);
        assert!(answer.text().contains(&format!("the part behind the {mark} is missing")), "{answer:?}");
        let (page, form) = (page_secret(&world), "?code=x");
        let form = [("page", page.as_str()), ("callback", form)];
        let refused = post_from_page(&world, "/-/login/main", &form).text();
        assert!(refused.contains("A part of the address is missing") && !refused.contains("behind the #"));
    }
}

/// The script asks for the login of a pasted address, and is told no more than whose it is and how it stands.
#[test]
fn the_login_page_says_how_a_login_stands_that_is_asked_about() {
    let world = World::start();
    let asked = |state: &str| {
        let page = world.daemon.get(&format!("/-/login/main?state={state}")).text();
        super::attribute(&page, "data-asked=\"").replace("&quot;", "\"")
    };
    let url = world.begin_login();
    let state = super::parameter(&url, "state");

    assert!(asked(&state).contains("\"is\":\"good\"") && asked(&state).contains("\"until\":"));
    assert!(asked("x").contains("\"is\":\"foreign\"") && asked("").contains("foreign"));
    assert_eq!(world.paste(&world.standin.authorize(&url, Person::Alice)).status, 200);
    assert!(asked(&state).contains("\"is\":\"used\""), "{}", asked(&state));
    let injected = world.daemon.get("/-/login/main?state=%22%3E%3Cscript%3E").text();
    assert!(!injected.contains("<script>") && injected.contains("&lt;script&gt;"), "{injected}");
}

/// What the server did not confirm is said, and not that all is as before.
#[test]
fn a_logout_that_the_server_does_not_confirm_is_told_on_the_page() {
    let world = World::logged_in();
    let page = page_secret(&world);
    world.standin.set_down(true);

    let answer = post_from_page(&world, "/-/logout/main", &[("page", &page)]);

    let text = answer.text();
    assert!(text.contains("<h1>The logout is not complete</h1>"), "{answer:?}");
    assert!(text.contains("erased here") && text.contains("did not confirm"), "{text}");
    assert_eq!(world.daemon.state(), "login-required");
}

/// A login that can't be renewed says so where the person is.
#[test]
fn remarks_on_a_login_are_on_its_page() {
    let world = World::logged_in();
    world.standin.leave_out_refresh_token(true);
    let page = page_secret(&world);
    let callback = world.standin.authorize(&world.begin_login(), Person::Bob);

    let asked = post_from_page(&world, "/-/login/main", &[("page", &page), ("callback", &callback)]).text();
    let id = super::attribute(&asked, "name=\"confirm\" value=\"");
    let form = [("page", page.as_str()), ("confirm", id.as_str()), ("answer", "yes")];
    let text = post_from_page(&world, "/-/login/main", &form).text();

    assert!(text.contains("<h1>Logged in</h1>") && text.contains("gave no refresh token"), "{text}");
    assert!(!text.contains("refreshed by itself"), "{text}");
}

#[test]
fn the_login_page_says_what_to_do_and_sends_nothing_by_itself() {
    let world = World::start();

    let page = world.daemon.get("/-/login");

    let text = page.text();
    assert_eq!((page.status, page.field("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(text.contains(&format!("{}/auth/callback", world.standin.auth_url())), "{text}");
    assert!(text.contains("action=\"/-/login/main/start\" target=\"_blank\""), "{text}");
    assert!(
        text.contains("name=\"callback\"") && !text.contains("style=") && !text.contains("onclick"),
        "{text}"
    );
    let same = world.daemon.get("/-/login/main").text();
    assert_eq!(timeless(&text), timeless(&same));
}

/// A page without what differs from one look to the next.
fn timeless(page: &str) -> String {
    let made_at = super::attribute(page, "data-now=\"");
    page.replace(&secret_of(page), "").replace(&made_at, "")
}

fn secret_of(page: &str) -> String {
    super::attribute(page, "name=\"page\" value=\"")
}

/// An account whose tokens need no person, in both kinds.
fn start_without_login() -> [World; 2] {
    let token = "pat-0123456789abcdef".to_owned();
    let application =
        Setup { account: "grant = \"client_credentials\"".to_owned(), ..Setup::default() }.start();
    let options =
        Options { personal_access_tokens: vec![(token.clone(), Person::Alice)], ..Options::default() };
    let environment = vec![("CNBLOGS_PAT".to_owned(), token)];
    let world = Setup { options, ..Setup::default() }.start();
    let config = std::fs::read_to_string(world.home.config()).unwrap();
    let lines = config.lines().filter(|line| !line.starts_with("client_"));
    let home = crate::support::Home::new(environment);
    let state = format!("{}", home.state().display());
    let config: String = lines.map(|line| format!("{line}\n")).collect();
    let config = config.replace(&world.home.state().display().to_string(), &state);
    std::fs::write(home.config(), config).unwrap();
    let daemon = home.serve();
    [application, World { daemon, standin: world.standin, home }]
}

#[test]
fn an_account_without_a_person_says_that_no_login_is_needed() {
    for world in start_without_login() {
        assert_eq!(world.daemon.get("/api/blogposts/@sitehome").status, 200);
        let asked = world.standin.token_requests().len();

        let started = world.daemon.post_form("/-/login/main/start", &[]);
        let pasted = world.paste("http://127.0.0.1/auth/callback#code=a&state=b");
        let pages = ["/-/login", "/-/login/main"].map(|target| world.daemon.get(target));
        let command = world.home.run(&["login", "main"], "");

        for (what, text) in [("start", started.text()), ("paste", pasted.text())] {
            assert!(text.contains("needs no login"), "{what}: {text}");
        }
        assert!(
            (400..500).contains(&started.status) && (400..500).contains(&pasted.status),
            "{started:?} {pasted:?}"
        );
        for page in pages {
            assert!(!page.text().contains("<form"), "{}", page.text());
            assert!(
                page.text().contains("needs no login") || page.text().contains("needs a login"),
                "{page:?}"
            );
        }
        assert!(!command.status.success(), "{command:?}");
        assert!(String::from_utf8_lossy(&command.stderr).contains("needs no login"), "{command:?}");
        assert_eq!(world.standin.token_requests().len(), asked);
    }
}
