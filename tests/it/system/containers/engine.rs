//! Podman and buildah with images and networks of their own, apart from those of whoever runs the tests, and a
//! [`Stage`]: a network with a stand-in of Cnblogs in it. They need root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use crate::standin::{Options, Person, Standin};
use crate::support::{Answer, PATIENCE, eventually};
use crate::system::release::{COMMIT, ROOT, TARGET, cargo_home, done, profile};

/// Where `tests/run` puts the programs from `PyPI`.
pub(super) const VENV: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/venv/bin");
/// The image that `deploy/docker/Dockerfile` makes.
pub(super) const IMAGE: &str = "localhost/cnblogs-proxy";
/// An image without anything: with this machine's programs mounted, it builds, and plays the application.
pub(super) const EMPTY: &str = "localhost/empty";
const PLACE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/containers");

/// A network of containers with a stand-in of Cnblogs at its gateway. Dropping it removes all that has its name.
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) gateway: String,
    pub(super) standin: Standin,
    directory: TempDir,
}

/// `cnblogs-proxy login` at a terminal in a container.
struct Terminal {
    child: Child,
    lines: Receiver<String>,
}

/// Podman, as the tests have it.
pub(super) fn podman(arguments: &[&str]) -> Output {
    command("podman", arguments).output().unwrap()
}

/// A program that finds podman, and what it is to know.
#[track_caller]
pub(super) fn command(program: &str, arguments: &[&str]) -> Command {
    static CONFIGURED: LazyLock<()> = LazyLock::new(configure);
    LazyLock::force(&CONFIGURED);
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("PATH", format!("{VENV}:{path}:/usr/sbin:/sbin"));
    command.env("CONTAINERS_CONF", format!("{PLACE}/containers.conf"));
    command.env("CONTAINERS_STORAGE_CONF", format!("{PLACE}/storage.conf"));
    command
}

/// The image, made by its Dockerfile, once in a run.
pub(super) fn image() {
    static MADE: LazyLock<()> = LazyLock::new(build);
    LazyLock::force(&MADE);
}

impl Stage {
    /// A network and a stand-in in it; the image is there.
    pub(super) fn set() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        image();
        let name = format!("stage-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        done(&podman(&["network", "create", &name]));
        let anchor = format!("{name}-anchor");
        // The gateway is there from the first container on.
        let run = ["run", "--detach", "--name", &anchor, "--network", &name, "--volume", "/usr:/usr:ro"];
        done(&podman(&[&run[..], &[EMPTY, "sleep", "infinity"]].concat()));
        let format = format!("{{{{(index .NetworkSettings.Networks {name:?}).Gateway}}}}");
        let gateway = done(&podman(&["inspect", "--format", &format, &anchor])).trim().to_owned();
        let address: IpAddr = gateway.parse().unwrap();
        let standin = Standin::start(Options { address, tls: true, ..Options::default() });
        Self { name, gateway, standin, directory: TempDir::new().unwrap() }
    }

    /// Where a test may leave files.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file that the user with this number alone can read.
    pub(super) fn file(&self, name: &str, content: &str, owner: u32) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
        path
    }

    /// The stand-in in place of Cnblogs, for the end of a configuration; the authority's certificate is expected at
    /// `/run/ca.pem`. `/anchor` leads to a name that only the network's own name server knows.
    pub(super) fn accounts(&self) -> String {
        let auth = self.standin.auth_url();
        let port = self.standin.api_authority().rsplit(':').next().unwrap().to_owned();
        format!(
            "\n[account.main]\nca_file = \"/run/ca.pem\"\nredirect_uri = \"{auth}/auth/callback\"\n\
             authorization_url = \"{auth}/connect/authorize\"\ntoken_url = \"{auth}/connect/token\"\n\
             revocation_url = \"{auth}/connect/revocation\"\n\
             jwks_url = \"{auth}/.well-known/openid-configuration/jwks\"\n\n\
             [[route]]\nupstream = \"https://api.cnblogs.com:{port}\"\nca_file = \"/run/ca.pem\"\n\n\
             [[route]]\nprefix = \"/anchor\"\nupstream = \"https://{}-anchor:1\"\n",
            self.name
        )
    }

    /// How the stand-in's certificate comes to `/run/ca.pem`.
    pub(super) fn certificate(&self) -> String {
        format!("{}:/run/ca.pem:ro", self.standin.ca_pem_path().display())
    }

    /// How a container finds the API's name.
    pub(super) fn host(&self) -> String {
        format!("api.cnblogs.com:{}", self.gateway)
    }

    /// Runs the image with all that its users are told to take away taken away.
    #[track_caller]
    pub(super) fn run(&self, name: &str, more: &[String]) {
        let more: Vec<_> = more.iter().map(String::as_str).collect();
        let (certificate, host) = (self.certificate(), self.host());
        let id = format!("CNBLOGS_CLIENT_ID={}", self.standin.options().client_id);
        let fixed =
            ["run", "--detach", "--name", name, "--network", &self.name, "--read-only", "--cap-drop=all"];
        let further = ["--security-opt=no-new-privileges", "--volume", &certificate, "--add-host", &host];
        done(&podman(&[&fixed[..], &further, &["--env", &id], &more, &[IMAGE]].concat()));
    }

    /// Logs Alice in at a terminal in a container.
    #[track_caller]
    pub(super) fn log_in(&self, container: &str) {
        let terminal =
            Terminal::open(&format!("podman exec --interactive --tty {container} cnblogs-proxy login"));
        terminal.log_in(&self.standin);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let mine = format!("name=^{}", self.name);
        let listed = podman(&["ps", "--all", "--quiet", "--filter", &mine]);
        for id in String::from_utf8_lossy(&listed.stdout).lines() {
            let _gone = podman(&["rm", "--force", "--time=0", "--depend", "--ignore", "--volumes", id]);
        }
        let listed = podman(&["volume", "ls", "--quiet", "--filter", &mine]);
        for id in String::from_utf8_lossy(&listed.stdout).lines() {
            let _gone = podman(&["volume", "rm", "--force", id]);
        }
        let _gone = podman(&["network", "rm", "--force", &self.name]);
    }
}

impl Terminal {
    fn open(line: &str) -> Self {
        let mut command = command("script", &["--quiet", "--return", "--command", line, "/dev/null"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
        });
        Self { child, lines }
    }

    #[track_caller]
    fn log_in(mut self, standin: &Standin) {
        let url = self.line_with(&format!("{}/connect/authorize", standin.auth_url()));
        let mut input = self.child.stdin.take().unwrap();
        writeln!(input, "{}", standin.authorize(url.trim(), Person::Alice)).unwrap();
        self.line_with(&format!("main is logged in as {}.", Person::Alice.display_name()));
        let status = eventually("the login's terminal closes", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }

    #[track_caller]
    fn line_with(&self, words: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no line with {words:?} came: {seen:#?}"),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Asks with curl, which is started by `start`: in a container, in its network, or here.
#[track_caller]
pub(super) fn curl(start: &[&str], arguments: &[&str]) -> Answer {
    let all =
        [start, &["curl", "--silent", "--show-error", "--include", "--max-time", "30"], arguments].concat();
    let output = command(all[0], &all[1..]).output().unwrap();
    Answer::parse(&output.stdout, "GET")
        .unwrap_or_else(|| panic!("{all:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Starts a program in the network of a container, as root of this machine: so does `kubectl port-forward`.
#[track_caller]
pub(super) fn inside(container: &str) -> [String; 2] {
    let pid = done(&podman(&["inspect", "--format", "{{.State.Pid}}", container]));
    ["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", pid.trim())]
}

fn configure() {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::create_dir_all(format!("{PLACE}/networks")).unwrap();
    let place = fs::canonicalize(PLACE).unwrap().display().to_string();
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{place}/images\"\nrunroot = \"{place}/{}\"\n",
        &boot[..8]
    );
    let containers = format!(
        "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=4096:4096\"]\nlog_driver = \"k8s-file\"\n\
         [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{place}/networks\"\n"
    );
    // Podman's database remembers the place that it was made in, and goes on using that one: a copy of it is of no use.
    let known = fs::read_to_string(format!("{PLACE}/storage.conf")).unwrap_or_default();
    if !known.contains(&format!("graphroot = \"{place}/images\"")) {
        let _there_was_none = fs::remove_dir_all(format!("{PLACE}/images"));
    }
    fs::write(format!("{PLACE}/storage.conf"), storage).unwrap();
    fs::write(format!("{PLACE}/containers.conf"), containers).unwrap();
}

/// The builder is this machine: an empty image with its programs, its toolchain and what cargo has downloaded.
fn build() {
    assert!(rustix::process::geteuid().is_root(), "containers need root here");
    let sysroot =
        done(&Command::new("rustc").args(["--print", "sysroot"]).output().unwrap()).trim().to_owned();
    let crates = cargo_home().join("registry").display().to_string();
    fs::create_dir_all(TARGET).unwrap();
    let target = fs::canonicalize(TARGET).unwrap().display().to_string();

    let made = done(&buildah(&["from", "scratch"]));
    let empty = made.trim();
    let root = done(&buildah(&["mount", empty]));
    let root = Path::new(root.trim());
    for name in ["usr", "tmp", "etc"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
    done(&buildah(&["config", "--env", &format!("PATH={sysroot}/bin:/usr/bin"), empty]));
    for (name, value) in profile() {
        done(&buildah(&["config", "--env", &format!("{name}={value}"), empty]));
    }
    let cargo_home = format!("CARGO_HOME={}", cargo_home().display());
    for variable in [cargo_home.as_str(), "CARGO_TARGET_DIR=/compiled"] {
        done(&buildah(&["config", "--env", variable, empty]));
    }
    done(&buildah(&["commit", "--quiet", "--rm", empty, EMPTY]));

    let mut arguments = vec!["build", "--isolation=chroot", "--format=docker", "--quiet", "--tag", IMAGE];
    let (builder, commit) = (format!("BUILDER={EMPTY}"), format!("COMMIT={COMMIT}"));
    arguments.extend(["--file", "deploy/docker/Dockerfile", "--build-arg", &builder, "--build-arg", &commit]);
    let mounted = ["/usr", "/etc/alternatives", "/etc/ssl", &sysroot].map(|path| format!("{path}:{path}:ro"));
    let written = [format!("{crates}:{crates}"), format!("{target}:/compiled")];
    for volume in mounted.iter().chain(&written) {
        arguments.extend(["--volume", volume]);
    }
    let arguments = [&["buildah"], &arguments[..], &["."]].concat();
    done(&command("nice", &arguments).current_dir(ROOT).output().unwrap());
    done(&podman(&["image", "prune", "--force"]));
}

fn buildah(arguments: &[&str]) -> Output {
    command("buildah", arguments)
        .output()
        .unwrap_or_else(|error| panic!("buildah: {error}: `tests/run --set-up-only`"))
}
