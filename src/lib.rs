//! **cnblogs-proxy** is a local reverse proxy that logs in to Cnblogs (博客园) once and puts a fresh access token
//! on every request that local programs send through it.
//!
//! # The map
//!
//! A module imports only modules further down; siblings do not know each other.
//!
//! | layer | module | purpose |
//! |---|---|---|
//! | 1 | [`cli`] | the commands; the only module that prints and that reads the environment |
//! | 2 | [`server`] | assembles the parts, owns listeners, runtimes and the order of stopping |
//! | 3 | [`control`] | our own routes under `/-/`: status, login, health |
//! | 3 | [`proxy`] | the walk of a request: who is admitted, which fields cross, the pool, the replay |
//! | 4 | [`problem`] | how the program answers for itself |
//! | 5 | [`session`] | the live token of one account: a handle, and the keeper that writes it |
//! | 6 | [`store`] | where a login outlives the process: in files, or in a database that replicas share |
//! | 6 | [`oauth`] | the authorization server's client; keeps nothing |
//! | 7 | [`notify`], [`metrics`] | events to a person, counters |
//! | 8 | [`config`] | the file becomes a [`config::Config`]; holding one means that it is valid |
//! | 9 | [`heartbeat`], [`processes`], [`tls`], [`token`] | heartbeats of threads; other processes; TLS to servers that are trusted; a token and the arithmetic of its expiry |
//!
//! # The walk of a request
//!
//! ```text
//! accept (server: limits, time-outs, the peer's user)
//!   -> local path? -> control
//!   -> guard.admit                         one of a few refusals, each with its problem
//!   -> longest_prefix -> may_use           the route; whether the caller's key reaches it
//!   -> session.token                       one ArcSwap load; waits only when one is on its way
//!   -> rebase                              the caller's target, byte for byte, behind the upstream's own path
//!   -> client.send                         the fields that may go up, and the pre-built Authorization, last;
//!                                          once more when a pooled connection was dead
//!   -> 401? refreshed_since, and once more from the bounded copy
//!   -> for_caller -> the body streams
//! ```
//!
//! It is [`proxy::Proxy::forward`], one function on one thread: every worker is a current-thread runtime with its
//! own connections, so a request never hops. hyper speaks HTTP/1.1 with callers; HTTP/1.1 with
//! upstreams is [`proxy::upstream`]'s own, driven by the request's task.
//!
//! # The walk of a token
//!
//! ```text
//! login    callback checked -> exchange ----------+
//! timer    due (half of the lifetime, -5 %) ------+--> keeper: store.reserve -> oauth -> store.commit -> ArcSwap -> answer
//! request  none usable, or a 401 { which token } -+
//! ```
//!
//! # Invariants
//!
//! - Only the keeper obtains, persists and publishes tokens; a refresh never lives in a request's future.
//! - Room for a successor is on disk before a refresh token is spent; the successor is durable before it is used.
//! - Where replicas share a login, a claim that is durable comes before that; whoever lost the claim adopts, and never
//!   overwrites.
//! - Scheme and authority of an upstream request are constants; nothing of the request changes them.
//! - Exactly one Authorization leaves, behind everything else, and none of the caller's.
//! - Only `server` and `session` start tasks, and `proxy::upstream` those that upload and that close idle connections;
//!   those of `cli::run`, a process of its own, end with the program that it runs. Only [`token::now`] reads the wall
//!   clock; only `cli` reads the environment and prints.

#![forbid(unsafe_code)]

pub mod cli;
pub mod server;
pub mod control;
pub mod proxy;
pub mod problem;
pub mod session;
pub mod store;
pub mod oauth;
pub mod notify;
pub mod metrics;
pub mod config;
pub mod heartbeat;
pub mod processes;
pub mod tls;
pub mod token;

#[cfg(any(test, fuzzing))]
mod testing;
