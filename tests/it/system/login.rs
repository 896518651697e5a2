//! Logins at a terminal, and logins that the disk refuses.

mod kept;
mod terminal;
