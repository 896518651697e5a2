//! Our own routes, under `/-/`: for people the status and login pages, for scripts the status in JSON, for
//! supervisors liveness, readiness and metrics.
//!
//! Who may come here is decided before (`proxy::guard`, called by `server`). What changes something is a POST
//! and, from a browser, carries the secret of the page it came from.

pub mod login;
mod metrics;
mod pages;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, Path, RawQuery, Request, State};
use axum::http::header::{
    ACCEPT, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST,
    LOCATION, ORIGIN, REFERER, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, Limited};
use ring::hmac;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use url::form_urlencoded;

use crate::config::{Listen, ResponseType, Route};
use crate::heartbeat::Heartbeat;
use crate::metrics::{Metrics, Minute};
use crate::oauth::callback;
use crate::problem::{Code, Problem};
use crate::session::{AskError, LoginOutcome, NoToken, Session, State as AccountState};
use crate::token::{At, Moment, now};
use login::{Logins, Reason, Rejected};
use pages::{Language, LoginPage, Overview, Viewer};

/// A pasted address has some 1,500 bytes.
const LARGEST_FORM: usize = 64 * 1024;
/// How long a script waits for a token.
const TOKEN_WAIT: Duration = Duration::from_secs(20);
/// Where the API says whose token it was called with.
const IDENTITY_PATH: &str = "/api/users";
const FORM_WITHIN: Duration = Duration::from_secs(60);
/// A page left open for longer asks to be loaded again.
const PAGE_SECRET_LIVES_SECS: i64 = 12 * 3600;
/// Everything local: nothing from elsewhere, nothing inline, in no frame. A form may lead to the authorization
/// server, whose own redirects to other hosts count as well.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    form-action 'self' https: http://127.0.0.1:* http://localhost:*; base-uri 'none'; \
    frame-ancestors 'none'";

/// A worker that is silent for longer is stuck, or has lost a listener.
const WORKER_MOVES_WITHIN: Duration = Duration::from_secs(12);
/// A keeper sleeps 30 s at a stretch, and waits for servers for 41 s at most.
const KEEPER_MOVES_WITHIN: Duration = Duration::from_secs(50);

/// What the control routes work on.
pub struct Control {
    /// The accounts, by name.
    pub sessions: BTreeMap<String, Session>,
    logins: Logins,
    metrics: Arc<Metrics>,
    listening: Vec<Listen>,
    workers: Vec<Arc<Heartbeat>>,
    /// Where requests go, for the status document.
    routes: Vec<Value>,
    /// By account, where a caller finds out whose token it is served with.
    samples: BTreeMap<String, String>,
    started: Moment,
    page_key: hmac::Key,
}

/// What came of a command, in words: that it is done, or why not.
pub type Outcome = Result<String, String>;

/// Where a reload is asked for.
pub type Reloads = mpsc::Sender<oneshot::Sender<Outcome>>;

type ControlState = State<Arc<Control>>;

impl Control {
    /// Control routes over these sessions, to which `routes` lead. `listening` is what the daemon is bound to;
    /// `workers` accept there.
    pub fn new(
        sessions: BTreeMap<String, Session>,
        logins: Logins,
        metrics: Arc<Metrics>,
        listening: Vec<Listen>,
        workers: Vec<Arc<Heartbeat>>,
        routes: &[Route],
    ) -> Self {
        let random = ring::rand::SystemRandom::new();
        let page_key =
            hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system has random numbers");
        let samples = sessions.keys().filter_map(|account| {
            let route = routes.iter().find(|route| route.account == *account)?;
            let path = IDENTITY_PATH.strip_prefix(&route.upstream.base_path)?;
            Some((account.clone(), format!("{}{path}", route.prefix.trim_end_matches('/'))))
        });
        let samples = samples.collect();
        let listed =
            |route: &Route| json!({ "prefix": route.prefix, "upstream": route.upstream.to_string() });
        let routes = routes.iter().map(listed).collect();
        Self { sessions, logins, metrics, listening, workers, routes, samples, started: now(), page_key }
    }

    /// A command that calls through us, for a person who was admitted with these fields.
    fn sample_call(&self, account: &str, fields: &HeaderMap) -> String {
        let key = if fields.contains_key(AUTHORIZATION) { "-H 'Authorization: Bearer KEY' " } else { "" };
        let path = self.samples.get(account).map_or("/", String::as_str);
        format!("curl {key}{}{path}", here(fields))
    }

    /// What does not move any more, although the control runtime, which asks, does.
    pub fn stuck(&self) -> Option<String> {
        let worker = self.workers.iter().position(|heartbeat| heartbeat.silent_for() > WORKER_MOVES_WITHIN);
        let keeper = || self.sessions.values().find(|session| session.silent_for() > KEEPER_MOVES_WITHIN);
        match (worker, keeper()) {
            (Some(number), _) => Some(format!("worker {number} is stuck or does not accept any more")),
            (None, Some(session)) => Some(format!("the keeper of account {} is stuck", session.account())),
            (None, None) => None,
        }
    }

    /// The status document. Never a token.
    pub fn status(&self) -> Value {
        let accounts: BTreeMap<_, _> =
            self.sessions.iter().map(|(name, session)| (name, session.status())).collect();
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "now": At(now().wall_ms()),
            "uptime_secs": now().since(self.started).as_secs(),
            "listening": self.listening.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "routes": self.routes,
            "accounts": accounts.iter().map(|(name, status)| ((*name).clone(), json!(**status))).collect::<serde_json::Map<_, _>>(),
            "requests": self.metrics.totals().counts(),
            "last_hour": last_hour(&self.metrics.last_hour(now())),
        });
        if let Some(database) = self.logins.database() {
            status["store"] = json!({ "database": database.shown(), "is_up": database.is_up() });
        }
        status
    }

    fn overview(&self) -> Overview {
        let listening: Vec<_> = self.listening.iter().map(ToString::to_string).collect();
        let accounts = self.sessions.iter().map(|(name, session)| (name.clone(), session.status()));
        Overview {
            accounts: accounts.collect(),
            counts: self.metrics.totals().counts(),
            hour: self.metrics.last_hour(now()),
            uptime: now().since(self.started),
            listening: listening.join(", "),
            secret: self.page_secret(),
        }
    }

    /// The login page of an account. The page's script asks in `query` for the `state` of a login.
    fn login_page(&self, viewer: Viewer, session: &Session, query: Option<&str>) -> Html<String> {
        let account = session.account();
        let source = session.source();
        let Some((oauth, login)) = source.login() else {
            return pages::no_login_needed(viewer, account);
        };
        let redirect_uri = &login.redirect_uri.url;
        let authorization_url = oauth.client().endpoints.authorization.url().map(|url| {
            let mut url = url.clone();
            url.set_query(None);
            url.to_string()
        });
        let authorization_url = authorization_url.or_else(|| oauth.client().issuer.clone());
        let state = field(query.unwrap_or_default(), "state");
        let page = LoginPage {
            account,
            accounts: &self.logins.accounts().collect::<Vec<_>>(),
            status: &session.status(),
            redirect_uri: redirect_uri.as_str(),
            authorization_url: authorization_url.as_deref().unwrap_or_default(),
            comes_back: login::is_local(redirect_uri),
            parts: match login.response_type {
                ResponseType::Hybrid => "code id_token state",
                ResponseType::Code => "code state",
            },
            mark: callback::mark(login.response_mode),
            newest: self.logins.newest(account),
            asked: state.as_deref().map(|state| (state, self.logins.look(state))),
            secret: &self.page_secret(),
        };
        pages::login(viewer, &page)
    }

    fn session(&self, account: &str) -> Result<&Session, Problem> {
        self.sessions.get(account).ok_or_else(no_account)
    }

    /// The secret of a page that is made now: what a browser posts back proves that it saw the page.
    fn page_secret(&self) -> String {
        let made_at = now().wall_secs().to_string();
        let tag = hmac::sign(&self.page_key, made_at.as_bytes());
        format!("{made_at}.{}", hex(tag.as_ref()))
    }

    fn is_page_secret(&self, text: &str) -> bool {
        let Some((made_at, tag)) = text.split_once('.') else { return false };
        let is_genuine =
            unhex(tag).is_some_and(|tag| hmac::verify(&self.page_key, made_at.as_bytes(), &tag).is_ok());
        let lives = |made_at: i64| now().wall_secs().saturating_sub(made_at) <= PAGE_SECRET_LIVES_SECS;
        is_genuine && made_at.parse().is_ok_and(lives)
    }
}

/// The routes for callers and people.
pub fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/-/", get(status_page))
        .route("/-/login", get(login_page))
        .route("/-/login/{account}", get(account_page).post(paste))
        .route("/-/login/{account}/start", post(start))
        .route("/-/callback", get(callback_by_get).post(callback_by_post))
        .route("/-/status", get(status))
        .route("/-/refresh/{account}", post(refresh))
        .route("/-/logout/{account}", post(logout))
        .route("/-/healthz", get(healthz))
        .route("/-/readyz", get(readyz))
        .route("/-/readyz/{account}", get(readyz_of))
        .route("/-/metrics", get(metrics::metrics))
        .route("/-/page.css", get(pages::stylesheet))
        .route("/-/page.js", get(pages::script))
        .route("/-/icon.svg", get(pages::icon))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::map_response(inert))
        .with_state(control)
}

/// The routes for those who may read the store: over a socket in the state directory only.
pub fn private_router(control: Arc<Control>, reloads: Reloads) -> Router {
    Router::new()
        .route("/-/token/{account}", get(access_token))
        .route("/-/store/rekey", post(rekey))
        .with_state(Arc::clone(&control))
        .merge(Router::new().route("/-/reload", post(reload)).with_state(reloads))
        .layer(axum::middleware::map_response(inert))
        .merge(router(control))
}

/// True for a request that lives by its `state` alone: browsers bring it from another site.
pub fn is_callback(path: &str) -> bool {
    path == "/-/callback"
}

/// True for what supervisors ask without a Host of ours and without a key.
pub fn is_probe(path: &str) -> bool {
    path == "/-/healthz" || path == "/-/readyz" || path.starts_with("/-/readyz/")
}

// --- pages -----------------------------------------------------------------------------------------------

async fn status_page(State(control): ControlState, fields: HeaderMap) -> Response {
    pages::status(viewer(&fields), &control.overview()).into_response()
}

async fn login_page(State(control): ControlState, fields: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let sessions: Vec<_> = control.logins.accounts().filter_map(|name| control.sessions.get(name)).collect();
    if let [only] = sessions.as_slice() {
        return control.login_page(viewer(&fields), only, query.as_deref()).into_response();
    }
    let states: Vec<_> = sessions.iter().map(|session| (session.account(), session.status().state)).collect();
    pages::choose(viewer(&fields), &states).into_response()
}

async fn account_page(
    State(control): ControlState,
    Path(account): Path<String>,
    fields: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ProblemResponse> {
    let session = control.session(&account)?;
    Ok(control.login_page(viewer(&fields), session, query.as_deref()).into_response())
}

// --- login -----------------------------------------------------------------------------------------------

async fn start(
    State(control): ControlState,
    Path(account): Path<String>,
    fields: HeaderMap,
    FormBody(form): FormBody,
) -> Result<Response, ProblemResponse> {
    control.asked(&account, &fields, &form)?;
    let url = match control.logins.start(&account).await {
        Ok(url) => url,
        Err(why) => {
            let is_for_now = why.reason == Reason::Server;
            let code = if is_for_now { Code::TokenUnavailable } else { Code::NotFound };
            if wants_html(&fields) {
                return Ok((code.status(), pages::failed(viewer(&fields), &account, &why)).into_response());
            }
            return Err(Problem::new(code, why.words).into());
        }
    };
    let location = HeaderValue::from_str(url.as_str()).expect("a URL is a field value");
    Ok((StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response())
}

async fn paste(
    State(control): ControlState,
    Path(account): Path<String>,
    fields: HeaderMap,
    FormBody(form): FormBody,
) -> Result<Response, ProblemResponse> {
    let session = control.asked(&account, &fields, &form)?;
    if let Some(answer) = field(&form, "answer") {
        let id = field(&form, "confirm").unwrap_or_default();
        let outcome = session.confirm(id, answer == "yes").await;
        let outcome = outcome.map_err(|error| {
            let can_be_repeated = matches!(error, AskError::NotBegun(_));
            let reason = if can_be_repeated { Reason::StillAsked } else { Reason::Unasked };
            Rejected::new(reason, error.to_string())
        });
        return Ok(told(&control, &fields, &account, outcome));
    }
    let pasted = field(&form, "callback").unwrap_or_default();
    let outcome = control.logins.finish_pasted(&account, &pasted).await;
    Ok(told(&control, &fields, &account, outcome))
}

async fn callback_by_get(
    State(control): ControlState,
    method: Method,
    fields: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    // A look at the head spends nothing.
    if method == Method::HEAD {
        return StatusCode::OK.into_response();
    }
    // Some servers name themselves (RFC 9207) in the query, although the rest is behind the #.
    let is_answer = |query: &String| form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name != "iss");
    match query.filter(is_answer) {
        Some(query) => finish_brought(&control, &fields, &query).await,
        None => pages::fragment(viewer(&fields)).into_response(),
    }
}

async fn callback_by_post(
    State(control): ControlState,
    fields: HeaderMap,
    FormBody(form): FormBody,
) -> Response {
    finish_brought(&control, &fields, &form).await
}

async fn finish_brought(control: &Control, fields: &HeaderMap, parameters: &str) -> Response {
    let (account, outcome) = control.logins.finish_brought(parameters).await;
    told(control, fields, &account, outcome)
}

/// The outcome of a login, as a page for people and as JSON for programs.
fn told(
    control: &Control,
    fields: &HeaderMap,
    account: &str,
    outcome: Result<LoginOutcome, Rejected>,
) -> Response {
    let status = match &outcome {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::BAD_REQUEST,
    };
    if !wants_html(fields) {
        return match outcome {
            Ok(outcome) => (status, axum_json(&login::as_json(&outcome))).into_response(),
            Err(why) => problem(Problem::new(Code::BadRequest, why.words)),
        };
    }
    let viewer = viewer(fields);
    let page = match outcome {
        Ok(LoginOutcome::Done(done)) => {
            pages::logged_in(viewer, account, &done, &here(fields), &control.sample_call(account, fields))
        }
        Ok(LoginOutcome::NeedsConfirmation(asked)) => {
            pages::confirm(viewer, account, &asked, &control.page_secret())
        }
        Ok(LoginOutcome::Declined) => pages::declined(viewer, account),
        Err(why) => pages::failed(viewer, account, &why),
    };
    (status, page).into_response()
}

// --- for scripts and supervisors -------------------------------------------------------------------------

async fn status(State(control): ControlState) -> Response {
    axum_json(&control.status()).into_response()
}

async fn refresh(
    State(control): ControlState,
    Path(account): Path<String>,
    fields: HeaderMap,
    FormBody(form): FormBody,
) -> Result<Response, ProblemResponse> {
    let outcome = control.asked(&account, &fields, &form)?.refresh().await.map(|()| None);
    changed(&fields, outcome, "refreshed", "changed.failed.refresh")
}

async fn logout(
    State(control): ControlState,
    Path(account): Path<String>,
    fields: HeaderMap,
    FormBody(form): FormBody,
) -> Result<Response, ProblemResponse> {
    control.posted_from_our_page(&fields, &form)?;
    let outcome = match control.sessions.get(&account) {
        Some(session) => session.log_out().await,
        None if control.logins.is_stored(&account) => control.logins.log_out_unconfigured(&account).await,
        None => return Err(no_account().into()),
    };
    changed(&fields, outcome, "logged-out", "changed.failed.logout")
}

fn changed(
    fields: &HeaderMap,
    outcome: Result<Option<String>, AskError>,
    done: &str,
    not_done: &str,
) -> Result<Response, ProblemResponse> {
    let code = match &outcome {
        Ok(_) if wants_html(fields) => {
            return Ok((StatusCode::SEE_OTHER, [(LOCATION, "/-/")]).into_response());
        }
        Ok(remark) => {
            return Ok(axum_json(&json!({ "outcome": done, "remark": remark })).into_response());
        }
        Err(AskError::LoginRequired(_)) => Code::LoginRequired,
        Err(AskError::Failed(_) | AskError::NotBegun(_)) => Code::TokenUnavailable,
        Err(AskError::Stopping) => Code::Stopping,
    };
    let words = outcome.err().map(|error| error.to_string()).unwrap_or_default();
    if wants_html(fields) {
        let page = pages::not_changed(viewer(fields), not_done, &words);
        return Ok((code.status(), page).into_response());
    }
    Err(Problem::new(code, words).into())
}

async fn access_token(
    State(control): ControlState,
    Path(account): Path<String>,
) -> Result<Response, ProblemResponse> {
    let session = control.session(&account)?;
    let token = session.token(TOKEN_WAIT).await.map_err(|reason| match reason {
        NoToken::LoginRequired => Problem::new(Code::LoginRequired, "a person has to log in"),
        NoToken::Unavailable { .. } => Problem::new(Code::TokenUnavailable, "there is no token now"),
    })?;
    Ok(([(CONTENT_TYPE, "text/plain")], token.access_token().to_vec()).into_response())
}

async fn reload(State(reloads): State<Reloads>) -> Result<Response, ProblemResponse> {
    let (asker, outcome) = oneshot::channel();
    // Without a receiver, the asker is dropped, and no outcome comes.
    let _asked = reloads.send(asker).await;
    match outcome.await {
        Ok(outcome) => Ok(in_words(outcome)),
        Err(_stopping) => Err(Problem::new(Code::Stopping, "the daemon is stopping").into()),
    }
}

async fn rekey(State(control): ControlState) -> Response {
    in_words(control.logins.rekey().await)
}

/// What came of a command.
fn in_words(outcome: Outcome) -> Response {
    match outcome {
        Ok(words) => axum_json(&json!({ "outcome": words })).into_response(),
        Err(words) => (StatusCode::CONFLICT, axum_json(&json!({ "detail": words }))).into_response(),
    }
}

async fn healthz(State(control): ControlState) -> Response {
    match control.stuck() {
        None => axum_json(&json!({ "status": "ok" })).into_response(),
        Some(detail) => {
            let stuck = json!({ "status": "stuck", "detail": detail });
            (StatusCode::SERVICE_UNAVAILABLE, axum_json(&stuck)).into_response()
        }
    }
}

async fn readyz(State(control): ControlState) -> Response {
    if control.stuck().is_some() {
        return healthz(State(control)).await;
    }
    let required = control.sessions.values().filter(|session| session.source().account.required);
    ready(required.filter(|session| !session.is_ready()))
}

async fn readyz_of(
    State(control): ControlState,
    Path(account): Path<String>,
) -> Result<Response, ProblemResponse> {
    let session = control.session(&account)?;
    Ok(ready(Some(session).filter(|session| !session.is_ready()).into_iter()))
}

/// Ready, unless there are accounts that it waits for.
fn ready<'a>(waiting: impl Iterator<Item = &'a Session>) -> Response {
    let states: Vec<_> = waiting.map(|session| (session.account(), session.status().state)).collect();
    if states.is_empty() {
        return axum_json(&json!({ "status": "ready" })).into_response();
    }
    let needs_login = states.iter().any(|(_, state)| *state == AccountState::LoginRequired);
    let code = if needs_login { Code::LoginRequired } else { Code::TokenUnavailable };
    let words = states.iter().map(|(name, state)| format!("{name} is {}", state.as_str()));
    problem(Problem::new(code, words.collect::<Vec<_>>().join(", ")))
}

async fn not_found() -> Response {
    problem(Problem::new(
        Code::NotFound,
        "the local pages are /-/, /-/login, /-/status, /-/healthz, /-/readyz and /-/metrics",
    ))
}

async fn wrong_method() -> Response {
    problem(Problem::new(Code::MethodRefused, "this local page does not take that method"))
}

// --- what all of them share ------------------------------------------------------------------------------

impl Control {
    /// The session of an account that a POST may change.
    fn asked(&self, account: &str, fields: &HeaderMap, form: &str) -> Result<&Session, Problem> {
        self.posted_from_our_page(fields, form)?;
        self.session(account)
    }

    /// A browser has to show the secret of the page that it posts from. A program that is no browser could read
    /// the page first anyway, and shows none.
    fn posted_from_our_page(&self, fields: &HeaderMap, form: &str) -> Result<(), Problem> {
        if !is_browser(fields) || field(form, "page").is_some_and(|secret| self.is_page_secret(&secret)) {
            return Ok(());
        }
        Err(Problem::new(
            Code::ForbiddenOrigin,
            "this was not posted from the proxy's own page, or the page is too old: load it again",
        ))
    }
}

/// The body of a POST, as text: bounded in size and time.
struct FormBody(String);

impl<S: Sync> FromRequest<S> for FormBody {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ProblemResponse> {
        let malformed = |detail: &str| Problem::new(Code::BadRequest, detail).closing();
        let body = Limited::new(request.into_body(), LARGEST_FORM).collect();
        let body = tokio::time::timeout(FORM_WITHIN, body).await;
        let body = body.map_err(|_elapsed| malformed("the form did not arrive in time"))?;
        let body = body.map_err(|_error| malformed("the form is larger than 64 KiB, or broke off"))?;
        let text = String::from_utf8(body.to_bytes().into());
        Ok(Self(text.map_err(|_invalid| malformed("the form is not text"))?))
    }
}

/// A problem as an axum answer.
struct ProblemResponse(Box<Response>);

impl From<Problem> for ProblemResponse {
    fn from(from: Problem) -> Self {
        Self(Box::new(problem(from)))
    }
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        *self.0
    }
}

fn no_account() -> Problem {
    Problem::new(Code::NotFound, "there is no account of that name")
}

fn problem(problem: Problem) -> Response {
    problem.into_response().map(Body::from)
}

fn axum_json(value: &Value) -> impl IntoResponse + use<> {
    ([(CONTENT_TYPE, "application/json")], value.to_string())
}

/// The minutes of the last hour as columns, the oldest first; null where nothing was timed.
fn last_hour(minutes: &[Minute]) -> Value {
    let column = |count: fn(&Minute) -> u64| minutes.iter().map(count).collect::<Vec<_>>();
    let mean_ms = |minute: &Minute| minute.upstream_mean().map(|mean| mean.as_millis() as u64);
    json!({
        "answered": column(|minute| minute.answered),
        "client_errors": column(|minute| minute.client_errors),
        "server_errors": column(|minute| minute.server_errors),
        "upstream_ms": minutes.iter().map(mean_ms).collect::<Vec<_>>(),
    })
}

/// What every answer of this origin carries, whatever else it says.
pub async fn inert(response: Response) -> Response {
    let is_axums = response.status().is_client_error()
        && response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let mut response = if is_axums {
        problem(Problem::new(Code::BadRequest, "the path or the query can't be read"))
    } else {
        response
    };
    let fields = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, CSP),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (http::header::X_FRAME_OPTIONS, "DENY"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// True for what says where it comes from, as current browsers do with every POST to another site, or at least that
/// a person reads the answer, as text browsers, old ones and those that hide where they come from do.
fn is_browser(fields: &HeaderMap) -> bool {
    let origin = [
        ORIGIN,
        REFERER,
        HeaderName::from_static("sec-fetch-site"),
        HeaderName::from_static("sec-fetch-dest"),
    ];
    // Node's `fetch` sends Sec-Fetch-Mode and takes any language, and is no browser.
    let reads_a_language = fields.get(ACCEPT_LANGUAGE).is_some_and(|languages| languages != "*");
    reads_a_language || wants_html(fields) || origin.iter().any(|name| fields.contains_key(name))
}

fn viewer(fields: &HeaderMap) -> Viewer {
    Viewer { language: Language::asked_for(fields), now: At(now().wall_ms()) }
}

/// Where programs call, as whoever reads the answer does.
fn here(fields: &HeaderMap) -> String {
    format!("http://{}", fields.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default())
}

fn wants_html(fields: &HeaderMap) -> bool {
    let accept = fields.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.contains("text/html")
}

fn field(form: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(form.as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
