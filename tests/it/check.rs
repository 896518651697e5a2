//! `check`: what it says the daemon would do, what it warns of, and what it finds on the network.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use crate::standin::{Options, Standin};
use crate::support::{Home, config, with_descriptors};

/// How a `check` ended and what it said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

#[test]
fn what_looks_wrong_is_named() {
    for (top, account, tables, says) in [
        ("", "scope = \"openid\"", "", "account main: without offline_access in its scope"),
        ("", "jwks_url = \"\"", "", "account main: without a jwks_url"),
        ("", "redirect_uri = \"http://127.0.0.1:9/-/callback\"", "", "nothing of this listens on that port"),
        (
            "",
            "",
            "[[route]]\nprefix = \"/a/../b\"\nupstream = \"https://h\"",
            "route /a/../b is hardly ever reached",
        ),
        ("", "", "[callers]\nusers = [\"*\"]", "every user of this machine acts in your name"),
        ("", "", "[callers]\nallow_remote = true", "callers.allow_remote has no effect"),
        (
            "",
            "",
            "[callers]\nhosts = [\"localhost\"]",
            "callers.hosts: localhost is accepted without being named",
        ),
        (
            "listen = [\"unix:<home>/s\"]",
            "",
            "[callers]\nhosts = [\"name\"]",
            "over a unix socket any Host will do",
        ),
        ("", "", "[callers]\nallowed_origins = [\"http://page.example\"]", "can pose as http://page.example"),
        ("", "", "[limits]\nconnections = 501", "may have 1000 open files"),
        ("", "", "[notify]\ncommand = [\"no-such-program\"]", "no-such-program is no program"),
        ("listen = [\"203.0.113.1:0\"]", "", "<remote>", "203.0.113.1:0 can't be listened on now"),
        ("listen = [\"unix:/nonexistent/s\"]", "", "", "/nonexistent is not a directory"),
        ("", "", "<key>methods = [\"get\"]", "key k: methods are told apart by case: get is not GET"),
        ("", "", "<key>methods = [\"TRACE\"]", "key k: TRACE is never forwarded"),
        ("", "", "<key>paths = [\"/a//b\"]", "key k: no request comes through /a//b"),
        ("", "", "<key>paths = [\"/x/y\"]\nroutes = [\"/\"]\n<x>", "through /x/y: route /x takes it"),
        ("", "", "<key>paths = [\"/a/b\", \"/a\"]", "key k: /a/b is below /a"),
        (
            "",
            "",
            "<key>paths = [\"/a\"]\nroutes = [\"/\", \"/x\"]\n<x>",
            "none of its paths leads to route /x",
        ),
    ] {
        let warnings = warnings(&furnished(top, account, tables));
        assert_eq!(warnings.len(), 1, "{top} {account} {tables}: {warnings:?}");
        assert!(warnings[0].contains(says), "{says}: {warnings:?}");
    }
}

#[test]
fn a_form_post_to_anywhere_but_the_daemon_is_named() {
    for (redirect_uri, count) in [
        ("https://oauth.cnblogs.com/auth/callback", 1),
        ("http://127.0.0.1:<port>/callback", 1),
        ("http://127.0.0.1:<port>/-/callback", 0),
    ] {
        let account = format!("response_mode = \"form_post\"\nredirect_uri = \"{redirect_uri}\"");

        let warnings = warnings(&furnished("", &account, "<at port>"));

        assert_eq!(warnings.len(), count, "{redirect_uri}: {warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|warning| warning.contains("main: a login can never finish: with response_mode"))
        );
    }
}

#[test]
fn what_is_right_is_not_warned_of() {
    for (top, account, tables) in [
        ("", "", ""),
        ("", "scope = \"openid offline_access\"", ""),
        ("", "redirect_uri = \"http://127.0.0.1:<port>/-/callback\"", "<at port>"),
        ("", "issuer = \"https://h\"", ""),
        (
            "",
            "",
            "[callers]\nusers = [\"self\", 1234]\nallowed_origins = [\"https://a.example\", \"http://localhost:3000\"]",
        ),
        ("", "", "[callers]\nhosts = [\"name\", \"localhost:9000\"]"),
        ("", "", "[notify]\ncommand = [\"sh\"]"),
        ("", "", "[notify]\ncommand = [\"/bin/sh\"]"),
        (
            "",
            "",
            "<key>methods = [\"GET\"]\npaths = [\"/a\", \"/ab\", \"/x/y\"]\nroutes = [\"/\", \"/x\"]\n<x>",
        ),
        ("", "", "<key>paths = [\"/\"]\nroutes = [\"/x\"]\n<x>"),
    ] {
        let home = furnished(top, account, tables);
        assert_eq!(warnings(&home), Vec::<String>::new(), "{top} {account} {tables}");
    }
}

#[test]
fn files_that_others_can_read_or_change_are_named() {
    let home = furnished("", "", "<key>");
    for (file, mode, says) in [
        ("client_secret", 0o640, "client_secret can be read by others (mode 0640): chmod 600 it"),
        ("k.key", 0o604, "k.key can be read by others (mode 0604): chmod 600 it"),
        ("config.toml", 0o664, "config.toml can be changed by others (mode 0664): chmod go-w it"),
    ] {
        let path = home.path().join(file);
        let before = fs::metadata(&path).unwrap().permissions();

        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = warnings(&home);
        fs::set_permissions(&path, before).unwrap();

        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].ends_with(says), "{warnings:?}");
    }
    assert_eq!(warnings(&home), Vec::<String>::new());
}

#[test]
fn an_address_that_is_taken_is_warned_of_unless_our_own_daemon_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = furnished(&format!("listen = [\"{taken}\", \"unix:<home>/s\"]"), "", "");
    assert_eq!(warnings(&home), Vec::<String>::new());

    let daemon = home.serve();
    let said = check(&home, &[]);
    assert!(said.out.contains(&format!("is running, on http://{}, unix:", daemon.authority)), "{}", said.out);
    assert!(!said.out.contains("warning: "), "{}", said.out);

    let state = home.state().display().to_string();
    let text = fs::read_to_string(home.config()).unwrap().replace(&state, &format!("{state}-2"));
    fs::write(home.config(), text).unwrap();
    let warnings = warnings(&home);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains(&format!("{taken} can't be listened on now: ")), "{warnings:?}");
    assert!(warnings[1].contains("another program listens there"), "{warnings:?}");
}

#[test]
fn what_would_be_done_is_said_in_words() {
    let home = furnished(
        "",
        "",
        "<key>paths = [\"/a\"]\n[[route]]\nprefix = \"/x\"\nname = \"ex\"\nupstream = \"https://h/y\"\n",
    );

    let said = check(&home, &[]).out;

    for line in [
        "main: authorization_code, client id, secret from file ",
        "main: tokens are refreshed after 50 % of their lifetime; a login lasts 30 days\n",
        "/x -> https://h/y with account main, called ex",
        ", paths /a\n",
        "users self, with a key\n",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
}

#[test]
fn where_endpoints_come_from_is_said() {
    let own = "authorization_url = \"https://h/a\"\ntoken_url = \"https://h/t\"\nrevocation_url = \"\"\n\
               jwks_url = \"https://h/k\"\nissuer = \"https://i\"";
    let cnblogs = "token endpoint https://oauth.cnblogs.com/connect/token";
    for (account, words) in [
        ("", format!("endpoints from defaults, {cnblogs}")),
        ("grant = \"client_credentials\"", format!("endpoints from defaults, {cnblogs}")),
        ("jwks_url = \"https://oauth.cnblogs.com/k\"", format!("endpoints from configuration, {cnblogs}")),
        (own, "endpoints from configuration, token endpoint https://h/t".to_owned()),
        ("issuer = \"https://i/x\"", "endpoints from discovery at https://i/x".to_owned()),
        (
            "issuer = \"https://i\"\ntoken_url = \"https://h/t\"",
            "endpoints from discovery at https://i, token endpoint https://h/t".to_owned(),
        ),
    ] {
        let said = check(&furnished("", account, ""), &[]);
        assert!(said.out.contains(&format!(", {words}\n")), "{words}: {}{}", said.out, said.err);
    }
}

#[test]
fn an_issuer_is_asked_for_its_endpoints_with_connect_only() {
    let standin = Standin::start(Options { tls: true, ..Options::default() });
    let home = Home::new(Vec::new());
    let good = config(&standin, &home, "", "<discovered>", "", "[limits]\nconnections = 500");
    let issuer = standin.auth_url();
    let rows = [
        (
            good.clone(),
            Some(0),
            format!("token endpoint {issuer}/connect/token\nkeys           (account main)\n"),
        ),
        (good.replace("<discovered>", ""), Some(0), format!("discovery      {issuer} (account main)\n")),
        (
            good.replace(&format!("\"{issuer}\""), &format!("\"{issuer}/x\"")),
            Some(1),
            "answered 404".to_owned(),
        ),
    ];
    for (text, code, says) in rows {
        fs::write(home.config(), text).unwrap();
        let asked = standin.auth_requests().len();
        assert_eq!(check(&home, &[]).code, Some(0));
        assert_eq!(standin.auth_requests().len(), asked, "without --connect");

        let said = check(&home, &["--connect"]);

        assert_eq!(said.code, code, "{}{}", said.out, said.err);
        assert!(said.out.contains(&says), "{says}: {}", said.out);
    }
    assert!(standin.token_requests().is_empty() && !home.state().exists());
}

#[test]
fn servers_that_answer_and_are_trusted_are_found_without_a_secret() {
    let standin = Standin::start(Options { tls: true, ..Options::default() });
    let home = Home::new(Vec::new());
    fs::write(home.config(), config(&standin, &home, "", "", "", "[limits]\nconnections = 500")).unwrap();

    let said = check(&home, &["--connect"]);

    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{}", said.out);
    assert_eq!(said.out.matches("ms, trusted in ").count(), 2, "{}", said.out);
    assert!(said.out.contains(&format!("{} (route /)\n", standin.api_url())), "{}", said.out);
    assert!(said.out.contains("(token endpoint of account main, revocation endpoint of"), "{}", said.out);
    assert!(said.out.contains(" found in ") && said.out.ends_with("\nok\n"), "{}", said.out);
    assert!(standin.token_requests().is_empty() && standin.api_requests().is_empty());
    assert!(!home.state().exists());
}

#[test]
fn a_server_that_can_not_be_used_is_named_with_the_reason() {
    let standin = Standin::start(Options { tls: true, ..Options::default() });
    let home = Home::new(Vec::new());
    let good = config(&standin, &home, "", "", "", "[limits]\nconnections = 500");
    let ca = format!("ca_file = \"{}\"\n", standin.ca_pem_path().display());
    // Bound, so that nobody else gets it, and never listened on.
    let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    closed.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let closed = closed.local_addr().unwrap().as_socket().unwrap();
    let plain = speaks_no_tls();
    for (text, says, count) in [
        (
            good.replace(&ca, ""),
            "comes from an authority that is not trusted here (see ca_file): a ca_file has to hold",
            3,
        ),
        (good.replace(&standin.api_url(), &format!("https://{closed}")), "refused", 1),
        (good.replace(&standin.api_url(), &format!("https://{plain}")), "does not speak TLS", 1),
        (good.replace(&standin.api_url(), "https://nobody.invalid"), "nobody.invalid has no address", 1),
        (good.replace("/jwks\"", "/nothing\""), "the server publishes none", 1),
    ] {
        fs::write(home.config(), text).unwrap();

        let said = check(&home, &["--connect"]);

        assert_eq!(said.code, Some(1), "{says}: {}", said.out);
        assert!(said.out.contains(says) && !said.out.contains("\nok\n"), "{says}: {}", said.out);
        assert!(
            said.err.starts_with(&format!("error: {count} of the servers")),
            "{says}: {}{}",
            said.out,
            said.err
        );
        assert!(said.err.contains("\nhint: "), "{}", said.err);
    }
    assert!(standin.token_requests().is_empty() && standin.api_requests().is_empty());
}

/// A home whose configuration has these lines; nothing is contacted that it names.
fn furnished(top: &str, account: &str, tables: &str) -> Home {
    let home = Home::new(Vec::new());
    let secret = home.secret("client_secret", "s3cret\n");
    let key = home.secret("k.key", "a-key-of-a-caller\n");
    let key = format!("[[callers.key]]\nname = \"k\"\nfile = \"{}\"\n", key.display());
    let listen = match (top.contains("listen"), tables) {
        (true, _) => "",
        (false, "<at port>") => "listen = [\"127.0.0.1:<port>\"]",
        (false, _) => "listen = [\"127.0.0.1:0\"]",
    };
    let tables = tables
        .replace("<at port>", "")
        .replace("<remote>", &format!("[callers]\nallow_remote = true\n{key}"))
        .replace("<key>", &key)
        .replace("<x>", "[[route]]\nprefix = \"/x\"\nupstream = \"https://x.example\"\n");
    let limits = if tables.contains("[limits]") { "" } else { "[limits]\nconnections = 500" };
    let text = format!(
        "{top}\n{listen}\nstate_dir = \"<home>/state\"\n[account.main]\nclient_id = \"id\"\n\
         client_secret_file = \"{}\"\n{account}\n[[route]]\n{tables}\n{limits}\n",
        secret.display()
    );
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = text.replace("<port>", &free.to_string());
    fs::write(home.config(), text.replace("<home>", &home.path().display().to_string())).unwrap();
    fs::set_permissions(home.config(), fs::Permissions::from_mode(0o644)).unwrap();
    home
}

/// The address of a server that has its say before it is asked.
fn speaks_no_tls() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        listener
            .incoming()
            .map_while(Result::ok)
            .try_for_each(|mut stream| stream.write_all(b"220 ready\r\n"))
            .ok();
    });
    address
}

#[track_caller]
fn warnings(home: &Home) -> Vec<String> {
    let said = check(home, &[]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{}", said.out);
    said.out.lines().filter_map(|line| line.strip_prefix("warning: ")).map(str::to_owned).collect()
}

/// Where a process may have 1000 open files.
fn check(home: &Home, arguments: &[&str]) -> Said {
    let ours = home.command(&[&["check"], arguments].concat());
    let output = with_descriptors(1000, 1000, &ours).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}
