//! Finds a callback in what a person pasted. Mails, chats, terminals and browsers wrap an address, quote it, escape it,
//! encode it once more, and put words before and behind it.
//!
//! What can be in no address is taken away ([`unescaped`]), lines are joined ([`Joined`]), places are sought where the
//! redirect address begins, and from each the longest reading is taken that parses strictly and belongs to a login of
//! ours. Several places have to say the same.

use std::cell::Cell;
use std::ops::Range;

use url::Url;

use super::{Callback, CallbackError, LONGEST, Outcome, mark, parse_parameters};
use crate::config::ResponseMode;
use crate::oauth::id_token;

/// A form holds no more; the address in it has [`LONGEST`] bytes at most.
const LONGEST_PASTE: usize = 64 * 1024;
/// By how much the redirect address may be longer than it is registered, up to its parameters: by a port, say.
const MORE_URI: usize = 64;
/// How many ends of an address are tried, from the longest reading down and from the shortest up.
const READINGS: usize = 64;
/// How many bytes are parsed or decoded before a text is given up that was made to have very many readings.
const MOST_WORK: usize = 8 << 20;
/// How often an address may have been encoded once more.
const LEVELS: u32 = 3;
/// These never hold what has to be encoded in a URL (RFC 3986, section 2).
const EXACT: [&str; 4] = ["state", "code", "id_token", "iss"];

/// Where a reading of a callback ends, and the callback.
type Read = Result<(usize, Callback), CallbackError>;

/// What is sought.
pub(super) struct Finder<'a> {
    redirect_uri: &'a Url,
    mode: ResponseMode,
    is_ours: &'a dyn Fn(&Callback) -> bool,
    work: Cell<usize>,
}

/// A text without its line breaks, and where they were.
struct Joined {
    text: String,
    breaks: Vec<usize>,
}

/// Where the redirect address was found.
enum FoundAt {
    /// As it is; its parameters begin at `behind`.
    Plain { start: usize, behind: usize },
    /// Encoded once more, with what it says.
    Encoded { start: usize, reads: Vec<Read> },
}

impl<'a> Finder<'a> {
    pub(super) const fn new(
        redirect_uri: &'a Url,
        mode: ResponseMode,
        is_ours: &'a dyn Fn(&Callback) -> bool,
    ) -> Self {
        Self { redirect_uri, mode, is_ours, work: Cell::new(0) }
    }

    pub(super) fn find(&self, pasted: &str) -> Result<Callback, CallbackError> {
        if pasted.len() > LONGEST_PASTE {
            return Err(CallbackError::TooLong);
        }
        let joined = Joined::new(&unescaped(pasted));
        if joined.text.trim().is_empty() {
            return Err(CallbackError::Empty);
        }
        let plain = self.search(&joined);
        let is_final = match &plain {
            // What stands before a soft line break looks like a name.
            Err(CallbackError::Repeated(_)) => !joined.has_soft_breaks(),
            Err(error) => !is_incomplete(error),
            Ok(_) => false,
        };
        if is_final {
            return plain;
        }
        match (joined.without_quoted_printable().map(|mail| self.search(&mail)), &plain) {
            (Some(Ok(mail)), Err(_)) => Ok(mail),
            (Some(Ok(mail)), Ok(plain)) if (self.is_ours)(&mail) && !plain.brings_more_than(&mail) => {
                Ok(mail)
            }
            _ => plain,
        }
    }

    /// The one callback in a text.
    fn search(&self, joined: &Joined) -> Result<Callback, CallbackError> {
        let mut reads = self.at_addresses(joined, LEVELS);
        if reads.is_empty() {
            reads = self.without_address(joined);
        }
        if reads.is_empty() && joined.text.to_ascii_lowercase().contains("state%3d") {
            reads = self.without_address(&joined.decoded(0..joined.text.len(), b'%'));
        }
        let (mut only, mut incomplete) = (None::<Callback>, None);
        for read in reads {
            match (read, &only) {
                (Ok((_, callback)), Some(only)) if !callback.is_same(only) => {
                    return Err(CallbackError::Several);
                }
                (Ok((_, callback)), _) => only = Some(callback),
                (Err(error), _) if is_incomplete(&error) => incomplete = incomplete.or(Some(error)),
                (Err(error), _) => return Err(error),
            }
        }
        let none = || CallbackError::Address { expected: self.redirect_uri.to_string() };
        only.ok_or_else(|| incomplete.unwrap_or_else(none))
    }

    /// What stands behind each redirect address; the next one ends it.
    fn at_addresses(&self, joined: &Joined, levels: u32) -> Vec<Read> {
        let places = self.places(joined, levels);
        let mut starts: Vec<_> = places.iter().skip(1).map(FoundAt::start).collect();
        starts.push(joined.text.len());
        let reads = places.into_iter().zip(starts).flat_map(|(place, stop)| match place {
            FoundAt::Plain { start, behind } => vec![self.read(joined, start, behind, stop)],
            FoundAt::Encoded { reads, .. } => reads,
        });
        reads.collect()
    }

    fn places(&self, joined: &Joined, levels: u32) -> Vec<FoundAt> {
        let text = joined.text.as_str();
        let lower = text.to_ascii_lowercase();
        let mut places = Vec::new();
        let mut from = 0;
        let longest = self.redirect_uri.as_str().len() + MORE_URI;
        for (start, scheme) in lower.match_indices(self.redirect_uri.scheme()) {
            if start < from || !lower[start + scheme.len()..].starts_with([':', '%']) {
                continue;
            }
            let behind = start + length_until(&text[start..], longest, |byte| b"?#".contains(&byte));
            // Some write the # itself as %23.
            let escaped = lower[start..behind].find("%23").map(|at| start + at);
            let escaped = escaped.filter(|at| self.before_bare(&text[at + 3..]) == Some(0));
            if self.is_redirect_uri(&text[start..escaped.unwrap_or(behind)]) {
                places.push(FoundAt::Plain { start, behind: escaped.map_or(behind, |at| at + 3) });
                continue;
            }
            let end = start + length_until(&text[start..], text.len(), |byte| b"&#".contains(&byte));
            if self.is_worn_out(end - start) {
                break;
            }
            let reads = self.encoded(joined, start..end, levels);
            if !reads.is_empty() {
                from = end;
                places.push(FoundAt::Encoded { start, reads });
            }
        }
        places
    }

    /// What an address says that was encoded once more, such as the parameter of another one.
    fn encoded(&self, joined: &Joined, range: Range<usize>, levels: u32) -> Vec<Read> {
        if levels == 0 || !joined.text[range.clone()].contains('%') {
            return Vec::new();
        }
        let mut reads = self.at_addresses(&joined.decoded(range, b'%'), levels - 1);
        // A login page's own address names the redirect address as well.
        reads.retain(|read| !matches!(read, Err(CallbackError::NoParameters(_))));
        reads
    }

    /// Parameters alone, or behind a redirect address that lacks its scheme.
    fn without_address(&self, joined: &Joined) -> Vec<Read> {
        let text = joined.text.as_str();
        let (mut reads, mut from) = (Vec::new(), 0);
        // Not those of any other address.
        let other = text.find("://").unwrap_or(text.len());
        let is_start = |at: &usize| *at == 0 || joined.is_break(*at) || is_before_bare(&text[..*at]);
        let starts = (0..other).filter(|at| text.is_char_boundary(*at)).filter(is_start);
        let starts = starts.filter_map(|start| Some((start, start + self.before_bare(&text[start..])?)));
        for (start, behind) in starts.take(READINGS) {
            if start < from {
                continue;
            }
            let read = self.read(joined, start, behind, text.len());
            from = read.as_ref().map_or(from, |(end, _)| *end);
            reads.push(read);
        }
        reads
    }

    /// How much stands before the first parameter; none when this is no parameter.
    fn before_bare(&self, text: &str) -> Option<usize> {
        let address = self.redirect_uri.as_str().split_once("://").map_or("", |(_, address)| address);
        let rest = match text.get(..address.len()) {
            Some(start) if start.eq_ignore_ascii_case(address) => &text[start.len()..],
            _ => text,
        };
        let rest = rest.trim_start_matches(['#', '?', '&']);
        let name = length_until(rest, 256, |byte| byte == b'=');
        let has_name = is_name(&rest[..name]) && rest[name..].starts_with('=');
        has_name.then_some(text.len() - rest.len())
    }

    /// The callback that begins at `start`, whose parameters begin at `behind`, and that ends at `stop` or before.
    fn read(&self, joined: &Joined, start: usize, behind: usize, stop: usize) -> Read {
        let text = joined.text.as_str();
        let parse = |end: usize| match &text[behind..end] {
            _ if end - start > LONGEST || self.is_worn_out(end - start) => Err(CallbackError::TooLong),
            "" | "#" | "?" | "?#" => Err(CallbackError::NoParameters(mark(self.mode))),
            parameters => parse_exactly(parameters).map(|callback| (end, callback)),
        };
        let first_end = |from: usize| from + length_until(&text[from..stop], stop, |_| false);
        let Some(complete) = complete_from(&text[behind..stop]).map(|at| behind + at) else {
            return parse(first_end(behind));
        };
        // What makes an address wrong is not cut off its end.
        if let Err(error) = parse(first_end(complete))
            && !is_incomplete(&error)
        {
            return Err(error);
        }
        let ends: Vec<_> = (complete..=stop).filter(|at| joined.may_end(*at, stop)).collect();
        let longest_first = ends.iter().rev().take(READINGS).chain(ends.iter().take(READINGS));
        let ours = |read: &(usize, Callback)| (self.is_ours)(&read.1);
        let mut readings = longest_first.filter_map(|end| parse(*end).ok()).filter(ours).peekable();
        let longest = readings.next_if(|(end, read)| !joined.is_likely(read, complete, *end, stop));
        let has_less =
            |read: &Callback| longest.as_ref().is_some_and(|(_, more)| more.brings_more_than(read));
        let better =
            readings.find(|(end, read)| joined.is_likely(read, complete, *end, stop) && !has_less(read));
        let found = better.or(longest);
        let shortest = || ends.iter().take(READINGS).find_map(|end| parse(*end).ok());
        found.or_else(shortest).map_or_else(|| parse(ends[0]), Ok)
    }

    /// True when so much was done already that these bytes are not looked at.
    fn is_worn_out(&self, bytes: usize) -> bool {
        self.work.set(self.work.get() + bytes);
        self.work.get() > MOST_WORK
    }

    fn is_redirect_uri(&self, text: &str) -> bool {
        let own = self.redirect_uri;
        let has_authority = text[own.scheme().len()..].starts_with("://");
        // Parsing an address costs more than reading parameters.
        has_authority
            && !self.is_worn_out(16 * text.len())
            && Url::parse(text).is_ok_and(|url| {
                url.scheme() == own.scheme()
                    && url.host() == own.host()
                    && url.port_or_known_default() == own.port_or_known_default()
                    && url.path() == own.path()
                    && url.username().is_empty()
                    && url.password().is_none()
            })
    }
}

impl FoundAt {
    const fn start(&self) -> usize {
        match self {
            Self::Plain { start, .. } | Self::Encoded { start, .. } => *start,
        }
    }
}

impl Joined {
    /// Takes line breaks out, with the indentation and the marks of a quotation behind them and the edges of a window
    /// around them; other white space becomes one space.
    fn new(text: &str) -> Self {
        let (mut joined, mut breaks) = (String::with_capacity(text.len()), Vec::new());
        let mut rest = text.trim();
        while let Some(c) = rest.chars().next() {
            let behind = rest.trim_start();
            let space = &rest[..rest.len() - behind.len()];
            if space.is_empty() {
                joined.push(c);
                rest = &rest[c.len_utf8()..];
            } else if space.contains(is_line_break) {
                joined.truncate(joined.trim_end_matches([' ', '│', '┃']).len());
                breaks.push(joined.len());
                rest = behind.trim_start_matches(|c: char| c.is_whitespace() || ">|│┃".contains(c));
            } else {
                joined.push(' ');
                rest = behind;
            }
        }
        Self { text: joined, breaks }
    }

    /// True when the lines end as those of quoted-printable do, which is no accident.
    fn has_soft_breaks(&self) -> bool {
        let soft = self.breaks.iter().filter(|at| self.text[..**at].ends_with('=')).count();
        soft > 2 && 2 * soft >= self.breaks.len()
    }

    /// The same text if a mail carried it as quoted-printable (RFC 2045, section 6.7); none when that says the same.
    fn without_quoted_printable(&self) -> Option<Self> {
        let (mut text, mut breaks) = (String::with_capacity(self.text.len()), Vec::new());
        let mut from = 0;
        for at in self.breaks.iter().copied().chain([self.text.len()]) {
            let line = &self.text[from..at];
            let is_soft = at < self.text.len() && line.ends_with('=');
            text.push_str(if is_soft { &line[..line.len() - 1] } else { line });
            breaks.push(text.len());
            from = at;
        }
        breaks.pop();
        let joined = Self { text, breaks };
        let is_escape = |rest: &str| {
            rest.get(..2).is_some_and(|hex| hex.bytes().all(|byte| b"0123456789ABCDEF".contains(&byte)))
        };
        if joined.text.contains("=3D") && joined.text.split('=').skip(1).all(is_escape) {
            return Some(joined.decoded(0..joined.text.len(), b'='));
        }
        (joined.text != self.text).then_some(joined)
    }

    /// A part with its escapes of two hexadecimal digits behind `escape` taken for what they mean.
    fn decoded(&self, range: Range<usize>, escape: u8) -> Self {
        let bytes = &self.text.as_bytes()[range.clone()];
        let mut breaks_before = self.breaks.iter().map(|at| at.saturating_sub(range.start)).peekable();
        let (mut decoded, mut breaks) = (Vec::with_capacity(bytes.len()), Vec::new());
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            while breaks_before.next_if(|before| *before <= at).is_some() {
                breaks.push(decoded.len());
            }
            let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
            let meant = digits.filter(|_| *byte == escape).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            decoded.push(meant.unwrap_or(*byte));
            at += if meant.is_some() { 3 } else { 1 };
        }
        match String::from_utf8(decoded) {
            Ok(text) => {
                breaks.retain(|at| text.is_char_boundary(*at));
                Self { text, breaks }
            }
            Err(error) => {
                Self { text: String::from_utf8_lossy(error.as_bytes()).into_owned(), breaks: Vec::new() }
            }
        }
    }

    /// True for a reading of `from..end` that has nothing in its code or `id_token` that stood behind them in the text.
    fn is_likely(&self, read: &Callback, from: usize, end: usize, stop: usize) -> bool {
        let Outcome::Code(code) = &read.outcome else { return true };
        let has_words = self.breaks.iter().any(|at| (from..end).contains(at) && self.are_words(*at, stop));
        let has_sign = self.text[..end].ends_with(['.', ',', ';', ':', '?', '\'', '(', ')', ']']);
        let id_token = code.id_token.as_ref();
        !has_words && !has_sign && id_token.is_none_or(|token| id_token::names_code(token, &code.code))
    }

    /// True when the line that begins at a break is words, and not the rest of an address.
    fn are_words(&self, at: usize, stop: usize) -> bool {
        let end = self.breaks.iter().copied().find(|other| *other > at).unwrap_or(stop);
        let line = &self.text[at..end.min(stop)];
        let word = line.trim_end_matches(['.', ',', '!']);
        let is_word = word.len() > 3
            && word.bytes().all(|byte| byte.is_ascii_alphabetic())
            && word.bytes().skip(1).all(|byte| byte.is_ascii_lowercase());
        !line.contains('=') && (is_word || line.contains(' '))
    }

    fn is_break(&self, at: usize) -> bool {
        self.breaks.binary_search(&at).is_ok()
    }

    /// True where an address that goes on to `stop` at most may end: at a line break, a sign that is in no address or
    /// often behind one, or a space that more parameters do not follow.
    fn may_end(&self, at: usize, stop: usize) -> bool {
        let Some(next) = self.text.as_bytes().get(at).filter(|_| at < stop) else { return true };
        let is_usual = next.is_ascii_alphanumeric() || next.is_ascii_control() || b"%&=+/-_#".contains(next);
        if !self.text.is_char_boundary(at) || is_usual && !self.is_break(at) {
            return false;
        }
        let word =
            self.text[at..stop].strip_prefix(' ').map(|rest| &rest[..length_until(rest, stop, |_| false)]);
        let is_pair = |pair: &str| pair.split_once('=').is_some_and(|(name, _)| is_name(name));
        !word.is_some_and(|word| word.split('&').skip(1).any(is_pair))
    }
}

/// Parses a query, a fragment, or both. What is decoded must not have been there as it is.
fn parse_exactly(parameters: &str) -> Result<Callback, CallbackError> {
    let parts = match parameters.strip_prefix('?') {
        Some(parameters) => parameters.split_once('#').unwrap_or((parameters, "")),
        None => ("", parameters.strip_prefix('#').unwrap_or(parameters)),
    };
    let is_exact = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !ends_address(byte);
        // Padding stands at the end (RFC 4648, section 3.2).
        let is_padded_inside = value.trim_end_matches('=').contains('=');
        !EXACT.contains(&name) || value.bytes().all(is_plain) && !is_padded_inside
    };
    let callback = parse_parameters(&[parts.0, parts.1])?;
    let mut pairs = parts.0.split('&').chain(parts.1.split('&'));
    if pairs.all(is_exact) { Ok(callback) } else { Err(CallbackError::Characters) }
}

/// Takes away what is seen in no address, and what mark-up, JSON and shells put before its signs.
fn unescaped(text: &str) -> String {
    let mut text = text.to_owned();
    // Some escape what was escaped already.
    for _ in 0..3 {
        let once = unescaped_once(&text);
        if once == text {
            break;
        }
        text = once;
    }
    text
}

fn unescaped_once(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let meant = match c {
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => continue,
            '\u{2060}'..='\u{206f}' | '\u{feff}' => continue,
            '&' => entity(rest),
            '\\' => escape(rest),
            '^' | '`' if rest.starts_with('&') => Some(('&', 1)),
            _ => None,
        };
        let (meant, length) = meant.unwrap_or((c, 0));
        plain.push(meant);
        rest = &rest[length..];
    }
    plain
}

/// What the rest of a character reference stands for (HTML Standard, section 13.5), and how long it is.
fn entity(rest: &str) -> Option<(char, usize)> {
    let name = rest.as_bytes().iter().take(8).position(|byte| *byte == b';').map(|end| &rest[..end])?;
    let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
    let meant = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        _ => match name.strip_prefix('#')?.strip_prefix(['x', 'X']) {
            Some(hex) => number(hex, 16)?,
            None => number(&name[1..], 10)?,
        },
    };
    Some((meant, name.len() + 1))
}

/// What stands behind a backslash in JSON, scripts and shells, and how long it is.
fn escape(rest: &str) -> Option<(char, usize)> {
    let first = rest.chars().next()?;
    let number = |digits: usize| u32::from_str_radix(rest.get(1..=digits)?, 16).ok().and_then(char::from_u32);
    match first {
        'u' => Some((number(4)?, 5)),
        'x' => Some((number(2)?, 3)),
        'n' | 'r' => Some(('\n', 1)),
        _ if first.is_ascii_punctuation() || is_line_break(first) => Some((first, first.len_utf8())),
        _ => None,
    }
}

/// How many bytes come before what ends an address, or is asked for; `most` at most.
fn length_until(text: &str, most: usize, is_asked_for: impl Fn(u8) -> bool) -> usize {
    let mut bytes = text.bytes().take(most);
    let end = bytes.position(|byte| ends_address(byte) || is_asked_for(byte));
    let end = end.unwrap_or_else(|| most.min(text.len()));
    (0..=end).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// True for the name of a parameter, as it is written.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-%+".contains(&byte))
}

/// From where on a `state`, and a code or an error, are there.
fn complete_from(parameters: &str) -> Option<usize> {
    let behind = |name: &str| {
        let is_name = |at: &usize| *at == 0 || b"?#&".contains(&parameters.as_bytes()[at - 1]);
        parameters.match_indices(name).map(|(at, _)| at).find(is_name).map(|at| at + name.len())
    };
    Some(behind("state=")?.max(behind("code=").or_else(|| behind("error="))?))
}

/// What is in no address: spaces, quotes, brackets, and everything that is not ASCII. Control characters are not left
/// out in silence.
const fn ends_address(byte: u8) -> bool {
    matches!(byte, b' ' | b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'|' | b'^' | b'\\') || !byte.is_ascii()
}

/// True for what stands before parameters that have no address.
fn is_before_bare(before: &str) -> bool {
    before.bytes().next_back().is_some_and(|byte| ends_address(byte) || b"(['*:,".contains(&byte))
}

fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// What more of the text may mend.
const fn is_incomplete(error: &CallbackError) -> bool {
    matches!(
        error,
        CallbackError::Missing(_)
            | CallbackError::NoParameters(_)
            | CallbackError::Characters
            | CallbackError::Address { .. }
    )
}
