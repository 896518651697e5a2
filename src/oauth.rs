//! The authorization server's client: the authorization URL, exchange, refresh, client credentials, revoke.
//! It keeps nothing but the server's public keys.
//!
//! A grant fails in one of three ways, and the keeper acts on which: **refused** for good, **unavailable** for
//! now, or **in doubt**, when it was sent and the answer is not known.

pub mod callback;
pub mod id_token;
mod answer;
mod keys;
#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzz/properties/oauth.rs"]
pub mod properties;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::config::{Account, ClientAuth, ResponseMode, ResponseType};
use crate::tls;
use crate::token::{Moment, now};
use callback::Code;
use id_token::{Claims, IdTokenError};
use keys::Keys;

/// To connect to the authorization server, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Who it is, is nice to know: a login does not wait long for it.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the token endpoint granted (RFC 6749, section 5.1).
#[derive(Debug)]
pub struct Granted {
    /// The access token, of RFC 6750 characters.
    pub access_token: SecretString,
    /// How long it lasts from `received`.
    pub expires_in: Duration,
    /// When the answer was complete.
    pub received: Moment,
    /// None when the server sent none: the one that was presented stays good.
    pub refresh_token: Option<SecretString>,
    /// The claims of the `id_token`, when there is one.
    pub claims: Option<Claims>,
}

/// Why a grant failed, and what that says about the token that was presented.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GrantError {
    /// The server's OAuth error: the token presented is good for nothing any more (`invalid_grant`), or a
    /// person has to change the configuration (anything else).
    #[error("the authorization server refused: {code}{description}")]
    Refused {
        /// The `error` of RFC 6749, section 5.2.
        code: String,
        /// Its description, with a separator in front, or nothing.
        description: String,
    },
    /// For now: the server is down, busy or hidden behind something that is not it.
    #[error("{reason}")]
    Unavailable {
        /// What happened.
        reason: String,
        /// False when nothing can have reached the server.
        was_sent: bool,
        /// What the server asked for in `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Granted, with an access token or a lifetime that can't be used.
    #[error("{reason}")]
    Unusable {
        /// What is wrong with it.
        reason: String,
        /// The refresh token that replaces the one presented, if the answer had one.
        successor: Option<SecretString>,
    },
    /// Sent, and the answer was lost: the token presented may have been rotated.
    #[error("{reason}")]
    InDoubt {
        /// What happened.
        reason: String,
    },
}

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
    /// The server's keys can't be had now. The code was not sent.
    #[error("the authorization server's keys can't be fetched, so the id_token can't be checked: {0}")]
    Keys(String),
    /// The token endpoint said no, or its answer was lost. The code was sent, and is burnt.
    #[error(transparent)]
    Exchange(#[from] GrantError),
}

/// Who the API says that an access token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Tells people apart.
    pub id: String,
    /// What the person is called.
    pub name: String,
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

/// The client of one account's authorization server.
#[derive(Debug)]
pub struct Oauth {
    account: Account,
    timeout: Duration,
    http: reqwest::Client,
    keys: Keys,
    #[cfg(test)]
    simulated: Option<simulated::Network>,
}

impl Oauth {
    /// Builds the client: no redirects, no proxy from the environment, a new connection for every request, so
    /// that a dead one never leaves a grant in doubt. A request takes `timeout` at most.
    ///
    /// # Errors
    /// When the TLS set-up is not usable.
    pub fn new(account: Account, timeout: Duration) -> Result<Self, tls::TlsError> {
        let extra = account.ca.as_ref().map(|ca| ca.certificates.as_slice()).unwrap_or_default();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client(extra, &[])?)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .user_agent(concat!("cnblogs-proxy/", env!("CARGO_PKG_VERSION")))
            .build()
            .expect("constants make a valid client");
        Ok(Self {
            account,
            timeout,
            http,
            keys: Keys::default(),
            #[cfg(test)]
            simulated: None,
        })
    }

    /// The same client with re-read secrets and certificates.
    ///
    /// # Errors
    /// When the TLS set-up is not usable.
    pub fn reconfigured(&self, account: Account) -> Result<Self, tls::TlsError> {
        Self::new(account, self.timeout)
    }

    /// The account that this client acts for.
    pub const fn account(&self) -> &Account {
        &self.account
    }

    /// The address that the person's browser is sent to (OpenID Connect Core, section 3.3.2.1).
    pub fn authorization_url(&self, pending: &Pending) -> Url {
        let account = &self.account;
        let challenge = URL_SAFE_NO_PAD.encode(ring::digest::digest(
            &ring::digest::SHA256,
            pending.code_verifier.expose_secret().as_bytes(),
        ));
        let mut url = account.authorization_url.clone();
        let response_type = match account.response_type {
            ResponseType::Hybrid => "code id_token",
            ResponseType::Code => "code",
        };
        url.query_pairs_mut()
            .append_pair("client_id", &account.client_id)
            .append_pair("scope", account.scope.as_deref().unwrap_or_default())
            .append_pair("response_type", response_type)
            .append_pair("redirect_uri", account.redirect_uri.as_str())
            .append_pair("state", &pending.state)
            .append_pair("nonce", &pending.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        let mode = match account.response_mode {
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
        url
    }

    /// Checks what came back with the code, before the code is spent.
    ///
    /// # Errors
    /// What does not vouch for this login, or that the server's keys can't be had now.
    pub async fn verify(&self, pending: &Pending, code: &Code) -> Result<Verified, LoginError> {
        let mut remarks = Vec::new();
        let Some(id_token) = &code.id_token else {
            return match self.account.response_type {
                ResponseType::Hybrid => Err(IdTokenError::Missing.into()),
                ResponseType::Code => Ok(Verified { claims: None, remarks }),
            };
        };
        let keys = self.keys.fetch(&self.http, self.account.jwks_url.as_ref(), id_token).await?;
        if keys.is_none() {
            remarks.push(
                "the authorization server publishes no keys: the id_token's signature was not checked"
                    .to_owned(),
            );
        }
        let keys = keys.as_ref().map(|keys| keys.as_slice());
        let claims = id_token::check(id_token, keys, code, pending, &self.account, now())?;
        Ok(Verified { claims: Some(claims), remarks })
    }

    /// Spends the code, once, and checks what came back with the tokens.
    ///
    /// # Errors
    /// [`LoginError`]; the code is burnt then.
    pub async fn log_in(
        &self,
        pending: &Pending,
        code: &Code,
        verified: Verified,
    ) -> Result<LoggedIn, LoginError> {
        let Verified { claims: front, mut remarks } = verified;
        let granted = match self.exchange(pending, code).await {
            Err(GrantError::Unusable { reason, successor }) => {
                self.discard(successor.as_ref()).await;
                return Err(GrantError::Unusable { reason, successor: None }.into());
            }
            exchanged => exchanged?,
        };
        if let Some(claims) = &granted.claims {
            let same = match &front {
                Some(front) => id_token::same_login(front, claims, &self.account),
                None => id_token::check_claims(claims, Some(&pending.nonce), &self.account, now()),
            };
            if let Err(error) = same {
                self.discard(granted.refresh_token.as_ref()).await;
                return Err(error.into());
            }
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

    /// Presents a refresh token (RFC 6749, section 6). It may be used up afterwards, whatever the outcome.
    ///
    /// # Errors
    /// [`GrantError`] says what that means for the token presented.
    pub async fn refresh(&self, refresh_token: &SecretString) -> Result<Granted, GrantError> {
        let form = vec![
            ("grant_type", "refresh_token".to_owned()),
            ("refresh_token", refresh_token.expose_secret().to_owned()),
        ];
        self.ask(form).await
    }

    /// The application's own token (RFC 6749, section 4.4).
    ///
    /// # Errors
    /// As [`Self::refresh`], without a token that could be lost.
    pub async fn client_credentials(&self) -> Result<Granted, GrantError> {
        let mut form = vec![("grant_type", "client_credentials".to_owned())];
        form.extend(self.account.scope.clone().map(|scope| ("scope", scope)));
        self.ask(form).await
    }

    /// Makes a token worthless at the server (RFC 7009).
    ///
    /// # Errors
    /// When the server did not confirm it.
    pub async fn revoke(&self, token: &SecretString, hint: &str) -> Result<(), GrantError> {
        let Some(url) = &self.account.revocation_url else {
            return Err(unsent("no revocation_url is configured".to_owned()));
        };
        let form = vec![("token", token.expose_secret().to_owned()), ("token_type_hint", hint.to_owned())];
        answer::read_revocation(self.post(url, form).await?).await
    }

    /// How many keys of a known kind the authorization server publishes. None when it publishes nothing.
    ///
    /// # Errors
    /// When it can't be asked, or answers something else.
    pub async fn published_keys(&self) -> Result<Option<usize>, LoginError> {
        let Some(url) = &self.account.jwks_url else { return Ok(None) };
        keys::count(&self.http, url).await
    }

    /// Asks the API who logged in. None when it does not say.
    pub async fn identity(&self, access_token: &SecretString) -> Option<Identity> {
        let url = self.account.identity_url.as_ref()?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", access_token.expose_secret())).ok()?;
        bearer.set_sensitive(true);
        let request = self
            .http
            .get(url.clone())
            .timeout(IDENTITY_TIMEOUT)
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/json");
        let answer = request.send().await.ok()?;
        answer::read_person(answer).await
    }

    /// Tokens that will not be used are made worthless; what the server says to it changes nothing.
    async fn discard(&self, refresh_token: Option<&SecretString>) {
        if let Some(refresh_token) = refresh_token {
            let _revoked = self.revoke(refresh_token, "refresh_token").await;
        }
    }

    async fn exchange(&self, pending: &Pending, code: &Code) -> Result<Granted, GrantError> {
        let form = vec![
            ("grant_type", "authorization_code".to_owned()),
            ("code", code.code.expose_secret().to_owned()),
            ("redirect_uri", self.account.redirect_uri.to_string()),
            ("code_verifier", pending.code_verifier.expose_secret().to_owned()),
        ];
        self.ask(form).await
    }

    async fn ask(&self, form: Form) -> Result<Granted, GrantError> {
        answer::read_grant(self.post(&self.account.token_url, form).await?).await
    }

    async fn post(&self, url: &Url, form: Form) -> Result<reqwest::Response, GrantError> {
        #[cfg(test)]
        if let Some(network) = &self.simulated {
            return network.post(form).await;
        }
        self.authenticated(url, form).send().await.map_err(|error| answer::not_answered(&error))
    }

    /// A form post that carries the client's authentication one way, never both (RFC 6749, section 2.3.1).
    fn authenticated(&self, url: &Url, form: Form) -> reqwest::RequestBuilder {
        let account = &self.account;
        let secret = account.secret.value.expose_secret();
        // Room for all of it, however it is encoded: what grows leaves copies behind.
        let values: usize = form.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        let room = 3 * (values + account.client_id.len() + secret.len() + 32);
        let mut body = form_urlencoded::Serializer::new(String::with_capacity(room));
        let mut request = self.http.post(url.clone()).header(ACCEPT, "application/json");
        match account.client_auth {
            ClientAuth::Body => {
                body.append_pair("client_id", &account.client_id).append_pair("client_secret", secret);
            }
            ClientAuth::Basic => request = request.header(AUTHORIZATION, basic(&account.client_id, secret)),
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

impl GrantError {
    /// True when the token that was presented must never be presented again.
    pub fn is_final(&self) -> bool {
        const OF_THE_CLIENT: [&str; 5] = [
            "invalid_client",
            "unauthorized_client",
            "unsupported_grant_type",
            "invalid_scope",
            "invalid_request",
        ];
        matches!(self, Self::Refused { code, .. } if !OF_THE_CLIENT.contains(&code.as_str()))
    }
}

/// `bytes` random bytes in base64url: 24 are 192 bits.
pub fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    SystemRandom::new().fill(&mut buffer).expect("the operating system has random numbers");
    URL_SAFE_NO_PAD.encode(buffer)
}

fn unsent(reason: String) -> GrantError {
    GrantError::Unavailable { reason, was_sent: false, retry_after: None }
}

fn basic(client_id: &str, secret: &str) -> HeaderValue {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", encode(client_id), encode(secret)));
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair.as_bytes())))
        .expect("base64 is a valid field value");
    value.set_sensitive(true);
    value
}

/// A network that is not there, for histories in simulated time.
#[cfg(test)]
pub(crate) mod simulated {
    use std::fmt;
    use std::pin::Pin;
    use std::sync::{Arc, OnceLock};

    use super::{Account, Form, GrantError, Keys, Oauth};

    /// How long an answer is waited for.
    pub(crate) const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

    /// What comes back for a form: an answer as it was received, or how it was lost.
    pub(crate) type Answered = Pin<Box<dyn Future<Output = Result<reqwest::Response, GrantError>> + Send>>;

    /// Carries forms to a simulated server.
    #[derive(Clone)]
    pub(crate) struct Network(pub(crate) Arc<dyn Fn(Form) -> Answered + Send + Sync>);

    impl Network {
        pub(super) async fn post(&self, form: Form) -> Result<reqwest::Response, GrantError> {
            (self.0)(form).await
        }
    }

    impl fmt::Debug for Network {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Network")
        }
    }

    /// A client whose forms go there.
    pub(crate) fn client(account: Account, network: Network) -> Oauth {
        static HTTP: OnceLock<reqwest::Client> = OnceLock::new();
        let http = HTTP.get_or_init(|| Oauth::new(account.clone(), TIMEOUT).unwrap().http).clone();
        Oauth { account, timeout: TIMEOUT, http, keys: Keys::default(), simulated: Some(network) }
    }
}
