//! The same bytes through every proxy of a lane, on one thread: what the proxy wrote to its upstream before it
//! closed the caller's connection is in the upstream's socket by then, so it is seen without waiting for it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use socket2::Socket;

use super::peers::{Lane, Proxy, Side};
use crate::attacks::reading::{self, Ends, Head, Next, Request};

/// A request that follows on the caller's connection: when it reaches the upstream, the connection was kept.
pub(super) const SENTINEL: &str = "/sentinel";
/// Nothing takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// nginx 1.22 takes 103 for a final answer, whose body ends with the upstream's connection.
const PATIENCE_WITH_PEERS: Duration = Duration::from_secs(1);

/// What is played.
#[derive(Clone)]
pub(super) struct Play {
    /// What the caller writes.
    pub(super) bytes: Vec<u8>,
    /// What the upstream says to everything but the sentinel, and whether it closes then.
    pub(super) said: Option<(Vec<u8>, bool)>,
    /// The caller shuts down its sending side when nothing has moved for so long: a proxy that waits for the rest of
    /// a request learns that there is none. The daemon answers a half-closed caller all the same; of a peer that
    /// was merely slow, what it might still have forwarded can be lost.
    pub(super) grace: Duration,
}

/// What became of it through one proxy.
pub(super) struct Outcome {
    pub(super) proxy: Proxy,
    /// The whole requests that arrived upstream.
    pub(super) requests: Vec<Request>,
    /// Those that never ended.
    pub(super) begun: Vec<Request>,
    /// Everything that arrived upstream.
    pub(super) sent_up: Vec<u8>,
    /// What the caller got.
    pub(super) got: Vec<u8>,
    /// The final statuses in it.
    pub(super) statuses: Vec<u16>,
    /// What no proxy may do.
    pub(super) violations: Vec<String>,
}

/// A connection from a proxy.
pub(super) struct Upstream {
    stream: TcpStream,
    /// Behind the last whole request.
    buffer: Vec<u8>,
    is_continued: bool,
    has_ended: bool,
}

struct Caller<'a> {
    socket: Socket,
    unsent: &'a [u8],
    is_shut: bool,
    has_ended: bool,
    outcome: Outcome,
}

/// Plays it through the chosen proxies at once.
pub(super) fn exchange(lane: &mut Lane, play: &Play, chosen: impl Fn(Proxy) -> bool) -> Vec<Outcome> {
    let mut sides: Vec<&mut Side> = lane.sides.iter_mut().filter(|side| chosen(side.proxy)).collect();
    let mut callers: Vec<Caller<'_>> = sides.iter().map(|side| Caller::new(side, play)).collect();

    while callers.iter().any(|caller| !caller.has_ended) {
        let mut left = sides.iter().zip(&callers).filter(|(_, caller)| !caller.has_ended);
        let awaits_more = left.clone().any(|(_, caller)| !caller.is_shut);
        let patience = match awaits_more {
            true => play.grace,
            false if left.any(|(side, _)| side.proxy == Proxy::Ours) => PATIENCE,
            false => PATIENCE_WITH_PEERS,
        };
        let has_moved = wait(&sides, &callers, patience);
        for (side, caller) in sides.iter_mut().zip(&mut callers) {
            side.step(play, &mut caller.outcome);
            caller.step();
            if !has_moved && !caller.has_ended {
                caller.give_up(side);
            }
        }
    }

    let ends = sides.iter_mut().zip(callers);
    ends.map(|(side, caller)| side.settle(play, caller.outcome)).collect()
}

/// Whether something can be done within this time.
fn wait(sides: &[&mut Side], callers: &[Caller<'_>], patience: Duration) -> bool {
    let mut polled = Vec::new();
    for caller in callers.iter().filter(|caller| !caller.has_ended) {
        let flags = if caller.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        polled.push(PollFd::from_borrowed_fd(caller.socket.as_fd(), flags));
    }
    for side in sides {
        polled.push(PollFd::from_borrowed_fd(side.listener.as_fd(), PollFlags::IN));
        for upstream in &side.upstreams {
            polled.push(PollFd::from_borrowed_fd(upstream.stream.as_fd(), PollFlags::IN));
        }
    }
    let patience = patience.try_into().expect("a short time");
    poll(&mut polled, Some(&patience)).unwrap() > 0
}

impl<'a> Caller<'a> {
    fn new(side: &Side, play: &'a Play) -> Self {
        let outcome = Outcome {
            proxy: side.proxy,
            requests: Vec::new(),
            begun: Vec::new(),
            sent_up: Vec::new(),
            got: Vec::new(),
            statuses: Vec::new(),
            violations: Vec::new(),
        };
        Self { socket: side.connect(), unsent: &play.bytes, is_shut: false, has_ended: false, outcome }
    }

    /// Writes and reads what can be.
    fn step(&mut self) {
        while !self.unsent.is_empty() && !self.has_ended {
            match self.socket.write(self.unsent) {
                Ok(written) => self.unsent = &self.unsent[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // It was closed; what it said before can still be read.
                Err(_closed) => self.unsent = &[],
            }
        }
        self.has_ended = self.has_ended || !read(&self.socket, &mut self.outcome.got);
    }

    /// Nothing moves any more: first the caller says that it sends nothing more, then the upstream of a peer.
    fn give_up(&mut self, side: &mut Side) {
        if !self.is_shut {
            let _shut = self.socket.shutdown(Shutdown::Write);
            self.is_shut = true;
        } else if side.proxy != Proxy::Ours && !side.upstreams.is_empty() {
            side.upstreams.clear();
        } else {
            self.outcome.violations.push("the caller's connection never ended".to_owned());
            self.has_ended = true;
        }
    }
}

impl Side {
    /// Reads and answers what came to the upstream; whether anything did.
    fn step(&mut self, play: &Play, outcome: &mut Outcome) -> bool {
        let mut has_moved = false;
        while let Ok((stream, _address)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
            self.upstreams.push(Upstream {
                stream,
                buffer: Vec::new(),
                is_continued: false,
                has_ended: false,
            });
            has_moved = true;
        }
        for upstream in &mut self.upstreams {
            has_moved |= upstream.step(play, outcome);
        }
        self.upstreams.retain(|upstream| {
            if upstream.has_ended && !upstream.buffer.is_empty() {
                outcome.begun.extend(upstream.begun());
            }
            !upstream.has_ended
        });
        has_moved
    }

    /// Reads what is left of this play, and waits for the end of what never became a whole request.
    fn settle(&mut self, play: &Play, mut outcome: Outcome) -> Outcome {
        while self.step(play, &mut outcome) {}
        while self.upstreams.iter().any(|upstream| !upstream.buffer.is_empty()) {
            let is_left = |upstream: &&mut Upstream| !upstream.buffer.is_empty();
            if !wait(&[&mut *self], &[], PATIENCE) {
                let left = self.upstreams.iter_mut().find(is_left).expect("there is one");
                outcome.violations.push("an unfinished request is left open upstream".to_owned());
                left.has_ended = true;
            }
            self.step(play, &mut outcome);
        }
        outcome.statuses = statuses(&outcome.got);
        outcome
    }
}

impl Upstream {
    fn step(&mut self, play: &Play, outcome: &mut Outcome) -> bool {
        let start = self.buffer.len();
        self.has_ended |= !read(&self.stream, &mut self.buffer);
        let has_moved = self.buffer.len() > start || self.has_ended;
        outcome.sent_up.extend_from_slice(&self.buffer[start..]);
        while has_moved && !self.buffer.is_empty() {
            match reading::next(&self.buffer, Ends::Crlf) {
                Next::Whole(request, length) => {
                    self.buffer.drain(..length);
                    self.is_continued = false;
                    let is_unclear = request.is_ambiguous || request.refusal.is_some();
                    let what = is_unclear.then(|| format!("an ambiguous request went up: {request:?}"));
                    outcome.violations.extend(what);
                    self.answer(&request, play);
                    outcome.requests.push(request);
                }
                Next::Partial(head) => {
                    self.go_on(head.as_ref());
                    break;
                }
                Next::Faulty(fault, _head) => {
                    outcome.violations.push(format!("malformed at the upstream: {fault:?}"));
                    self.end();
                }
            }
        }
        has_moved
    }

    /// Tells who waits with the body that it is wanted, once.
    fn go_on(&mut self, head: Option<&Head>) {
        let is_awaited = head.is_some_and(|head| head.request.lists("expect", "100-continue"));
        if is_awaited && !self.is_continued {
            self.say(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.is_continued = true;
        }
    }

    fn answer(&mut self, request: &Request, play: &Play) {
        match &play.said {
            Some((bytes, closes)) if request.target != SENTINEL => {
                self.say(bytes);
                if *closes {
                    self.end();
                }
            }
            _ => self.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        }
    }

    /// Answers are shorter than any socket's buffer; who does not want one has closed.
    fn say(&mut self, bytes: &[u8]) {
        let _written = self.stream.write(bytes);
    }

    fn end(&mut self) {
        let _shut = self.stream.shutdown(Shutdown::Both);
        self.buffer.clear();
        self.has_ended = true;
    }

    fn begun(&self) -> Option<Request> {
        match reading::next(&self.buffer, Ends::Crlf) {
            Next::Partial(Some(head)) => Some(head.request.clone()),
            _ => None,
        }
    }
}

/// Reads all that is there; false at the end.
fn read(mut socket: impl Read, into: &mut Vec<u8>) -> bool {
    let mut piece = [0; 16 * 1024];
    loop {
        match socket.read(&mut piece) {
            Ok(0) => return false,
            Ok(length) => into.extend_from_slice(&piece[..length]),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// The final statuses of what a caller got.
fn statuses(got: &[u8]) -> Vec<u16> {
    let status = |at: usize| {
        let digits = got.get(at + 9..at + 12)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    let all = memchr::memmem::find_iter(got, b"HTTP/1.").filter_map(status);
    all.filter(|status| *status >= 200 || *status == 101).collect()
}
