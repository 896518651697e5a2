//! Where the daemon and other proxies differ, and why the daemon is right, or as strict.
//!
//! What reached the upstream through the daemon is always a part of what the strict reading finds
//! ([`super::compare::broken`]), so no class has to explain a request that the caller did not send.

use super::compare::{ABSENT, Difference, Kind, is_same};
use super::exchange::Outcome;
use super::peers::Proxy;
use crate::attacks::line::find;
use crate::attacks::reading::{End, Fault, Request};

/// A kind of difference.
pub(super) struct Class {
    pub(super) name: &'static str,
    /// Why the daemon is right, or as strict.
    pub(super) why: &'static str,
    holds: fn(&Difference<'_>) -> bool,
}

impl Class {
    /// Whether a difference is of this kind.
    pub(super) fn explains(&self, difference: &Difference<'_>) -> bool {
        (self.holds)(difference)
    }
}

/// Every known kind; the first that explains a difference is its own.
pub(super) const CLASSES: &[Class] = &[
    Class {
        name: "LF among trailers",
        why: "hyper takes all up to CRLF CRLF for trailers, others end them at LF: nothing is read behind a request \
              with trailers, where they read on",
        holds: |of| {
            let is_loose = |request: &Request| request.has_loose_trailers;
            !matches!(of.kind, Kind::Field { .. }) && of.reading.requests.iter().any(is_loose)
        },
    },
    // What the daemon refuses for what it is, not for how it is written.
    Class {
        name: "unknown host",
        why: "a Host under which the daemon is not known is refused: that is what stops DNS rebinding",
        holds: |of| of.is_refused_with(&[421]),
    },
    Class {
        name: "browser",
        why: "a web page of a foreign origin may not use the token",
        holds: |of| of.is_refused_with(&[403]),
    },
    Class {
        name: "CONNECT, TRACE, TRACK",
        why: "no tunnel, and no request that comes back with the token in it",
        // haproxy rewrites the target of `CONNECT` with the Host, and what follows goes through its tunnel.
        holds: |of| {
            let is_one = |(request, status): (&Request, &u16)| {
                let mut names = ["CONNECT", "TRACE", "TRACK"].iter();
                [400, 405].contains(status) && names.any(|name| request.method.eq_ignore_ascii_case(name))
            };
            of.fewer().is_some() && of.reading.requests.iter().zip(&of.ours.statuses).any(is_one)
        },
    },
    Class {
        name: "local route",
        why: "what is under /-/ is answered by the daemon itself",
        holds: |of| {
            of.fewer().is_some_and(|request| request.target.contains("/-/")) && of.is_refused_with(&[404])
        },
    },
    Class {
        name: "asterisk",
        why: "`OPTIONS *` asks about the server and not the API, and no route holds it",
        holds: |of| of.fewer().is_some_and(|request| request.target == "*") && of.is_refused_with(&[400]),
    },
    Class {
        name: "sizes",
        why: "a target over 64 KiB, a head over 64 KiB or with more than 128 fields is over the limits of the contract",
        holds: |of| of.is_refused_with(&[414, 431]),
    },
    // What a strict reading refuses, and the daemon with it.
    Class {
        name: "no single host",
        why: "a server must refuse a request without a Host, with two, or with one that is none (RFC 9112, 3.2)",
        holds: |of| of.is_refused_for(Fault::Host),
    },
    Class {
        name: "HTTP/1.0 without a host",
        why: "no old program needs it, and a Host that is not there can't be checked",
        holds: |of| {
            of.known().is_some_and(|known| known.named("host").is_empty()) && of.is_refused_with(&[400])
        },
    },
    Class {
        name: "form of the target",
        why: "a target that is neither a path nor an absolute address names nothing here (RFC 9112, 3.2)",
        // haproxy makes another one of it.
        holds: |of| of.is_refused_for(Fault::Target),
    },
    Class {
        name: "bytes of a target",
        why: "no address has these bytes unescaped (RFC 3986, 2), and upstreams take them for different things",
        holds: |of| of.fewer().is_some_and(|request| !is_uri(&request.target)) && of.is_refused_with(&[400]),
    },
    Class {
        name: "Transfer-Encoding beside Content-Length, or in HTTP/1.0",
        why: "the two ends of the body differ, so the request may be refused (RFC 9112, 6.1)",
        holds: |of| of.known().is_some_and(|known| known.is_ambiguous) && of.is_refused_with(&[400]),
    },
    Class {
        name: "long chunk extensions",
        why: "extensions without end cost memory or time and carry nothing",
        holds: |of| {
            let is_long = |line: &[u8]| line.len() > 4096 && line.contains(&b';');
            of.fewer().is_some()
                && of.is_in_the_strict_reading()
                && of.bytes.split(|byte| *byte == b'\n').any(is_long)
        },
    },
    Class {
        name: "bare LF around chunks",
        why: "a chunk's line ends with CRLF (RFC 9112, 7.1): who reads LF finds other chunks than who does not",
        holds: |of| of.is_behind(Fault::BareLf),
    },
    Class {
        name: "bare CR",
        why: "a CR without LF is no line's end for some and one for others (RFC 9112, 2.2)",
        holds: |of| of.is_behind(Fault::BareCr),
    },
    Class {
        name: "request line",
        why: "more whitespace than the grammar has lets two readers find two targets (RFC 9112, 3)",
        holds: |of| of.is_behind(Fault::RequestLine) || of.is_behind(Fault::Target),
    },
    Class {
        name: "version",
        why: "what another major version means is not known here, even to one who answers it in HTTP/1.1",
        holds: |of| of.is_behind(Fault::Version),
    },
    Class {
        name: "field name",
        why: "a line that is no field is refused and not dropped: the next reader may take it for one",
        holds: |of| of.is_behind(Fault::FieldName),
    },
    Class {
        name: "field value",
        why: "control characters are refused and not passed on (RFC 9110, 5.5)",
        holds: |of| of.is_behind(Fault::FieldValue),
    },
    Class {
        name: "folded line",
        why: "`obs-fold` is refused (RFC 9112, 5.2)",
        holds: |of| of.is_behind(Fault::Fold),
    },
    Class {
        name: "size of a chunk",
        why: "behind a chunk's size stands nothing but an extension (RFC 9112, 7.1)",
        holds: |of| of.is_behind(Fault::Chunk),
    },
    Class {
        name: "behind the end of the connection",
        why: "behind a request that was refused, or whose body came in chunks, the connection ends: what \
              follows is read by nobody",
        holds: |of| of.is_behind_our_end(),
    },
    // What the daemon sends up and another proxy does not: all of it the caller's, by the strict reading.
    Class {
        name: "sent again",
        why: "an idempotent request that got no byte of an answer on a used connection is sent once more",
        holds: |of| {
            of.more().is_some_and(|request| {
                of.ours.requests.iter().filter(|one| is_same(one, request)).count() > 1
            })
        },
    },
    Class {
        name: "chunks count",
        why: "beside Transfer-Encoding any Content-Length is nothing, when the request is the last of its connection \
              (RFC 9112, 6.1 and 6.3)",
        holds: |of| of.more().is_some() && of.known().is_some_and(|known| known.is_ambiguous && known.closes),
    },
    Class {
        name: "methods that nginx does not know",
        why: "a method is any token (RFC 9110, 9.1), and whether there is one is for the upstream to say",
        holds: |of| {
            let is_known = |char: char| char.is_ascii_uppercase() || "-_".contains(char);
            of.theirs.proxy == Proxy::Nginx
                && of.more().is_some_and(|request| !request.method.chars().all(is_known))
        },
    },
    Class {
        name: "several Authorization fields",
        why: "all of them are replaced by the daemon's own, so how many there are is nothing; nginx refuses two",
        holds: |of| {
            let is_repeated = |known: &Request| known.named("authorization").len() > 1;
            of.theirs.proxy == Proxy::Nginx && of.more().is_some() && of.known().is_some_and(is_repeated)
        },
    },
    Class {
        name: "an offer of WebSocket",
        why: "an offer to upgrade may be ignored (RFC 9110, 7.8), whole or not; haproxy refuses one without a key",
        holds: |of| {
            let offers = |known: &Request| known.lists("upgrade", "websocket");
            of.theirs.proxy == Proxy::Haproxy && of.more().is_some() && of.known().is_some_and(offers)
        },
    },
    Class {
        name: "fragment",
        why: "no request has a fragment, so it is left out; haproxy refuses it",
        holds: |of| {
            of.theirs.proxy == Proxy::Haproxy
                && of.more().is_some()
                && of.known().is_some_and(|known| known.target.contains('#'))
        },
    },
    Class {
        name: "tab before a value",
        why: "whitespace around a value is spaces and tabs (RFC 9110, 5.6.3); nginx takes tabs for a part of it",
        holds: |of| {
            let has_one = |tab: &&[u8]| find(of.bytes, tab).is_some();
            let tabs: [&[u8]; 5] = [b":\t", b" \t", b"\t ", b"\t\r\n", b"\t\n"];
            of.theirs.proxy == Proxy::Nginx && of.more().is_some() && tabs.iter().any(has_one)
        },
    },
    Class {
        name: "the other peer agrees",
        why: "one peer alone refuses what the strict reading and the other peer take",
        holds: |of| of.more().is_some_and(|request| of.is_sent_up_by_the_other_peer(request)),
    },
    Class {
        name: "behind their end of the connection",
        why: "the peer ended the connection with a refusal; the daemon refused with the end of the request known, \
              so what follows is as good as on another connection",
        holds: |of| of.more().is_some() && of.is_behind_their_end(),
    },
    Class {
        name: "a body that breaks off",
        why: "how much of a body that never ends has gone up by then is chance; it never goes up as a whole one",
        holds: |of| matches!(of.kind, Kind::Begun { .. }),
    },
    // Fields.
    Class {
        name: "fields of the contract",
        why: "credentials, origins and traces of the caller stay here, as the documentation says",
        holds: |of| {
            of.is_field(|name, ours| ours == ABSENT && KEPT_BACK.iter().any(|kept| name.starts_with(kept)))
        },
    },
    Class {
        name: "hop-by-hop fields",
        why: "they are meant for the next hop only, and so is what `Connection` names (RFC 9110, 7.6.1)",
        holds: |of| {
            of.is_field(|name, ours| {
                ours == ABSENT && (HOP_BY_HOP.contains(&name) || of.is_named_by_connection(name))
            })
        },
    },
    Class {
        name: "Expect",
        why: "an expectation is the upstream's to meet or refuse; nginx takes it off (RFC 9110, 10.1.1)",
        holds: |of| of.theirs.proxy == Proxy::Nginx && of.is_field(|name, _ours| name == "expect"),
    },
    Class {
        name: "names that nginx does not know",
        why: "a field's name is any token (RFC 9110, 5.1); nginx drops those with other signs than letters have",
        holds: |of| {
            let is_known = |char: char| char.is_ascii_alphanumeric() || "-_".contains(char);
            of.theirs.proxy == Proxy::Nginx
                && matches!(of.kind, Kind::Field { name, theirs: ABSENT, .. } if !name.chars().all(is_known))
        },
    },
    // Statuses.
    Class {
        name: "a refusal in other words",
        why: "both refuse; the daemon's codes are those of its contract",
        holds: |of| of.is_status(|ours, theirs| ours >= 400 && theirs >= 400),
    },
    Class {
        name: "a refusal without words",
        why: "the peer closes the connection of a request that is no HTTP or breaks off; the daemon says so first",
        holds: |of| of.is_status(|ours, theirs| ours == 400 && theirs == 0),
    },
    Class {
        name: "the connection ends without words",
        why: "nobody waits for an answer to a head that never ends, and to close is to refuse",
        holds: |of| {
            let is_no_request = matches!(of.reading.end, End::Partial | End::Faulty(_));
            is_no_request && of.is_status(|ours, theirs| ours == 0 && theirs >= 400)
        },
    },
    Class {
        name: "malformed answers",
        why: "an answer that is not HTTP is a 502, not passed on or waited for",
        holds: |of| of.has_script && of.is_status(|ours, theirs| ours == 502 && theirs != 502),
    },
];

/// Beginnings of names that the contract keeps back.
const KEPT_BACK: [&str; 9] = [
    "cookie",
    "forwarded",
    "origin",
    "proxy-authenticate",
    "proxy-authorization",
    "referer",
    "via",
    "x-forwarded-",
    "x-real-ip",
];
const HOP_BY_HOP: [&str; 6] =
    ["keep-alive", "proxy-connection", "te", "trailer", "upgrade", "http2-settings"];

/// A rule is made of these.
impl<'a> Difference<'a> {
    fn fewer(&self) -> Option<&'a Request> {
        match self.kind {
            Kind::Fewer(request) => Some(request),
            _ => None,
        }
    }

    fn more(&self) -> Option<&'a Request> {
        match self.kind {
            Kind::More(request) => Some(request),
            _ => None,
        }
    }

    /// Where the request stands in the strict reading; it can stand there more than once.
    fn places(&self) -> impl Iterator<Item = usize> + 'a {
        let (request, requests) = (self.fewer().or_else(|| self.more()), &self.reading.requests);
        let is_this = move |known: &Request| request.is_some_and(|request| is_same(known, request));
        requests.iter().enumerate().filter(move |(_, known)| is_this(known)).map(|(at, _)| at)
    }

    /// The request as the strict reading has it.
    fn known(&self) -> Option<&'a Request> {
        self.places().next().map(|at| &self.reading.requests[at])
    }

    fn is_in_the_strict_reading(&self) -> bool {
        self.known().is_some()
    }

    /// The daemon answered a request with 400 that the strict reading refuses for this.
    fn is_refused_for(&self, fault: Fault) -> bool {
        let refused = self.reading.requests.iter().zip(&self.ours.statuses);
        let mut refused =
            refused.filter(|(request, status)| request.refusal == Some(fault) && **status == 400);
        self.fewer().is_some() && refused.next().is_some()
    }

    /// The daemon answered the missing request with one of these.
    fn is_refused_with(&self, statuses: &[u16]) -> bool {
        self.places().any(|at| self.ours.statuses.get(at).is_some_and(|status| statuses.contains(status)))
    }

    /// The strict reading ends with this fault, and does not have the missing request, or not as often as the peer:
    /// it is at fault, or behind.
    fn is_behind(&self, fault: Fault) -> bool {
        let sent_up = |request| self.theirs.requests.iter().filter(|one| is_same(one, request)).count();
        let is_not_known = self.fewer().is_some_and(|request| sent_up(request) > self.places().count());
        is_not_known && self.reading.end == End::Faulty(fault)
    }

    /// The missing request came behind the last one that the daemon answered, which it refused or took in chunks.
    fn is_behind_our_end(&self) -> bool {
        let Some(last) = self.ours.statuses.len().checked_sub(1) else { return false };
        let is_chunked = |request: &Request| !request.named("transfer-encoding").is_empty();
        let ends = self.ours.statuses[last] >= 400 || self.reading.requests.get(last).is_some_and(is_chunked);
        ends && self.places().any(|at| at > last)
    }

    fn is_sent_up_by_the_other_peer(&self, request: &Request) -> bool {
        let other = |peer: &&Outcome| peer.proxy != Proxy::Ours && peer.proxy != self.theirs.proxy;
        let all = self.all.iter().filter(other).flat_map(|peer| &peer.requests);
        all.into_iter().any(|known| is_same(known, request))
    }

    /// The request came behind the last one that the peer answered, which it refused.
    fn is_behind_their_end(&self) -> bool {
        let answered = self.theirs.statuses.len().max(1);
        let is_refusal = self.theirs.statuses.last().is_none_or(|status| *status >= 400);
        is_refusal && self.places().any(|at| at >= answered)
    }

    fn is_field(&self, holds: impl Fn(&str, &str) -> bool) -> bool {
        matches!(self.kind, Kind::Field { name, ours, .. } if holds(name, ours))
    }

    fn is_named_by_connection(&self, name: &str) -> bool {
        self.reading.requests.iter().any(|request| request.lists("connection", name))
    }

    /// Whether this holds of the first statuses that differ; 0 stands for none.
    fn is_status(&self, holds: impl Fn(u16, u16) -> bool) -> bool {
        let (ours, theirs) = (&self.ours.statuses, &self.theirs.statuses);
        let status = |of: &[u16], at: usize| of.get(at).copied().unwrap_or(0);
        let mut pairs = (0..ours.len().max(theirs.len())).map(|at| (status(ours, at), status(theirs, at)));
        let differs = pairs.find(|(ours, theirs)| ours != theirs);
        matches!(self.kind, Kind::Status) && differs.is_some_and(|(ours, theirs)| holds(ours, theirs))
    }
}

/// Whether an address may have all these bytes (RFC 3986, 2).
fn is_uri(target: &str) -> bool {
    let is_known = |char: char| char.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(char);
    target.chars().all(is_known)
}
