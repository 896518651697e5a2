//! Callers that never stop asking, and count what they see.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::support::{PATIENCE, eventually};

const HEAD: &str = "GET /echo/load HTTP/1.1\r\nHost: 127.0.0.1:8262\r\n";

/// Some callers with a connection for each request, and some that keep theirs, until it is ended.
pub(super) struct Load {
    seen: Arc<Seen>,
    callers: Vec<JoinHandle<()>>,
}

/// What the callers saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Answers of the API.
    pub(super) answered: AtomicU64,
    /// Kept connections that were closed before a byte of the answer: the request was sent again on a new one, as
    /// HTTP clients do.
    pub(super) sent_again: AtomicU64,
    /// Anything else, in words.
    pub(super) failures: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl Load {
    /// So many callers of each kind.
    pub(super) fn start(callers: usize) -> Self {
        let seen = Arc::new(Seen::default());
        let start = |keeps: bool| {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || call(&seen, keeps))
        };
        let callers = (0..callers).flat_map(|_| [start(true), start(false)]).collect();
        Self { seen, callers }
    }

    /// Waits until so many more were answered.
    #[track_caller]
    pub(super) fn goes_on(&self, more: u64) {
        let before = self.seen.answered.load(Ordering::Relaxed);
        eventually("callers are answered", || {
            (self.seen.answered.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }

    /// Ends the callers.
    pub(super) fn end(self) -> Arc<Seen> {
        self.seen.ended.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.join().unwrap();
        }
        self.seen
    }
}

fn call(seen: &Seen, keeps: bool) {
    let mut kept: Option<BufReader<TcpStream>> = None;
    while !seen.ended.load(Ordering::Relaxed) {
        let is_reused = kept.is_some();
        match once(kept.take(), keeps) {
            Ok((200, connection)) => {
                seen.answered.fetch_add(1, Ordering::Relaxed);
                kept = connection;
            }
            Ok((status, _)) => seen.fail(format!("keeps {keeps}: status {status}")),
            Err(error) if is_reused && error.kind() == ErrorKind::ConnectionReset => {
                seen.sent_again.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => seen.fail(format!("keeps {keeps}, reused {is_reused}: {error}")),
        }
    }
}

impl Seen {
    fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }
}

/// One request; returns the status, and the connection when it may be kept. Reset when not a byte came.
fn once(kept: Option<BufReader<TcpStream>>, keeps: bool) -> Result<(u16, Option<BufReader<TcpStream>>)> {
    let no_answer = || Error::from(ErrorKind::ConnectionReset);
    let mut connection = match kept {
        Some(connection) => connection,
        None => BufReader::new(TcpStream::connect("127.0.0.1:8262")?),
    };
    connection.get_ref().set_read_timeout(Some(PATIENCE))?;
    let head = format!("{HEAD}{}\r\n", if keeps { "" } else { "Connection: close\r\n" });
    connection.get_mut().write_all(head.as_bytes()).map_err(|_gone| no_answer())?;

    let (mut length, mut closes, mut line) = (0, !keeps, String::new());
    match connection.read_line(&mut line) {
        Ok(0) => return Err(no_answer()),
        Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(no_answer()),
        read => read?,
    };
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| Error::other(format!("no status in {line:?}")))?;
    loop {
        line.clear();
        if connection.read_line(&mut line)? == 0 {
            return Err(Error::other("the head ends early"));
        }
        let field = line.trim_end().to_ascii_lowercase();
        match field.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(Error::other)?,
            Some(("connection", "close")) => closes = true,
            None if field.is_empty() => break,
            _ => {}
        }
    }
    connection.read_exact(&mut vec![0; length])?;
    Ok((status, (!closes).then_some(connection)))
}
