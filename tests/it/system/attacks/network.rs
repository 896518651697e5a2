//! The local adversary by way of the network: a name that leads back to us, a container beside us.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::support::{Answer, Home, Setup, World, eventually};
use crate::system::in_a_network_of_its_own;

/// A machine that is busy with something else is slower than the second that is promised.
const AT_ONCE: Duration = Duration::from_secs(5);
const KEY: &str = "a-key-of-a-caller-0123456789abcdef";

/// loc-010
#[test]
fn an_upstream_at_our_own_address_is_a_loop_that_is_not_entered() {
    for (listen, name) in [("127.0.0.1", "localhost"), ("0.0.0.0", "127.0.0.2")] {
        let (_key, mut world) = with_key(listen);
        lead_back(&mut world, listen, name);

        for scheme in ["http", "https"] {
            let started = Instant::now();
            let answer = ask(&world, &format!("/{scheme}/x"));

            assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"));
            let proxy_status = answer.field("proxy-status");
            assert_eq!(proxy_status, Some("cnblogs-proxy; error=proxy_loop_detected"), "{answer:?}");
            assert!(started.elapsed() < AT_ONCE, "{listen}: {:?}", started.elapsed());
            let lines = || world.daemon.output().matches(&format!("path=\"/{scheme}/x\"")).count();
            eventually("the request is logged", || (lines() > 0).then_some(()));
            assert_eq!(lines(), 1, "{listen}: it went round: {}", world.daemon.output());
        }
        assert_eq!(ask(&world, "/echo").status, 200);
    }
}

/// Runs in a network of its own, beside which it makes a container's: `$1` is the program, `$2` the directory with
/// the configuration. Prints what each caller got: a status, or 000 for no answer.
const CONTAINER: &str = r#"
trap 'kill $(jobs -p)' EXIT
ip link set lo up
"$1" --config "$2/config.toml" >"$2/output" 2>&1 &
python3 -m http.server 8000 --bind 127.0.0.1 --directory "$2/empty" >/dev/null 2>&1 &
unshare --net sleep 600 &
container=$!
until [[ $(readlink "/proc/$container/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do sleep 0.05; done
inside() { nsenter --target $container --net "$@"; }
ask() { curl --silent --max-time 10 --noproxy '*' --output /dev/null --write-out "$1 %{http_code}
" "${@:2}"; }

ip link add host0 type veth peer name eth0 netns $container
ip address add 10.11.12.1/24 dev host0
ip link set host0 up
inside ip address add 10.11.12.2/24 dev eth0
inside ip link set eth0 up
inside ip route add 127.0.0.1/32 via 10.11.12.1 dev eth0 src 10.11.12.2
echo 1 >/proc/sys/net/ipv4/conf/host0/route_localnet
inside bash -c 'echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet'
for port in 8000 8262; do until (: >/dev/tcp/127.0.0.1/$port) 2>/dev/null; do sleep 0.05; done; done
export -f ask
asks() { inside "${@:2}" bash -c 'ask "$@"' ask "$1" "${target[@]}"; }

target=(http://127.0.0.1:8262/x); ask self "${target[@]}"
target=(http://127.0.0.1:8000/); asks path
target=(http://127.0.0.1:8262/x); asks localnet
target=(http://127.0.0.1:8262/-/healthz); asks localnet-health
target=(http://10.11.12.1:8262/x); asks address
target=(--unix-socket "$2/proxy.sock" http://x/x); asks socket
asks socket-of-another setpriv --reuid 65534 --clear-groups
"#;

/// loc-005
#[test]
fn a_container_reaches_nothing_that_listens_on_loopback_and_only_a_known_user_the_socket() {
    let home = personal("self\", \"64999", "\"127.0.0.1:8262\", \"unix:{home}/proxy.sock\"");
    fs::create_dir(home.path().join("empty")).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();

    let said = in_a_network_of_its_own(CONTAINER, &home);

    assert_eq!(
        said,
        "self 502\npath 200\nlocalnet 000\nlocalnet-health 000\naddress 000\nsocket 502\nsocket-of-another 403\n",
        "{}",
        fs::read_to_string(home.path().join("output")).unwrap_or_default()
    );
}

/// A listener of one network is given to a daemon in another, whose kernel knows none of the callers.
pub(crate) const FOREIGN_LISTENER: &str = r#"
trap 'kill $(jobs -p)' EXIT
ip link set lo up
python3 - "$1" "$2" >"$2/output" 2>&1 <<'END' &
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 8262))
if listener.fileno() != 3: os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp("unshare", ["unshare", "--net", sys.argv[1], "--config", sys.argv[2] + "/config.toml"])
END
until grep -qE 'listening on|error' "$2/output"; do sleep 0.05; done
"#;
const CALL: &str =
    "curl --silent --max-time 10 --noproxy '*' --write-out ' %{http_code}\\n' http://127.0.0.1:8262/x";

#[test]
fn a_caller_whose_user_the_kernel_does_not_know_is_refused_unless_everybody_may() {
    let home = personal("self", "\"127.0.0.1:0\"");
    let said = in_a_network_of_its_own(&format!("{FOREIGN_LISTENER}{CALL}"), &home);
    assert!(said.contains("forbidden-user") && said.ends_with(" 403\n"), "{said}");
    assert!(said.contains("the kernel can't tell which user"), "{said}");

    let home = personal("*", "\"127.0.0.1:0\"");
    let said = in_a_network_of_its_own(&format!("{FOREIGN_LISTENER}{CALL}"), &home);
    assert!(said.ends_with(" 502\n"), "{said}");
}

/// A home with a personal access token and an API that nobody has.
pub(crate) fn personal(users: &str, listen: &str) -> Home {
    let home = Home::new(Vec::new());
    let token = home.secret("pat", "a-personal-access-token");
    let listen = listen.replace("{home}", &home.path().display().to_string());
    let config = format!(
        "listen = [{listen}]\nstate_dir = \"{}\"\n[account.main]\ngrant = \"personal_access_token\"\n\
         token_file = \"{}\"\n[[route]]\nupstream = \"http://127.0.0.1:9\"\n[callers]\nusers = [\"{users}\"]\n",
        home.state().display(),
        token.display()
    );
    fs::write(home.config(), config).unwrap();
    home
}

/// A world that needs no login and whose callers need a key.
fn with_key(listen: &str) -> (Home, World) {
    let home = Home::new(Vec::new());
    let key = home.secret("key", KEY);
    let tables = format!(
        "[callers]\nallow_remote = true\n[[callers.key]]\nname = \"a\"\nfile = \"{}\"\n",
        key.display()
    );
    let top = format!("log = \"debug\"\nlisten = [\"{listen}:0\"]");
    let account = "grant = \"client_credentials\"".to_owned();
    (home, Setup { top, account, tables, ..Setup::default() }.start())
}

/// Starts the daemon again on its port, with routes whose upstream is that port.
fn lead_back(world: &mut World, listen: &str, name: &str) {
    let port = world.daemon.authority.rsplit(':').next().unwrap().to_owned();
    let config = fs::read_to_string(world.home.config()).unwrap();
    let mut config = config.replace(&format!("{listen}:0"), &format!("{listen}:{port}"));
    for scheme in ["http", "https"] {
        config += &format!("[[route]]\nprefix = \"/{scheme}\"\nupstream = \"{scheme}://{name}:{port}\"\n");
    }
    fs::write(world.home.config(), config).unwrap();
    world.restart();
}

fn ask(world: &World, target: &str) -> Answer {
    let host = format!("localhost:{}", world.daemon.authority.rsplit(':').next().unwrap());
    let key = format!("Bearer {KEY}");
    eventually("there is a token", || {
        let answer =
            world.daemon.request("GET", target, &[("Host", &host), ("Proxy-Authorization", &key)], b"");
        (answer.status != 503).then_some(answer)
    })
}
