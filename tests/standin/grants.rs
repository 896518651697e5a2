//! What the authorization server has given out. No input or output: the moment comes in as an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};

use super::authorize::{Asked, Person};
use super::id_token::base64url;
use super::wire::hex;

/// What becomes of a refresh token that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// It is deleted before its successor is sent; using it again is `invalid_grant` and harms nothing else. As Cnblogs
    /// does.
    OneTime,
    /// It can be used again for so long after its first use.
    Grace(Duration),
    /// It stays, and the same one is sent again.
    Same,
    /// It stays, and none is sent.
    Silent,
    /// Using it again also ends all that came of the same login.
    RevokeFamily,
}

/// What a refresh token was when it was presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presented {
    /// No refresh token came, or none was looked at yet.
    None,
    /// Good.
    Current,
    /// Superseded, and the successor had been sent.
    Superseded,
    /// Superseded, but the successor never left the server.
    SupersededUndelivered,
    /// Never issued, revoked, forgotten, or of a login that ended.
    Unknown,
}

/// An error of RFC 6749, section 5.2.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) error: &'static str,
    pub(crate) description: &'static str,
}

/// How grants are made at the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) rotation: Rotation,
    pub(crate) access_life: Duration,
    pub(crate) login_life: Option<Duration>,
    pub(crate) code_life: Duration,
    pub(crate) leave_out_refresh_token: bool,
}

/// What the token endpoint gives.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    pub(crate) access_token: String,
    pub(crate) refresh_token: Option<String>,
    pub(crate) scope: String,
    pub(crate) person: Option<Person>,
    pub(crate) nonce: Option<String>,
    /// The refresh token that this replaced.
    pub(crate) supersedes: Option<String>,
}

/// Whom an access token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bearer {
    /// A person who logged in.
    User(Person),
    /// Nobody: `client_credentials`.
    Application,
}

#[derive(Debug, Default)]
pub(crate) struct Grants {
    codes: HashMap<String, Code>,
    access: HashMap<String, Access>,
    refresh: HashMap<String, Refresh>,
    secrets: Vec<String>,
    superseded_presentations: usize,
    logins: usize,
}

#[derive(Debug)]
struct Code {
    person: Person,
    asked: Asked,
    expires_at: Instant,
}

#[derive(Debug)]
struct Access {
    bearer: Bearer,
    login: usize,
    expires_at: Instant,
}

#[derive(Clone, Debug)]
struct Refresh {
    person: Person,
    scope: String,
    nonce: Option<String>,
    login: usize,
    login_at: Instant,
    superseded_at: Option<Instant>,
    delivered: bool,
}

impl Grants {
    /// An authorization code for what was asked.
    pub(crate) fn issue_code(&mut self, person: Person, asked: Asked, terms: &Terms, now: Instant) -> String {
        let code = self.keep(hex(&random_bytes()));
        self.codes.insert(code.clone(), Code { person, asked, expires_at: now + terms.code_life });
        code
    }

    /// Exchanges a code, which is spent whatever comes of it (RFC 6749, section 4.1.3; RFC 7636, section 4.6).
    pub(crate) fn exchange(
        &mut self,
        code: &str,
        redirect_uri: &str,
        verifier: Option<&str>,
        terms: &Terms,
        now: Instant,
    ) -> Result<Granted, Refusal> {
        let Some(Code { person, asked, expires_at }) = self.codes.remove(code) else {
            return Err(invalid_grant("unknown or used code"));
        };
        if now >= expires_at {
            return Err(invalid_grant("expired code"));
        }
        if asked.redirect_uri != redirect_uri {
            return Err(invalid_grant("another redirect_uri"));
        }
        match (&asked.challenge, verifier) {
            (None, None) => {}
            (None, Some(_)) => return Err(invalid_grant("a verifier without a challenge")),
            (Some(challenge), Some(verifier)) if verifies(verifier, challenge) => {}
            (Some(_), _) => return Err(invalid_grant("no verifier, or a wrong one")),
        }

        self.logins += 1;
        let login = Refresh {
            person,
            scope: asked.scope.clone(),
            nonce: asked.nonce,
            login: self.logins,
            login_at: now,
            superseded_at: None,
            delivered: false,
        };
        let offline = asked.scope.split(' ').any(|scope| scope == "offline_access");
        let offline = offline && !terms.leave_out_refresh_token;
        Ok(self.grant(&login, offline, None, terms, now))
    }

    /// What this refresh token is; counts presentations of superseded ones.
    pub(crate) fn present(&mut self, token: &str) -> Presented {
        let presented = match self.refresh.get(token) {
            None => Presented::Unknown,
            Some(Refresh { superseded_at: None, .. }) => Presented::Current,
            Some(Refresh { delivered: true, .. }) => Presented::Superseded,
            Some(_) => Presented::SupersededUndelivered,
        };
        if presented == Presented::Superseded {
            self.superseded_presentations += 1;
        }
        presented
    }

    /// Refreshes (RFC 6749, section 6).
    pub(crate) fn refresh(&mut self, token: &str, terms: &Terms, now: Instant) -> Result<Granted, Refusal> {
        let Some(login) = self.refresh.get(token).cloned() else {
            return Err(invalid_grant("unknown refresh token"));
        };
        if terms.login_life.is_some_and(|life| now >= login.login_at + life) {
            return Err(invalid_grant("the login has ended"));
        }
        if let Some(superseded_at) = login.superseded_at {
            match terms.rotation {
                Rotation::Grace(grace) if now < superseded_at + grace => {}
                Rotation::RevokeFamily => {
                    self.end_login(login.login);
                    return Err(invalid_grant("used again: the login is revoked"));
                }
                _ => return Err(invalid_grant("used refresh token")),
            }
        }
        let granted = match terms.rotation {
            Rotation::Same => {
                let granted = self.grant(&login, false, None, terms, now);
                Granted { refresh_token: Some(token.to_owned()), ..granted }
            }
            Rotation::Silent => self.grant(&login, false, None, terms, now),
            Rotation::OneTime | Rotation::Grace(_) | Rotation::RevokeFamily => {
                if let Some(used) = self.refresh.get_mut(token) {
                    used.superseded_at.get_or_insert(now);
                }
                self.grant(&login, true, Some(token), terms, now)
            }
        };
        Ok(granted)
    }

    /// The successor of this refresh token was sent.
    pub(crate) fn delivered(&mut self, superseded: &str) {
        if let Some(superseded) = self.refresh.get_mut(superseded) {
            superseded.delivered = true;
        }
    }

    /// An application token (RFC 6749, section 4.4).
    pub(crate) fn issue_application_token(&mut self, scope: String, terms: &Terms, now: Instant) -> Granted {
        let access_token = self.issue_access(Bearer::Application, 0, terms, now);
        Granted { access_token, refresh_token: None, scope, person: None, nonce: None, supersedes: None }
    }

    /// Whom the access token stands for; none when it is not, or no longer, good.
    pub(crate) fn bearer(&self, access_token: &str, now: Instant) -> Option<Bearer> {
        let access = self.access.get(access_token)?;
        (now < access.expires_at).then_some(access.bearer)
    }

    /// Revokes whichever token it is (RFC 7009); an unknown one is no error.
    pub(crate) fn revoke(&mut self, token: &str) {
        self.access.remove(token);
        if let Some(login) = self.refresh.get(token).map(|refresh| refresh.login) {
            self.end_login(login);
        }
    }

    pub(crate) fn expire_access_tokens(&mut self, now: Instant) {
        self.access.values_mut().for_each(|access| access.expires_at = now);
    }

    pub(crate) fn forget_refresh_tokens(&mut self) {
        self.refresh.clear();
    }

    pub(crate) fn superseded_presentations(&self) -> usize {
        self.superseded_presentations
    }

    /// Keeps a secret for the search of logs.
    pub(crate) fn keep(&mut self, secret: String) -> String {
        self.secrets.push(secret.clone());
        secret
    }

    pub(crate) fn secrets(&self) -> &[String] {
        &self.secrets
    }

    fn grant(
        &mut self,
        login: &Refresh,
        rotates: bool,
        supersedes: Option<&str>,
        terms: &Terms,
        now: Instant,
    ) -> Granted {
        let access_token = self.issue_access(Bearer::User(login.person), login.login, terms, now);
        let refresh_token = rotates.then(|| {
            let token = self.keep(random_token());
            let current = Refresh { superseded_at: None, delivered: false, ..login.clone() };
            self.refresh.insert(token.clone(), current);
            token
        });
        Granted {
            access_token,
            refresh_token,
            scope: login.scope.clone(),
            person: Some(login.person),
            nonce: login.nonce.clone(),
            supersedes: supersedes.map(str::to_owned),
        }
    }

    fn issue_access(&mut self, bearer: Bearer, login: usize, terms: &Terms, now: Instant) -> String {
        let token = self.keep(random_token());
        self.access.insert(token.clone(), Access { bearer, login, expires_at: now + terms.access_life });
        token
    }

    fn end_login(&mut self, login: usize) {
        self.refresh.retain(|_, refresh| refresh.login != login);
        self.access.retain(|_, access| access.login != login);
    }
}

/// 64 characters of base64url.
pub(crate) fn random_token() -> String {
    let [first, second] = [random_bytes(), random_bytes()];
    base64url([&first[..], &second[..16]].concat())
}

fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the system has randomness");
    bytes
}

fn verifies(verifier: &str, challenge: &str) -> bool {
    let unreserved = |char: char| char.is_ascii_alphanumeric() || "-._~".contains(char);
    (43..=128).contains(&verifier.len())
        && verifier.chars().all(unreserved)
        && base64url(digest::digest(&digest::SHA256, verifier.as_bytes())) == challenge
}

fn invalid_grant(description: &'static str) -> Refusal {
    Refusal { error: "invalid_grant", description }
}
