//! A caller that keeps its connection and reads answers piece by piece.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::{Answer, Daemon};

/// One connection.
pub(crate) struct Caller {
    pub(crate) stream: BufReader<TcpStream>,
    authority: String,
    /// The statuses of interim answers so far.
    pub(crate) interim: Vec<u16>,
    /// The trailer section of the last answer.
    pub(crate) trailers: Vec<(String, String)>,
}

impl Caller {
    pub(crate) fn connect(daemon: &Daemon) -> Self {
        let (stream, authority) = (BufReader::new(daemon.connect()), daemon.authority.clone());
        stream.get_ref().set_nodelay(true).unwrap();
        Self { stream, authority, interim: Vec::new(), trailers: Vec::new() }
    }

    /// Writes bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Writes bytes to a peer that may be gone; false when it is.
    pub(crate) fn send_if_open(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Writes a request line, the Host and fields; each line of `fields` ends in CRLF.
    #[track_caller]
    pub(crate) fn send_head(&mut self, line: &str, fields: &str) {
        let head = format!("{line} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", self.authority);
        self.send(head.as_bytes());
    }

    /// A GET on this connection, to its end.
    #[track_caller]
    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.send_head(&format!("GET {target}"), "");
        self.answer("GET")
    }

    /// A POST with a known length on this connection, to its end.
    #[track_caller]
    pub(crate) fn post(&mut self, target: &str, body: &[u8]) -> Answer {
        self.send_head(&format!("POST {target}"), &format!("Content-Length: {}\r\n", body.len()));
        // An answer may come, and end the connection, before all was sent.
        self.send_if_open(body);
        self.answer("POST")
    }

    /// Writes one chunk.
    #[track_caller]
    pub(crate) fn send_chunk(&mut self, content: &[u8]) {
        self.send(&[format!("{:x}\r\n", content.len()).as_bytes(), content, b"\r\n"].concat());
    }

    /// Writes as much as is taken within that time without progress; returns how much.
    pub(crate) fn send_until_held_back(&mut self, bytes: &[u8], patience: Duration) -> usize {
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(patience)).unwrap();
        let mut sent = 0;
        while sent < bytes.len() {
            match stream.write(&bytes[sent..]) {
                Ok(written) => sent += written,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => panic!("the upload broke off: {error}"),
            }
        }
        stream.set_write_timeout(Some(crate::support::PATIENCE)).unwrap();
        sent
    }

    /// Says that nothing more will be sent.
    pub(crate) fn close_sending_side(&self) {
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// The next answer, to its end.
    #[track_caller]
    pub(crate) fn answer(&mut self, method: &str) -> Answer {
        let mut answer = self.head();
        if method == "HEAD" || matches!(answer.status, 204 | 304) {
            return answer;
        }
        if answer.field("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
        } else if let Some(length) = answer.field("content-length") {
            answer.body = self.exactly(length.parse().unwrap());
        } else {
            self.stream.read_to_end(&mut answer.body).unwrap();
        }
        answer
    }

    /// The head of the next final answer.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Answer {
        loop {
            let answer = self.any_head();
            if answer.status >= 200 || answer.status == 101 {
                return answer;
            }
            self.interim.push(answer.status);
        }
    }

    /// The head of the next answer, interim or final.
    #[track_caller]
    pub(crate) fn any_head(&mut self) -> Answer {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        Answer { status, fields: self.fields(), body: Vec::new() }
    }

    /// The next chunk; none at the last one.
    #[track_caller]
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line();
        let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("no chunk size: {line:?}"));
        if size == 0 {
            self.trailers = self.fields();
            return None;
        }
        let content = self.exactly(size);
        assert_eq!(self.line(), "", "a chunk ends where it says");
        Some(content)
    }

    /// The next bytes, so many.
    #[track_caller]
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Everything until the connection ends, in order or not.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the connection stays open, after {:?}", String::from_utf8_lossy(&rest));
            }
            _ => rest,
        }
    }

    /// True when the connection ended within that time; anything that still came is passed over.
    pub(crate) fn ends_within(&mut self, time: Duration) -> bool {
        self.stream.get_ref().set_read_timeout(Some(time)).unwrap();
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            Ok(_) => true,
        }
    }

    fn fields(&mut self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return fields;
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        let line = line.strip_suffix(b"\r\n").unwrap_or_else(|| {
            panic!("the connection ended in a line: {:?}", String::from_utf8_lossy(&line));
        });
        line.iter().map(|byte| char::from(*byte)).collect()
    }
}
