//! Attacks by other users and other programs of the machine, and from its other networks.

mod differential;
mod local;
pub(crate) mod memory;
pub(crate) mod network;
