//! The authorization endpoint: what a browser sees, and the same without one.

use std::time::Instant;

use serde_json::{Value, json};
use url::form_urlencoded;

use super::id_token::{Signature, half_hash, unix_secs};
use super::reply::{Answer, Reply};
use super::request::{RecordedRequest, lock};
use super::state::{Pkce, Shared};

const ID_TOKEN_LIFE_SECS: u64 = 300;
/// The subject that stands for everybody.
pub(crate) const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// Who can log in; any password will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Person {
    Alice,
    Bob,
}

impl Person {
    /// As the API tells it.
    pub(crate) fn display_name(self) -> &'static str {
        match self {
            Self::Alice => "爱丽丝 Alice",
            Self::Bob => "Bob 鲍勃",
        }
    }

    /// As the API tells it.
    pub(crate) fn user_id(self) -> &'static str {
        match self {
            Self::Alice => "a11ce000-51c3-4a5b-9f0e-6d2b8f9a0001",
            Self::Bob => "b0b00000-77d2-4c1e-8a3c-1e5f4b7c0002",
        }
    }
}

/// What came to the authorization endpoint.
#[derive(Clone, Debug)]
pub(crate) struct AuthorizeRequest {
    pub(crate) at: Instant,
    pub(crate) parameters: Vec<(String, String)>,
    /// Why it was refused, when it was.
    pub(crate) refusal: Option<String>,
}

/// What makes an authorization answer wrong. The default makes none.
#[derive(Default)]
pub(crate) struct Spoil {
    /// Changes the header of the `id_token`.
    pub(crate) header: Option<Alter>,
    /// Changes the claims of the `id_token`.
    pub(crate) claims: Option<Alter>,
    /// How the result is signed.
    pub(crate) signature: Signature,
    pub(crate) without_id_token: bool,
    pub(crate) without_c_hash: bool,
    /// Sent instead of the code that the `c_hash` is of.
    pub(crate) code: Option<String>,
    /// Changes the parameters of the callback at the end.
    pub(crate) parameters: Option<AlterParameters>,
}

/// Changes a JSON value.
pub(crate) type Alter = Box<dyn FnOnce(&mut Value) + Send>;

/// Changes the parameters of a callback.
pub(crate) type AlterParameters = Box<dyn FnOnce(&mut Vec<(String, String)>) + Send>;

/// How an answer comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Fragment,
    Query,
    FormPost,
}

/// An authorization answer on its way to the client.
#[derive(Clone, Debug)]
pub(crate) struct Callback {
    pub(crate) redirect_uri: String,
    pub(crate) mode: Mode,
    pub(crate) parameters: Vec<(String, String)>,
}

impl Callback {
    /// The address at which a browser ends; with `form_post`, what it would be with a fragment.
    pub(crate) fn address(&self) -> String {
        let parameters = self.encoded();
        let mark = match self.mode {
            Mode::Query if self.redirect_uri.contains('?') => '&',
            Mode::Query => '?',
            Mode::Fragment | Mode::FormPost => '#',
        };
        format!("{}{mark}{parameters}", self.redirect_uri)
    }

    /// The parameters, form-urlencoded with `%20`.
    pub(crate) fn encoded(&self) -> String {
        let pairs = form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.parameters).finish();
        pairs.replace('+', "%20")
    }

    fn reply(&self) -> Reply {
        if self.mode != Mode::FormPost {
            return Reply::Answer(Answer::status(302).with("Location", &self.address()));
        }
        let input = |(name, value): &(String, String)| {
            format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">\n", escape(name), escape(value))
        };
        let inputs: String = self.parameters.iter().map(input).collect();
        let page = format!(
            "<!doctype html>\n<title>form_post</title>\n<form method=\"post\" action=\"{}\">\n{inputs}\
             <noscript><button>Continue</button></noscript>\n</form>\n<script>document.forms[0].submit()</script>\n",
            escape(&self.redirect_uri)
        );
        Reply::Answer(Answer::html(200, page))
    }
}

/// An authorization request that is in order.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) redirect_uri: String,
    pub(crate) hybrid: bool,
    pub(crate) mode: Mode,
    pub(crate) scope: String,
    pub(crate) state: String,
    pub(crate) nonce: Option<String>,
    pub(crate) challenge: Option<String>,
}

/// `GET` shows the login page, `POST` of its form goes back to the client.
pub(crate) fn reply(shared: &Shared, head: &RecordedRequest, content: &[u8]) -> Reply {
    let form: Vec<(String, String)> = form_urlencoded::parse(content).into_owned().collect();
    let value = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
    let query = match head.method.as_str() {
        "GET" => head.query(),
        "POST" => value("request"),
        _ => return Reply::Answer(Answer::status(405).with("Allow", "GET, POST")),
    };
    let asked = match check(shared, query) {
        Ok(asked) => asked,
        Err(refusal) => return Reply::Answer(Answer::html(400, error_page(&refusal))),
    };
    if head.method == "GET" {
        return Reply::Answer(Answer::html(200, login_page(&asked, query)).with("Cache-Control", "no-store"));
    }
    match (value("decision"), value("person")) {
        ("allow", "alice") => allow(shared, asked, Person::Alice, Spoil::default()).reply(),
        ("allow", "bob") => allow(shared, asked, Person::Bob, Spoil::default()).reply(),
        ("deny", _) => deny(shared, asked).reply(),
        _ => Reply::Answer(Answer::html(400, error_page("choose alice or bob, and allow or deny"))),
    }
}

/// The page of Cnblogs at which the browser ends, as empty as that one: only its address matters.
pub(crate) fn callback_page() -> Reply {
    Reply::Answer(Answer::html(200, include_str!("callback.html")))
}

/// Checks the query of an authorization request, and records it.
pub(crate) fn check(shared: &Shared, query: &str) -> Result<Asked, String> {
    let parameters: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let asked = check_parameters(shared, &parameters);
    let request = AuthorizeRequest { at: Instant::now(), parameters, refusal: asked.as_ref().err().cloned() };
    lock(&shared.authorization).authorize_requests.push(request);
    asked
}

/// The person says yes.
pub(crate) fn allow(shared: &Shared, asked: Asked, person: Person, spoil: Spoil) -> Callback {
    let mut authorization = lock(&shared.authorization);
    let terms = authorization.terms;
    let code = authorization.grants.issue_code(person, asked.clone(), &terms, Instant::now());
    let key = authorization.signing_key;
    drop(authorization);

    let mut claims = claims(shared, person, asked.nonce.as_deref());
    if !spoil.without_c_hash {
        claims["c_hash"] = json!(half_hash(&code));
    }
    let mut header = shared.keys.header(key);
    for (alter, value) in [(spoil.header, &mut header), (spoil.claims, &mut claims)] {
        alter.into_iter().for_each(|alter| alter(value));
    }
    let id_token = shared.keys.sign(key, header, &claims, spoil.signature);
    lock(&shared.authorization).grants.keep(id_token.clone());

    let mut parameters = vec![("code".to_owned(), spoil.code.unwrap_or(code))];
    if asked.hybrid && !spoil.without_id_token {
        parameters.push(("id_token".to_owned(), id_token));
    }
    parameters.push(("scope".to_owned(), asked.scope));
    parameters.push(("state".to_owned(), asked.state));
    parameters.push(("session_state".to_owned(), half_hash("session")));
    parameters.extend(shared.options.sends_iss.then(|| ("iss".to_owned(), shared.issuer().to_owned())));
    if let Some(alter) = spoil.parameters {
        alter(&mut parameters);
    }
    Callback { redirect_uri: asked.redirect_uri, mode: asked.mode, parameters }
}

/// The person says no.
pub(crate) fn deny(shared: &Shared, asked: Asked) -> Callback {
    let mut parameters =
        vec![("error".to_owned(), "access_denied".to_owned()), ("state".to_owned(), asked.state)];
    parameters.extend(shared.options.sends_iss.then(|| ("iss".to_owned(), shared.issuer().to_owned())));
    Callback { redirect_uri: asked.redirect_uri, mode: asked.mode, parameters }
}

/// The claims that every `id_token` has.
pub(crate) fn claims(shared: &Shared, person: Person, nonce: Option<&str>) -> Value {
    let now = unix_secs();
    let mut claims = json!({
        "nbf": now, "exp": now + ID_TOKEN_LIFE_SECS, "iss": shared.issuer(), "aud": shared.options.client_id,
        "iat": now, "sub": shared.subject(person), "auth_time": now, "idp": "cnblogs_oauth", "amr": ["authorization_code"],
    });
    if let Some(nonce) = nonce {
        claims["nonce"] = json!(nonce);
    }
    claims
}

fn check_parameters(shared: &Shared, parameters: &[(String, String)]) -> Result<Asked, String> {
    let one = |name: &str| {
        let mut values = parameters.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone());
        match (values.next(), values.next()) {
            (value, None) => Ok(value.filter(|value| !value.is_empty())),
            (_, Some(_)) => Err(format!("{name} came twice")),
        }
    };
    if one("client_id")?.as_deref() != Some(&shared.options.client_id) {
        return Err("unauthorized_client: unknown client_id".to_owned());
    }
    let redirect_uri = one("redirect_uri")?.ok_or("redirect_uri is missing")?;
    if !lock(&shared.authorization).redirect_uris.contains(&redirect_uri) {
        return Err(format!("redirect_uri is not registered: {redirect_uri}"));
    }
    let hybrid = match one("response_type")?.as_deref() {
        Some("code id_token") => true,
        Some("code") => false,
        other => return Err(format!("unsupported response_type {other:?}")),
    };
    let mode = match (one("response_mode")?.as_deref(), hybrid) {
        (None | Some("fragment"), true) | (Some("fragment"), false) => Mode::Fragment,
        (None | Some("query"), false) => Mode::Query,
        (Some("form_post"), _) => Mode::FormPost,
        (other, _) => return Err(format!("response_mode {other:?} does not go with this response_type")),
    };
    let scope = one("scope")?.ok_or("scope is missing")?;
    let known = shared.options.scopes.split(' ').collect::<Vec<_>>();
    if let Some(unknown) = scope.split(' ').find(|scope| !known.contains(scope)) {
        return Err(format!("invalid_scope: {unknown:?}"));
    }
    let nonce = one("nonce")?;
    if hybrid && (nonce.is_none() || !scope.split(' ').any(|scope| scope == "openid")) {
        return Err("hybrid needs a nonce and the scope openid".to_owned());
    }
    if nonce.as_ref().is_some_and(|nonce| nonce.len() > 300) {
        return Err("nonce is longer than 300 characters".to_owned());
    }
    let challenge = one("code_challenge")?;
    check_challenge(challenge.as_deref(), one("code_challenge_method")?.as_deref())?;
    let is_public = shared.options.client_secret.is_empty();
    match (challenge.is_some(), shared.options.pkce) {
        (true, Pkce::Refused) => return Err("code_challenge is not taken".to_owned()),
        (false, _) if is_public => return Err("a public client needs a code_challenge".to_owned()),
        _ => {}
    }
    let state = one("state")?.ok_or("state is missing")?;
    Ok(Asked { redirect_uri, hybrid, mode, scope, state, nonce, challenge })
}

fn check_challenge(challenge: Option<&str>, method: Option<&str>) -> Result<(), String> {
    let base64url =
        |text: &str| text.chars().all(|char| char.is_ascii_alphanumeric() || char == '-' || char == '_');
    match (challenge, method) {
        (None, None) => Ok(()),
        (Some(challenge), Some("S256")) if challenge.len() == 43 && base64url(challenge) => Ok(()),
        (challenge, method) => Err(format!("code_challenge {challenge:?} with method {method:?}")),
    }
}

fn login_page(asked: &Asked, query: &str) -> String {
    include_str!("login.html")
        .replace("{scope}", &escape(&asked.scope))
        .replace("{redirect_uri}", &escape(&asked.redirect_uri))
        .replace("{request}", &escape(query))
}

fn error_page(what: &str) -> String {
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Error</title>\n<h1>Error</h1>\n<p>{}</p>\n",
        escape(what)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
