//! The three proxies between a caller and an upstream of ours: the daemon, nginx and haproxy, set up as alike as
//! they can be.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use socket2::Socket;
use tempfile::TempDir;

use super::exchange::Upstream;
use crate::support::{Daemon, Home, eventually};

/// What the daemon injects, and what nobody else may.
pub(super) const TOKEN: &str = "a-personal-access-token-0123456789";

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    Ours,
    Nginx,
    Haproxy,
}

/// A proxy with an upstream that is its alone.
pub(super) struct Side {
    pub(super) proxy: Proxy,
    pub(super) listener: TcpListener,
    pub(super) upstreams: Vec<Upstream>,
    address: Address,
}

/// One of each proxy; what is played here meets nothing that is played elsewhere.
pub(super) struct Lane {
    pub(super) sides: Vec<Side>,
    /// What callers name as the host.
    pub(super) host: String,
    pub(super) daemon: Daemon,
    _home: Home,
}

/// Some lanes and what runs behind them.
pub(super) struct Peers {
    pub(super) lanes: Vec<Lane>,
    _nginx: Running,
    _haproxy: Running,
    _directory: TempDir,
}

/// A program that ends with its value.
struct Running(Child);

enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Peers {
    /// Starts one nginx, one haproxy and a daemon for each lane.
    #[track_caller]
    pub(super) fn start(lanes: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = |proxy: &str, lane: usize| directory.path().join(format!("{proxy}-{lane}"));
        let (mut servers, mut frontends) = (String::new(), HAPROXY.to_owned());
        let lanes: Vec<Lane> = (0..lanes)
            .map(|lane| {
                let nginx = Side::new(Proxy::Nginx, |_port| Address::Unix(socket("nginx", lane)));
                let haproxy = Side::new(Proxy::Haproxy, |_port| Address::Unix(socket("haproxy", lane)));
                servers += &nginx_server(lane, &socket("nginx", lane).display().to_string(), nginx.port());
                frontends +=
                    &haproxy_frontend(lane, &socket("haproxy", lane).display().to_string(), haproxy.port());
                Lane::new(nginx, haproxy)
            })
            .collect();

        let path = |name: &str| directory.path().join(name);
        let prefix = directory.path().display().to_string();
        std::fs::write(
            path("nginx.conf"),
            NGINX.replace("@DIRECTORY@", &prefix).replace("@SERVERS@", &servers),
        )
        .unwrap();
        std::fs::write(path("haproxy.cfg"), frontends).unwrap();
        let nginx = Running::start("nginx", &["-e", "/dev/null", "-c"], path("nginx.conf"));
        let haproxy = Running::start("haproxy", &["-q", "-db", "-f"], path("haproxy.cfg"));
        for side in lanes.iter().flat_map(|lane| &lane.sides) {
            eventually("the proxy listens", || side.address.connect());
        }
        Self { lanes, _nginx: nginx, _haproxy: haproxy, _directory: directory }
    }
}

impl Lane {
    fn new(nginx: Side, haproxy: Side) -> Self {
        let home = Home::new(Vec::new());
        let token = home.secret("pat", TOKEN);
        let mut daemon = None;
        let ours = Side::new(Proxy::Ours, |port| {
            let config = format!(
                "listen = [\"127.0.0.1:0\"]\nworkers = 1\nlog = \"error\"\nstate_dir = \"{}\"\n[account.main]\n\
                 grant = \"personal_access_token\"\ntoken_file = \"{}\"\n\
                 [[route]]\nupstream = \"http://127.0.0.1:{port}\"\n",
                home.state().display(),
                token.display()
            );
            std::fs::write(home.config(), config).unwrap();
            let address = daemon.insert(home.serve()).authority.parse().unwrap();
            Address::Tcp(address)
        });
        let daemon = daemon.expect("the side has started it");
        let host = daemon.authority.clone();
        Self { sides: vec![ours, nginx, haproxy], host, daemon, _home: home }
    }
}

impl Side {
    fn new(proxy: Proxy, start: impl FnOnce(u16) -> Address) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { proxy, listener, upstreams: Vec::new(), address: start(port) }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// A new connection of a caller.
    pub(super) fn connect(&self) -> Socket {
        let socket = self.address.connect().expect("the proxy accepts");
        socket.set_nonblocking(true).unwrap();
        socket
    }
}

impl Address {
    fn connect(&self) -> Option<Socket> {
        match self {
            Self::Tcp(address) => TcpStream::connect(address).ok().map(Socket::from),
            Self::Unix(path) => UnixStream::connect(path).ok().map(Socket::from),
        }
    }
}

impl Running {
    #[track_caller]
    fn start(program: &str, arguments: &[&str], config: PathBuf) -> Self {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("env");
        command.env("PATH", path).arg(program).args(arguments).arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{program} is installed: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// Half-closed callers are answered, and bodies stream, as through the daemon; what a refused caller still sends is
/// not waited for.
const NGINX: &str = "
daemon off;
master_process off;
pid @DIRECTORY@/nginx.pid;
worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path @DIRECTORY@/body;
    proxy_temp_path @DIRECTORY@/proxy;
    fastcgi_temp_path @DIRECTORY@/fastcgi;
    uwsgi_temp_path @DIRECTORY@/uwsgi;
    scgi_temp_path @DIRECTORY@/scgi;
    client_max_body_size 0;
    large_client_header_buffers 4 64k;
    underscores_in_headers on;
    keepalive_requests 100000000;
    lingering_close off;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_ignore_client_abort on;
    proxy_next_upstream off;
    proxy_max_temp_file_size 0;
    @SERVERS@
}
";

fn nginx_server(lane: usize, socket: &str, port: u16) -> String {
    format!(
        "upstream lane{lane} {{ server 127.0.0.1:{port}; keepalive 16; keepalive_requests 100000000; }}
         server {{
             listen unix:{socket};
             location / {{
                 proxy_pass http://lane{lane};
                 proxy_set_header Connection \"\";
                 proxy_set_header Host 127.0.0.1:{port};
                 proxy_set_header Authorization \"Bearer {TOKEN}\";
             }}
         }}\n"
    )
}

const HAPROXY: &str = "
global
    nbthread 1
    maxconn 4000
    tune.bufsize 66560
    tune.http.maxhdr 130
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    retries 0
";

fn haproxy_frontend(lane: usize, socket: &str, port: u16) -> String {
    format!(
        "frontend callers{lane}
    bind unix@{socket}
    http-request set-header Authorization \"Bearer {TOKEN}\"
    http-request set-header Host 127.0.0.1:{port}
    default_backend api{lane}
backend api{lane}
    http-reuse safe
    server origin 127.0.0.1:{port}
"
    )
}
