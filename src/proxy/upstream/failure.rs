//! Why there is no answer that could be passed on, and what the caller is told.

use std::io;
use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};

use super::http1;
use crate::notify::with_causes;
use crate::problem::{Code, Problem};

/// Why there is no answer that could be passed on.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum Failure {
    #[error("resolving the upstream's name")]
    Resolve(#[source] io::Error),
    #[error("connecting")]
    Connect(#[source] io::Error),
    #[error("connecting took too long")]
    ConnectTimeout,
    #[error("the upstream's address is this proxy's own")]
    Loop,
    #[error("TLS")]
    Tls(#[source] io::Error),
    #[error("HTTP/1.1")]
    Exchange(#[source] http1::Error),
    #[error("no answer in time")]
    ResponseTimeout,
}

impl Failure {
    /// Nothing was acknowledged until `TCP_USER_TIMEOUT`. The kernel then reports the last ICMP error instead of the
    /// timeout when there was one.
    pub(super) fn is_timeout(&self) -> bool {
        let Self::Exchange(http1::Error::Send(error) | http1::Error::Receive(error)) = self else {
            return false;
        };
        matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
    }

    /// What the caller is told. The cause is logged, and stays here.
    pub(in crate::proxy) fn problem(&self, route: &str) -> Problem {
        tracing::warn!(cause = %with_causes(self), route, "the upstream gave no answer");
        match self {
            Self::Resolve(_) => {
                let detail = "the API can't be reached: its name can't be resolved";
                Problem::new(Code::UpstreamUnreachable, detail).because("dns_error")
            }
            Self::Connect(error) => {
                let (proxy_error, detail) = match error.kind() {
                    ConnectionRefused => ("connection_refused", "it refused the connection"),
                    TimedOut => ("connection_timeout", "it did not accept the connection"),
                    _ => ("destination_unavailable", "there is no way to it"),
                };
                Problem::new(Code::UpstreamUnreachable, format!("the API can't be reached: {detail}"))
                    .because(proxy_error)
            }
            Self::ConnectTimeout => {
                Problem::new(Code::UpstreamTimeout, "connecting to the API took too long")
                    .because("connection_timeout")
            }
            Self::Loop => {
                Problem::new(Code::UpstreamUnreachable, "the API's address leads back to this proxy")
                    .because("proxy_loop_detected")
            }
            Self::Tls(error) => tls_problem(error),
            Self::ResponseTimeout => Problem::new(Code::UpstreamTimeout, "the API did not answer in time"),
            Self::Exchange(http1::Error::Upload(error)) => error.problem(),
            Self::Exchange(http1::Error::Invalid(_)) => {
                Problem::new(Code::UpstreamInvalid, "the API's answer is not valid HTTP")
            }
            Self::Exchange(http1::Error::Incomplete) => {
                Problem::new(Code::UpstreamInvalid, "the API's answer broke off")
                    .because("http_response_incomplete")
            }
            Self::Exchange(_) => {
                Problem::new(Code::UpstreamUnreachable, "the API closed the connection without an answer")
                    .because("connection_terminated")
            }
        }
    }
}

fn tls_problem(error: &io::Error) -> Problem {
    let is_certificate = matches!(
        error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    );
    if is_certificate {
        let detail = "the API's certificate is not trusted: nothing was sent (see ca_file for a private CA)";
        Problem::new(Code::UpstreamUntrusted, detail)
    } else {
        Problem::new(Code::UpstreamUntrusted, "no TLS connection to the API could be made")
            .because("tls_protocol_error")
    }
}
