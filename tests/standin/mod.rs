//! A stand-in of Cnblogs: its authorization server and its API, on loopback, scripted and recording.
//!
//! It runs on a thread of its own. A test speaks to it through plain methods of [`Standin`], from
//! synchronous or asynchronous code; dropping it ends everything. It is strict: what Cnblogs might let pass is refused.

#![expect(dead_code, reason = "each program that includes the stand-in uses another part of it")]

mod api;
mod auth;
mod authorize;
mod blog;
#[path = "../../src/testing/certificates.rs"]
mod certificates;
mod cnblogs;
mod door;
mod fault;
mod grants;
mod id_token;
mod reply;
mod request;
mod state;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use self::certificates::Authority;
use self::door::{Door, bind};
use self::id_token::KeyName;
use self::request::lock;
use self::state::Shared;
use self::wire::{Habits, Service};

#[expect(unused_imports, reason = "each program that includes the stand-in uses another part of it")]
pub(crate) use self::{
    api::{Scripted, pattern},
    authorize::{Alter, AuthorizeRequest, Callback, Mode, Person, Spoil},
    certificates::TlsDefect,
    door::Trap,
    fault::{Endpoint, Fault},
    grants::{Presented, Rotation},
    id_token::{Signature, half_hash},
    reply::{Answer, Body, Gate, Then, pieces},
    request::{Fields, RecordedRequest},
    state::{ExpiresIn, KeySet, Options, Pkce, Revocation, TokenRequest},
    wire::RecordedConnection,
};

/// A running stand-in.
pub(crate) struct Standin {
    shared: Arc<Shared>,
    auth: Door,
    api: Door,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    directory: TempDir,
}

/// Starting and finding it.
impl Standin {
    /// Starts both listeners; they accept when this returns.
    ///
    /// # Panics
    /// When its address, a thread or a temporary directory is not to be had.
    pub(crate) fn start(options: Options) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority::new("stand-in of Cnblogs").expect("a certificate authority");
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("the directory is writable");
        let (runtime, stop, thread) = spawn_runtime();

        let listener = bind(options.address).expect("a port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let auth_url = format!("{}://{address}", scheme(&options));
        let acceptor =
            |defect| options.tls.then(|| authority.acceptor(options.address, defect).expect("a certificate"));
        let auth_tls = acceptor(options.auth_tls_defect);
        let api_tls = acceptor(options.api_tls_defect);
        let shared = Arc::new(Shared::new(options, auth_url));

        let habits = Habits { no_half_close: true, idle_close_ms: AtomicU64::new(0) };
        let auth =
            Door::open(&runtime, listener, auth_tls, habits, auth_service(&shared)).expect("a listener");
        let listener = bind(shared.options.address).expect("a port");
        let api = Door::open(&runtime, listener, api_tls, Habits::default(), api_service(&shared))
            .expect("a listener");
        Self { shared, auth, api, runtime, stop: Some(stop), thread: Some(thread), directory }
    }

    /// `http://127.0.0.1:PORT` of the authorization server; paths are `/connect/authorize` and so on.
    pub(crate) fn auth_url(&self) -> String {
        self.shared.auth_url.clone()
    }

    /// `http://127.0.0.1:PORT` of the API.
    pub(crate) fn api_url(&self) -> String {
        format!("{}://{}", scheme(&self.shared.options), self.api.address)
    }

    /// `127.0.0.1:PORT` of the API.
    pub(crate) fn api_authority(&self) -> String {
        self.api.address.to_string()
    }

    /// The certificate authority to trust with TLS.
    pub(crate) fn ca_pem_path(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A directory that lives as long as the stand-in.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it was started with.
    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// A listener that must never be contacted.
    pub(crate) fn trap(&self) -> Trap {
        Trap::set(&self.runtime).expect("a port on loopback")
    }
}

/// Logging in without a browser.
impl Standin {
    /// The callback address at which a browser would end, were this the address it started at and this person to allow
    /// it.
    ///
    /// # Panics
    /// When the authorization request is not in order.
    #[track_caller]
    pub(crate) fn authorize(&self, authorization_url: &str, person: Person) -> String {
        self.authorize_with(authorization_url, person, Spoil::default())
    }

    /// The same with something wrong.
    #[track_caller]
    pub(crate) fn authorize_with(&self, authorization_url: &str, person: Person, spoil: Spoil) -> String {
        self.callback(authorization_url, person, spoil).address()
    }

    /// The same, not yet made an address: for `form_post`.
    #[track_caller]
    pub(crate) fn callback(&self, authorization_url: &str, person: Person, spoil: Spoil) -> Callback {
        match self.check_authorize(authorization_url) {
            Ok(asked) => authorize::allow(&self.shared, asked, person, spoil),
            Err(refusal) => panic!("the authorization endpoint refuses {authorization_url}: {refusal}"),
        }
    }

    /// The callback address when the person says no.
    #[track_caller]
    pub(crate) fn deny(&self, authorization_url: &str) -> String {
        match self.check_authorize(authorization_url) {
            Ok(asked) => authorize::deny(&self.shared, asked).address(),
            Err(refusal) => panic!("the authorization endpoint refuses {authorization_url}: {refusal}"),
        }
    }

    /// Why the authorization endpoint would refuse; none when it would not.
    pub(crate) fn authorize_refusal(&self, authorization_url: &str) -> Option<String> {
        self.check_authorize(authorization_url).err()
    }

    /// An `id_token` over these claims with the current key and header.
    pub(crate) fn sign_id_token(&self, claims: &Value, signature: Signature) -> String {
        let key = lock(&self.shared.authorization).signing_key;
        let id_token = self.shared.keys.sign(key, self.shared.keys.header(key), claims, signature);
        lock(&self.shared.authorization).grants.keep(id_token)
    }

    /// The claims of a good `id_token` without `c_hash`.
    pub(crate) fn id_token_claims(&self, nonce: Option<&str>) -> Value {
        authorize::claims(&self.shared, Person::Alice, nonce)
    }

    fn check_authorize(&self, authorization_url: &str) -> Result<authorize::Asked, String> {
        let endpoint = format!("{}/connect/authorize", self.shared.auth_url);
        let (address, query) = authorization_url.split_once('?').unwrap_or((authorization_url, ""));
        if address != endpoint {
            return Err(format!("the authorization endpoint is {endpoint}"));
        }
        authorize::check(&self.shared, query)
    }
}

/// Setting the authorization server.
impl Standin {
    /// What happens to the next request at the endpoint that has no fault yet.
    pub(crate) fn fault(&self, endpoint: Endpoint, fault: Fault) {
        self.authorization(|authorization| {
            authorization.faults.entry(endpoint).or_default().push_back(fault);
        });
    }

    /// What happens to every request at the endpoint that has no fault of its own.
    pub(crate) fn fault_always(&self, endpoint: Endpoint, fault: impl Fn() -> Fault + Send + 'static) {
        self.authorization(|authorization| {
            drop(authorization.standing_faults.insert(endpoint, Box::new(fault)));
        });
    }

    /// No more faults anywhere.
    pub(crate) fn clear_faults(&self) {
        self.authorization(|authorization| {
            authorization.faults = HashMap::new();
            authorization.standing_faults = HashMap::new();
        });
    }

    /// How many queued faults have met no request yet.
    pub(crate) fn pending_faults(&self, endpoint: Endpoint) -> usize {
        self.authorization(|authorization| authorization.faults.get(&endpoint).map_or(0, VecDeque::len))
    }

    /// Of access tokens from now on, as told and as held to.
    pub(crate) fn set_expires_in(&self, secs: u64) {
        self.authorization(|authorization| authorization.terms.access_life = Duration::from_secs(secs));
    }

    /// How `expires_in` is said from now on.
    pub(crate) fn set_expires_in_form(&self, form: ExpiresIn) {
        self.authorization(|authorization| authorization.expires_in = form);
    }

    /// What becomes of used refresh tokens from now on.
    pub(crate) fn set_rotation(&self, rotation: Rotation) {
        self.authorization(|authorization| authorization.terms.rotation = rotation);
    }

    /// Whether logins get no refresh token, whatever they ask for.
    pub(crate) fn leave_out_refresh_token(&self, yes: bool) {
        self.authorization(|authorization| authorization.terms.leave_out_refresh_token = yes);
    }

    /// Whether token answers have no `scope`.
    pub(crate) fn leave_out_scope(&self, yes: bool) {
        self.authorization(|authorization| authorization.leave_out_scope = yes);
    }

    /// What the key set has from now on.
    pub(crate) fn set_key_set(&self, key_set: KeySet) {
        self.authorization(|authorization| authorization.key_set = key_set);
    }

    /// Signs with another key from now on; the key set has both.
    pub(crate) fn rotate_keys(&self) {
        self.authorization(|authorization| authorization.signing_key = KeyName::AfterRotation);
    }

    /// Registers a `redirect_uri`.
    pub(crate) fn add_redirect_uri(&self, redirect_uri: &str) {
        self.authorization(|authorization| authorization.redirect_uris.push(redirect_uri.to_owned()));
    }

    /// Whether the authorization server refuses connections; open ones are cut.
    pub(crate) fn set_down(&self, down: bool) {
        set_down(&self.auth, down);
    }

    /// Whether the token endpoint answers 503.
    pub(crate) fn set_unavailable(&self, unavailable: bool) {
        self.authorization(|authorization| authorization.unavailable = unavailable);
    }

    /// Makes one access token bad, or ends the login of a refresh token.
    pub(crate) fn revoke_access(&self, token: &str) {
        self.authorization(|authorization| authorization.grants.revoke(token));
    }

    /// All access tokens so far are bad from now on.
    pub(crate) fn expire_access_tokens(&self) {
        self.authorization(|authorization| authorization.grants.expire_access_tokens(Instant::now()));
    }

    /// All refresh tokens so far are unknown from now on.
    pub(crate) fn forget_refresh_tokens(&self) {
        self.authorization(|authorization| authorization.grants.forget_refresh_tokens());
    }

    fn authorization<T>(&self, change: impl FnOnce(&mut state::Authorization) -> T) -> T {
        change(&mut lock(&self.shared.authorization))
    }
}

/// What the authorization server has seen.
impl Standin {
    /// Everything that came to the token endpoint, in order.
    pub(crate) fn token_requests(&self) -> Vec<TokenRequest> {
        self.authorization(|authorization| authorization.token_requests.clone())
    }

    /// Those of them that were refreshes.
    pub(crate) fn refreshes(&self) -> Vec<TokenRequest> {
        let all = self.token_requests().into_iter();
        all.filter(|request| request.grant_type == "refresh_token").collect()
    }

    /// How often a refresh token came whose successor had been sent.
    pub(crate) fn superseded_presentations(&self) -> usize {
        self.authorization(|authorization| authorization.grants.superseded_presentations())
    }

    /// How often the key set was fetched.
    pub(crate) fn key_set_fetches(&self) -> usize {
        self.requests_for("/.well-known/openid-configuration/jwks")
    }

    /// How often the authorization server was asked for this path.
    pub(crate) fn requests_for(&self, path: &str) -> usize {
        self.auth.journal.requests().iter().filter(|request| request.path() == path).count()
    }

    /// Everything that came to the revocation endpoint and met no fault, in order.
    pub(crate) fn revocations(&self) -> Vec<Revocation> {
        self.authorization(|authorization| authorization.revocations.clone())
    }

    /// Everything that came to the authorization endpoint, from browsers and [`Self::authorize`], in order.
    pub(crate) fn authorize_requests(&self) -> Vec<AuthorizeRequest> {
        self.authorization(|authorization| authorization.authorize_requests.clone())
    }

    /// Everything that came to the authorization server, in order, byte for byte.
    pub(crate) fn auth_requests(&self) -> Vec<RecordedRequest> {
        self.auth.journal.requests()
    }

    /// All connections to the authorization server that carried TLS or none, with their bytes.
    pub(crate) fn auth_connections(&self) -> Vec<RecordedConnection> {
        self.auth.journal.connections()
    }

    /// Every access token, refresh token, code and `id_token` ever issued.
    pub(crate) fn issued_secrets(&self) -> Vec<String> {
        self.authorization(|authorization| authorization.grants.secrets().to_vec())
    }
}

/// The API.
impl Standin {
    /// Looks at every request before anything else does; none is "as usual". It runs once the head has arrived.
    pub(crate) fn on_api(&self, hook: impl Fn(&RecordedRequest) -> Option<Scripted> + Send + Sync + 'static) {
        lock(&self.shared.api).hook = Some(Arc::new(hook));
    }

    /// No more hook.
    pub(crate) fn clear_on_api(&self) {
        lock(&self.shared.api).hook = None;
    }

    /// Answers 401 to the next `count` requests, whatever their token.
    pub(crate) fn refuse_next(&self, count: usize) {
        lock(&self.shared.api).refusals = count;
    }

    /// Whether a 401 has no content; otherwise it has a JSON `Message`.
    pub(crate) fn set_empty_401(&self, empty: bool) {
        lock(&self.shared.api).empty_errors = empty;
    }

    /// Whether the API refuses connections; open ones are cut.
    pub(crate) fn set_api_down(&self, down: bool) {
        set_down(&self.api, down);
    }

    /// Closes idle connections a random time after each answer, up to `most`; none is never.
    pub(crate) fn close_idle_within(&self, most: Option<Duration>) {
        let most = most.map_or(0, |most| u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1));
        self.api.habits.idle_close_ms.store(most, Ordering::Relaxed);
    }

    /// Everything that came to the API, malformed heads included, in order.
    pub(crate) fn api_requests(&self) -> Vec<RecordedRequest> {
        self.api.journal.requests()
    }

    /// Forgets what came so far; connections keep their numbers.
    pub(crate) fn clear_api_requests(&self) {
        self.api.journal.clear();
    }

    /// Forgets everything that came so far, on both sides, that grows with the number of requests.
    pub(crate) fn forget_traffic(&self) {
        for door in [&self.auth, &self.api] {
            door.journal.clear();
            door.journal.clear_bytes();
        }
    }

    /// All connections to the API with their bytes and what was left over.
    pub(crate) fn api_connections(&self) -> Vec<RecordedConnection> {
        self.api.journal.connections()
    }

    /// How many connections the API has had.
    pub(crate) fn api_connection_count(&self) -> usize {
        self.api.journal.connection_count()
    }

    /// What came to the API that was malformed or ambiguous.
    pub(crate) fn api_violations(&self) -> Vec<String> {
        self.api_requests().into_iter().filter_map(|request| request.violation).collect()
    }

    /// An application token of the API, without the token endpoint.
    pub(crate) fn issue_application_token(&self) -> String {
        self.authorization(|authorization| {
            let terms = authorization.terms;
            let scope = "CnBlogsApi".to_owned();
            authorization.grants.issue_application_token(scope, &terms, Instant::now()).access_token
        })
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl fmt::Debug for Standin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&json!({ "auth_url": self.auth_url(), "api_url": self.api_url() }).to_string())
    }
}

fn spawn_runtime() -> (Handle, oneshot::Sender<()>, JoinHandle<()>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel();
    let run = move || drop(runtime.block_on(stopped));
    let thread = std::thread::Builder::new().name("stand-in".to_owned()).spawn(run).expect("a thread");
    (handle, stop, thread)
}

fn auth_service(shared: &Arc<Shared>) -> Service {
    let shared = Arc::clone(shared);
    Arc::new(move |request| Box::pin(auth::reply(Arc::clone(&shared), request)))
}

fn api_service(shared: &Arc<Shared>) -> Service {
    let shared = Arc::clone(shared);
    Arc::new(move |request| Box::pin(api::reply(Arc::clone(&shared), request)))
}

fn scheme(options: &Options) -> &'static str {
    if options.tls { "https" } else { "http" }
}

fn set_down(door: &Door, down: bool) {
    match (down, door.is_shut()) {
        (true, false) => door.shut(),
        (false, true) => door.unshut(),
        _ => {}
    }
}
