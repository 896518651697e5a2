//! What the routes of a stand-in share, and what a test can set.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::api::Scripted;
use super::authorize::{AuthorizeRequest, NOBODY, Person};
use super::certificates::TlsDefect;
use super::cnblogs::Content;
use super::fault::{Endpoint, Fault};
use super::grants::{Granted, Grants, Presented, Rotation, Terms};
use super::id_token::{KeyName, Keys};
use super::request::{RecordedRequest, lock};

/// How a stand-in starts.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where both listeners are; loopback by default.
    pub(crate) address: IpAddr,
    pub(crate) client_id: String,
    /// The default has characters that a form and Basic must encode; empty: a public client.
    pub(crate) client_secret: String,
    /// Registered beside `https://oauth.cnblogs.com/auth/callback` and the stand-in's own `/auth/callback`.
    pub(crate) redirect_uris: Vec<String>,
    /// What may be asked for, separated by spaces.
    pub(crate) scopes: String,
    /// `iss`; the authorization server's address when none.
    pub(crate) issuer: Option<String>,
    /// Whether people have subjects of their own; Cnblogs has one for all.
    pub(crate) own_subjects: bool,
    /// Whether callbacks name their issuer (RFC 9207).
    pub(crate) sends_iss: bool,
    pub(crate) pkce: Pkce,
    /// Of access tokens.
    pub(crate) expires_in_secs: u64,
    pub(crate) rotation: Rotation,
    /// When a login ends, whatever is refreshed.
    pub(crate) login_life: Option<Duration>,
    /// Of authorization codes.
    pub(crate) code_life: Duration,
    /// Personal access tokens that are good.
    pub(crate) personal_access_tokens: Vec<(String, Person)>,
    /// https on both listeners.
    pub(crate) tls: bool,
    pub(crate) auth_tls_defect: Option<TlsDefect>,
    pub(crate) api_tls_defect: Option<TlsDefect>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            client_id: "BDB525D7-13C9-440E-AF03-6ADF87ACC8D6".to_owned(),
            client_secret: "fcppsSlXNq+toWMn/QMKYduT=49E5&I6rAaxf%41XAHotTQ:jibX".to_owned(),
            redirect_uris: Vec::new(),
            scopes: "openid profile CnBlogsApi offline_access".to_owned(),
            issuer: None,
            own_subjects: false,
            sends_iss: false,
            pkce: Pkce::Taken,
            expires_in_secs: 86400,
            rotation: Rotation::OneTime,
            login_life: None,
            code_life: Duration::from_secs(600),
            personal_access_tokens: Vec::new(),
            tls: false,
            auth_tls_defect: None,
            api_tls_defect: None,
        }
    }
}

/// What becomes of a `code_challenge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pkce {
    /// Held to when it comes, and always when the client is public.
    Taken,
    /// An error.
    Refused,
}

/// How `expires_in` is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ExpiresIn {
    #[default]
    Number,
    Text,
    Absent,
}

/// What the key set has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeySet {
    /// The signing key, and the earlier one after a rotation.
    #[default]
    Right,
    /// Another key under the right `kid`.
    OtherKey,
    /// No key.
    Empty,
}

/// What came to the token endpoint.
#[derive(Clone, Debug)]
pub(crate) struct TokenRequest {
    pub(crate) at: Instant,
    /// Empty when none came.
    pub(crate) grant_type: String,
    pub(crate) form: Vec<(String, String)>,
    /// The value of the field, when it came.
    pub(crate) authorization: Option<String>,
    /// What the refresh token was.
    pub(crate) presented: Presented,
    /// What was decided; none when it was dropped before that.
    pub(crate) status: Option<u16>,
    /// The `error` of the answer.
    pub(crate) error: Option<String>,
    /// Whether the answer has left to its last byte.
    pub(crate) delivered: bool,
}

impl TokenRequest {
    /// The value of a form field.
    pub(crate) fn form_field(&self, name: &str) -> Option<&str> {
        self.form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What came to the revocation endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Revocation {
    pub(crate) at: Instant,
    pub(crate) form: Vec<(String, String)>,
    pub(crate) authorization: Option<String>,
    pub(crate) status: u16,
}

pub(crate) struct Shared {
    pub(crate) options: Options,
    /// Without a slash at the end.
    pub(crate) auth_url: String,
    pub(crate) keys: Keys,
    pub(crate) authorization: Mutex<Authorization>,
    pub(crate) api: Mutex<Api>,
}

pub(crate) struct Authorization {
    pub(crate) grants: Grants,
    pub(crate) terms: Terms,
    pub(crate) expires_in: ExpiresIn,
    pub(crate) leave_out_scope: bool,
    pub(crate) signing_key: KeyName,
    pub(crate) key_set: KeySet,
    pub(crate) redirect_uris: Vec<String>,
    pub(crate) unavailable: bool,
    pub(crate) faults: HashMap<Endpoint, VecDeque<Fault>>,
    pub(crate) standing_faults: HashMap<Endpoint, Box<dyn Fn() -> Fault + Send>>,
    pub(crate) token_requests: Vec<TokenRequest>,
    pub(crate) authorize_requests: Vec<AuthorizeRequest>,
    pub(crate) revocations: Vec<Revocation>,
}

/// Looks at a request and may decide what it gets.
pub(crate) type Hook = Arc<dyn Fn(&RecordedRequest) -> Option<Scripted> + Send + Sync>;

#[derive(Default)]
pub(crate) struct Api {
    pub(crate) hook: Option<Hook>,
    /// How many requests are still answered with 401, whatever their token.
    pub(crate) refusals: usize,
    pub(crate) empty_errors: bool,
    pub(crate) content: Content,
}

impl Shared {
    pub(crate) fn new(options: Options, auth_url: String) -> Self {
        let mut redirect_uris =
            vec!["https://oauth.cnblogs.com/auth/callback".to_owned(), format!("{auth_url}/auth/callback")];
        redirect_uris.extend_from_slice(&options.redirect_uris);
        let terms = Terms {
            rotation: options.rotation,
            access_life: Duration::from_secs(options.expires_in_secs),
            login_life: options.login_life,
            code_life: options.code_life,
            leave_out_refresh_token: false,
        };
        let authorization = Authorization {
            grants: Grants::default(),
            terms,
            expires_in: ExpiresIn::default(),
            leave_out_scope: false,
            signing_key: KeyName::First,
            key_set: KeySet::default(),
            redirect_uris,
            unavailable: false,
            faults: HashMap::new(),
            standing_faults: HashMap::new(),
            token_requests: Vec::new(),
            authorize_requests: Vec::new(),
            revocations: Vec::new(),
        };
        let authorization = Mutex::new(authorization);
        Self { options, auth_url, keys: Keys::load(), authorization, api: Mutex::new(Api::default()) }
    }

    /// Who it is in `id_token`s and at the userinfo endpoint.
    pub(crate) fn subject(&self, person: Person) -> &'static str {
        if self.options.own_subjects { person.user_id() } else { NOBODY }
    }

    pub(crate) fn issuer(&self) -> &str {
        self.options.issuer.as_deref().unwrap_or(&self.auth_url)
    }

    /// The fault that meets the next request at this endpoint.
    pub(crate) fn next_fault(&self, endpoint: Endpoint) -> Option<Fault> {
        let mut authorization = lock(&self.authorization);
        let queued = authorization.faults.get_mut(&endpoint).and_then(VecDeque::pop_front);
        queued.or_else(|| authorization.standing_faults.get(&endpoint).map(|fault| fault()))
    }

    /// An answer of the token endpoint has left.
    pub(crate) fn delivered(&self, index: usize, granted: Option<&Granted>) {
        let mut authorization = lock(&self.authorization);
        if let Some(request) = authorization.token_requests.get_mut(index) {
            request.delivered = true;
        }
        if let Some(superseded) = granted.and_then(|granted| granted.supersedes.as_deref()) {
            authorization.grants.delivered(superseded);
        }
    }
}
