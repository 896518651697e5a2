//! The program as a whole: the built binary between a stand-in of Cnblogs and real callers, on real sockets.

mod support;

#[path = "../standin/mod.rs"]
mod standin;

mod attacks;
mod commands;
mod configuration;
mod house;
mod login;
mod provider;
