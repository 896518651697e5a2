//! An access token, whose it is, and the arithmetic of its expiry. No I/O but the two clocks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderValue;
use rustix::time::{ClockId, clock_gettime};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

/// A point in time on two clocks: the wall clock, which people may set, and the boot-time clock, which
/// counts through suspend. Both in milliseconds; the wall clock since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    wall_ms: i64,
    boot_ms: i64,
}

/// Where a session and its client read the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Moment + Send + Sync>);

impl Clock {
    /// Time as `read` tells it.
    pub fn new(read: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Reads it.
    pub fn now(&self) -> Moment {
        (self.0)()
    }
}

/// The machine's clocks.
impl Default for Clock {
    fn default() -> Self {
        Self::new(now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Reads both clocks. Nothing else in the program reads the wall clock.
pub fn now() -> Moment {
    Moment { wall_ms: wall_clock_ms(), boot_ms: boot_clock_ms() }
}

impl Moment {
    /// A moment given by both clocks, in milliseconds.
    pub const fn new(wall_ms: i64, boot_ms: i64) -> Self {
        Self { wall_ms, boot_ms }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn wall_ms(self) -> i64 {
        self.wall_ms
    }

    /// Milliseconds on the boot-time clock, which nobody can set.
    pub const fn boot_ms(self) -> i64 {
        self.boot_ms
    }

    /// Seconds since the Unix epoch.
    pub const fn wall_secs(self) -> i64 {
        self.wall_ms.div_euclid(1000)
    }

    /// Minutes on the boot-time clock, which nobody can set.
    pub fn minute(self) -> u64 {
        u64::try_from(self.boot_ms / 60_000).unwrap_or(0)
    }

    /// How long ago `earlier` was by the boot-time clock, which nobody can set; zero when it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        millis(self.boot_ms.saturating_sub(earlier.boot_ms))
    }

    /// This moment moved into the future.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let by = as_millis(by);
        Self { wall_ms: self.wall_ms.saturating_add(by), boot_ms: self.boot_ms.saturating_add(by) }
    }
}

/// When a token was received, how long it serves, and when its refresh is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    obtained: Moment,
    expires_in: Option<Duration>,
    due_after: Duration,
}

impl Lifetime {
    /// Counts from the receipt of the answer. `refresh_at` is the fraction of the lifetime after which a
    /// refresh is due.
    pub fn new(obtained: Moment, expires_in: Duration, refresh_at: f64) -> Self {
        Self {
            obtained,
            expires_in: Some(expires_in),
            due_after: expires_in.mul_f64(refresh_at.clamp(0.0, 1.0)),
        }
    }

    /// For a token that never expires by itself.
    pub const fn endless(obtained: Moment) -> Self {
        Self { obtained, expires_in: None, due_after: Duration::MAX }
    }

    /// For a token that ends at a wall-clock time, in milliseconds since the Unix epoch, and is never refreshed.
    pub fn until(ends_at_wall_ms: i64, obtained: Moment) -> Self {
        let expires_in = millis(ends_at_wall_ms.saturating_sub(obtained.wall_ms));
        Self { obtained, expires_in: Some(expires_in), due_after: Duration::MAX }
    }

    /// For a token that an earlier process received at `obtained_wall_ms`: only the wall clock tells how long
    /// ago that was.
    pub fn restored(obtained_wall_ms: i64, expires_in: Duration, refresh_at: f64, now: Moment) -> Self {
        let age_ms = now.wall_ms.saturating_sub(obtained_wall_ms).max(0);
        let obtained = Moment::new(obtained_wall_ms, now.boot_ms.saturating_sub(age_ms));
        Self::new(obtained, expires_in, refresh_at)
    }

    /// The wall-clock time of the receipt, in milliseconds since the Unix epoch.
    pub const fn obtained_wall_ms(&self) -> i64 {
        self.obtained.wall_ms
    }

    /// What the server said of the lifetime; none for a token that never expires.
    pub const fn expires_in(&self) -> Option<Duration> {
        self.expires_in
    }

    /// How long after the receipt a refresh is due.
    pub const fn due_after(&self) -> Duration {
        self.due_after
    }

    /// The wall-clock time of the end, in milliseconds since the Unix epoch.
    pub fn expires_at_wall_ms(&self) -> Option<i64> {
        self.expires_in.map(|lasts| self.obtained.plus(lasts).wall_ms)
    }

    /// The wall-clock time of the refresh point, in milliseconds since the Unix epoch.
    pub fn due_at_wall_ms(&self) -> Option<i64> {
        self.expires_in.map(|_| self.obtained.plus(self.due_after).wall_ms)
    }

    /// True until the refresh point.
    pub fn is_fresh(&self, now: Moment) -> bool {
        self.age(now) < self.due_after
    }

    /// True until the end.
    pub fn is_usable(&self, now: Moment) -> bool {
        self.expires_in.is_none_or(|lasts| self.age(now) < lasts)
    }

    /// How long until the refresh point; zero when it has passed.
    pub fn until_due(&self, now: Moment) -> Duration {
        self.due_after.saturating_sub(self.age(now))
    }

    /// How long until the end; none when there is no end.
    pub fn remaining(&self, now: Moment) -> Option<Duration> {
        self.expires_in.map(|lasts| lasts.saturating_sub(self.age(now)))
    }

    /// The longer of the two clocks' answers, so that the earlier end decides.
    fn age(&self, now: Moment) -> Duration {
        let by_wall = now.wall_ms.saturating_sub(self.obtained.wall_ms);
        let by_boot = now.boot_ms.saturating_sub(self.obtained.boot_ms);
        millis(by_wall.max(by_boot))
    }
}

/// Why a string is not an access token that may be sent.
#[derive(Debug, thiserror::Error)]
#[error("the access token has characters that RFC 6750 does not allow, or is empty")]
pub struct NotAToken;

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// Tells people apart.
    pub id: String,
    /// What the person is called.
    pub name: String,
}

/// One access token, ready to be injected. Its bytes are wiped when the last request that carries it is done.
pub struct Token {
    serial: u64,
    authorization: HeaderValue,
    is_personal: bool,
    is_last: bool,
    lifetime: Lifetime,
    /// How often the upstream refused it without a success between.
    refusals: AtomicU32,
}

impl Token {
    /// Builds the Authorization value once, for every request. `serial` tells this token from the others of
    /// its session; `is_personal` asks for `Authorization-Type: pat`.
    ///
    /// # Errors
    /// When the access token is not a `b64token` (RFC 6750, section 2.1).
    pub fn new(
        serial: u64,
        access_token: &SecretString,
        is_personal: bool,
        lifetime: Lifetime,
    ) -> Result<Self, NotAToken> {
        let secret = access_token.expose_secret();
        if !is_b64token(secret) {
            return Err(NotAToken);
        }

        let mut bytes = Zeroizing::new(Vec::with_capacity(BEARER.len() + secret.len()));
        bytes.extend_from_slice(BEARER.as_bytes());
        bytes.extend_from_slice(secret.as_bytes());
        let mut authorization =
            HeaderValue::from_maybe_shared(Bytes::from_owner(bytes)).map_err(|_invalid| NotAToken)?;
        authorization.set_sensitive(true);
        let refusals = AtomicU32::new(0);
        Ok(Self { serial, authorization, is_personal, is_last: is_personal, lifetime, refusals })
    }

    /// The same token of a login that no refresh token came with.
    #[must_use]
    pub fn without_successor(self) -> Self {
        Self { is_last: true, ..self }
    }

    /// Tells this token from the others of its session.
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// The value of the Authorization field, marked sensitive (RFC 6750, section 2.1).
    pub const fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }

    /// The token itself.
    pub fn access_token(&self) -> &[u8] {
        &self.authorization.as_bytes()[BEARER.len()..]
    }

    /// True for a personal access token.
    pub const fn is_personal(&self) -> bool {
        self.is_personal
    }

    /// True when no refresh brings another one: only a person can.
    pub const fn is_last(&self) -> bool {
        self.is_last
    }

    /// The upstream refused it; says how often it did without a success between.
    pub fn note_refusal(&self) -> u32 {
        self.refusals.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// The upstream takes it; says how often it had refused it before.
    pub fn forget_refusals(&self) -> u32 {
        // Nearly always none: no write then, which would take the cache line from other workers.
        if self.refusals.load(Ordering::Relaxed) == 0 { 0 } else { self.refusals.swap(0, Ordering::Relaxed) }
    }

    /// When it was received and how long it serves.
    pub const fn lifetime(&self) -> &Lifetime {
        &self.lifetime
    }

    /// True when `bytes` contain the token itself.
    pub fn occurs_in(&self, bytes: &[u8]) -> bool {
        let secret = self.access_token();
        let Some(last) = bytes.len().checked_sub(secret.len()) else { return false };
        // A prepared search costs more than most fields are long, and would keep a copy of the token.
        memchr::memchr_iter(secret[0], &bytes[..=last]).any(|at| bytes[at..].starts_with(secret))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("serial", &self.serial).field("lifetime", &self.lifetime).finish()
    }
}

/// True for the characters of a bearer token: `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`
/// (RFC 6750, section 2.1).
pub fn is_b64token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

/// A wall-clock time in milliseconds since the Unix epoch, as RFC 3339 in UTC.
pub fn rfc3339(wall_ms: i64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + millis(wall_ms.min(YEAR_9999_MS))).to_string()
}

/// A wall-clock time, in milliseconds since the Unix epoch; written as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(pub i64);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339(self.0))
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const BEARER: &str = "Bearer ";
/// RFC 3339 has four digits for the year.
const YEAR_9999_MS: i64 = 253_402_300_799_000;

#[expect(clippy::disallowed_methods, reason = "here, and nowhere else")]
fn wall_clock_ms() -> i64 {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => ms(after),
        Err(before) => -ms(before.duration()),
    }
}

fn boot_clock_ms() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn as_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(wall_secs: i64, boot_secs: i64) -> Moment {
        Moment::new(wall_secs * 1000, boot_secs * 1000)
    }

    #[test]
    fn the_earlier_of_the_two_clocks_decides() {
        let lifetime = Lifetime::new(at(1_000_000, 500), HOUR, 0.5);

        let clock_set_back = at(1_000_000 - 90_000, 500 + 3601);
        let clock_set_forward = at(1_000_000 + 90_000, 501);
        let both_agree = at(1_000_000 + 1799, 500 + 1799);

        assert!(!lifetime.is_usable(clock_set_back));
        assert!(!lifetime.is_usable(clock_set_forward));
        assert!(lifetime.is_usable(both_agree) && lifetime.is_fresh(both_agree));
        assert_eq!(lifetime.until_due(both_agree), Duration::from_secs(1));
    }

    #[test]
    fn a_restored_token_is_as_old_as_the_wall_clock_says() {
        let now = at(1_000_000, 10);

        let lifetime = Lifetime::restored((1_000_000 - 3000) * 1000, HOUR, 0.5, now);
        let from_the_future = Lifetime::restored((1_000_000 + 9000) * 1000, HOUR, 0.5, now);

        assert_eq!(lifetime.remaining(now), Some(Duration::from_secs(600)));
        assert_eq!(from_the_future.remaining(now), Some(HOUR));
        assert!(!from_the_future.is_usable(at(1_000_000 + 3600, 10 + 3600)));
    }

    #[test]
    fn only_bearer_characters_make_a_token() {
        let lifetime = Lifetime::endless(at(0, 0));
        for good in ["abc", "a.b-c_d~e+f/g==", "0"] {
            assert!(Token::new(0, &good.into(), false, lifetime).is_ok(), "{good}");
        }
        for bad in ["", "=", "a b", "a\r\nX: y", "a=b", "\u{e9}", "a\0"] {
            assert!(Token::new(0, &bad.into(), false, lifetime).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn debug_output_shows_no_token() {
        let token = Token::new(7, &"very-secret".into(), false, Lifetime::endless(at(0, 0))).unwrap();

        let shown = format!("{token:?} {:?}", token.authorization());

        assert!(!shown.contains("very-secret"), "{shown}");
        assert!(token.occurs_in(b"x=very-secret;") && !token.occurs_in(b"very"));
    }
}
