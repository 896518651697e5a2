//! The strict reading of a connection's bytes (RFC 9112): which requests they hold, and where no request can be
//! read any more. It shares no code with the program or the stand-in, and reads both ends of a proxy: what the
//! caller wrote and what reached the upstream.

use super::line::latin1;

/// Why bytes are no request, or none that may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A line that ends with LF alone, around a chunk.
    BareLf,
    /// A CR that no LF follows.
    BareCr,
    /// Not a method, a target and a version with single spaces between.
    RequestLine,
    /// Bytes that no target has, or a form that no method but `CONNECT` has.
    Target,
    /// Another version than HTTP/1.0 and HTTP/1.1.
    Version,
    /// A line without a colon, a name that is no token, whitespace before the colon.
    FieldName,
    /// A control character.
    FieldValue,
    /// A field line that goes on in the next one (`obs-fold`).
    Fold,
    /// None, several, or no host.
    Host,
    /// A `Content-Length` that is no number, or several that differ.
    Length,
    /// A `Transfer-Encoding` that is not `chunked` alone.
    Coding,
    /// A chunk that does not end where its size says, or a size that is none.
    Chunk,
}

/// A request, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// In order, names in lower case, values as latin-1.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// It is framed, but a server has to refuse it.
    pub(crate) refusal: Option<Fault>,
    /// It has `Transfer-Encoding` beside `Content-Length` or in HTTP/1.0: refused, or read by its chunks and
    /// nothing behind it (RFC 9112, 6.1); or it repeats its `Content-Length`.
    pub(crate) is_ambiguous: bool,
    /// Nothing behind it is a request.
    pub(crate) closes: bool,
    /// A line among its trailers ends with LF alone.
    pub(crate) has_loose_trailers: bool,
}

/// What the first bytes are.
pub(crate) enum Next {
    /// A request and its length.
    Whole(Request, usize),
    /// The beginning of one; its head when that is there.
    Partial(Option<Head>),
    /// No request, nor anything behind it; the head when only the body is at fault.
    Faulty(Fault, Option<Head>),
}

/// The head of a request and where its body ends.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The request without its body.
    pub(crate) request: Request,
    framing: Framing,
    length: usize,
}

/// How bytes end that may hold several requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the last request.
    Whole,
    /// Within a request.
    Partial,
    /// Behind a request that was the last of its connection.
    Closed,
    /// With bytes that are no request.
    Faulty(Fault),
}

/// All requests of a connection's bytes.
pub(crate) struct Reading {
    pub(crate) requests: Vec<Request>,
    /// The one whose body is at fault, or does not end.
    pub(crate) begun: Option<Request>,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

/// Which line ends a head may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// CRLF, as every sender has to write it.
    Crlf,
    /// LF alone as well, as a recipient may read it (RFC 9112, 2.2).
    CrlfOrLf,
}

/// A body, and how long it is with all that frames it.
struct Body {
    data: Vec<u8>,
    length: usize,
    has_loose_trailers: bool,
}

/// Reads everything that a caller wrote.
pub(crate) fn read(bytes: &[u8]) -> Reading {
    let mut reading = Reading { requests: Vec::new(), begun: None, end: End::Whole };
    let mut rest = bytes;
    while reading.end == End::Whole && !rest.is_empty() {
        match next(rest, Ends::CrlfOrLf) {
            Next::Whole(request, length) => {
                reading.end = if request.closes { End::Closed } else { End::Whole };
                reading.requests.push(request);
                rest = &rest[length..];
            }
            Next::Partial(head) => {
                reading.begun = head.map(|head| head.request);
                reading.end = End::Partial;
            }
            Next::Faulty(fault, head) => {
                reading.begun = head.map(|head| head.request);
                reading.end = End::Faulty(fault);
            }
        }
    }
    reading
}

/// Reads one request. Empty lines before it are passed over (RFC 9112, 2.2).
pub(crate) fn next(bytes: &[u8], ends: Ends) -> Next {
    let mut start = 0;
    while let Ok(Some(([], length))) = line(&bytes[start..], ends) {
        start += length;
    }
    let head = match read_head(&bytes[start..], ends) {
        Ok(Some(head)) => head,
        Ok(None) => return Next::Partial(None),
        Err(fault) => return Next::Faulty(fault, None),
    };
    let body = &bytes[start + head.length..];
    let taken = match head.framing {
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let body = body.get(..length);
            Ok(body.map(|body| Body { data: body.to_vec(), length, has_loose_trailers: false }))
        }
        Framing::Chunked => read_chunks(body, ends),
    };
    match taken {
        Ok(Some(Body { data: body, length, has_loose_trailers })) => {
            let length = start + head.length + length;
            Next::Whole(Request { body, has_loose_trailers, ..head.request }, length)
        }
        Ok(None) => Next::Partial(Some(head)),
        Err(fault) => Next::Faulty(fault, Some(head)),
    }
}

impl Request {
    /// All values of a field.
    pub(crate) fn named(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Whether the field has this member, in any case.
    pub(crate) fn lists(&self, name: &str, member: &str) -> bool {
        let lists_it = |value: &str| members(value).any(|one| one.eq_ignore_ascii_case(member));
        self.named(name).into_iter().any(lists_it)
    }
}

/// Of a list, without the whitespace around them; other bytes that some take for whitespace are a part of them.
fn members(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(|member| member.trim_matches([' ', '\t']))
}

/// A line without its end, and how long it is with it; none while its end is not there.
fn line(bytes: &[u8], ends: Ends) -> Result<Option<(&[u8], usize)>, Fault> {
    match memchr::memchr2(b'\r', b'\n', bytes) {
        None => Ok(None),
        Some(at) if bytes[at] == b'\n' && ends == Ends::CrlfOrLf => Ok(Some((&bytes[..at], at + 1))),
        Some(at) if bytes[at] == b'\n' => Err(Fault::BareLf),
        Some(at) => match bytes.get(at + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some((&bytes[..at], at + 2))),
            Some(_) => Err(Fault::BareCr),
        },
    }
}

fn read_head(bytes: &[u8], ends: Ends) -> Result<Option<Head>, Fault> {
    let Some((first, mut at)) = line(bytes, ends)? else { return Ok(None) };
    let mut request = read_request_line(&latin1(first))?;
    loop {
        let Some((text, length)) = line(&bytes[at..], ends)? else { return Ok(None) };
        at += length;
        if text.is_empty() {
            let is_1_0 = request.1 == "HTTP/1.0";
            let framing = read_framing(&mut request.0, is_1_0)?;
            request.0.refusal = refusal(&request.0, is_1_0);
            return Ok(Some(Head { request: request.0, framing, length: at }));
        }
        request.0.fields.push(read_field(&latin1(text))?);
    }
}

fn read_request_line(line: &str) -> Result<(Request, String), Fault> {
    let words: Vec<&str> = line.split(' ').collect();
    let &[method, target, version] = words.as_slice() else { return Err(Fault::RequestLine) };
    if !is_token(method) || target.is_empty() {
        return Err(Fault::RequestLine);
    }
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Err(Fault::Version);
    }
    if target.chars().any(|char| char <= ' ' || char == '\x7f') {
        return Err(Fault::Target);
    }
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        fields: Vec::new(),
        body: Vec::new(),
        refusal: None,
        is_ambiguous: false,
        closes: false,
        has_loose_trailers: false,
    };
    Ok((request, version.to_owned()))
}

fn read_field(line: &str) -> Result<(String, String), Fault> {
    if line.starts_with([' ', '\t']) {
        return Err(Fault::Fold);
    }
    let (name, value) = line.split_once(':').ok_or(Fault::FieldName)?;
    if !is_token(name) {
        return Err(Fault::FieldName);
    }
    if value.chars().any(|char| (char < ' ' && char != '\t') || char == '\x7f') {
        return Err(Fault::FieldValue);
    }
    Ok((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Where the body ends, and whether the connection ends behind it.
fn read_framing(request: &mut Request, is_1_0: bool) -> Result<Framing, Fault> {
    request.closes = if is_1_0 {
        !request.lists("connection", "keep-alive")
    } else {
        request.lists("connection", "close")
    };
    let lengths: Vec<&str> =
        request.named("content-length").iter().flat_map(|value| members(value)).collect();
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let length = match lengths.as_slice() {
        [] => Ok(0),
        [first, rest @ ..] if is_number(first) && rest.iter().all(|other| other == first) => {
            first.parse().map_err(|_overflow| Fault::Length)
        }
        _ => Err(Fault::Length),
    };
    let codings = request.named("transfer-encoding");
    let has_codings = !codings.is_empty();
    if has_codings && !matches!(codings.as_slice(), [one] if one.eq_ignore_ascii_case("chunked")) {
        return Err(Fault::Coding);
    }
    let has_both = has_codings && (!lengths.is_empty() || is_1_0);
    let is_repeated = lengths.len() > 1;
    request.closes |= has_both;
    request.is_ambiguous = has_both || is_repeated;
    // Chunks count, whatever the length says (RFC 9112, 6.3).
    if has_codings { Ok(Framing::Chunked) } else { length.map(Framing::Length) }
}

fn refusal(request: &Request, is_1_0: bool) -> Option<Fault> {
    let has_host = match request.named("host").as_slice() {
        [] => is_1_0,
        [host] => is_host(host),
        _ => false,
    };
    let target = request.target.as_str();
    let is_target = target.starts_with('/')
        || target.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
        || (target == "*" && request.method == "OPTIONS")
        || request.method == "CONNECT";
    match (has_host, is_target) {
        (false, _) => Some(Fault::Host),
        (true, false) => Some(Fault::Target),
        (true, true) => None,
    }
}

/// RFC 3986, 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
}

/// A name, an IPv4 or a bracketed IPv6 address, and a port (RFC 9110, 7.2; RFC 3986, 3.2.2). With a comma it may
/// as well be two fields that somebody joined.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port = matches!(port, "" | ":") || port.strip_prefix(':').is_some_and(is_port);
    let is_of_a_name = |char: char| char.is_ascii_alphanumeric() || "-._~!$&'()*+;=%".contains(char);
    let is_name = !host.is_empty() && host.chars().all(is_of_a_name);
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    is_port && (is_name || is_address)
}

/// Digits, and a port that there is.
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// The data of all chunks and the length of all that belongs to them; none while something is missing. Trailers are
/// fields, and end as those do.
fn read_chunks(bytes: &[u8], ends: Ends) -> Result<Option<Body>, Fault> {
    let (mut data, mut at) = (Vec::new(), 0);
    loop {
        let Some((size, length)) = line(&bytes[at..], Ends::Crlf)? else { return Ok(None) };
        let size = read_size(&latin1(size))?;
        at += length;
        if size == 0 {
            break;
        }
        let Some(end) = at.checked_add(size).filter(|end| *end + 2 <= bytes.len()) else {
            return check_chunk_end(&bytes[at..], size).map(|()| None);
        };
        data.extend_from_slice(&bytes[at..end]);
        if &bytes[end..end + 2] != b"\r\n" {
            return Err(if bytes[end] == b'\n' { Fault::BareLf } else { Fault::Chunk });
        }
        at = end + 2;
    }
    let mut has_loose_trailers = false;
    loop {
        let Some((text, length)) = line(&bytes[at..], ends)? else { return Ok(None) };
        at += length;
        has_loose_trailers |= length < text.len() + 2;
        if text.is_empty() {
            return Ok(Some(Body { data, length: at, has_loose_trailers }));
        }
        read_field(&latin1(text))?;
    }
}

/// Of a chunk that is not there to its end: the one byte behind its data, when that is there.
fn check_chunk_end(rest: &[u8], size: usize) -> Result<(), Fault> {
    match rest.get(size) {
        None | Some(b'\r') => Ok(()),
        Some(b'\n') => Err(Fault::BareLf),
        Some(_) => Err(Fault::Chunk),
    }
}

/// A chunk's size; extensions are passed over, whatever they say (RFC 9112, 7.1.1).
fn read_size(line: &str) -> Result<usize, Fault> {
    let size = line.split(';').next().unwrap_or_default().trim_end_matches([' ', '\t']);
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Fault::Chunk);
    }
    usize::from_str_radix(size, 16).map_err(|_overflow| Fault::Chunk)
}

fn is_token(text: &str) -> bool {
    let special = |char| "!#$%&'*+-.^_`|~".contains(char);
    !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || special(char))
}

#[test]
fn the_strict_reading_is_the_one_of_the_standard() {
    let requests = |text: &str| {
        let reading = read(text.as_bytes());
        let bodies: Vec<String> = reading.requests.iter().map(|request| latin1(&request.body)).collect();
        (bodies, reading.end)
    };
    let host = "Host: a\r\n";
    let post = format!("POST / HTTP/1.1\r\n{host}");
    let get = format!("GET / HTTP/1.1\r\n{host}\r\n");
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");

    for (text, bodies, end) in [
        (format!("{get}\r\n{get}"), vec!["", ""], End::Whole),
        (format!("{post}Content-Length: 2\r\n\r\nab{get}"), vec!["ab", ""], End::Whole),
        (format!("{post}Content-Length: 3\r\n\r\nab"), vec![], End::Partial),
        (format!("{chunked}2;x\r\nab\r\n0\r\nT: 1\r\n\r\n{get}"), vec!["ab", ""], End::Whole),
        (format!("{chunked}2\r\nabc\r\n0\r\n\r\n"), vec![], End::Faulty(Fault::Chunk)),
        (format!("{chunked}0\r\nT: 1\n\n{get}"), vec!["", ""], End::Whole),
        (format!("{chunked}2\nab\r\n0\r\n\r\n"), vec![], End::Faulty(Fault::BareLf)),
        (
            format!("{post}Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{get}"),
            vec![""],
            End::Closed,
        ),
        (
            format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
            vec![],
            End::Faulty(Fault::Length),
        ),
        (format!("GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n{get}"), vec![""], End::Closed),
        (format!("GET / HTTP/1.0\r\n\r\n{get}"), vec![""], End::Closed),
        (format!("{get}x"), vec![""], End::Partial),
        (get.replace("\r\n", "\n"), vec![""], End::Whole),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), vec![], End::Faulty(Fault::FieldName)),
        ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n".to_owned(), vec![], End::Faulty(Fault::Fold)),
    ] {
        let bodies: Vec<String> = bodies.into_iter().map(str::to_owned).collect();
        assert_eq!(requests(&text), (bodies, end), "{text:?}");
    }
    assert_eq!(read(b"GET / HTTP/1.1\r\n\r\n").requests[0].refusal, Some(Fault::Host));
    for (trailers, is_loose) in [("T: 1\r\n\r\n", false), ("T: 1\n\n", true)] {
        let reading = read(format!("{chunked}0\r\n{trailers}").as_bytes());
        assert_eq!(reading.requests[0].has_loose_trailers, is_loose, "{trailers:?}");
    }
}
