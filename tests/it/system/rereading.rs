//! Reloads that the system holds up, and those that would let other machines in.

mod blocked;
mod reach;
