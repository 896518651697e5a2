//! The authorization server's endpoints beside the authorization endpoint.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::authorize;
use super::fault::{Endpoint, Fault, change_json};
use super::grants::{Bearer, Granted, Presented, Refusal};
use super::id_token::{KeyName, Signature, claims_of, half_hash};
use super::reply::{Answer, Body, Reply, Sent, Then};
use super::request::{RecordedRequest, Request, lock};
use super::state::{Authorization, ExpiresIn, KeySet, Revocation, Shared, TokenRequest};

type Form = Vec<(String, String)>;

/// Answers one request.
pub(crate) async fn reply(shared: Arc<Shared>, mut request: Request) -> Reply {
    let Some(content) = request.body.whole().await else { return Reply::End(Then::Close) };
    let head = request.head;
    let endpoint = match head.path() {
        "/connect/authorize" => return authorize::reply(&shared, &head, &content),
        "/auth/callback" => return authorize::callback_page(),
        "/.well-known/openid-configuration" => Endpoint::Discovery,
        "/connect/token" => Endpoint::Token,
        "/connect/revocation" => Endpoint::Revocation,
        "/.well-known/openid-configuration/jwks" => Endpoint::KeySet,
        "/connect/userinfo" => Endpoint::UserInfo,
        _ => return Reply::Answer(Answer::html(404, "<h1>Not Found</h1>")),
    };
    if endpoint == Endpoint::Token {
        return token(&shared, &head, &content).await;
    }
    let rest = match before(&shared, endpoint).await {
        Ok(rest) => rest,
        Err(reply) => return reply,
    };
    let answer = match endpoint {
        Endpoint::Revocation => revoke(&shared, &head, &content),
        Endpoint::KeySet => Answer::json(200, &key_set(&shared)),
        Endpoint::Discovery => Answer::json(200, &discovery(&shared)),
        Endpoint::UserInfo | Endpoint::Token => user_info(&shared, &head),
    };
    match rest {
        Some(fault) => fault.after(answer).await,
        None => Reply::Answer(answer),
    }
}

async fn token(shared: &Arc<Shared>, head: &RecordedRequest, content: &[u8]) -> Reply {
    let index = record(shared, head, content);
    let rest = match before(shared, Endpoint::Token).await {
        Ok(rest) => rest,
        Err(reply) => {
            note(shared, index, status_of(&reply), None);
            return reply;
        }
    };

    let granted = if lock(&shared.authorization).unavailable {
        None
    } else {
        Some(grant(shared, index, head, content))
    };
    let mut answer = match &granted {
        None => Answer::status(503),
        Some(Ok(granted)) => Answer::json(200, &token_answer(shared, granted)),
        Some(Err(refusal)) => Answer::json(400, &error_of(refusal)),
    };
    let error = granted.as_ref().and_then(|granted| granted.as_ref().err()).map(|refusal| refusal.error);
    note(shared, index, Some(answer.status), error);

    answer = answer.with("Cache-Control", "no-store").with("Pragma", "no-cache");
    let (told, granted) = (Arc::clone(shared), granted.and_then(Result::ok));
    answer.sent = Sent(Some(Box::new(move || told.delivered(index, granted.as_ref()))));
    let Some(fault) = rest else { return Reply::Answer(answer) };
    let reply = match fault {
        Fault::AlterIdToken(change) => {
            let told = Arc::clone(shared);
            change_json(&mut answer, Box::new(move |value| resign(&told, value, change)));
            Reply::Answer(answer)
        }
        fault => fault.after(answer).await,
    };
    keep_altered(shared, &reply);
    reply
}

async fn before(shared: &Shared, endpoint: Endpoint) -> Result<Option<Fault>, Reply> {
    match shared.next_fault(endpoint) {
        Some(fault) => fault.before().await,
        None => Ok(None),
    }
}

fn record(shared: &Shared, head: &RecordedRequest, content: &[u8]) -> usize {
    let form: Form = form_urlencoded::parse(content).into_owned().collect();
    let grant_type = value(&form, "grant_type").unwrap_or_default().to_owned();
    let request = TokenRequest {
        at: head.at,
        grant_type,
        form,
        authorization: head.fields_named("authorization").pop(),
        presented: Presented::None,
        status: None,
        error: None,
        delivered: false,
    };
    let mut authorization = lock(&shared.authorization);
    authorization.token_requests.push(request);
    authorization.token_requests.len() - 1
}

fn note(shared: &Shared, index: usize, status: Option<u16>, error: Option<&str>) {
    if let Some(request) = lock(&shared.authorization).token_requests.get_mut(index) {
        request.status = status;
        request.error = error.map(str::to_owned);
    }
}

fn status_of(reply: &Reply) -> Option<u16> {
    match reply {
        Reply::Answer(answer) => Some(answer.status),
        Reply::Raw { .. } | Reply::Hang | Reply::End(_) => None,
    }
}

fn grant(shared: &Shared, index: usize, head: &RecordedRequest, content: &[u8]) -> Result<Granted, Refusal> {
    let form = read_form(head, content)?;
    check_client(shared, head, &form)?;
    let needed =
        |name: &'static str| value(&form, name).ok_or_else(|| invalid_request("a parameter is missing"));

    let mut authorization = lock(&shared.authorization);
    let Authorization { grants, terms, token_requests, .. } = &mut *authorization;
    let now = Instant::now();
    match needed("grant_type")? {
        "authorization_code" => {
            let verifier = value(&form, "code_verifier");
            grants.exchange(needed("code")?, needed("redirect_uri")?, verifier, terms, now)
        }
        "refresh_token" => {
            let refresh_token = needed("refresh_token")?;
            let presented = grants.present(refresh_token);
            if let Some(request) = token_requests.get_mut(index) {
                request.presented = presented;
            }
            grants.refresh(refresh_token, terms, now)
        }
        "client_credentials" => {
            let scope = value(&form, "scope").unwrap_or("CnBlogsApi");
            let fits = scope.split(' ').all(|scope| scope == "CnBlogsApi");
            if !fits {
                return Err(Refusal {
                    error: "invalid_scope",
                    description: "an application gets CnBlogsApi only",
                });
            }
            Ok(grants.issue_application_token(scope.to_owned(), terms, now))
        }
        _ => Err(Refusal { error: "unsupported_grant_type", description: "not here" }),
    }
}

fn read_form(head: &RecordedRequest, content: &[u8]) -> Result<Form, Refusal> {
    if head.method != "POST" || head.target.contains('?') {
        return Err(invalid_request("POST without a query"));
    }
    let media_type = head.fields_named("content-type").join(", ").to_ascii_lowercase();
    if media_type.split(';').next().map(str::trim) != Some("application/x-www-form-urlencoded") {
        return Err(invalid_request("the content is no form"));
    }
    if !content.iter().all(u8::is_ascii_graphic) {
        return Err(invalid_request("the form is not encoded"));
    }
    let form: Form = form_urlencoded::parse(content).into_owned().collect();
    let twice = |name: &str| form.iter().filter(|(key, _)| key == name).count() > 1;
    if form.iter().any(|(name, _)| twice(name)) {
        return Err(invalid_request("a parameter came twice"));
    }
    Ok(form)
}

/// Client authentication by the body or by Basic (RFC 6749, section 2.3.1), never both.
fn check_client(shared: &Shared, head: &RecordedRequest, form: &Form) -> Result<(), Refusal> {
    let refused = Refusal { error: "invalid_client", description: "wrong client_id or client_secret" };
    let in_body = (value(form, "client_id"), value(form, "client_secret"));
    let fields = head.fields_named("authorization");
    let (client_id, client_secret) = match (fields.as_slice(), in_body) {
        ([], (Some(id), Some(secret))) => (id.to_owned(), secret.to_owned()),
        ([], (Some(id), None)) if shared.options.client_secret.is_empty() => (id.to_owned(), String::new()),
        ([basic], (None, None)) => basic_credentials(basic).ok_or_else(|| refused.clone())?,
        (_, (None, None)) => return Err(refused),
        _ => return Err(invalid_request("client authentication in part, or twice")),
    };
    let right = client_id == shared.options.client_id && client_secret == shared.options.client_secret;
    if right { Ok(()) } else { Err(refused) }
}

fn basic_credentials(field: &str) -> Option<(String, String)> {
    let (scheme, encoded) = field.split_once(' ')?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':').filter(|_| scheme.eq_ignore_ascii_case("Basic"))?;
    let plain = |text: &str| {
        let pair = format!("x={text}");
        form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned())
    };
    // A secret with `&` in it would be two pairs: such a one was not encoded.
    Some((plain(id)?, plain(secret).filter(|_| !secret.contains('&'))?))
}

fn token_answer(shared: &Shared, granted: &Granted) -> Value {
    let mut answer = json!({ "access_token": granted.access_token, "token_type": "Bearer" });
    if let Some(person) = granted.person {
        let mut claims = authorize::claims(shared, person, granted.nonce.as_deref());
        claims["at_hash"] = json!(half_hash(&granted.access_token));
        let key = lock(&shared.authorization).signing_key;
        let id_token = shared.keys.sign(key, shared.keys.header(key), &claims, Signature::Right);
        answer["id_token"] = json!(lock(&shared.authorization).grants.keep(id_token));
    }
    let authorization = lock(&shared.authorization);
    let secs = authorization.terms.access_life.as_secs();
    match authorization.expires_in {
        ExpiresIn::Number => answer["expires_in"] = json!(secs),
        ExpiresIn::Text => answer["expires_in"] = json!(secs.to_string()),
        ExpiresIn::Absent => {}
    }
    if let Some(refresh_token) = &granted.refresh_token {
        answer["refresh_token"] = json!(refresh_token);
    }
    if !authorization.leave_out_scope {
        answer["scope"] = json!(granted.scope);
    }
    answer
}

fn resign(shared: &Shared, answer: &mut Value, change: authorize::Alter) {
    let Some(mut claims) = answer["id_token"].as_str().and_then(claims_of) else { return };
    change(&mut claims);
    let key = lock(&shared.authorization).signing_key;
    answer["id_token"] = json!(shared.keys.sign(key, shared.keys.header(key), &claims, Signature::Right));
}

/// Tokens that a fault put into an answer are secrets, too.
fn keep_altered(shared: &Shared, reply: &Reply) {
    let Reply::Answer(Answer { body: Body::Full(body), .. }) = reply else { return };
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut authorization = lock(&shared.authorization);
    for token in ["access_token", "refresh_token", "id_token"].iter().filter_map(|name| value[*name].as_str())
    {
        if token.len() >= 16 && !authorization.grants.secrets().iter().any(|known| known == token) {
            authorization.grants.keep(token.to_owned());
        }
    }
}

/// RFC 7009; an unknown token is no error.
fn revoke(shared: &Shared, head: &RecordedRequest, content: &[u8]) -> Answer {
    let read = read_form(head, content).and_then(|form| check_client(shared, head, &form).map(|()| form));
    let outcome = read.and_then(|form| {
        value(&form, "token").map(str::to_owned).ok_or_else(|| invalid_request("a parameter is missing"))
    });
    let answer = match &outcome {
        Ok(_) => Answer::status(200),
        Err(refusal) => Answer::json(400, &error_of(refusal)),
    };
    let mut authorization = lock(&shared.authorization);
    if let Ok(token) = &outcome {
        authorization.grants.revoke(token);
    }
    authorization.revocations.push(Revocation {
        at: head.at,
        form: form_urlencoded::parse(content).into_owned().collect(),
        authorization: head.fields_named("authorization").pop(),
        status: answer.status,
    });
    answer
}

fn key_set(shared: &Shared) -> Value {
    let (key, set) = {
        let authorization = lock(&shared.authorization);
        (authorization.signing_key, authorization.key_set)
    };
    let keys = match set {
        KeySet::Empty => Vec::new(),
        KeySet::OtherKey => vec![shared.keys.jwk(KeyName::Stranger, key)],
        KeySet::Right if key == KeyName::First => vec![shared.keys.jwk(key, key)],
        KeySet::Right => vec![shared.keys.jwk(key, key), shared.keys.jwk(KeyName::First, KeyName::First)],
    };
    json!({ "keys": keys })
}

fn user_info(shared: &Shared, head: &RecordedRequest) -> Answer {
    let token = head.fields_named("authorization").pop().unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or_default();
    match lock(&shared.authorization).grants.bearer(token, Instant::now()) {
        Some(Bearer::User(person)) if shared.options.own_subjects => {
            Answer::json(200, &json!({ "sub": shared.subject(person), "name": person.display_name() }))
        }
        Some(Bearer::User(person)) => Answer::json(200, &json!({ "sub": shared.subject(person) })),
        _ => Answer::status(401).with("WWW-Authenticate", "Bearer error=\"invalid_token\""),
    }
}

fn discovery(shared: &Shared) -> Value {
    let at = |path: &str| format!("{}{path}", shared.auth_url);
    json!({
        "issuer": shared.issuer(),
        "jwks_uri": at("/.well-known/openid-configuration/jwks"),
        "authorization_endpoint": at("/connect/authorize"),
        "token_endpoint": at("/connect/token"),
        "userinfo_endpoint": at("/connect/userinfo"),
        "revocation_endpoint": at("/connect/revocation"),
        "scopes_supported": shared.options.scopes.split(' ').collect::<Vec<_>>(),
        "grant_types_supported": ["authorization_code", "client_credentials", "refresh_token"],
        "response_types_supported": ["code", "code id_token"],
        "response_modes_supported": ["form_post", "query", "fragment"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["public"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": shared.options.sends_iss,
    })
}

fn value<'a>(form: &'a Form, name: &str) -> Option<&'a str> {
    form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn error_of(refusal: &Refusal) -> Value {
    json!({ "error": refusal.error, "error_description": refusal.description })
}

fn invalid_request(description: &'static str) -> Refusal {
    Refusal { error: "invalid_request", description }
}
