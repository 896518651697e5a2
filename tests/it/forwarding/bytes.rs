//! Random legal messages, compared where they arrive. `FORWARDING_SEED` repeats a run.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use super::caller::Caller;
use super::{one_worker, over_tls, sha256, token};
use crate::dice::Dice;
use crate::standin::{Answer, RecordedRequest, Scripted};
use crate::support::Setup;

const MESSAGES: usize = 1000;
const METHODS: [&str; 14] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "PROPFIND",
    "M-SEARCH",
    "QUERY",
    "get",
    "X!$%&'*+.^_`|~9",
    "PURGE",
    "GET",
];
const PCHAR: &[u8] = b"abcXYZ019-._~!$&'()*+,;=:@";
const TOKEN: &[u8] = b"abcXYZ019!#$%&'*+-.^_`|~";
/// What must not go up, with values that would do harm.
const STRIPPED: [(&str, &str); 17] = [
    ("Authorization", "Bearer evil"),
    ("Authorization-Type", "pat"),
    ("Proxy-Authorization", "Basic ZXZpbDpldmls"),
    ("Cookie", "session=evil"),
    ("Forwarded", "for=203.0.113.9;host=evil.example"),
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Anything", "evil"),
    ("Via", "1.1 evil"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("Proxy-Authenticate", "Basic"),
    ("TE", "trailers"),
    ("Upgrade", "h2c, websocket"),
    ("Connection", "X-Of-This-Connection, keep-alive"),
    ("X-Of-This-Connection", "evil"),
    ("Connection", "authorization, content-length, transfer-encoding, host"),
];
/// What the proxy may say beside what the caller said.
const ADDED: [&str; 4] = ["host", "authorization", "content-length", "transfer-encoding"];

#[test]
fn a_thousand_random_messages_arrive_byte_for_byte_over_plain_http() {
    a_thousand_messages_arrive(one_worker());
}

#[test]
fn a_thousand_random_messages_arrive_byte_for_byte_over_tls() {
    a_thousand_messages_arrive(over_tls());
}

#[test]
fn paths_that_a_library_would_tidy_up_go_up_as_they_are() {
    let targets = [
        "/api/blogposts/@sitehome?pageIndex=1&pageSize=10",
        "/api/fetch/https%3A%2F%2Fwww.cnblogs.com%2Fa%3Fb%3Dc%26d",
        "//",
        "//evil.example/x",
        "/a//b///c/",
        "/a%252fb%25252e",
        "/-/../api",
        "/-/%2e%2E/api",
        "/-/./status",
        "/%2d/status",
        "/%2D/status",
        "/-",
        "/-x/status",
        "/a/../b/./c/..",
        "/%00%0d%0aX-Evil:%201",
        "/a;v=1/b,c/(d)/'e'/*!$&+=:@",
        "/?",
        "/a??b?c=/?",
        "/a?q=%e4%bd%a0+x%20y&&=&",
    ];
    let world = one_worker().logged_in();
    let mut caller = Caller::connect(&world.daemon);
    for target in targets {
        let answer = caller.get(target);
        assert_eq!(answer.field("proxy-status"), None, "{target}: {answer:?}");
        let arrived = world.standin.api_requests().pop().expect("it was forwarded");
        assert_eq!(arrived.target, target);
    }
    assert_eq!(world.standin.api_violations(), Vec::<String>::new());
}

#[test]
fn a_target_in_absolute_form_goes_to_the_upstream_as_a_path() {
    let world = one_worker().logged_in();
    let authority = &world.daemon.authority;

    let answer = world.daemon.get(&format!("http://{authority}/echo//x?a=http://b/"));

    assert_eq!(answer.json()["target"], "/echo//x?a=http://b/");
    let arrived = world.standin.api_requests().pop().unwrap();
    assert_eq!(arrived.field("host"), Some(world.standin.api_authority()));
}

#[test]
fn a_prefix_is_stripped_and_ends_where_a_segment_ends() {
    let world = Setup { route: "prefix = \"/write\"".to_owned(), ..one_worker() }.logged_in();

    for (target, expected) in [
        ("/write/echo//x?y", "/echo//x?y"),
        ("/write//evil.example/", "//evil.example/"),
        ("/write/echo?", "/echo?"),
        ("/write/write/%2e%2e/?a=/write", "/write/%2e%2e/?a=/write"),
        ("/write", "/"),
        ("/write/", "/"),
        ("/write?a", "/?a"),
    ] {
        world.daemon.get(target);
        assert_eq!(world.standin.api_requests().pop().unwrap().target, expected);
    }
    for target in ["/writer/echo", "/Write/echo", "/echo", "/%77rite/echo"] {
        super::assert_problem(&world.daemon.get(target), "no-route", 404, "destination_not_found");
    }
}

fn a_thousand_messages_arrive(setup: Setup) {
    let seed = std::env::var("FORWARDING_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(MESSAGES));
    let world = setup.logged_in();
    let token = token(&world);
    world.standin.on_api(|_| Some(Scripted::Answer(Answer::full(200, "taken"))));

    let mut dice = Dice(seed);
    let mut caller = Caller::connect(&world.daemon);
    let mut sent = Vec::new();
    for number in 0..MESSAGES {
        if dice.chance(5) {
            caller = Caller::connect(&world.daemon);
        }
        let message = Message::draw(&mut dice, &world.daemon.authority);
        caller.send(&message.bytes(&mut dice));
        let answer = caller.answer(&message.method);
        assert_eq!(answer.status, 200, "FORWARDING_SEED={seed}, message {number}: {message:?}\n{answer:?}");
        // Behind trailers, also behind those that do not go up.
        let ends = answer.field("connection") == Some("close");
        assert!(ends || message.trailers.is_empty(), "FORWARDING_SEED={seed}, message {number}");
        if ends {
            assert_eq!(message.framing, Framing::Chunked, "FORWARDING_SEED={seed}, message {number}");
            caller = Caller::connect(&world.daemon);
        }
        sent.push(message);
    }

    let arrived = world.standin.api_requests();
    assert_eq!(arrived.len(), MESSAGES, "FORWARDING_SEED={seed}");
    for (number, (message, arrived)) in sent.iter().zip(&arrived).enumerate() {
        message.assert_is(arrived, &token, &format!("FORWARDING_SEED={seed}, message {number}"));
    }
}

#[derive(Debug)]
struct Message {
    method: String,
    /// As it must arrive.
    target: String,
    /// As it is sent.
    request_target: String,
    host: String,
    fields: Vec<(String, Vec<u8>)>,
    stripped: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    framing: Framing,
    trailers: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length,
    Chunked,
}

impl Message {
    fn draw(dice: &mut Dice, authority: &str) -> Self {
        let framing = match dice.below(10) {
            0..=3 => Framing::None,
            4..=6 => Framing::Length,
            _ => Framing::Chunked,
        };
        let most = dice.pick(&[0, 1, 100, 100, 5000, 5000, 70_000, 200_000]);
        let length = if framing == Framing::None { 0 } else { dice.below(most + 1) };
        let target = target(dice);
        let absolute = dice.chance(5);
        let mut stripped: Vec<_> = STRIPPED.into_iter().filter(|_| dice.chance(12)).collect();
        if stripped.iter().any(|(name, _)| *name == "X-Of-This-Connection") {
            stripped.push(("Connection", "x-of-this-connection"));
        }
        let trailers = if framing == Framing::Chunked && dice.chance(40) { dice.below(3) } else { 0 };
        Self {
            method: dice.pick(&METHODS).to_owned(),
            request_target: if absolute { format!("http://{authority}{target}") } else { target.clone() },
            target,
            host: authority.to_owned(),
            fields: fields(dice),
            stripped,
            body: (0..length).map(|_| u8::try_from(dice.next() & 0xff).unwrap()).collect(),
            framing,
            trailers: (0..trailers).map(|number| (format!("X-Trailer-{number}"), value(dice, 40))).collect(),
        }
    }

    fn bytes(&self, dice: &mut Dice) -> Vec<u8> {
        let mut lines = vec![(b"Host".to_vec(), self.host.clone().into_bytes())];
        lines.extend(self.fields.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone())));
        lines.extend(self.stripped.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        match self.framing {
            Framing::None => {}
            Framing::Length => lines.push((b"Content-Length".to_vec(), self.body.len().to_string().into())),
            Framing::Chunked => lines.push((b"Transfer-Encoding".to_vec(), b"chunked".to_vec())),
        }
        if !self.trailers.is_empty() {
            let names: Vec<&str> = self.trailers.iter().map(|(name, _)| name.as_str()).collect();
            lines.push((b"Trailer".to_vec(), names.join(", ").into()));
        }
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.request_target).into_bytes();
        for (name, value) in lines {
            let space = dice.pick(&[&b": "[..], b":", b":\t "]);
            bytes.extend([&name, space, &value[..], b"\r\n"].concat());
        }
        bytes.extend(b"\r\n");
        if self.framing == Framing::Chunked {
            self.chunks(dice, &mut bytes);
        } else {
            bytes.extend(&self.body);
        }
        bytes
    }

    fn chunks(&self, dice: &mut Dice, bytes: &mut Vec<u8>) {
        let mut rest = &self.body[..];
        while !rest.is_empty() {
            let most = dice.pick(&[1, 10, 1000, 100_000]);
            let (chunk, left) = rest.split_at(1 + dice.below(most.min(rest.len())));
            let size = match dice.below(4) {
                0 => format!("{:X}", chunk.len()),
                1 => format!("000{:x}", chunk.len()),
                2 => format!("{:x};note=\"a b\"", chunk.len()),
                _ => format!("{:x}", chunk.len()),
            };
            bytes.extend([size.as_bytes(), b"\r\n", chunk, b"\r\n"].concat());
            rest = left;
        }
        bytes.extend(b"0\r\n");
        for (name, value) in &self.trailers {
            bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        if dice.chance(30) {
            bytes.extend(b"Authorization: Bearer evil\r\nX-Forwarded-For: evil\r\nContent-Length: 7\r\n");
        }
        bytes.extend(b"\r\n");
    }

    #[track_caller]
    fn assert_is(&self, arrived: &RecordedRequest, token: &str, context: &str) {
        let context = format!("{context}: {} {}", self.method, self.target);
        assert_eq!(arrived.violation, None, "{context}");
        assert_eq!((&arrived.method, &arrived.target), (&self.method, &self.target), "{context}");
        assert_eq!(arrived.fields_named("authorization"), [format!("Bearer {token}")], "{context}");
        assert_eq!(arrived.body_length, self.body.len() as u64, "{context}");
        assert_eq!(arrived.body_sha256, sha256(&self.body), "{context}");
        assert_eq!(lower(&arrived.trailers), lower(&self.trailers), "{context}: the trailers");

        for name in self.fields.iter().map(|(name, _)| name) {
            let sent: Vec<_> = values(&self.fields, name);
            assert_eq!(values(&arrived.fields, name), sent, "{context}: {name}");
        }
        let sent: BTreeSet<_> = self.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let more = arrived.fields.iter().map(|(name, _)| name.to_ascii_lowercase());
        let may_come = |name: &String| {
            sent.contains(name)
                || ADDED.contains(&name.as_str())
                || (name == "trailer" && !self.trailers.is_empty())
        };
        let more: Vec<_> = more.filter(|name| !may_come(name)).collect();
        assert_eq!(more, Vec::<String>::new(), "{context}: nobody sent these, or they had to stay behind");
    }
}

fn target(dice: &mut Dice) -> String {
    let mut target = String::new();
    let longest = dice.pick(&[3, 8, 40, 1000]);
    for _ in 0..=dice.below(6) {
        target.push('/');
        let length = dice.below(longest) / 6;
        (0..length).for_each(|_| character(dice, &mut target, PCHAR));
    }
    if target.starts_with("/-/") {
        target.insert(0, '/');
    }
    if dice.chance(40) {
        target.push('?');
        let length = dice.below(longest);
        (0..length).for_each(|_| character(dice, &mut target, b"abcXYZ019-._~!$&'()*+,;=:@/?"));
    }
    target
}

fn character(dice: &mut Dice, text: &mut String, from: &[u8]) {
    match dice.below(8) {
        0 => text.push_str(&format!("%{:02x}", dice.below(256))),
        1 => text.push_str(&format!("%{:02X}", dice.below(256))),
        _ => text.push(char::from(dice.pick(from))),
    }
}

/// End-to-end fields of many shapes.
fn fields(dice: &mut Dice) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in [
        ("Accept", "application/json;q=0.9, */*"),
        ("accept", "text/plain"),
        ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),
        ("If-None-Match", "W/\"x\", \"y\""),
        ("Range", "bytes=0-99,-5"),
        ("User-Agent", "curl/8 (\"quoted\"; \\)"),
        ("Date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        ("X-Forwarded", "stays: it is not one of X-Forwarded-*"),
        ("Expect", "100-continue"),
        ("Sec-Fetch-Site", "none"),
        ("Cache-Control", "no-cache"),
        ("Max-Forwards", "0"),
        ("Content-Encoding", "gzip"),
    ] {
        if dice.chance(15) {
            fields.push((name.to_owned(), value.into()));
        }
    }
    for _ in 0..dice.below(8) {
        let length = 1 + dice.below(20);
        let name: String = (0..length).map(|_| char::from(dice.pick(TOKEN))).collect();
        let longest = dice.pick(&[0, 10, 100, 400]);
        for _ in 0..=dice.below(2) {
            fields.push((format!("X-Test-{name}"), value(dice, longest)));
        }
    }
    fields
}

/// Visible characters, spaces and tabs within, and the bytes that were once latin-1.
fn value(dice: &mut Dice, longest: usize) -> Vec<u8> {
    let length = dice.below(longest + 1);
    let byte = |dice: &mut Dice| match dice.below(20) {
        0 => b'\t',
        1 => b' ',
        2 => u8::try_from(0x80 + dice.below(0x80)).unwrap(),
        _ => u8::try_from(0x21 + dice.below(0x5e)).unwrap(),
    };
    let bytes: Vec<u8> = (0..length).map(|_| byte(dice)).collect();
    bytes.trim_ascii().to_vec()
}

fn values<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> Vec<&'a [u8]> {
    let named = fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_slice()).collect()
}

fn lower(fields: &[(String, Vec<u8>)]) -> Vec<(String, &[u8])> {
    fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_slice())).collect()
}
