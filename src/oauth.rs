//! The authorization server's client: the authorization URL, exchange, refresh, client credentials, revoke.
//! It keeps nothing but the server's public keys and metadata.
//!
//! A grant is **refused** for good, **unavailable** for now, or **in doubt**, when it was sent and the answer is not
//! known; [`GrantError`] has the kinds that the keeper acts on.

pub mod callback;
pub mod id_token;
mod answer;
mod body;
mod discovery;
mod grant;
mod keys;
#[cfg(any(test, fuzzing))]
pub mod properties;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::config::{
    self, Account, Address, BrowserLogin, Client, ClientAuth, HttpProxy, Identity, ResponseMode,
    ResponseType, Secret,
};
use crate::tls;
use crate::token::{Clock, Moment, Person};
pub use body::Loss;
use callback::{Callback, Code, Outcome};
use discovery::{Discovery, Metadata};
pub use grant::{GrantError, Granted};
use id_token::{Claims, Expected, IdTokenError};
use keys::Keys;

/// To connect to the authorization server, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For public keys and metadata, which can be fetched again.
const METADATA_TIMEOUT: Duration = Duration::from_secs(12);
/// Who it is, is nice to know: a login does not wait long for it.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);
/// Remarks to a login.
const OTHER_ISSUER: &str = "the id_token that came with the tokens names another issuer than the first one, which was \
    checked";
const ONE_ID_TOKEN: &str = "no id_token came with the tokens: the first one was checked";
const NO_ID_TOKEN: &str = "no id_token came with the tokens (is openid in the scope?): only TLS to the token endpoint \
    vouches for this login";

/// A login in progress, between the authorization URL and its callback.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Binds the callback to this login (RFC 6749, section 10.12).
    pub state: String,
    /// Binds the `id_token` to this login (OpenID Connect Core, section 3.1.2.1).
    pub nonce: String,
    /// PKCE (RFC 7636, section 4.1).
    pub code_verifier: SecretString,
    /// When it began.
    pub started: Moment,
}

/// Why a login came to nothing before the token endpoint granted anything.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The `id_token` does not vouch for this login. The code was not sent.
    #[error(transparent)]
    IdToken(#[from] IdTokenError),
    /// The callback does not name the configured issuer (RFC 9207). The code was not sent.
    #[error(
        "the callback's issuer (iss) is {0}: it is not from the authorization server that this login began at"
    )]
    ForeignCallback(&'static str),
    /// The endpoints are not known now. The code was not sent.
    #[error("{0}")]
    Discovery(String),
    /// The server's keys can't be had now. The code was not sent.
    #[error(
        "the authorization server's keys can't be fetched, so the id_token can't be checked: {0}; for a server that \
         publishes none set jwks_url = \"\": the signature is not checked then, and only TLS to the token endpoint \
         vouches for a login"
    )]
    Keys(String),
    /// The `id_token` that came with the tokens does not vouch for this login. The code is burnt, the tokens are not
    /// used.
    #[error("{0}, in the token answer: the code is spent, so please start the login again")]
    Answer(IdTokenError),
    /// The token endpoint said no, or its answer was lost. The code was sent, and is burnt.
    #[error(transparent)]
    Exchange(#[from] GrantError),
}

/// A callback whose `id_token` vouches for its login.
#[derive(Debug)]
pub struct Verified {
    claims: Option<Claims>,
    remarks: Vec<String>,
}

/// What a checked login yields.
#[derive(Debug)]
pub struct LoggedIn {
    /// The tokens.
    pub granted: Granted,
    /// Sentences that the person should read.
    pub remarks: Vec<String>,
}

/// The parameters of a request to the server, but for the client's authentication.
type Form = Vec<(&'static str, String)>;

/// Sends a form to the server.
pub type Transport = Box<dyn Fn(reqwest::Request) -> Answered + Send + Sync>;
/// The server's answer as it was received, or how it was lost.
pub type Answered = Pin<Box<dyn Future<Output = Result<reqwest::Response, GrantError>> + Send>>;

/// The client of one account's authorization server.
pub struct Oauth {
    client: Client,
    secret: Secret,
    timeout: Duration,
    http: reqwest::Client,
    keys: Keys,
    discovery: Discovery,
    transport: Transport,
    clock: Clock,
}

impl Oauth {
    /// Builds the client: no redirects, no proxy but the account's own, a new connection for every request, so
    /// that a dead one never leaves a grant in doubt. A request takes `timeout` at most.
    ///
    /// # Errors
    /// When the TLS set-up is not usable.
    pub fn new(account: &Account, client: &Client, timeout: Duration) -> Result<Self, tls::TlsError> {
        let extra = account.ca.as_ref().map(|ca| ca.certificates.as_slice()).unwrap_or_default();
        // Encoded answers are not asked for, and read when they come all the same.
        let identity = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        let builder = tls::http_client(extra)?
            .default_headers(identity)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout);
        let http = account.proxy.iter().map(tunnels).fold(builder, reqwest::ClientBuilder::proxy);
        let http = http.build().expect("constants make a valid client");
        let (keys, discovery) = (Keys::default(), Discovery::default());
        let transport = over_http(http.clone());
        let (client, secret) = (client.clone(), account.secret.clone());
        Ok(Self { client, secret, timeout, http, keys, discovery, transport, clock: Clock::default() })
    }

    /// The same client, whose forms go another way and whose time is read elsewhere.
    #[must_use]
    pub fn through(self, transport: Transport, clock: Clock) -> Self {
        Self { transport, clock, ..self }
    }

    /// The same client, which keeps what it discovers in a file.
    #[must_use]
    pub fn keeping_in(self, file: PathBuf) -> Self {
        Self { discovery: Discovery::kept_in(file), ..self }
    }

    /// The same client with re-read secrets and certificates.
    ///
    /// # Errors
    /// When the TLS set-up is not usable.
    pub fn reconfigured(&self, account: &Account, client: &Client) -> Result<Self, tls::TlsError> {
        let (discovery, clock) = (self.discovery.clone(), self.clock.clone());
        Ok(Self { discovery, clock, ..Self::new(account, client, self.timeout)? })
    }

    /// How long an answer is waited for.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// As it is configured.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The address that the person's browser is sent to (OpenID Connect Core, section 3.3.2.1).
    ///
    /// # Errors
    /// When the authorization endpoint is not known now.
    pub async fn authorization_url(
        &self,
        login: &BrowserLogin,
        pending: &Pending,
    ) -> Result<Url, LoginError> {
        let client = &self.client;
        self.look_again().await.map_err(LoginError::Discovery)?;
        let endpoint = self.needed(&client.endpoints.authorization, "authorization_endpoint", |metadata| {
            &metadata.authorization_endpoint
        });
        let mut url = endpoint.await.map_err(LoginError::Discovery)?;
        let response_type = match login.response_type {
            ResponseType::Hybrid => "code id_token",
            ResponseType::Code => "code",
        };
        url.query_pairs_mut()
            .append_pair("client_id", &client.client_id)
            .append_pair("scope", client.scope.as_deref().unwrap_or_default())
            .append_pair("response_type", response_type)
            .append_pair("redirect_uri", &login.redirect_uri.text)
            .append_pair("state", &pending.state)
            .append_pair("nonce", &pending.nonce);
        if login.pkce {
            let verifier = pending.code_verifier.expose_secret().as_bytes();
            let challenge = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, verifier));
            url.query_pairs_mut()
                .append_pair("code_challenge", &challenge)
                .append_pair("code_challenge_method", "S256");
        }
        let mode = match login.response_mode {
            ResponseMode::Fragment => Some("fragment"),
            ResponseMode::FormPost => Some("form_post"),
            ResponseMode::Query => None,
        };
        if let Some(mode) = mode {
            url.query_pairs_mut().append_pair("response_mode", mode);
        }
        // A space as %20: some servers read `+` in a query as a plus sign.
        let query = url.query().map(|query| query.replace('+', "%20"));
        url.set_query(query.as_deref());
        Ok(url)
    }

    /// Checks which issuer a callback names (RFC 9207, section 2.4). One with an `id_token` need not name it twice, and
    /// a refusal, in which some servers leave it out, can do no harm.
    ///
    /// # Errors
    /// When it is not the configured one, or none although the issuer says that it always names itself.
    pub async fn check_issuer(&self, callback: &Callback) -> Result<(), LoginError> {
        let Some(issuer) = &self.client.issuer else { return Ok(()) };
        let is_bare_code = matches!(&callback.outcome, Outcome::Code(code) if code.id_token.is_none());
        match &callback.iss {
            Some(iss) if iss == issuer => Ok(()),
            Some(_) => Err(LoginError::ForeignCallback("not the configured one")),
            None if !is_bare_code || !self.client.endpoints.are_discovered() => Ok(()),
            None if !self.metadata(false).await.map_err(LoginError::Discovery)?.sends_iss => Ok(()),
            None => Err(LoginError::ForeignCallback("missing")),
        }
    }

    /// Checks what came back with the code, before the code is spent.
    ///
    /// # Errors
    /// What does not vouch for this login, or that the server's keys can't be had now.
    pub async fn verify(
        &self,
        login: &BrowserLogin,
        pending: &Pending,
        code: &Code,
    ) -> Result<Verified, LoginError> {
        let mut remarks = Vec::new();
        let Some(id_token) = &code.id_token else {
            return match login.response_type {
                ResponseType::Hybrid => Err(IdTokenError::Missing.into()),
                ResponseType::Code => Ok(Verified { claims: None, remarks }),
            };
        };
        let jwks_url = self.jwks_url().await?;
        let (expected, now) = (self.expected(pending, code), self.clock.now());
        let mut keys = self.keys.fetch(&self.http, jwks_url.as_ref(), id_token, now).await?;
        let mut checked = id_token::check(id_token, keys.as_deref().map(Vec::as_slice), expected, now);
        if matches!(checked, Err(IdTokenError::Signature)) && self.keys.forget_older(now) {
            keys = self.keys.fetch(&self.http, jwks_url.as_ref(), id_token, now).await?;
            checked = id_token::check(id_token, keys.as_deref().map(Vec::as_slice), expected, now);
        }
        if keys.is_none() {
            remarks.push(
                "the authorization server publishes no keys: the id_token's signature was not checked"
                    .to_owned(),
            );
        }
        Ok(Verified { claims: Some(checked?), remarks })
    }

    /// Spends the code, once, and checks what came back with the tokens.
    ///
    /// # Errors
    /// [`LoginError`]; the code is burnt then.
    pub async fn log_in(
        &self,
        login: &BrowserLogin,
        pending: &Pending,
        code: &Code,
        verified: Verified,
    ) -> Result<LoggedIn, LoginError> {
        let Verified { claims: front, mut remarks } = verified;
        let granted = match self.exchange(login, pending, code).await {
            Err(GrantError::NotGranted { successor: Some(successor), reason, .. }) => {
                self.discard(Some(&successor)).await;
                return Err(GrantError::NotGranted { reason, retry_after: None, successor: None }.into());
            }
            exchanged => exchanged?,
        };
        match &granted.claims {
            Some(claims) => {
                let expected = self.expected(pending, code);
                if let Err(error) = id_token::check_later(claims, front.as_ref(), expected, self.clock.now())
                {
                    self.discard(granted.refresh_token.as_ref()).await;
                    return Err(LoginError::Answer(error));
                }
                remarks.extend(
                    front.as_ref().filter(|front| front.iss != claims.iss).map(|_| OTHER_ISSUER.to_owned()),
                );
            }
            None if front.is_some() => remarks.push(ONE_ID_TOKEN.to_owned()),
            None => remarks.push(NO_ID_TOKEN.to_owned()),
        }
        if granted.refresh_token.is_none() {
            remarks.push(
                "the authorization server gave no refresh token (is offline_access in the scope?): this login \
                 ends with its access token, and then a person has to log in again"
                    .to_owned(),
            );
        }
        let claims = granted.claims.clone().or(front);
        Ok(LoggedIn { granted: Granted { claims, ..granted }, remarks })
    }

    /// Presents a refresh token (RFC 6749, section 6) of a login of this `subject`. It may be used up afterwards,
    /// whatever the outcome.
    ///
    /// # Errors
    /// [`GrantError`] says what that means for the token presented.
    pub async fn refresh(
        &self,
        refresh_token: &SecretString,
        subject: Option<&str>,
    ) -> Result<Granted, GrantError> {
        let form = vec![
            ("grant_type", "refresh_token".to_owned()),
            ("refresh_token", refresh_token.expose_secret().to_owned()),
        ];
        let granted = self.ask(form, &[refresh_token]).await?;
        let client_id = &self.client.client_id;
        match granted.claims.as_ref().map(|claims| id_token::check_renewed(claims, client_id, subject)) {
            // Nothing of it is this login's, and its refresh token is not either.
            Some(Err(error)) => {
                let reason = format!("{error}, in the answer to a refresh");
                Err(GrantError::NotGranted { reason, retry_after: None, successor: None })
            }
            _ => Ok(granted),
        }
    }

    /// The application's own token (RFC 6749, section 4.4).
    ///
    /// # Errors
    /// As [`Self::refresh`], without a token that could be lost.
    pub async fn client_credentials(&self) -> Result<Granted, GrantError> {
        let mut form = vec![("grant_type", "client_credentials".to_owned())];
        form.extend(self.client.scope.clone().map(|scope| ("scope", scope)));
        self.look_again().await.map_err(GrantError::unsent)?;
        self.ask(form, &[]).await.map_err(|error| match error {
            // Nothing was presented that could be dead.
            GrantError::Refused { description } => {
                GrantError::Misconfigured { code: "invalid_grant".to_owned(), description }
            }
            error => error,
        })
    }

    /// Makes a token worthless at the server (RFC 7009).
    ///
    /// # Errors
    /// When the server did not confirm it.
    pub async fn revoke(&self, token: &SecretString, hint: &str) -> Result<(), GrantError> {
        let address = &self.client.endpoints.revocation;
        let url = self
            .address(address, |metadata| &metadata.revocation_endpoint)
            .await
            .map_err(GrantError::unsent)?;
        let Some(url) = url else {
            return Err(GrantError::unsent("no revocation_url is configured"));
        };
        let form = vec![("token", token.expose_secret().to_owned()), ("token_type_hint", hint.to_owned())];
        let answer = self.post(&url, form).await?;
        answer::read_revocation(answer).await.map_err(|error| self.without_secrets(error, &[token]))
    }

    /// How many keys of a known kind the authorization server publishes. None when it publishes nothing.
    ///
    /// # Errors
    /// When it can't be asked, or answers something else.
    pub async fn published_keys(&self) -> Result<Option<usize>, LoginError> {
        let Some(url) = self.jwks_url().await? else { return Ok(None) };
        keys::count(&self.http, &url).await
    }

    /// Where the token endpoint is, by the configuration or by the issuer's word.
    ///
    /// # Errors
    /// When the issuer does not say.
    pub async fn token_url(&self) -> Result<Url, String> {
        self.needed(&self.client.endpoints.token, "token_endpoint", |metadata| &metadata.token_endpoint).await
    }

    /// Asks who logged in: the userinfo endpoint that was discovered, and the API when that does not say. None when
    /// nobody says.
    pub async fn person(&self, identity: &Identity, granted: &Granted) -> Option<Person> {
        if identity.userinfo_first
            && let Some(person) = self.userinfo(granted).await
        {
            return Some(person);
        }
        let url = identity.url.as_ref()?;
        answer::read_person(self.ask_as(&granted.access_token, url).await?).await
    }

    async fn userinfo(&self, granted: &Granted) -> Option<Person> {
        let metadata = self.metadata(false).await.ok()?;
        let answer = self.ask_as(&granted.access_token, metadata.userinfo_endpoint.as_ref()?).await?;
        let subject = granted.claims.as_ref().map(|claims| claims.sub.as_str());
        discovery::person(&body::json(answer).await.ok()?.0, subject)
    }

    async fn ask_as(&self, access_token: &SecretString, url: &Url) -> Option<reqwest::Response> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", access_token.expose_secret())).ok()?;
        bearer.set_sensitive(true);
        let request = self
            .http
            .get(url.clone())
            .timeout(IDENTITY_TIMEOUT)
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/json");
        request.send().await.ok().filter(|answer| answer.status().is_success())
    }

    /// What an `id_token` of this login has to be for.
    fn expected<'a>(&'a self, pending: &'a Pending, code: &'a Code) -> Expected<'a> {
        Expected {
            client_id: &self.client.client_id,
            issuer: self.client.issuer.as_deref(),
            nonce: &pending.nonce,
            code: &code.code,
        }
    }

    /// What begins anew looks whether the endpoints are still where they were.
    async fn look_again(&self) -> Result<(), String> {
        if self.client.endpoints.are_discovered() {
            self.metadata(true).await?;
        }
        Ok(())
    }

    async fn metadata(&self, is_new_login: bool) -> Result<Arc<Metadata>, String> {
        let issuer = self.client.issuer.as_deref().unwrap_or_default();
        self.discovery.metadata(&self.http, issuer, is_new_login, self.clock.now()).await
    }

    /// Where an endpoint is; none when there is none.
    async fn address(
        &self,
        address: &Address,
        member: fn(&Metadata) -> &Option<Url>,
    ) -> Result<Option<Url>, String> {
        match address {
            Address::At(url) => Ok(Some(url.clone())),
            Address::Discovered => Ok(member(&*self.metadata(false).await?).clone()),
            Address::None => Ok(None),
        }
    }

    /// Where an endpoint is that there has to be.
    async fn needed(
        &self,
        address: &Address,
        name: &str,
        member: fn(&Metadata) -> &Option<Url>,
    ) -> Result<Url, String> {
        let url = self.address(address, member).await?;
        url.ok_or_else(|| format!("the discovery document of the configured issuer has no {name}"))
    }

    /// Where the keys are; none when the configuration says that there are none.
    async fn jwks_url(&self) -> Result<Option<Url>, LoginError> {
        match &self.client.endpoints.jwks {
            Address::None => Ok(None),
            address => {
                let url = self.needed(address, "jwks_uri", |metadata| &metadata.jwks_uri).await;
                url.map(Some).map_err(LoginError::Keys)
            }
        }
    }

    /// Tokens that will not be used are made worthless; what the server says to it changes nothing.
    async fn discard(&self, refresh_token: Option<&SecretString>) {
        if let Some(refresh_token) = refresh_token {
            let _revoked = self.revoke(refresh_token, "refresh_token").await;
        }
    }

    /// Never twice: to a server that has seen the code, the second time is a theft (RFC 6749, section 4.1.2).
    async fn exchange(
        &self,
        login: &BrowserLogin,
        pending: &Pending,
        code: &Code,
    ) -> Result<Granted, GrantError> {
        let mut form = vec![
            ("grant_type", "authorization_code".to_owned()),
            ("code", code.code.expose_secret().to_owned()),
            ("redirect_uri", login.redirect_uri.text.clone()),
        ];
        if login.pkce {
            form.push(("code_verifier", pending.code_verifier.expose_secret().to_owned()));
        }
        self.ask(form, &[&code.code, &pending.code_verifier]).await
    }

    async fn ask(&self, form: Form, secrets: &[&SecretString]) -> Result<Granted, GrantError> {
        let url = self.token_url().await.map_err(GrantError::unsent)?;
        let answer = self.post(&url, form).await?;
        answer::read_grant(answer, &self.clock).await.map_err(|error| self.without_secrets(error, secrets))
    }

    /// Some servers repeat in their descriptions what was presented to them.
    fn without_secrets(&self, mut error: GrantError, presented: &[&SecretString]) -> GrantError {
        let secrets = presented.iter().copied().chain([&self.secret.value]);
        let secrets = secrets.map(ExposeSecret::expose_secret).filter(|secret| !secret.is_empty());
        let (GrantError::Refused { description: words }
        | GrantError::Misconfigured { description: words, .. }
        | GrantError::NotGranted { reason: words, .. }
        | GrantError::Unavailable { reason: words, .. }
        | GrantError::InDoubt { reason: words, .. }) = &mut error;
        for secret in secrets {
            *words = words.replace(secret, "[...]");
        }
        error
    }

    async fn post(&self, url: &Url, form: Form) -> Result<reqwest::Response, GrantError> {
        let request = self.authenticated(url, form).build().map_err(|error| answer::not_answered(&error))?;
        (self.transport)(request).await
    }

    /// A form post that carries the client's authentication one way, never both (RFC 6749, section 2.3.1).
    fn authenticated(&self, url: &Url, form: Form) -> reqwest::RequestBuilder {
        let client_id = &self.client.client_id;
        let secret = self.secret.value.expose_secret();
        // Room for all of it, however it is encoded: what grows leaves copies behind.
        let values: usize = form.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        let room = 3 * (values + client_id.len() + secret.len() + 32);
        let mut body = form_urlencoded::Serializer::new(String::with_capacity(room));
        let mut request = self.http.post(url.clone()).header(ACCEPT, "application/json");
        match self.client.client_auth {
            ClientAuth::Body => {
                body.append_pair("client_id", client_id).append_pair("client_secret", secret);
            }
            ClientAuth::Basic => request = request.header(AUTHORIZATION, basic(client_id, secret)),
            ClientAuth::None => drop(body.append_pair("client_id", client_id)),
        }
        for (name, value) in form {
            body.append_pair(name, &Zeroizing::new(value));
        }
        let body = Bytes::from_owner(Zeroizing::new(body.finish().into_bytes()));
        request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    }
}

impl Pending {
    /// A login with these values, each of 128 random bits or more.
    pub const fn new(state: String, nonce: String, code_verifier: SecretString, started: Moment) -> Self {
        Self { state, nonce, code_verifier, started }
    }
}

impl LoginError {
    /// True when the code did not reach the server, and is still good.
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::Exchange(GrantError::Unavailable { was_sent: false, .. }))
    }
}

/// `bytes` random bytes in base64url: 24 are 192 bits.
pub fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    SystemRandom::new().fill(&mut buffer).expect("the operating system has random numbers");
    URL_SAFE_NO_PAD.encode(buffer)
}

fn over_http(http: reqwest::Client) -> Transport {
    Box::new(move |request| {
        let sent = http.execute(request);
        Box::pin(async { sent.await.map_err(|error| answer::not_answered(&error)) })
    })
}

/// Tunnels for https:// URLs. What is http:// is of this machine, which a proxy elsewhere does not reach, and would be
/// sent through it in clear.
fn tunnels(proxy: &HttpProxy) -> reqwest::Proxy {
    let tunnels = reqwest::Proxy::https(proxy.server.origin()).expect("its address was parsed");
    match proxy.authorization() {
        Some(authorization) => tunnels.custom_http_auth(authorization),
        None => tunnels,
    }
}

fn basic(client_id: &str, secret: &str) -> HeaderValue {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", encode(client_id), encode(secret)));
    config::basic(&pair)
}
