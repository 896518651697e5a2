//! The files of `deploy/docker` and `deploy/kubernetes`: checked by others' tools, and really run by podman.

mod engine;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use self::engine::{EMPTY, IMAGE, Stage, VENV, command, curl, image, inside, podman};
use crate::standin::Person;
use crate::support::eventually;
use crate::system::deployed::blocks;
use crate::system::release::{COMMIT, ROOT, done, is_as_shipped};

/// Of the image as it is shipped.
const LARGEST_IMAGE: u64 = 10_000_000;
/// Who the image runs as.
const USER: u32 = 8262;
/// Who the compose files are told to run as.
const PERSON: u32 = 12345;

#[test]
fn the_files_for_containers_are_what_their_readers_expect() {
    let lint = command("hadolint", &["deploy/docker/Dockerfile"]).current_dir(ROOT).output().unwrap();
    assert_eq!(done(&lint), "");

    for (version, of) in [("1.29", "the first that has sidecars"), ("1.37", "the newest known")] {
        for (file, manifests) in [("sidecar.yaml", 3), ("fleet.yaml", 2)] {
            let path = format!("deploy/kubernetes/{file}");
            let arguments = ["--strict", "--kubernetes-version", version, &path];
            let checked = command("kubernetes-validate", &arguments).current_dir(ROOT).output().unwrap();
            let said = format!("{}{}", done(&checked), String::from_utf8_lossy(&checked.stderr));
            assert_eq!(said.matches("passed").count(), manifests, "{file}, {version}, {of}: {said}");
        }
    }

    for file in ["compose.yaml", "compose.separate.yaml", "compose.fleet.yaml"] {
        let arguments = ["--file", file, "config", "--format", "json"];
        let mut compose = command("docker-compose", &arguments);
        compose.current_dir(Path::new(ROOT).join("deploy/docker")).env("CNBLOGS_CLIENT_ID", "id");
        let read: Value = serde_json::from_str(&done(&compose.output().unwrap())).unwrap();
        let build = &read["services"]["proxy"]["build"];
        let context = Path::new(build["context"].as_str().unwrap());
        assert_eq!(context, fs::canonicalize(ROOT).unwrap(), "{file}");
        assert!(context.join(build["dockerfile"].as_str().unwrap()).exists(), "{file}");
        let unnamed = compose.env_remove("CNBLOGS_CLIENT_ID").output().unwrap();
        let said = String::from_utf8_lossy(&unnamed.stderr).into_owned();
        assert!(!unnamed.status.success() && said.contains("registered at https://api"), "{file}: {said}");
    }
}

#[test]
fn the_image_holds_the_program_certificates_and_a_place_for_the_login() {
    image();

    let root = PathBuf::from(done(&podman(&["image", "mount", IMAGE])).trim());
    let mut files = BTreeSet::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.strip_prefix(&root).unwrap().display().to_string());
            }
        }
    }
    let state = fs::metadata(root.join("var/lib/cnblogs-proxy")).unwrap().permissions().mode();
    done(&podman(&["image", "unmount", IMAGE]));
    let expected = ["etc/ssl/certs/ca-certificates.crt", "usr/local/bin/cnblogs-proxy"];
    assert_eq!(files, expected.map(str::to_owned).into());
    assert_eq!(state & 0o7777, 0o1777, "whoever runs it may make the state's directory");

    let inspected: Value = serde_json::from_str(&done(&podman(&["image", "inspect", IMAGE]))).unwrap();
    let (image, config) = (&inspected[0], &inspected[0]["Config"]);
    assert_eq!(config["User"], format!("{USER}:{USER}"));
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Labels"]["org.opencontainers.image.revision"], COMMIT);
    assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "MIT");
    assert!(config["Volumes"]["/var/lib/cnblogs-proxy"].is_object(), "{config}");
    if is_as_shipped() {
        let size = image["Size"].as_u64().unwrap();
        assert!(size <= LARGEST_IMAGE, "{size} bytes");
    }
    let version = done(&podman(&["run", "--rm", "--network=none", "--read-only", IMAGE, "--version"]));
    assert_eq!(version, format!("cnblogs-proxy {} ({COMMIT})\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_login_at_a_container_s_terminal_outlives_the_container() {
    let stage = Stage::set();
    let volume = format!("{}:/var/lib/cnblogs-proxy", stage.name);
    let config = stage.file("config.toml", &stage.accounts(), USER);
    let config = format!("{}:/etc/cnblogs-proxy/config.toml:ro", config.display());
    let secret = stage.file("client_secret", &stage.standin.options().client_secret, USER);
    let secret = format!("{}:/run/secrets/client_secret:ro", secret.display());
    let variable = "CNBLOGS_CLIENT_SECRET_FILE=/run/secrets/client_secret";
    let more =
        ["--volume", &volume, "--volume", &config, "--volume", &secret, "--env", variable].map(str::to_owned);
    let [first, second] = ["first", "second"].map(|name| format!("{}-{name}", stage.name));

    stage.run(&first, &more);
    let required = eventually("it says that nobody is logged in", || {
        let logs = String::from_utf8(podman(&["logs", &first]).stdout).unwrap();
        logs.contains("login required: http://127.0.0.1:8262/-/login").then_some(logs)
    });
    assert!(required.starts_with("listening on http://127.0.0.1:8262\n"), "{required}");
    assert!(is_healthy(&first) && !is_ready(&first), "nobody is logged in");
    stage.log_in(&first);
    assert!(is_healthy(&first) && is_ready(&first));
    done(&podman(&["kill", "--signal=HUP", &first]));
    let stop = podman(&["stop", "--time=30", &first]);
    assert_eq!((done(&stop), exit_code(&first)), (format!("{first}\n"), 0), "{stop:?}");
    done(&podman(&["rm", &first]));

    stage.run(&second, &more);
    eventually("the login is found again", || is_ready(&second).then_some(()));
    let within = inside(&second);
    let within = [within[0].as_str(), &within[1]];
    let answer = curl(&within, &["http://127.0.0.1:8262/api/users"]);
    assert_eq!((answer.status, &answer.json()["UserId"]), (200, &Person::Alice.user_id().into()));
    assert_eq!(stage.standin.token_requests().len(), 1, "one login was enough");
    let resolved = curl(&within, &["http://127.0.0.1:8262/anchor/x"]);
    assert_eq!(resolved.problem(), "upstream-unreachable");
    assert!(resolved.field("proxy-status").unwrap().contains("connection_refused"), "{resolved:?}");
    done(&podman(&["kill", "--signal=INT", &second]));
    done(&podman(&["wait", &second]));
    assert_eq!(exit_code(&second), 0, "the first process of a container is sent signals, too");
}

#[test]
fn an_application_in_the_proxy_s_network_namespace_needs_nothing_but_the_address() {
    let stage = Stage::set();
    let compose = Compose::new(&stage, "compose.yaml", "sidecar.toml", |toml| toml);
    let (proxy, app) = (format!("{}_proxy_1", stage.name), format!("{}_app_1", stage.name));

    compose.up();
    stage.log_in(&proxy);

    says(&app, Person::Alice.display_name());
    let exec = ["podman", "exec", "--user", "4711", &app];
    let other = curl(&exec, &["http://127.0.0.1:8262/api/users"]);
    assert_eq!(other.json()["UserId"], Person::Alice.user_id(), "whatever user the application runs as");
    let outside = command("podman", &["exec", &format!("{}-anchor", stage.name), "curl"])
        .args(["--silent", "--max-time", "30", &format!("http://{}:8262/-/healthz", address(&proxy))])
        .output();
    assert_eq!(outside.unwrap().status.code(), Some(7), "another container is refused the connection");
    compose.again();
    eventually("the login is found again", || is_ready(&proxy).then_some(()));
    assert_eq!(stage.standin.token_requests().len(), 1);
}

#[test]
fn an_application_in_a_container_of_its_own_needs_its_key_and_a_person_another() {
    let stage = Stage::set();
    let port = quiet_port();
    let published = format!("127.0.0.1:{port}");
    let hosts = format!("hosts = [\"proxy\", {published:?}]");
    let mut compose = Compose::new(&stage, "compose.separate.yaml", "separate.toml", |toml| {
        assert!(toml.contains("hosts = [\"proxy\"]"), "{toml}");
        toml.replace("hosts = [\"proxy\"]", &hosts)
    });
    compose.port = port;
    stage.file("docker/secrets/app.key", "the-application-s-key\n", PERSON);
    stage.file("docker/secrets/person.key", "the-person-s-key\n", PERSON);
    let app = format!("{}_app_1", stage.name);
    let page = |path: &str, more: &[&str]| {
        let url = format!("http://{published}{path}");
        curl(&[], &[&["--user", "me:the-person-s-key", &url], more].concat())
    };

    compose.up();
    eventually("the page is there", || {
        let url = format!("http://{published}/-/healthz");
        let asked = command("curl", &["--silent", "--fail", &url]).output().unwrap();
        asked.status.success().then_some(())
    });
    let stranger = curl(&[], &[&format!("http://{published}/-/login")]);
    assert_eq!(stranger.problem(), "key-required");
    let challenge =
        stranger.fields.iter().any(|(name, value)| name == "www-authenticate" && value.contains("Basic"));
    assert!(challenge, "a browser asks for the key: {stranger:?}");
    assert_eq!(page("/-/login", &[]).status, 200);
    let started = page("/-/login/main/start", &["--request", "POST"]);
    let callback = stage.standin.authorize(started.field("location").unwrap(), Person::Alice);
    let pasted = page("/-/login/main", &["--data-urlencode", &format!("callback={callback}")]);
    assert_eq!(pasted.status, 200, "{pasted:?}");

    says(&app, Person::Alice.display_name());
    let ask = |path: &str, more: &[&str]| {
        let url = format!("http://proxy:8262{path}");
        curl(&["podman", "exec", &app], &[&[url.as_str()], more].concat())
    };
    let key = ["--header", "Authorization: Bearer the-application-s-key"];
    assert_eq!(ask("/api/users", &key).json()["UserId"], Person::Alice.user_id());
    assert_eq!(ask("/api/users", &[]).problem(), "key-required");
    let logout = ask("/-/logout/main", &[&key[..], &["--request", "POST"]].concat());
    assert_eq!(logout.problem(), "forbidden-by-key");

    let program = &blocks("Docker Desktop, on Windows and macOS", "sh")[0];
    let program = program.replace("http://localhost:8262", &format!("http://{published}"));
    let mut outside = command("sh", &["-euc", &program]);
    let called = done(&outside.current_dir(stage.path().join("docker")).output().unwrap());
    assert!(called.contains(Person::Alice.display_name()), "{called}");
}

#[test]
fn the_sidecar_of_a_pod_answers_probes_without_a_key_and_the_application_with_one() {
    let stage = Stage::set();
    let pod = Pod::new(&stage);
    let (sidecar, app) = (&pod.spec["initContainers"][0], &pod.spec["containers"][0]);
    let (proxy, caller) = (format!("{}-pod", stage.name), format!("{}-app", stage.name));

    stage.run(&proxy, &pod.run_arguments());
    let probe = |name: &str| {
        let port = &sidecar["ports"][0]["containerPort"];
        assert_eq!(sidecar[name]["httpGet"]["port"], sidecar["ports"][0]["name"]);
        let url = format!("http://{}:{port}{}", address(&proxy), text(&sidecar[name]["httpGet"]["path"]));
        command("curl", &["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", &url])
            .output()
            .unwrap()
    };
    let answers = |name: &str| String::from_utf8(probe(name).stdout).unwrap();
    eventually("it has started", || (answers("startupProbe") == "200").then_some(()));
    assert_eq!((answers("livenessProbe"), answers("readinessProbe")), ("200".into(), "503".into()));
    stage.log_in(&proxy);
    assert_eq!(answers("readinessProbe"), "200");

    let as_user = format!("--user={}", number(&app["securityContext"]["runAsUser"]));
    let network = format!("--network=container:{proxy}");
    let run =
        ["run", "--detach", "--name", &caller, &as_user, &network, "--volume=/usr:/usr:ro", "--read-only"];
    let words: Vec<_> = app["command"].as_array().unwrap().iter().map(text).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let key = ["--env=CNBLOGS_PROXY_KEY=the-application-s-key", EMPTY];
    done(&podman(&[&run[..], &key, &words].concat()));
    says(&caller, Person::Alice.display_name());
    let without = curl(&["podman", "exec", &caller], &["http://127.0.0.1:8262/api/users"]);
    assert_eq!(without.problem(), "key-required");

    let within = inside(&proxy);
    let forwarded =
        |url: &str| curl(&[within[0].as_str(), &within[1]], &["--user", "me:the-person-s-key", url]);
    assert_eq!(forwarded("http://localhost:8262/-/login").status, 200, "kubectl port-forward");
    let logs = podman(&["logs", &proxy]);
    let logs = format!("{}{}", String::from_utf8_lossy(&logs.stdout), String::from_utf8_lossy(&logs.stderr));
    assert!(!logs.contains("could be reached by others"), "{logs}");
    assert_is_looked_after_without_a_shell(&stage, &proxy);
}

/// What `kubectl exec` is told to run, and the log filter that a changed `ConfigMap` brings.
#[track_caller]
fn assert_is_looked_after_without_a_shell(stage: &Stage, proxy: &str) {
    let told = blocks("A pod without a shell", "sh").concat();
    let exec = "kubectl exec deployment/app --container proxy -- ";
    let within = |command: &str| {
        assert!(told.contains(&format!("{exec}{command}\n")), "{command} is not told");
        let words: Vec<_> = command.split(' ').collect();
        done(&podman(&[&["exec", proxy][..], &words].concat()))
    };
    let logs = || String::from_utf8_lossy(&podman(&["logs", proxy]).stderr).into_owned();
    assert!(within("cnblogs-proxy status").contains("main: ready"));
    within("cnblogs-proxy check");
    assert!(!logs().contains("\"DEBUG\""), "{}", logs());

    let config = stage.path().join("config/config.toml");
    let changed = format!("log = \"debug\"\n{}", fs::read_to_string(&config).unwrap());
    fs::write(&config, changed).unwrap();
    within("cnblogs-proxy reload");

    eventually("a debug log", || {
        within("cnblogs-proxy status");
        logs().contains("\"DEBUG\"").then_some(())
    });
}

/// The pod of the Kubernetes manifest, with its volumes as the kubelet leaves them: root's, and open to the pod's
/// group.
struct Pod<'a> {
    stage: &'a Stage,
    spec: Value,
}

impl<'a> Pod<'a> {
    fn new(stage: &'a Stage) -> Self {
        let [map, _, deployment] = &manifests()[..] else { panic!("three documents") };
        let spec = deployment["spec"]["template"]["spec"].clone();
        let group = number(&spec["securityContext"]["fsGroup"]);
        let state = stage.path().join("state");
        fs::create_dir(&state).unwrap();
        open_to(&state, 0o2775, group);
        let config = text(&map["data"]["config.toml"]) + &stage.accounts();
        open_to(&stage.file("config/config.toml", &config, 0), 0o644, 0);
        let secrets = [
            ("client_secret", stage.standin.options().client_secret.as_str()),
            ("app.key", "the-application-s-key"),
            ("person.key", "the-person-s-key"),
        ];
        for (name, content) in secrets {
            open_to(&stage.file(&format!("secrets/{name}"), content, 0), 0o440, group);
        }
        Self { stage, spec }
    }

    /// What of the sidecar podman is to be told.
    fn run_arguments(&self) -> Vec<String> {
        let sidecar = &self.spec["initContainers"][0];
        let context = &sidecar["securityContext"];
        let mut arguments = vec![
            format!("--user={}:{}", context["runAsUser"], context["runAsGroup"]),
            format!("--group-add={}", self.spec["securityContext"]["fsGroup"]),
        ];
        for mount in sidecar["volumeMounts"].as_array().unwrap() {
            let place = self.stage.path().join(text(&mount["name"]));
            arguments.push(format!("--volume={}:{}", place.display(), text(&mount["mountPath"])));
        }
        for variable in sidecar["env"].as_array().unwrap() {
            if let Some(value) = variable["value"].as_str() {
                arguments.push(format!("--env={}={value}", text(&variable["name"])));
            }
        }
        arguments
    }
}

/// One of the compose files in a copy of their directory, with the stand-in in place of Cnblogs and this machine's curl
/// in place of an image from the network.
struct Compose<'a> {
    stage: &'a Stage,
    file: &'static str,
    port: u16,
}

impl<'a> Compose<'a> {
    fn new(stage: &'a Stage, file: &'static str, toml: &str, change: impl FnOnce(String) -> String) -> Self {
        let deployed = Path::new(ROOT).join("deploy/docker");
        let read = |name: &str| fs::read_to_string(deployed.join(name)).unwrap();
        stage.file(&format!("docker/{file}"), &read(file), 0);
        stage.file(&format!("docker/{toml}"), &(change(read(toml)) + &stage.accounts()), PERSON);
        stage.file("docker/secrets/client_secret", &stage.standin.options().client_secret, PERSON);
        let proxy = format!(
            "  proxy:\n    volumes: [{:?}]\n    extra_hosts: [{:?}]\n    networks: [default]\n",
            stage.certificate(),
            stage.host()
        );
        let app = format!("  app:\n    image: {EMPTY}\n    volumes: [\"/usr:/usr:ro\"]\n");
        let network = format!("networks:\n  default:\n    name: {}\n    external: true\n", stage.name);
        stage.file("docker/test.yaml", &format!("services:\n{proxy}{app}{network}"), 0);
        Self { stage, file, port: 8262 }
    }

    #[track_caller]
    fn up(&self) {
        done(&self.run(&["up", "--detach"]));
    }

    /// Containers that are made anew keep the volume.
    #[track_caller]
    fn again(&self) {
        done(&self.run(&["down", "--timeout=0"]));
        self.up();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let all = ["--project-name", &self.stage.name, "--file", self.file, "--file", "test.yaml"];
        let mut compose = command("podman-compose", &[&all[..], arguments].concat());
        compose.current_dir(self.stage.path().join("docker"));
        compose.env("PROXY_UID", PERSON.to_string()).env("PROXY_GID", PERSON.to_string());
        compose.env("PROXY_PORT", self.port.to_string());
        compose.env("CNBLOGS_CLIENT_ID", &self.stage.standin.options().client_id).output().unwrap()
    }
}

/// Waits until a container's output has these words.
#[track_caller]
fn says(container: &str, words: &str) {
    eventually(&format!("{container} says {words}"), || {
        let logs = podman(&["logs", container]);
        String::from_utf8_lossy(&logs.stdout).contains(words).then_some(())
    });
}

/// What the image's health check says. Podman without systemd leaves it to others to run it.
fn is_healthy(container: &str) -> bool {
    podman(&["healthcheck", "run", container]).status.success()
}

fn is_ready(container: &str) -> bool {
    podman(&["exec", container, "cnblogs-proxy", "health"]).status.success()
}

#[track_caller]
fn exit_code(container: &str) -> i32 {
    done(&podman(&["inspect", "--format", "{{.State.ExitCode}}", container])).trim().parse().unwrap()
}

#[track_caller]
fn address(container: &str) -> String {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    done(&podman(&["inspect", "--format", format, container])).trim().to_owned()
}

/// A free port that nobody is given by chance meanwhile: below those that the kernel hands out.
fn quiet_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    (first..first + 1_000).find(is_free).expect("of a thousand ports one is free")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

fn manifests() -> Vec<Value> {
    let script = "import sys, json, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let mut python = command(&format!("{VENV}/python"), &["-c", script]);
    let file = fs::File::open(Path::new(ROOT).join("deploy/kubernetes/sidecar.yaml")).unwrap();
    serde_json::from_str(&done(&python.stdin(file).output().unwrap())).unwrap()
}

fn open_to(path: &Path, mode: u32, group: u32) {
    chown(path, Some(0), Some(group)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
