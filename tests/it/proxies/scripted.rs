//! An HTTP proxy by script, which records how it is asked for tunnels and what goes up through them.

use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::eventually;

/// A name that only this proxy can resolve, to this machine.
pub(crate) const ONLY_HERE: &str = "api.invalid";
/// How most proxies answer.
pub(crate) const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

/// What becomes of a connection that asks for a tunnel.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// It is answered so, and is a tunnel from then on.
    Tunnel(&'static str),
    /// It is answered so, and no more comes.
    Say(Vec<u8>),
    /// It is answered so, and ends.
    Close(&'static str),
    /// It is answered so again and again.
    Repeat(&'static str),
}

/// Listens on loopback until the tests end.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Does>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    heads: Vec<String>,
    sent_up: Vec<u8>,
    ended: usize,
}

impl Scripted {
    /// A proxy that makes tunnels.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Does::Tunnel(ESTABLISHED)));
        let seen = Arc::<Mutex<Seen>>::default();
        let (shared, log) = (Arc::clone(&script), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (does, seen) = (Arc::clone(&shared), Arc::clone(&log));
                thread::spawn(move || serve(&stream, &does, &seen));
            }
        });
        Self { address, script, seen }
    }

    /// As the key `proxy` names it, with a file for `proxy_auth_file`.
    pub(crate) fn keys(&self, auth_file: &str) -> String {
        format!("proxy = \"http://{}\"\nproxy_auth_file = \"{auth_file}\"\n", self.address)
    }

    /// What it does from now on.
    pub(crate) fn does(&self, does: Does) {
        *self.script.lock().unwrap() = does;
    }

    /// The heads of all requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.seen.lock().unwrap().heads.clone()
    }

    /// What the requests so far wanted to be connected to.
    pub(crate) fn authorities(&self) -> Vec<String> {
        let authority = |head: &String| head.split(' ').nth(1).unwrap().to_owned();
        self.heads().iter().map(authority).collect()
    }

    /// Everything that came behind a request so far, in a tunnel or not.
    pub(crate) fn sent_up(&self) -> Vec<u8> {
        self.seen.lock().unwrap().sent_up.clone()
    }

    /// Waits until all connections that asked for something have ended.
    pub(crate) fn is_left(&self) {
        eventually("nobody is connected to the proxy", || {
            let seen = self.seen.lock().unwrap();
            (seen.ended == seen.heads.len()).then_some(())
        });
    }
}

fn serve(stream: &TcpStream, script: &Mutex<Does>, seen: &Arc<Mutex<Seen>>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if !matches!(reader.read_line(&mut head), Ok(1..)) {
            return;
        }
    }
    assert_eq!(reader.buffer(), b"", "something came before the tunnel was there");
    seen.lock().unwrap().heads.push(head.clone());
    // A daemon that has read enough may have hung up.
    let does = script.lock().unwrap().clone();
    match does {
        Does::Tunnel(answer) => tunnel(stream, &head, answer, seen),
        Does::Close(answer) => drop((&*stream).write_all(answer.as_bytes())),
        Does::Say(answer) => {
            let _hung_up = (&*stream).write_all(&answer);
            let mut came = Vec::new();
            let _hung_up = reader.read_to_end(&mut came);
            seen.lock().unwrap().sent_up.extend(came);
        }
        Does::Repeat(answer) => while (&*stream).write_all(answer.as_bytes()).is_ok() {},
    }
    seen.lock().unwrap().ended += 1;
}

fn tunnel(stream: &TcpStream, head: &str, answer: &str, seen: &Arc<Mutex<Seen>>) {
    let authority = head.split(' ').nth(1).unwrap().replace(ONLY_HERE, "127.0.0.1");
    let Ok(server) = TcpStream::connect(authority) else {
        let _hung_up = (&*stream).write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    if (&*stream).write_all(answer.as_bytes()).is_err() {
        return;
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let _broken = copy(&mut &server, &mut &*stream);
            let _gone = stream.shutdown(Shutdown::Write);
        });
        let mut piece = [0; 16 * 1024];
        while let Ok(length @ 1..) = (&*stream).read(&mut piece) {
            seen.lock().unwrap().sent_up.extend_from_slice(&piece[..length]);
            if (&server).write_all(&piece[..length]).is_err() {
                break;
            }
        }
        let _gone = server.shutdown(Shutdown::Write);
    });
}
