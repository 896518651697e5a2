//! What parses bytes that strangers send has properties, and they are written once: `properties.rs` beside the code
//! has a function of bytes for each, which panics when its property does not hold. Two things call them.
//!
//! `cargo test` plays a fixed number of damaged seeds, which are beside this, and of random bytes. `FUZZ_RUNS` says how
//! many for each property, `FUZZ_SEED` and `FUZZ_FIRST` which: every input depends on the seed and its number alone.
//!
//! A fuzzer that watches coverage plays as many as it is let (`cargo install --locked cargo-fuzz`, once), here where
//! its targets are:
//!
//! ```text
//! seeds=../../src/testing/seeds/TARGET && mkdir -p corpus/TARGET $seeds
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . --sanitizer none TARGET corpus/TARGET $seeds -- -max_total_time=300
//! ```
//!
//! What it finds becomes a seed.
//!
//! The properties see the private items of the module that they belong to, which declares them; nothing is public
//! for their sake alone.

#[cfg(test)]
mod seeded;

#[cfg(test)]
pub(crate) use seeded::holds;

/// What a fuzzer gives, read as choices and texts. Once it is used up, every choice is the first one.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// From 0 up to but not `end`, which is at most 65,536.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let number = if end > 256 {
            usize::from(self.byte()) << 8 | usize::from(self.byte())
        } else {
            usize::from(self.byte())
        };
        number % end.max(1)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Up to 63 bytes.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = self.below(64).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    /// Up to 63 bytes of text.
    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// Everything that is left.
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Without any runtime: for what waits for nothing.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}
