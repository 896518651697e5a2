//! `cnblogs-proxy run`: programs whose address can't be changed, as they are. What they ask of the upstream's
//! `https://` address comes to the stand-in with the token, and nothing else changes for them.

mod cost;
mod process;
mod programs;
mod strangers;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::standin::{Options, Standin};
use crate::support::{Daemon, Setup, World};
use crate::system::network;

/// Reaches the API by a name, as the real one: `https://api.cnblogs.com` with the stand-in's port. Only the daemon is
/// told where that is.
pub(crate) struct Named {
    pub(crate) world: World,
    /// `https://api.cnblogs.com:PORT`.
    pub(crate) api: String,
    /// Where `run` makes its directory.
    pub(crate) runtime: PathBuf,
}

impl Named {
    pub(crate) fn start() -> Self {
        Self::with("", "", "")
    }

    /// With more lines in the route, other ones in place of `listen`, and tables.
    pub(crate) fn with(route: &str, top: &str, tables: &str) -> Self {
        let options = Options { tls: true, ..Options::default() };
        let (route, top, tables) = (route.to_owned(), top.to_owned(), tables.to_owned());
        let mut world = Setup { options, route, top, ..Setup::default() }.logged_in();
        let authority = world.standin.api_authority();
        let api = format!("https://api.cnblogs.com:{}", authority.rsplit_once(':').unwrap().1);
        let config = std::fs::read_to_string(world.home.config()).unwrap();
        let named =
            config.replace(&format!("upstream = \"https://{authority}\""), &format!("upstream = \"{api}\""));
        assert_ne!(config, named);
        let ca = format!("ca_file = \"{}\"", world.standin.ca_pem_path().display());
        std::fs::write(world.home.config(), named + &tables.replace("API", &api).replace("<ca>", &ca))
            .unwrap();
        world.daemon.stop();
        world.daemon = Daemon::spawn(with_hosts(&world));
        let runtime = world.home.path().join("runtime");
        std::fs::create_dir(&runtime).unwrap();
        world.standin.clear_api_requests();
        Self { world, api, runtime }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.api)
    }

    /// `cnblogs-proxy run ARGUMENTS`.
    pub(crate) fn run(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.home.command(&["run"]);
        command.args(arguments).env("XDG_RUNTIME_DIR", &self.runtime).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.run(arguments).output().unwrap()
    }

    /// Runs it to its end, which is a good one, and returns what was printed.
    #[track_caller]
    pub(crate) fn printed(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.world.daemon.output());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asserts that all that arrived carries the token, and that something did.
    #[track_caller]
    pub(crate) fn assert_answered_with_the_token(&self) {
        let requests = self.world.standin.api_requests();
        assert!(!requests.is_empty(), "nothing arrived");
        for request in requests {
            let authorization = request.fields_named("authorization");
            let token = authorization[0].strip_prefix("Bearer ").unwrap().to_owned();
            assert_eq!(authorization.len(), 1, "{request:?}");
            assert!(self.world.standin.issued_secrets().contains(&token), "{request:?}");
        }
    }

    /// What `run` left where it makes its directories.
    pub(crate) fn left_over(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.runtime).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// A program under `run` that says where its proxy is, and stays until its standard input ends.
pub(crate) struct Running {
    pub(crate) process: Child,
    /// `http://run:PASSWORD@127.0.0.1:PORT`.
    pub(crate) proxy: String,
    /// `SSL_CERT_FILE`.
    pub(crate) bundle: String,
    /// The program's process id.
    pub(crate) pid: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        use std::io::{BufRead as _, BufReader};
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = || lines.next().expect("a line").unwrap();
        let (proxy, bundle, pid) = (line(), line(), line());
        Self { process, proxy, bundle, pid }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.rsplit_once('@').unwrap().1.parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // When `run` has ended, the program has, too, or does with its standard input.
        if let Ok(Some(_)) = self.process.try_wait() {
            return;
        }
        if let Some(pid) = self.pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _waited = self.process.wait();
    }
}

/// The program of [`Running`].
pub(crate) const STAYS: [&str; 4] =
    ["--", "sh", "-c", "echo $HTTPS_PROXY; echo $SSL_CERT_FILE; echo $$; read -r _; exit 0"];

/// The daemon, to which the API's name is this machine's.
fn with_hosts(world: &World) -> Command {
    let hosts = world.home.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost api.cnblogs.com\n").unwrap();
    network::with_hosts(&world.home, &hosts)
}

/// A script or source in `tests/clients/fixed`.
pub(crate) fn fixed(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/fixed").join(name).display().to_string()
}

/// An HTTP proxy that tells the heads of its CONNECTs and passes on what follows.
pub(crate) fn outer_proxy() -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, heads) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // The program sends nothing in front of the answer, so that nothing else is in the buffer.
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let target = head[0].split(' ').nth(1).unwrap().to_owned();
            let _listening = sender.send(head.join("\n"));
            let mut upstream = std::net::TcpStream::connect(target).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut from, mut into) = (stream.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut into));
            std::thread::spawn(move || std::io::copy(&mut upstream, &mut stream));
        }
    });
    (address, heads)
}

/// `https://localhost:PORT` of the authorization server, which is no upstream.
pub(crate) fn elsewhere(standin: &Standin) -> String {
    standin.auth_url().replace("127.0.0.1", "localhost")
}
