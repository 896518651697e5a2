//! Where attacks are played: a daemon on TCP and on a unix socket, a recording API, a trap, and the invariants.

use std::collections::HashSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use url::form_urlencoded;

use super::case::{Case, Names};
use super::judge::Seen;
use super::line::{Heard, Manner, Transport, connect, exchange, find, latin1};
use super::reading;
use crate::standin::{self, Person, RecordedConnection, RecordedRequest, Scripted, Then, Trap};
use crate::support::{Setup, World};

const CLEAN: &str = "/api/clean";
const BENIGN: &str = "/api/blogposts/1";
const KEY: &str = "a-key-of-a-caller-0123456789abcdef";
const CLEAN_WITHIN: Duration = Duration::from_secs(1);
const SETTLED_WITHIN: Duration = Duration::from_secs(5);
const GROWTH_KIB: u64 = 2 * 1024;
/// How often a case that grew the daemon is played again, to tell a leak from an allocator's habits.
const AGAIN: u64 = 8;

/// What the API says to everything but a clean request; none is a plain 200.
type Script = Arc<Mutex<Option<Said>>>;

/// Bytes that the API says.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) bytes: Vec<u8>,
    pub(crate) then: Then,
    /// Before the request has arrived to its end.
    pub(crate) is_early: bool,
}

/// A world with a trap.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) names: Names,
    trap: Trap,
    script: Script,
    /// Connections to the API with a request that never ended: what is left over there belongs to it.
    unfinished: Mutex<HashSet<usize>>,
    /// How many panics were told of.
    panics: Mutex<usize>,
    directory: TempDir,
}

/// Where the record of the API stood.
pub(crate) struct Mark {
    lengths: Vec<usize>,
}

impl Stage {
    /// Callers need no key.
    pub(crate) fn open() -> Self {
        Self::start("")
    }

    /// Callers need a key.
    pub(crate) fn keyed() -> Self {
        Self::start(KEY)
    }

    fn start(key: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("proxy.sock");
        let key_file = directory.path().join("key");
        let mut tables = String::new();
        if !key.is_empty() {
            std::fs::write(&key_file, key).unwrap();
            std::fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
            tables = format!("[[callers.key]]\nname = \"reader\"\nfile = \"{}\"\n", key_file.display());
        }
        let top = format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]\nworkers = 1\n", socket.display());
        let world = Setup { top, tables, ..Setup::default() }.start();
        Self::over(world, key, directory)
    }

    fn over(world: World, key: &str, directory: TempDir) -> Self {
        let line = |value: &str| match key {
            "" => String::new(),
            _ => format!("Proxy-Authorization: Bearer {value}\r\n"),
        };
        log_in(&world, key);
        let trap = world.standin.trap();
        let names = Names {
            host: world.daemon.authority.clone(),
            cap: line(key),
            bad_cap: line("not-the-key"),
            path: BENIGN.to_owned(),
            trap: trap.authority(),
            api_host: world.standin.api_authority().split(':').next().unwrap_or_default().to_owned(),
            token: current_token(&world),
        };
        let script = Script::default();
        let scripted = Arc::clone(&script);
        world.standin.on_api(move |request| Some(answer(request, &scripted)));
        Self { world, names, trap, script, unfinished: Mutex::default(), panics: Mutex::default(), directory }
    }

    /// Whether callers need a key.
    pub(crate) fn has_key(&self) -> bool {
        !self.names.cap.is_empty()
    }

    /// Where the unix socket is.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("proxy.sock")
    }

    /// Plays a case and returns what was seen and which invariants it broke.
    pub(crate) fn play(&self, case: &Case, transport: Transport) -> (Seen, Vec<String>) {
        let before = self.resident_kib();
        let (seen, mut wrong) = self.play_once(case, transport);
        let after = self.resident_kib();
        if after > before + GROWTH_KIB {
            for _ in 0..AGAIN {
                wrong.extend(self.play_once(case, transport).1);
            }
            let growth = self.resident_kib().saturating_sub(after);
            if growth > AGAIN * GROWTH_KIB {
                wrong.push(format!(
                    "the daemon grew by {} KiB, then by {growth} KiB in {AGAIN} times",
                    after - before
                ));
            }
        }
        (seen, wrong)
    }

    fn play_once(&self, case: &Case, transport: Transport) -> (Seen, Vec<String>) {
        let mark = self.mark();
        let is_early = case.check.upstream.max_complete == Some(0);
        self.set_script(case.upstream_raw.as_deref().map(|raw| self.said(raw, is_early)));
        let manner = Manner {
            is_head: case.raw.starts_with("HEAD "),
            half_close: case.check.half_close,
            awaits_close: case.check.close,
        };
        let heard = self.exchange(transport, &[&self.names.bytes(&case.raw)], manner);
        self.set_script(None);
        let (next, mut wrong) = self.clean(transport);
        let (requests, sent_up) = self.settled(&mark);
        wrong.extend(self.broken(&heard.raw, &requests));
        if find(&sent_up, KEY.as_bytes()).is_some() {
            wrong.push("the caller's key went up".to_owned());
        }
        let seen = Seen { heard, next, requests, sent_up, caught: self.trap.caught() };
        (seen, wrong)
    }

    /// A connection of its own for these bytes.
    pub(crate) fn exchange(&self, transport: Transport, pieces: &[&[u8]], manner: Manner) -> Heard {
        let socket = connect(transport, &self.world.daemon.authority, &self.socket());
        exchange(&socket, pieces, manner)
    }

    /// What the API says from now on.
    pub(crate) fn set_script(&self, script: Option<Said>) {
        *self.script.lock().unwrap() = script;
    }

    fn said(&self, text: &str, is_early: bool) -> Said {
        let (text, then) = match text.split_once("{{CLOSE}}") {
            Some((text, "")) => (text, Then::Close),
            Some(_) => panic!("nothing can follow the close: {text:?}"),
            None => (text, Then::Continue),
        };
        Said { bytes: self.names.bytes(text), then, is_early }
    }

    /// A clean request on a new connection: what it got, and what is wrong with that. A machine that is busy with
    /// something else gets a second chance to be quick.
    pub(crate) fn clean(&self, transport: Transport) -> (Vec<u8>, Vec<String>) {
        let (host, cap) = (&self.names.host, &self.names.cap);
        let request = format!("GET {CLEAN} HTTP/1.1\r\nHost: {host}\r\n{cap}Connection: close\r\n\r\n");
        let mut heard = Heard::default();
        for _chance in 0..2 {
            let started = Instant::now();
            heard = self.exchange(transport, &[request.as_bytes()], Manner::default());
            if started.elapsed() < CLEAN_WITHIN {
                break;
            }
        }
        let mut wrong = Vec::new();
        let is_clean = heard.reply().is_some_and(|reply| reply.status == 200 && reply.body == b"clean\n");
        if !is_clean || heard.replies.len() != 1 {
            wrong.push(format!("then a clean request got {:?}", String::from_utf8_lossy(&heard.raw)));
        } else if heard.took >= CLEAN_WITHIN {
            wrong.push(format!("then a clean request took {:?}", heard.took));
        }
        (heard.raw, wrong)
    }

    /// Where the record of the API stands; forgets the requests.
    pub(crate) fn mark(&self) -> Mark {
        self.world.standin.clear_api_requests();
        let connections = self.world.standin.api_connections();
        Mark { lengths: connections.iter().map(|connection| connection.bytes.len()).collect() }
    }

    /// What came since the mark but clean requests, once nothing more can come: what is not whole has ended.
    pub(crate) fn settled(&self, mark: &Mark) -> (Vec<RecordedRequest>, Vec<u8>) {
        let started = Instant::now();
        loop {
            let mut requests = self.world.standin.api_requests();
            requests.retain(|request| request.target != CLEAN);
            let connections = self.world.standin.api_connections();
            let is_over = |request: &RecordedRequest| {
                let on = &connections[request.connection];
                request.complete || on.ended_by_peer || !on.left_over.is_empty()
            };
            if requests.iter().all(is_over) || started.elapsed() > SETTLED_WITHIN {
                let unfinished = requests.iter().filter(|request| !request.complete);
                self.unfinished.lock().unwrap().extend(unfinished.map(|request| request.connection));
                return (requests, since(mark, &connections));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The invariants that do not hold, of what a caller got and what arrived at the API.
    pub(crate) fn broken(&self, got: &[u8], requests: &[RecordedRequest]) -> Vec<String> {
        let mut broken = Vec::new();
        let mut never = |is_broken: bool, what: String| {
            if is_broken {
                broken.push(what);
            }
        };
        never(find(got, self.names.token.as_bytes()).is_some(), "THE CALLER GOT THE TOKEN".to_owned());
        never(self.trap.caught() > 0, "THE TRAP WAS CONTACTED".to_owned());
        let (authorization, host) =
            (format!("Bearer {}", self.names.token), self.world.standin.api_authority());
        for request in requests {
            if let Some(violation) = &request.violation {
                never(true, format!("malformed at the API: {violation}"));
                continue;
            }
            let authorizations = request.fields_named("authorization");
            never(
                authorizations != [authorization.as_str()],
                format!("Authorization went up as {authorizations:?}"),
            );
            let hosts = request.fields_named("host");
            never(hosts != [host.as_str()], format!("Host went up as {hosts:?}"));
            let late = request.trailers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
            never(late, "an Authorization went up as a trailer".to_owned());
        }
        let mut unfinished = self.unfinished.lock().unwrap();
        for connection in self.world.standin.api_connections() {
            let (id, left) = (connection.id, latin1(&connection.left_over));
            let is_news = !met_the_end(&connection.left_over, &authorization) && unfinished.insert(id);
            never(is_news, format!("left over on connection {id}: {left:?}"));
        }
        let output = self.world.daemon.output();
        let panics = output.matches("panicked").count();
        let told = std::mem::replace(&mut *self.panics.lock().unwrap(), panics);
        never(panics > told, format!("the daemon panicked: {output}"));
        never(output.contains(&self.names.token), "THE TOKEN IS IN THE LOG".to_owned());
        broken
    }

    /// The daemon's resident set.
    pub(crate) fn resident_kib(&self) -> u64 {
        resident_kib(self.world.daemon.pid())
    }
}

/// Whether all that came is whole requests of the daemon's: they met the end of a connection that the API closes.
fn met_the_end(left_over: &[u8], authorization: &str) -> bool {
    let reading = reading::read(left_over);
    let mut requests = reading.requests.iter();
    reading.end == reading::End::Whole
        && requests.all(|request| request.named("authorization") == [authorization])
}

/// The resident set of a process.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.unwrap_or_else(|| panic!("no resident set of process {pid}: {status}"))
}

fn answer(request: &RecordedRequest, script: &Script) -> Scripted {
    if request.target == CLEAN {
        return Scripted::Answer(standin::Answer::full(200, "clean\n"));
    }
    match &*script.lock().unwrap() {
        Some(Said { bytes, then, is_early: true }) => {
            Scripted::EarlyRaw { bytes: bytes.clone(), then: *then }
        }
        Some(Said { bytes, then, is_early: false }) => Scripted::Raw { bytes: bytes.clone(), then: *then },
        None => Scripted::Answer(standin::Answer::full(200, "fine\n")),
    }
}

fn since(mark: &Mark, connections: &[RecordedConnection]) -> Vec<u8> {
    let parts = connections.iter().enumerate().map(|(at, connection)| {
        let start = mark.lengths.get(at).copied().unwrap_or(0);
        &connection.bytes[start..]
    });
    parts.collect::<Vec<_>>().concat()
}

/// Logs Alice in, with the key where one is needed.
fn log_in(world: &World, key: &str) {
    if key.is_empty() {
        return world.log_in(Person::Alice);
    }
    let bearer = format!("Bearer {key}");
    let fields = [("Authorization", bearer.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
    let started = world.daemon.request("POST", "/-/login/main/start", &fields, b"");
    let url = started.field("location").expect("a login starts with a redirect");
    let callback = world.standin.authorize(url, Person::Alice);
    let form = form_urlencoded::Serializer::new(String::new()).append_pair("callback", &callback).finish();
    let answer = world.daemon.request("POST", "/-/login/main", &fields, form.as_bytes());
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &"logged-in".into()), "{answer:?}");
}

fn current_token(world: &World) -> String {
    let token = world.home.run(&["token"], "");
    assert!(token.status.success(), "{token:?}");
    String::from_utf8(token.stdout).unwrap().trim().to_owned()
}
