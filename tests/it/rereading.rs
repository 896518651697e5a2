//! SIGHUP while the daemon is busy: what is re-read takes effect, and nothing that is open notices.

pub(crate) mod whole;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::standin::{Options, Standin, pattern};
use crate::support::{Answer, PATIENCE, Setup, World, eventually};

/// More than the buffers between the upstream and a caller that does not read.
const LENGTH: usize = 24 * 1024 * 1024;
const STREAMS: usize = 2;
const UPLOAD: usize = 256 * 1024;
const STEADY: &str = "key-of-the-callers-who-stay";

#[test]
fn rereading_under_load_fails_no_request_and_cuts_nothing_off() {
    let (world, files) = busy_world();
    correct_the_ca(&world, &files);
    let mut downloads: Vec<_> = (0..STREAMS).map(|_| begun_download(&world)).collect();
    let mut upload = begun_upload(&world);
    let is_over = AtomicBool::new(false);
    let authority = world.daemon.authority.clone();

    let answered = std::thread::scope(|scope| {
        let load: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| count_until(&is_over, || assert_eq!(get(&authority, STEADY).status, 200)))
            })
            .collect();
        for round in 0..5 {
            let other = format!("other-key-{round}");
            fs::write(files.path().join("other"), &other).unwrap();
            hang_up(&world, "took over");
            assert_eq!(get(&authority, &other).status, 200, "round {round}");

            fs::write(files.path().join("other"), "").unwrap();
            hang_up(&world, "not taken over");
            assert_eq!(get(&authority, &other).status, 200, "round {round}");
            fs::write(files.path().join("other"), &other).unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
        load.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });

    assert!(answered > 10, "only {answered} requests were answered meanwhile");
    fs::write(files.path().join("ca.pem"), "-----BEGIN CERTIFICATE-----\nnonsense\n").unwrap();
    hang_up(&world, "not taken over");
    assert_eq!(get(&authority, STEADY).status, 200, "a damaged CA file changes nothing");
    for download in &mut downloads {
        let mut raw = Vec::new();
        download.read_to_end(&mut raw).unwrap();
        let answer = Answer::parse(&[b"HTTP/1.1 ", &raw[..]].concat(), "GET").unwrap();
        assert!(answer.body == pattern(LENGTH), "{} bytes arrived", answer.body.len());
    }
    let sent = vec![b'x'; UPLOAD];
    upload.write_all(&sent[UPLOAD / 2..]).unwrap();
    let mut raw = Vec::new();
    upload.read_to_end(&mut raw).unwrap();
    assert!(Answer::parse(&raw, "POST").unwrap().body == sent, "{}", String::from_utf8_lossy(&raw[..200]));
}

/// The daemon was started with another CA than the upstream's.
fn correct_the_ca(world: &World, files: &TempDir) {
    let status = || {
        let answer = get(&world.daemon.authority, STEADY);
        (answer.status, answer.field("proxy-status").unwrap_or_default().to_owned())
    };
    let untrusted = (502, "cnblogs-proxy; error=tls_certificate_error".to_owned());
    assert_eq!(status(), untrusted);

    fs::copy(world.standin.ca_pem_path(), files.path().join("ca.pem")).unwrap();
    assert_eq!(status(), untrusted, "not before the signal");
    hang_up(world, "took over");
    assert_eq!(status().0, 200);
}

/// A daemon in front of an upstream with a CA of its own, that takes two callers' keys, all in files to be replaced.
fn busy_world() -> (World, TempDir) {
    let files = TempDir::new().unwrap();
    fs::write(files.path().join("steady"), STEADY).unwrap();
    fs::write(files.path().join("other"), "other-key").unwrap();
    let key = |name: &str| {
        format!("[[callers.key]]\nname = \"{name}\"\nfile = \"{}\"\n", files.path().join(name).display())
    };
    let options = Options { tls: true, ..Options::default() };
    let mut world = Setup { options, tables: key("steady") + &key("other"), ..Setup::default() }.start();
    log_in(&world);
    let ca = files.path().join("ca.pem");
    let elsewhere = Standin::start(Options { tls: true, ..Options::default() });
    fs::copy(elsewhere.ca_pem_path(), &ca).unwrap();
    let text = fs::read_to_string(world.home.config()).unwrap();
    let (accounts, route) = text.split_once("[[route]]").unwrap();
    let route = route.replace(&world.standin.ca_pem_path().display().to_string(), &ca.display().to_string());
    fs::write(world.home.config(), format!("{accounts}[[route]]{route}")).unwrap();
    world.restart();
    (world, files)
}

fn log_in(world: &World) {
    let authorization = format!("Bearer {STEADY}");
    let fields =
        [("Authorization", authorization.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
    let started = world.daemon.request("POST", "/-/login/main/start", &fields, b"");
    let callback = world.standin.authorize(started.field("location").unwrap(), crate::standin::Person::Alice);
    let form =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("callback", &callback).finish();
    assert_eq!(world.daemon.request("POST", "/-/login/main", &fields, form.as_bytes()).status, 200);
}

/// A download of which the beginning has arrived.
fn begun_download(world: &World) -> TcpStream {
    let mut stream = asked(world, &format!("GET /bytes/{LENGTH}"), "");
    let mut beginning = [0; 9];
    stream.read_exact(&mut beginning).unwrap();
    assert_eq!(&beginning, b"HTTP/1.1 ");
    stream
}

/// An upload of which one half has gone out.
fn begun_upload(world: &World) -> TcpStream {
    let mut stream = asked(world, "POST /echo/x?raw", &format!("Content-Length: {UPLOAD}\r\n"));
    stream.write_all(&vec![b'x'; UPLOAD / 2]).unwrap();
    stream
}

fn asked(world: &World, line: &str, fields: &str) -> TcpStream {
    let mut stream = world.daemon.connect();
    let host = &world.daemon.authority;
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {STEADY}\r\nConnection: close\r\n{fields}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn get(authority: &str, key: &str) -> Answer {
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "GET /api/users HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    Answer::parse(&raw, "GET").unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(&raw)))
}

/// SIGHUP, and waits until the log says what came of it.
#[track_caller]
fn hang_up(world: &World, says: &str) {
    let count = || world.daemon.output().matches(says).count();
    let before = count();
    world.daemon.signal(Signal::HUP);
    eventually(says, || (count() > before).then_some(()));
}

fn count_until(is_over: &AtomicBool, mut act: impl FnMut()) -> usize {
    let mut count = 0;
    while !is_over.load(Ordering::SeqCst) {
        act();
        count += 1;
    }
    count
}
