//! The network itself between the daemon and its servers: cut, silent, restored, not there yet, or somewhere else.
//! The networks are real, in namespaces that each test makes for itself and that end with it.

pub(crate) mod space;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use space::{FAR, Link, Net, in_a_net};

use crate::standin::{Gate, Options, Person, Scripted, Standin};
use crate::support::{Answer, Daemon, Home, PROGRAM, Setup, World, config, eventually};
use crate::tokens::{Sent, events, expired, main_account, refresh};

/// Enough to fill a pool.
const CROWD: usize = 6;
/// By which a connection that nobody answers must be given up, and its request sent again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);

/// Alice is logged in; her daemon is here, and its servers are at the far end of the net.
fn world(net: &Net, secs: u64, tables: &str) -> World {
    net.far.enter();
    let standin = Standin::start(Options {
        address: IpAddr::V4(FAR),
        tls: true,
        expires_in_secs: secs,
        ..Options::default()
    });
    net.near.enter();
    let home = Home::new(Vec::new());
    std::fs::write(home.config(), config(&standin, &home, "workers = 1", "", "", tables)).unwrap();
    let daemon = home.serve();
    let world = World { daemon, standin, home };
    world.log_in(Person::Alice);
    world
}

/// Leaves so many idle connections to the API.
fn fill_the_pool(world: &World) {
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));
    let sent: Vec<_> =
        (0..CROWD).map(|_| Sent::get(world.daemon.connect(), &world.daemon, "/echo")).collect();
    eventually("all are on their way", || (gate.waiting() == CROWD).then_some(()));
    world.standin.clear_on_api();
    gate.open();
    for sent in sent {
        assert_eq!(sent.answer().status, 200);
    }
}

#[test]
fn pooled_connections_that_fell_silent_are_given_up_together_within_ten_seconds() {
    in_a_net(|net| {
        let world = world(net, 86_400, "");
        fill_the_pool(&world);
        let ports = net.near.ports_to(&world.standin.api_authority());
        assert_eq!(ports.len(), CROWD);
        assert!(net.near.all_have_keepalive(&world.standin.api_authority()));
        net.far.fall_silent_towards(&ports);
        world.standin.clear_api_requests();

        let started = Instant::now();
        let mut post = world.daemon.connect();
        io::Write::write_all(&mut post, head_of_post(&world.daemon).as_bytes()).unwrap();
        let get = world.daemon.get("/echo/get");
        let recovered = started.elapsed();
        let mut raw = Vec::new();
        io::Read::read_to_end(&mut post, &mut raw).unwrap();
        let post = Answer::parse(&raw, "POST").unwrap();

        assert_eq!(get.status, 200, "{get:?}");
        assert!(recovered < RECOVERS_WITHIN, "after {recovered:?}");
        assert_eq!((post.status, post.problem().as_str()), (502, "upstream-unreachable"), "{post:?}");
        let again = Instant::now();
        fill_the_pool(&world);
        assert!(
            again.elapsed() < Duration::from_secs(5),
            "the others of the pool cost {:?}",
            again.elapsed()
        );
    });
}

fn head_of_post(daemon: &Daemon) -> String {
    let fields = "Connection: close\r\nContent-Length: 4\r\n";
    format!("POST /echo/post HTTP/1.1\r\nHost: {}\r\n{fields}\r\nbody", daemon.authority)
}

/// Cuts one end of the link, and looks at requests and refreshes before, meanwhile and afterwards.
fn assert_outlives_a_cut(cut: fn(&Net) -> Link<'_>) {
    in_a_net(|net| {
        let world = world(net, 86_400, "[limits]\nconnect_timeout = \"2s\"");
        fill_the_pool(&world);

        let link = cut(net);
        for method in ["GET", "POST", "GET"] {
            let started = Instant::now();
            let answer = world.daemon.request(method, "/echo", &[], b"");
            let told = (answer.status, answer.problem());
            let expected = [(502, "upstream-unreachable".to_owned()), (504, "upstream-timeout".to_owned())];
            assert!(expected.contains(&told), "{method}: {answer:?}");
            // Given up after 8 s, and then no new one within 2 s; far less than the 60 s for an answer.
            assert!(started.elapsed() < Duration::from_secs(20), "{method}: after {:?}", started.elapsed());
        }
        assert_eq!(refresh(&world.daemon).problem(), "token-unavailable");
        assert_eq!(main_account(&world.daemon)["last_refresh"]["outcome"], "unavailable");
        assert_eq!(world.daemon.get("/-/readyz").status, 200);

        drop(link);
        let restored = Instant::now();
        eventually("the API is reached", || (world.daemon.get("/echo").status == 200).then_some(()));
        assert!(restored.elapsed() < Duration::from_secs(3), "after {:?}", restored.elapsed());
        assert_eq!(refresh(&world.daemon).status, 200);
        assert_eq!((world.daemon.state().as_str(), world.standin.superseded_presentations()), ("ready", 0));
        assert_eq!(events(&world.daemon), ["login-required", "recovered"], "nothing to tell a person");
    });
}

#[test]
fn a_network_that_is_gone_at_our_end_is_told_at_once_and_found_again() {
    assert_outlives_a_cut(|net| net.near.cut());
}

#[test]
fn a_network_that_is_cut_at_the_far_end_is_told_in_time_and_found_again() {
    assert_outlives_a_cut(|net| net.far.cut());
}

#[test]
fn a_daemon_that_starts_without_a_network_serves_within_five_seconds_of_it() {
    in_a_net(|net| {
        for cut in [|net: &Net| net.near.cut_for_good(), |net: &Net| net.far.cut_for_good()] {
            let mut world = world(net, 2, "");
            world.standin.set_down(true);
            expired(&world.daemon);
            world.daemon.stop();
            world.standin.set_down(false);
            cut(net);
            world.daemon = world.home.serve();

            for _ in 0..3 {
                let answer = world.daemon.get("/api/users");
                assert_eq!((answer.status, answer.problem().as_str()), (503, "token-unavailable"));
                let retry_after: u64 = answer.field("retry-after").unwrap().parse().unwrap();
                assert!((1..=60).contains(&retry_after), "{answer:?}");
                std::thread::sleep(Duration::from_millis(500));
            }

            world.standin.set_expires_in(86_400);
            net.near.mend();
            net.far.mend();
            let up = Instant::now();
            eventually("it serves", || (world.daemon.get("/api/users").status == 200).then_some(()));
            assert!(up.elapsed() < Duration::from_secs(5), "after {:?}", up.elapsed());
            assert_eq!(world.standin.superseded_presentations(), 0);
        }
    });
}

#[test]
fn a_name_that_moves_is_followed_by_new_connections() {
    let options = Options { tls: true, ..Options::default() };
    let mut world = Setup { options, ..Setup::default() }.logged_in();
    let authority = world.standin.api_authority();
    let (_, port) = authority.rsplit_once(':').unwrap();
    let config = std::fs::read_to_string(world.home.config()).unwrap();
    let moved = config.replace(
        &format!("[[route]]\nupstream = \"https://{authority}\""),
        &format!("[[route]]\nupstream = \"https://api.cnblogs.com:{port}\""),
    );
    assert_ne!(config, moved);
    std::fs::write(world.home.config(), moved).unwrap();
    let hosts = world.home.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost api.cnblogs.com\n").unwrap();
    world.daemon.stop();
    world.daemon = Daemon::spawn(with_hosts(&world.home, &hosts));
    let relayed = relay(Ipv4Addr::new(127, 0, 0, 2), &authority);

    assert_eq!(world.daemon.get("/echo").status, 200, "{}", world.daemon.output());
    assert_eq!(relayed.load(Ordering::SeqCst), 0);
    std::fs::write(&hosts, "127.0.0.2 localhost api.cnblogs.com\n").unwrap();
    world.standin.set_api_down(true);
    world.standin.set_api_down(false);

    assert_eq!(world.daemon.get("/echo").status, 200, "{}", world.daemon.output());
    assert_eq!(relayed.load(Ordering::SeqCst), 1, "the new connection goes to the new address");
}

/// The first address takes no connection, and does not say so.
#[test]
fn the_next_address_of_a_name_is_tried_when_the_first_is_silent() {
    let address = Ipv4Addr::new(127, 0, 0, 2);
    let options = Options { tls: true, address: address.into(), ..Options::default() };
    let mut world =
        Setup { options, tables: "[limits]\nconnect_timeout = \"50s\"".to_owned(), ..Setup::default() }
            .start();
    let mut first: SocketAddr = world.standin.api_authority().parse().unwrap();
    first.set_ip(Ipv4Addr::LOCALHOST.into());
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    silent.bind(&first.into()).unwrap();
    silent.listen(0).unwrap();
    let _takes_the_only_place = TcpStream::connect(first).unwrap();
    let config = std::fs::read_to_string(world.home.config()).unwrap();
    let named =
        config.replace(&format!("upstream = \"https://{address}"), "upstream = \"https://api.cnblogs.com");
    assert_ne!(config, named);
    std::fs::write(world.home.config(), named).unwrap();
    let hosts = world.home.path().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1 localhost api.cnblogs.com\n{address} api.cnblogs.com\n"))
        .unwrap();
    world.daemon.stop();
    world.daemon = Daemon::spawn(with_hosts(&world.home, &hosts));
    world.log_in(Person::Alice);
    world.standin.set_api_down(true);
    world.standin.set_api_down(false);

    let started = Instant::now();
    let answer = world.daemon.request("POST", "/echo", &[], b"body");

    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(started.elapsed() < RECOVERS_WITHIN, "after {:?}", started.elapsed());
}

/// A pooled connection would be silent for seconds, and its POST could not be sent again.
#[test]
fn a_machine_that_moved_to_another_network_uses_none_of_its_old_connections() {
    in_a_net(|net| {
        let world = world(net, 86_400, "");
        fill_the_pool(&world);
        assert_eq!(net.near.ports_to(&world.standin.api_authority()).len(), CROWD);

        net.near.move_to(Ipv4Addr::new(10, 82, 62, 3));

        for _ in 0..3 {
            let answer = world.daemon.request("POST", "/echo", &[], b"body");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    });
}

/// What comes and goes elsewhere is no reason to leave a connection.
#[test]
fn another_address_of_the_machine_costs_no_connection() {
    in_a_net(|net| {
        let world = world(net, 86_400, "");
        fill_the_pool(&world);
        let before = world.standin.api_connection_count();

        net.near.also_has(Ipv4Addr::new(10, 99, 0, 1));
        fill_the_pool(&world);

        assert_eq!(world.standin.api_connection_count(), before);
    });
}

/// The daemon, with this file in the place of `/etc/hosts`.
pub(crate) fn with_hosts(home: &Home, hosts: &Path) -> Command {
    let command = home.command(&["serve"]);
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let mut unshared = Command::new("unshare");
    unshared.args(["--mount", "sh", "-c", script]).arg(hosts).arg(PROGRAM).args(arguments);
    unshared.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    unshared
}

/// Passes connections on from the same port of another address; counts them.
fn relay(address: Ipv4Addr, to: &str) -> Arc<AtomicUsize> {
    let (_, port) = to.rsplit_once(':').unwrap();
    let listener = TcpListener::bind((address, port.parse().unwrap())).unwrap();
    let (relayed, to) = (Arc::new(AtomicUsize::new(0)), to.to_owned());
    let counted = Arc::clone(&relayed);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::SeqCst);
            let upstream = TcpStream::connect(&to).unwrap();
            for (mut from, mut into) in
                [(stream.try_clone().unwrap(), upstream.try_clone().unwrap()), (upstream, stream)]
            {
                std::thread::spawn(move || io::copy(&mut from, &mut into).ok());
            }
        }
    });
    relayed
}
