//! Events as JSON by HTTP, for where no command can run.

use std::time::Duration;

use serde_json::json;
use url::Url;

use super::{Notice, with_causes};
use crate::tls;

/// For one attempt. There are two.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// Where events are posted.
pub(super) struct Webhook {
    http: reqwest::Client,
    url: Url,
}

impl Webhook {
    /// None, and a line in the log, when TLS can't be set up.
    pub(super) fn new(url: Url) -> Option<Self> {
        let http = tls::http_client(&[])
            .inspect_err(|error| tracing::warn!(%error, "the webhook can't be used"))
            .ok()?
            .timeout(ANSWERS_WITHIN)
            .build()
            .expect("constants make a valid client");
        Some(Self { http, url })
    }

    /// Posts an event; once more when that fails.
    pub(super) async fn post(&self, notice: &Notice) {
        let (event, account, message) = (notice.event.as_str(), &notice.account, &notice.message);
        let text = format!("cnblogs-proxy, {account}: {event}: {message}");
        let body =
            json!({ "event": event, "account": account, "message": message, "at": notice.at, "text": text });
        let body = body.to_string();
        if self.post_once(&body).await.is_ok() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        if let Err(error) = self.post_once(&body).await {
            tracing::warn!(host = self.url.host_str(), error, "the webhook was not told");
        }
    }

    /// The error does not show the address: it is often a secret.
    async fn post_once(&self, body: &str) -> Result<(), String> {
        let request = self.http.post(self.url.clone()).header("content-type", "application/json");
        let answer = request.body(body.to_owned()).send().await;
        match answer.map_err(|error| with_causes(&error.without_url()))?.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answered {status}")),
        }
    }
}
