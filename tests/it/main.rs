//! The program as a whole: the built binary between a stand-in of Cnblogs and real callers, on real sockets.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "../standin/mod.rs"]
mod standin;

mod addresses;
mod attacks;
mod check;
mod commands;
mod configuration;
#[path = "../../src/testing/dice.rs"]
mod dice;
mod forwarding;
mod house;
mod login;
mod logs;
mod metrics;
mod names;
mod notices;
mod proxies;
mod readme;
mod rereading;
mod secrets;
mod store;
#[cfg(feature = "system-tests")]
mod system;
mod tokens;
