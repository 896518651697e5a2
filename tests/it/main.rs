//! The program as a whole: the built binary between a stand-in of Cnblogs and real callers, on real sockets.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "../standin/mod.rs"]
mod standin;

mod addresses;
mod attacks;
mod browser;
mod check;
mod clients;
mod commands;
mod configuration;
mod containers;
mod deployed;
#[path = "../../src/testing/dice.rs"]
mod dice;
mod fleet;
mod forwarding;
mod house;
mod login;
mod logs;
mod metrics;
mod names;
mod network;
mod notices;
mod pages;
mod provider;
mod providers;
mod proxies;
mod readme;
mod rereading;
mod release;
mod run;
mod sandbox;
mod secrets;
mod shells;
mod soak;
mod store;
mod systemd;
mod tokens;
mod trust;
