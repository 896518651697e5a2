//! A caller's connection over TCP or the unix socket, on which anything may happen.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::support::Answer;

/// Far longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(45);

/// What came of a request.
pub(super) enum Outcome {
    /// The answer that was asked for.
    Right(Answer),
    /// Another one, whole.
    Wrong(Answer),
    /// An answer that ended before its end, and how.
    CutOff(String),
    /// No byte of an answer, and why.
    Unanswered(String),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right(answer) | Self::Wrong(answer) => {
                let text: String = answer.text().chars().take(500).collect();
                write!(f, "{} {:?} {text:?}", answer.status, answer.fields)
            }
            Self::CutOff(reason) => write!(f, "cut off: {reason}"),
            Self::Unanswered(reason) => write!(f, "no answer: {reason}"),
        }
    }
}

/// A request with a body that is known.
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) body: Vec<u8>,
    pub(super) is_chunked: bool,
}

pub(super) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub(super) struct Line {
    stream: BufReader<Box<dyn Stream>>,
    authority: String,
}

impl Line {
    pub(super) fn tcp(authority: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(authority)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(Box::new(stream)), authority: authority.to_owned() })
    }

    pub(super) fn unix(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(Box::new(stream)), authority: "localhost".to_owned() })
    }

    /// Writes a request, or only so much of it. A daemon that answers early may not take all of it.
    pub(super) fn send(&mut self, request: &Request, at_most: usize) {
        let Request { method, target, body, is_chunked } = request;
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.authority).into_bytes();
        if *is_chunked {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in body.chunks(10_000) {
                bytes.extend_from_slice(
                    &[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
                );
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            let length = if body.is_empty() && *method != "POST" {
                String::new()
            } else {
                format!("Content-Length: {}\r\n", body.len())
            };
            bytes.extend_from_slice(&[length.as_bytes(), b"\r\n", body].concat());
        }
        bytes.truncate(at_most);
        let _gone = self.stream.get_mut().write_all(&bytes);
    }

    /// Reads an answer to its end; a GET's or an event stream's is right when `is_right` says so.
    pub(super) fn outcome(&mut self, method: &str, is_right: impl Fn(&Answer) -> bool) -> Outcome {
        match self.stream.fill_buf() {
            Ok([]) => return Outcome::Unanswered("the connection was closed".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Outcome::CutOff("no answer in time".to_owned());
            }
            Err(error) => return Outcome::Unanswered(error.to_string()),
            Ok(_) => {}
        }
        match self.answer(method) {
            Ok(answer) if is_right(&answer) => Outcome::Right(answer),
            Ok(answer) => Outcome::Wrong(answer),
            Err(error) => Outcome::CutOff(error.to_string()),
        }
    }

    fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {line:?}")))?;
        let mut answer = Answer { status, fields: self.fields()?, body: Vec::new() };
        if method == "HEAD" {
            return Ok(answer);
        }
        if answer.field("transfer-encoding").is_some() {
            self.chunks(&mut answer.body)?;
        } else {
            let length = answer.field("content-length").and_then(|length| length.parse().ok());
            answer.body = vec![0; length.ok_or_else(|| io::Error::other("no length"))?];
            self.stream.read_exact(&mut answer.body)?;
        }
        Ok(answer)
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(&line, 16).map_err(io::Error::other)?;
            if size == 0 {
                return self.fields().map(drop);
            }
            let start = body.len();
            body.resize(start + size, 0);
            self.stream.read_exact(&mut body[start..])?;
            self.line()?;
        }
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { return Ok(fields) };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let whole = line.strip_suffix("\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(whole.to_owned())
    }
}
