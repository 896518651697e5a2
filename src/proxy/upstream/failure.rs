//! Why there is no answer that could be passed on, and what the caller is told.

use std::io;
use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};

use super::{TunnelError, http1};
use crate::notify::with_causes;
use crate::problem::{Code, Problem};

/// Why there is no answer that could be passed on.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum Failure {
    #[error("resolving the name")]
    Resolve(#[source] io::Error),
    #[error("connecting")]
    Connect(#[source] io::Error),
    #[error("connecting took too long")]
    ConnectTimeout,
    #[error("the address is this program's own")]
    Loop,
    #[error("reaching the route's proxy")]
    Proxy(#[source] Box<Self>),
    #[error("no tunnel through the route's proxy")]
    Tunnel(#[source] TunnelError),
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
        let problem = self.told();
        match self {
            Self::Exchange(_) | Self::ResponseTimeout => problem.in_doubt(),
            _ => problem,
        }
    }

    fn told(&self) -> Problem {
        match self {
            Self::Resolve(_) | Self::Connect(_) | Self::Loop => self.unconnected("the API"),
            Self::Proxy(failure) => failure.unconnected("the proxy on the way to it"),
            Self::Tunnel(error) => tunnel_problem(error),
            Self::ConnectTimeout => {
                Problem::new(Code::UpstreamTimeout, "connecting to the API took too long")
                    .because("connection_timeout")
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

    /// There was no connection to `server`, which is the API or what stands before it.
    fn unconnected(&self, server: &str) -> Problem {
        let (proxy_error, detail) = match self {
            Self::Resolve(_) => ("dns_error", format!("the name of {server} can't be resolved")),
            Self::Loop => ("proxy_loop_detected", format!("the address of {server} leads back to us")),
            Self::Connect(error) if error.kind() == ConnectionRefused => {
                ("connection_refused", format!("{server} refused the connection"))
            }
            Self::Connect(error) if error.kind() == TimedOut => {
                ("connection_timeout", format!("{server} did not accept the connection"))
            }
            _ => ("destination_unavailable", format!("there is no way to {server}")),
        };
        unreachable(&detail, proxy_error)
    }
}

fn unreachable(detail: &str, proxy_error: &'static str) -> Problem {
    Problem::new(Code::UpstreamUnreachable, format!("the API can't be reached: {detail}"))
        .because(proxy_error)
}

fn tunnel_problem(error: &TunnelError) -> Problem {
    let (proxy_error, detail) = match error {
        TunnelError::Unauthenticated(_) => {
            ("destination_unavailable", "wants other credentials (see proxy_auth_file)")
        }
        TunnelError::Refused(_) => ("destination_unavailable", "refuses to connect to it"),
        TunnelError::Exchange(error) if !error.is_parse() => ("connection_terminated", "hung up"),
        TunnelError::Exchange(_) | TunnelError::NotATunnel => {
            ("destination_unavailable", "does not answer as a proxy does")
        }
    };
    unreachable(&format!("the proxy on the way to it {detail}"), proxy_error)
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
