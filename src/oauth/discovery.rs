//! Where an issuer's endpoints are by its own word (OpenID Connect Discovery 1.0): fetched when it is first needed,
//! looked at again when a login starts, and kept in a file beside the login, so that a restart can refresh without it.
//!
//! | file | what |
//! |---|---|
//! | `discovery.ACCOUNT` | the document as it was fetched last: no secret; what can't be read there is fetched anew |

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::fs::OFlags;
use serde_json::{Map, Value};
use url::Url;

use super::{METADATA_TIMEOUT, body};
use crate::config::endpoint;
use crate::token::{Moment, Person};

const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// A login looks again at most this often.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// As much of the file is read.
const LARGEST: u64 = 64 * 1024;

/// What is used of an issuer's metadata (section 3).
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) authorization_endpoint: Option<Url>,
    pub(super) token_endpoint: Option<Url>,
    pub(super) revocation_endpoint: Option<Url>,
    pub(super) jwks_uri: Option<Url>,
    pub(super) userinfo_endpoint: Option<Url>,
    /// Every callback names its issuer (RFC 9207, section 3).
    pub(super) sends_iss: bool,
}

/// The metadata of one issuer, as it was seen last.
#[derive(Clone, Debug, Default)]
pub(super) struct Discovery {
    file: Option<PathBuf>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    metadata: Option<Arc<Metadata>>,
    /// When the issuer was last asked, whatever it answered.
    asked_at: Option<Moment>,
}

impl Metadata {
    /// Reads a document, which must be the issuer's own (section 4.3).
    fn read(members: &Map<String, Value>, issuer: &str) -> Result<Self, String> {
        if members.get("issuer").and_then(Value::as_str) != Some(issuer) {
            return Err("it is another issuer's: its `issuer` is not the configured one".to_owned());
        }
        let url = |name: &str| match members.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => {
                let url = endpoint(value.as_str().unwrap_or_default());
                url.map(Some).map_err(|message| format!("its {name}: {message}"))
            }
        };
        Ok(Self {
            authorization_endpoint: url("authorization_endpoint")?,
            token_endpoint: url("token_endpoint")?,
            revocation_endpoint: url("revocation_endpoint")?,
            jwks_uri: url("jwks_uri")?,
            userinfo_endpoint: url("userinfo_endpoint")?,
            sends_iss: members.get("authorization_response_iss_parameter_supported")
                == Some(&Value::Bool(true)),
        })
    }
}

impl Discovery {
    /// Metadata that outlives the process in a file.
    pub(super) fn kept_in(file: PathBuf) -> Self {
        Self { file: Some(file), seen: Arc::default() }
    }

    /// The metadata: what was seen last, else what the issuer says now. For a new login the issuer is asked again, and
    /// what was seen last does when it does not answer.
    pub(super) async fn metadata(
        &self,
        http: &reqwest::Client,
        issuer: &str,
        is_new_login: bool,
        now: Moment,
    ) -> Result<Arc<Metadata>, String> {
        let known = self.known(issuer).await;
        let is_due = self.seen().asked_at.is_none_or(|at| now.since(at) >= LOOK_AGAIN_AFTER);
        if let Some(known) = known.clone().filter(|_| !(is_new_login && is_due)) {
            return Ok(known);
        }
        self.seen().asked_at = Some(now);
        let (document, metadata) = match fetch(http, issuer).await {
            Ok(fetched) => fetched,
            Err(reason) => {
                let reason =
                    format!("the discovery document of the configured issuer is not to be had: {reason}");
                tracing::warn!(
                    reason,
                    is_known = known.is_some(),
                    "the issuer can't be asked for its endpoints"
                );
                return known.ok_or(reason);
            }
        };
        if let Some(file) = self.file.clone()
            && let Err(error) = blocking(move || keep(&file, &document)).await
        {
            tracing::warn!(%error, "the discovery document can't be kept: a restart needs the issuer to refresh");
        }
        let metadata = Arc::new(metadata);
        self.seen().metadata = Some(Arc::clone(&metadata));
        Ok(metadata)
    }

    /// What was seen last, in this process or an earlier one.
    async fn known(&self, issuer: &str) -> Option<Arc<Metadata>> {
        if let Some(metadata) = self.seen().metadata.clone() {
            return Some(metadata);
        }
        let file = self.file.clone()?;
        let document = blocking(move || kept(&file)).await.ok()?;
        let metadata = Arc::new(Metadata::read(&serde_json::from_slice(&document).ok()?, issuer).ok()?);
        self.seen().metadata = Some(Arc::clone(&metadata));
        Some(metadata)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no thread panics while it holds the metadata")
    }
}

/// Who a userinfo answer says it is (OpenID Connect Core, section 5.3.2): nobody when it is about another subject than
/// the `id_token`, or about the all-zero one that stands for everybody.
pub(super) fn person(members: &Map<String, Value>, subject: Option<&str>) -> Option<Person> {
    let text = |name| body::text(members, name);
    let id = text("sub").filter(|sub| subject.is_none_or(|subject| subject == *sub))?;
    if id.bytes().all(|byte| byte == b'0' || byte == b'-') {
        return None;
    }
    let name = ["name", "preferred_username", "nickname"].iter().find_map(|name| text(name)).unwrap_or(id);
    let short = |text: &str| text.chars().take(200).collect();
    Some(Person { id: short(id), name: short(name) })
}

/// The document, and what it says.
async fn fetch(http: &reqwest::Client, issuer: &str) -> Result<(Vec<u8>, Metadata), String> {
    let url = format!("{}{WELL_KNOWN}", issuer.trim_end_matches('/'));
    let answer = http.get(&url).timeout(METADATA_TIMEOUT).send().await.map_err(|error| body::why(&error))?;
    if !answer.status().is_success() {
        return Err(format!("{url} answered {}", answer.status()));
    }
    let read = |members: body::Members| {
        Ok((
            serde_json::to_vec(&members.0).expect("JSON can be written"),
            Metadata::read(&members.0, issuer)?,
        ))
    };
    body::json(answer).await.and_then(read).map_err(|reason| format!("{url}: {reason}"))
}

/// What was kept; damage shows when it is read.
fn kept(file: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(file)?;
    let mut document = Vec::new();
    if file.metadata()?.is_file() {
        file.take(LARGEST).read_to_end(&mut document)?;
    }
    Ok(document)
}

/// Puts a new file in the old one's place, whatever that was.
fn keep(file: &Path, document: &[u8]) -> io::Result<()> {
    let new = file.with_added_extension("new");
    let _left_behind = fs::remove_file(&new);
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    made.write_all(document)?;
    made.sync_data()?;
    fs::rename(&new, file)
}

/// Runs something that may block beside the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on a file does not panic")
}
