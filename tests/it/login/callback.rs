//! What is pasted: the address of the redirect page, or something that is not it.

use std::time::{Duration, Instant};

use crate::standin::{Callback, Person, Spoil};
use crate::support::{Setup, World};

use super::{Before, page_secret, parameter, post_from_page};

/// A good callback of a new login.
#[track_caller]
fn good(world: &World) -> Callback {
    world.standin.callback(&world.begin_login(), Person::Alice, Spoil::default())
}

/// The address with the parameters that are left after a change.
fn changed(callback: &Callback, change: impl FnOnce(&mut Vec<(String, String)>)) -> String {
    let mut changed = callback.clone();
    change(&mut changed.parameters);
    changed.address()
}

fn set(callback: &Callback, name: &str, change: impl Fn(&str) -> String) -> String {
    changed(callback, |parameters| {
        for (_, value) in parameters.iter_mut().filter(|(known, _)| known == name) {
            *value = change(value);
        }
    })
}

/// oa-002, oa-003: a `state` that is not this login's, to the letter.
#[test]
fn a_callback_without_its_exact_state_is_refused_and_the_right_one_still_works() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let callback = good(&world);
    let other = |last: &str| if last == "A" { "B" } else { "A" };

    for (pasted, words) in [
        (set(&callback, "state", |state| format!("{}{}", other(&state[..1]), &state[1..])), "`state`"),
        (set(&callback, "state", |state| state[..state.len() - 1].to_owned()), "`state`"),
        (set(&callback, "state", |state| format!("{state}A")), "`state`"),
        (set(&callback, "state", str::to_uppercase), "`state`"),
        (set(&callback, "state", |_| "xyz".to_owned()), "`state`"),
        (set(&callback, "state", |_| String::new()), "`state` is missing"),
        (changed(&callback, |all| all.retain(|(name, _)| name != "state")), "`state` is missing"),
        (changed(&callback, |all| all.retain(|(name, _)| name != "code")), "`code` is missing"),
        (set(&callback, "code", |_| String::new()), "`code` is missing"),
    ] {
        before.assert_refused(&world, &world.paste(&pasted), words);
    }

    assert_eq!(world.paste(&callback.address()).status, 200, "{}", world.daemon.output());
}

/// oa-025: a good code and `id_token` of somebody who made up the login.
#[test]
fn somebody_elses_login_is_refused_for_its_unknown_state() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let url = world.begin_login();
    let own = url
        .replace(&parameter(&url, "state"), "attackers-state-attackers-state")
        .replace(&parameter(&url, "nonce"), "attackers-nonce-attackers-nonce");

    let callback = world.standin.authorize(&own, Person::Bob);

    before.assert_refused(&world, &world.paste(&callback), "`state` is unknown");
}

#[test]
fn a_login_of_one_daemon_is_unknown_to_the_next() {
    let mut world = World::logged_in();
    let before = Before::of(&world);
    let callback = good(&world).address();

    world.restart();

    before.assert_refused(&world, &world.paste(&callback), "`state` is unknown");
}

#[test]
fn a_callback_is_taken_however_it_was_copied() {
    let world = World::start();
    let copies: [fn(&Callback) -> String; 7] = [
        Callback::address,
        Callback::encoded,
        |callback| format!("#{}", callback.encoded()),
        |callback| format!("?{}", callback.encoded()),
        |callback| format!("{}?{}", callback.redirect_uri, callback.encoded()),
        |callback| format!("\r\n  <{}>\t\n", callback.address()),
        |callback| callback.address().replace("http://", "HTTP://"),
    ];

    for copy in copies {
        let pasted = copy(&good(&world));
        let answer = world.paste(&pasted);
        assert_eq!(answer.status, 200, "{pasted}: {}", answer.text());
    }

    assert_eq!(world.standin.token_requests().len(), copies.len());
}

/// What `parse_pasted` finds where, its own tests say; here, that a daemon tells its login from the words around it.
#[test]
fn a_callback_is_found_in_what_surrounds_it() {
    let world = World::start();
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let lines = |text: &str, with: &str| {
        text.as_bytes().chunks(72).map(String::from_utf8_lossy).collect::<Vec<_>>().join(with)
    };
    let copies: [&dyn Fn(&str) -> String; 9] = [
        &|address| format!("Here it is:\n{}\nThanks!\nBob", lines(address, "\n")),
        &|address| format!("> {}\n>\n> Regards", lines(address, "\n> ")),
        &|address| lines(address, "=\n"),
        &|address| format!("<a href=\"{}\">here</a>", address.replace('&', "&amp;")),
        &|address| format!("[here]({address}) and 「{address}」。"),
        &|address| format!("https://link.example/?target={}&from=chat", encoded(address)),
        &|address| address.replace("%20", " "),
        &|address| format!("\u{feff}地址：{address}\u{200b}，谢谢"),
        &|address| format!("curl '{}'", address.replace('&', "\\&")),
    ];

    // Without what comes behind it, words behind the address have to be told from the `state`.
    for with_more in [true, false] {
        for copy in copies {
            let callback = good(&world);
            let less = changed(&callback, |all| all.retain(|(name, _)| with_more || name != "session_state"));
            let pasted = copy(&less);
            let answer = world.paste(&pasted);
            assert_eq!(answer.status, 200, "{pasted}: {}", answer.text());
        }
    }

    assert_eq!(world.standin.token_requests().len(), 2 * copies.len());
}

#[test]
fn of_two_callbacks_none_is_taken_and_both_can_be_pasted_alone() {
    let world = World::start();
    let (one, other) = (good(&world).address(), good(&world).address());
    let before = Before::of(&world);

    before.assert_refused(&world, &world.paste(&format!("{one}\n{other}")), "more than one address");

    for address in [format!("{one} {one}"), other] {
        assert_eq!(world.paste(&address).status, 200);
    }
}

#[test]
fn an_address_of_another_page_is_refused() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let callback = good(&world);
    let (own, all) = (world.standin.auth_url(), callback.encoded());
    let (_, port) = own.rsplit_once(':').unwrap();
    let foreign = [
        format!("https://evil.example/auth/callback#{all}"),
        format!("{own}/auth/callback/#{all}"),
        format!("{own}/auth/Callback#{all}"),
        format!("{own}/auth/callback.evil#{all}"),
        format!("{own}/#{all}"),
        format!("{own}@evil.example/auth/callback#{all}"),
        format!("http://user@127.0.0.1:{port}/auth/callback#{all}"),
        format!("http://user:secret@127.0.0.1:{port}/auth/callback#{all}"),
        format!("https://127.0.0.1:{port}/auth/callback#{all}"),
        format!("http://127.0.0.1:1/auth/callback#{all}"),
        format!("http://127.0.0.1/auth/callback#{all}"),
        format!("http://localhost:{port}/auth/callback#{all}"),
        format!("http://127.0.0.1:{port}.evil.example/auth/callback#{all}"),
        format!("javascript://127.0.0.1:{port}/auth/callback#{all}"),
        "hello".to_owned(),
    ];

    for address in foreign {
        before.assert_refused(&world, &world.paste(&address), "not the address of the redirect page");
    }

    before.assert_refused(&world, &world.paste(&format!("{own}/auth/callback")), "behind the #");
    before.assert_refused(&world, &world.paste("  "), "nothing was pasted");
}

/// oa-017: `state`, `code` and the others come once, whether in the query or in the fragment.
#[test]
fn a_parameter_that_comes_twice_is_refused() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let callback = good(&world);
    let once = callback.encoded();

    for (name, value) in &callback.parameters {
        let again = format!("{name}={}", value.replace(' ', "%20"));
        for repeated in [
            format!("{}#{once}&{again}", callback.redirect_uri),
            format!("{}#{again}&{once}", callback.redirect_uri),
            format!("{}?{again}#{once}", callback.redirect_uri),
            format!("{}#{once}&{name}=another", callback.redirect_uri),
            format!("{}#{once}&{name}=", callback.redirect_uri),
        ] {
            before.assert_refused(&world, &world.paste(&repeated), &format!("`{name}`"));
        }
    }

    assert_eq!(world.paste(&callback.address()).status, 200);
}

/// oa-015: the server's no is shown as text and ends the login.
#[test]
fn a_no_of_the_server_is_shown_escaped_and_ends_the_login() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let callback = good(&world);
    let state = callback.parameters.iter().find(|(name, _)| name == "state").unwrap().1.clone();
    let script = "%3Cscript%3Ealert(1)%3C/script%3E";
    let denied = format!(
        "{}#error=access_denied{script}&error_description={script}%22%27%26&state={state}",
        callback.redirect_uri
    );

    let secret = page_secret(&world);
    let answer = post_from_page(&world, "/-/login/main", &[("page", &secret), ("callback", &denied)]);

    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(
        answer.text().contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"),
        "{}",
        answer.text()
    );
    assert!(
        answer.text().contains("access_denied") && !answer.text().contains("<script>"),
        "{}",
        answer.text()
    );
    let csp = answer.field("content-security-policy").unwrap_or_default();
    assert!(csp.starts_with("default-src 'none'; ") && !csp.contains("unsafe"), "{csp}");
    before.assert_refused(&world, &world.paste(&callback.address()), "`state`");
}

#[test]
fn a_no_for_a_login_that_nobody_began_ends_none() {
    let world = World::start();
    let callback = good(&world);

    let answer = world.paste(&format!("{}#error=access_denied&state=another", callback.redirect_uri));

    assert_eq!(answer.status, 400);
    assert_eq!(world.paste(&callback.address()).status, 200);
}

#[test]
fn a_person_who_says_no_at_the_server_is_told_so() {
    let world = World::logged_in();
    let before = Before::of(&world);

    let denied = world.standin.deny(&world.begin_login());

    before.assert_refused(&world, &world.paste(&denied), "access_denied");
}

/// oa-026: whatever is pasted is refused at once.
#[test]
fn a_paste_that_is_no_address_is_refused_quickly() {
    let world = World::logged_in();
    let before = Before::of(&world);
    let callback = good(&world).address();
    let encoded =
        |byte: &str| format!("callback={}%23code=a{byte}b%26state=c", callback.split('#').next().unwrap());
    let forms: [(&str, Vec<u8>); 8] = [
        ("1 MiB", [b"callback=".to_vec(), vec![b'a'; 1 << 20]].concat()),
        ("1 MiB without a name", vec![b'a'; 1 << 20]),
        ("10,000 parameters", format!("callback={callback}{}", "%26x=1".repeat(10_000)).into_bytes()),
        ("10,000 form fields", format!("{}callback=x", "x=1&".repeat(10_000)).into_bytes()),
        ("invalid UTF-8", [encoded("").as_bytes(), &[0xff, 0xfe, 0xc0, 0xaf]].concat()),
        ("encoded invalid UTF-8", encoded("%25ff").into_bytes()),
        ("NUL", encoded("%00").into_bytes()),
        ("twice encoded NUL", encoded("%2500").into_bytes()),
    ];

    for (what, form) in forms {
        let started = Instant::now();
        let fields = [("Content-Type", "application/x-www-form-urlencoded")];
        let answer = world.daemon.request("POST", "/-/login/main", &fields, &form);
        assert!([400, 413].contains(&answer.status), "{what}: {answer:?}");
        answer.problem();
        // The case says 100 ms; a shared machine with an unoptimised build gets more.
        assert!(started.elapsed() < Duration::from_secs(10), "{what} took {:?}", started.elapsed());
    }

    before.assert_unchanged(0, &world);
    assert!(!world.daemon.output().contains("panic"), "{}", world.daemon.output());
    assert_eq!(world.paste(&callback).status, 200);
}

#[test]
fn an_address_of_one_account_is_refused_by_another() {
    let home = crate::support::Home::new(Vec::new());
    let secret = home.secret("other_secret", "not-used");
    let tables =
        format!("[account.other]\nclient_id = \"x\"\nclient_secret_file = \"{}\"\n", secret.display());
    let world = Setup { route: "account = \"main\"".to_owned(), tables, ..Setup::default() }.start();
    let callback = good(&world).address();

    let answer = world.daemon.post_form("/-/login/other", &[("callback", &callback)]);

    assert_eq!((answer.status, world.standin.token_requests().len()), (400, 0), "{answer:?}");
    let fragment = callback.split_once('#').unwrap().1;
    let answer = world.daemon.post_form("/-/login/other", &[("callback", fragment)]);
    assert!(answer.text().contains("another account"), "{answer:?}");
    assert_eq!((world.paste(&callback).status, world.standin.token_requests().len()), (200, 1));
}
