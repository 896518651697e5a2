//! What the application is at the authorization server: its redirect address, its secret or none, its PKCE.

use url::Url;

use crate::standin::{Options, Person, Pkce};
use crate::support::{Setup, World};

use super::parameter;

/// Servers compare strings: what is written goes out, at both endpoints.
#[test]
fn a_redirect_address_goes_out_byte_for_byte_as_it_is_written() {
    for written in [
        "http://localhost:5000",
        "http://localhost:5000?x",
        "HTTP://LocalHost:5000/Callback",
        "http://127.0.0.1:80/callback",
        "https://app.example:443/callback",
        "https://app.example/a/../callback",
        "https://app.example/%7ea/%c3%9c",
        "https://app.example/博客?x=园",
        "https://BÜCHER.example/callback",
        "vscode://cnblogs.ext/callback",
    ] {
        let options = Options { redirect_uris: vec![written.to_owned()], ..Options::default() };
        let account = format!("redirect_uri = \"{written}\"");
        let world = Setup { options, account, ..Setup::default() }.start();
        let url = world.begin_login();
        assert_eq!(parameter(&url, "redirect_uri"), written);

        // As browsers copy it from their address bars.
        let callback = Url::parse(&world.standin.authorize(&url, Person::Alice)).unwrap();
        let answer = world.paste(callback.as_str());

        assert_eq!(answer.status, 200, "{written}: {answer:?}");
        assert_eq!(world.standin.token_requests()[0].form_field("redirect_uri"), Some(written));
    }
}

/// What came to the token and revocation endpoints in a login, a refresh and a logout.
#[track_caller]
fn forms_of_a_life(world: &World) -> Vec<Vec<(String, String)>> {
    world.log_in(Person::Alice);
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);
    assert_eq!(world.daemon.post_form("/-/logout/main", &[]).status, 200);
    let requests = world.standin.token_requests();
    let revocations = world.standin.revocations();
    assert_eq!((requests.len(), revocations.len()), (2, 1));
    assert!(requests.iter().all(|request| request.authorization.is_none()));
    assert!(revocations.iter().all(|revocation| revocation.authorization.is_none()));
    let requests = requests.into_iter().map(|request| request.form);
    requests.chain(revocations.into_iter().map(|revocation| revocation.form)).collect()
}

#[test]
fn a_client_without_a_secret_names_itself_and_proves_its_codes() {
    let options = Options { client_secret: String::new(), ..Options::default() };
    for account in ["", "client_auth = \"body\"\npkce = \"S256\"", "response_type = \"code\""] {
        let world =
            Setup { options: options.clone(), account: account.to_owned(), ..Setup::default() }.start();

        for form in forms_of_a_life(&world) {
            let count = |name: &str| form.iter().filter(|(key, _)| key == name).count();
            assert_eq!((count("client_id"), count("client_secret")), (1, 0), "{form:?}");
            let is_exchange = count("code") == 1;
            assert_eq!(count("code_verifier"), usize::from(is_exchange), "{form:?}");
        }
    }
}

#[test]
fn a_client_without_a_secret_logs_in_from_a_terminal_too() {
    let options = Options { client_secret: String::new(), ..Options::default() };
    let mut world = Setup { options, ..Setup::default() }.logged_in();
    world.daemon.stop();

    let token = world.home.run(&["token"], "");

    assert_eq!(token.status.code(), Some(0), "{token:?}");
    let said = String::from_utf8(world.home.run(&["check"], "").stdout).unwrap();
    assert!(said.contains(", no secret, "), "{said}");
}

#[test]
fn without_pkce_neither_challenge_nor_verifier_is_sent() {
    let options = Options { pkce: Pkce::Refused, ..Options::default() };
    for account in ["pkce = \"off\"", "pkce = \"off\"\nresponse_type = \"code\""] {
        let world =
            Setup { options: options.clone(), account: account.to_owned(), ..Setup::default() }.start();
        let url = world.begin_login();
        assert!(!url.contains("code_challenge"), "{url}");

        let forms = forms_of_a_life(&world);

        assert!(forms.iter().flatten().all(|(name, _)| name != "code_verifier"), "{forms:?}");
    }
}
