//! What `deploy/release` makes: the static program, its parts list, their sums, and the commit that it names.
//!
//! It is compiled without optimisation here, which is another matter than how it is made. `RELEASE_BUILD=1` has it made
//! as it is shipped, but for the profile, twice and in two places, to compare, and holds the image to its size; that
//! takes minutes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

/// The sources.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The commit that programs and images of the tests say they are made from.
pub(crate) const COMMIT: &str = "c0ffee1 2026-01-02";
/// Where releases and images of the tests are compiled.
pub(crate) const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/release");
const QUICK: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
];
const EPOCH: &str = "1767312000";

/// True when everything is to be made as it is shipped.
pub(crate) fn is_as_shipped() -> bool {
    std::env::var_os("RELEASE_BUILD").is_some_and(|value| value == "1")
}

/// How the compiler is told to be quick, unless everything is to be made as it is shipped.
pub(crate) fn profile() -> &'static [(&'static str, &'static str)] {
    if is_as_shipped() { &[] } else { &QUICK }
}

#[test]
fn a_release_is_the_static_program_its_parts_list_and_their_sums() {
    let made = TempDir::new().unwrap();

    done(&release(Path::new(ROOT), Path::new(TARGET), made.path()));

    let sums = done(&run(made.path(), "sha256sum", &["--check", "--strict", "SHA256SUMS"]));
    let version = env!("CARGO_PKG_VERSION");
    let names = names(made.path());
    let archive = names.iter().find(|name| name.ends_with(".tar.gz")).unwrap();
    let whole = archive.strip_suffix(".tar.gz").unwrap();
    assert!(whole.starts_with(&format!("cnblogs-proxy-{version}-")), "{archive}");
    let parts = format!("cnblogs-proxy-{version}.cdx.json");
    assert_eq!(names, [archive.as_str(), &parts, "SHA256SUMS"].map(str::to_owned).into());
    assert!(sums.contains(&format!("{archive}: OK")) && sums.contains(&format!("{parts}: OK")), "{sums}");

    done(&run(made.path(), "tar", &["xzf", archive]));
    let content = self::names(&made.path().join(whole));
    let top = ["CHANGELOG.md", "LICENSE", "README.md", "cnblogs-proxy", "config", "deploy", "tests"];
    assert_eq!(content, top.map(str::to_owned).into());
    assert_is_installed_as_told(&made.path().join(whole));
    let program = made.path().join(whole).join("cnblogs-proxy");
    let said = done(&run(made.path(), program.to_str().unwrap(), &["--version"]));
    assert_eq!(said, format!("cnblogs-proxy {version} ({COMMIT})\n"));
    let bytes = fs::read(&program).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("/cargo/registry/"), "the places of dependencies have another name");
    for path in [ROOT.to_owned(), cargo_home().display().to_string()] {
        assert!(!has(&path), "the program names {path}");
    }
    let changes = fs::read_to_string(made.path().join(whole).join("CHANGELOG.md")).unwrap();
    assert!(changes.contains(&format!("\n## {version}\n")), "the change log knows no {version}");
    assert_names_all_parts(&made.path().join(&parts));
    assert_loads_no_library_for_a_name(&program);
}

#[test]
fn a_release_has_the_same_bytes_wherever_it_is_made() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    // Cargo writes the package's id another way where the directory has its name.
    let copy = there.path().join("another place/cnblogs-proxy");
    fs::create_dir_all(&copy).unwrap();
    let parts =
        ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "config", "src", "deploy", "tests/README.md"];
    self::copy(&parts, &copy);
    // Dependencies are compiled once for both, unless all is to be as it is shipped.
    done(&run(&copy, "touch", &["src/lib.rs", "src/main.rs"]));
    let target = if is_as_shipped() { there.path().join("target") } else { TARGET.into() };

    done(&release(Path::new(ROOT), Path::new(TARGET), here.path()));
    let other = there.path().join("made");
    done(&release(&copy, &target, &other));

    let sums = |place: &Path| fs::read_to_string(place.join("SHA256SUMS")).unwrap();
    assert_eq!(sums(here.path()), sums(&other));
}

#[test]
fn what_no_commit_has_is_not_released() {
    let place = repository();
    copy(&["deploy/release"], place.path());

    let script = place.path().join("deploy/release/build");
    let refused = run(place.path(), script.to_str().unwrap(), &["made"]);

    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("?? deploy/") && said.contains("error: a release is made from a commit"), "{said}");
}

#[test]
fn a_checkout_tells_the_compiler_nothing() {
    assert_eq!(names(&Path::new(ROOT).join(".cargo")), [String::from("mutants.toml")].into());
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_made() {
    let place = TempDir::new().unwrap();
    for script in ["build", "static"] {
        for arguments in
            [&[][..], &["--fast"], &["--fast", "made"], &["made", "more"], &["made", "--without-profile"]]
        {
            let refused = run(place.path(), &format!("{ROOT}/deploy/release/{script}"), arguments);

            let said = String::from_utf8_lossy(&refused.stderr);
            let usage = format!("error: usage: deploy/release/{script} ");
            assert!(refused.status.code() == Some(1) && said.starts_with(&usage), "{arguments:?}: {said}");
        }
    }
    assert_eq!(names(place.path()), BTreeSet::new());
}

#[test]
fn a_profile_is_used_for_the_sources_and_the_compiler_that_it_is_of() {
    let place = TempDir::new().unwrap();
    let place = place.path();
    copy(&["Cargo.toml", "Cargo.lock", "src/main.rs", "deploy/release", "deploy/debian/build"], place);
    let builds = [&["deploy/release/static", "made"][..], &["deploy/debian/build"]];
    for build in builds {
        assert_eq!(flags_of_profile(place, build), "", "{build:?}: there is none");
    }
    let directory = "source deploy/release/program.sh && profile_directory \"$PWD/target\"";
    let profile = done(&run(place, "bash", &["-c", directory]));
    let profile = profile.trim();
    fs::create_dir_all(profile).unwrap();
    for name in ["program.profdata", "program.order"] {
        fs::write(Path::new(profile).join(name), "").unwrap();
    }

    for build in builds {
        let flags = flags_of_profile(place, build);
        assert!(flags.contains(&format!("profile-use={profile}/program.profdata\n")), "{build:?}: {flags}");
        let is_ordered = flags.contains(&format!("-Wl,--symbol-ordering-file={profile}/program.order,"));
        assert_eq!(is_ordered, cfg!(all(target_arch = "x86_64", target_env = "gnu")), "{build:?}: {flags}");
    }
    assert!(Path::new(profile).join("cnblogs-proxy").exists(), "for the benchmark");
    assert_eq!(flags_of_profile(place, &["deploy/release/static", "--without-profile", "made"]), "");
    fs::write(place.join("src/main.rs"), "fn main() {}").unwrap();
    for build in builds {
        assert_eq!(flags_of_profile(place, build), "", "{build:?}: it is of other sources");
    }
}

#[test]
fn a_release_that_cannot_be_trained_for_names_what_is_missing_and_the_way_without() {
    let (place, made) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let programs = [
        "bash",
        "cargo",
        "cat",
        "cut",
        "dirname",
        "find",
        "git",
        "mkdir",
        "rm",
        "rustc",
        "sed",
        "sha256sum",
        "sort",
    ];
    for program in programs {
        let found = done(&run(place.path(), "bash", &["-c", "command -v \"$0\"", program]));
        std::os::unix::fs::symlink(found.trim(), place.path().join(program)).unwrap();
    }
    let mut command = Command::new(format!("{ROOT}/deploy/release/build"));
    command.env("PATH", place.path()).env("CARGO_TARGET_DIR", made.path().join("target"));
    command.env("SOURCE_DATE_EPOCH", EPOCH);
    let refused = command.arg("--allow-dirty").arg(made.path()).output().unwrap();

    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("error: training needs") && said.contains(" wrk"), "{said}");
    assert!(said.contains("deploy/release/build --without-profile"), "{said}");
    assert_eq!(names(made.path()), BTreeSet::new());
}

#[test]
fn the_version_names_the_commit_of_a_release_build_in_its_own_repository() {
    let place = repository();
    let commit = done(&run(place.path(), "git", &["log", "-1", "--format=%h %cs", "--abbrev=7"]));
    let inner = place.path().join("vendored");
    let linked = TempDir::new().unwrap();
    let linked = linked.path().join("linked");
    fs::create_dir(&inner).unwrap();
    done(&run(place.path(), "git", &["worktree", "add", "--quiet", linked.to_str().unwrap()]));
    let built = TempDir::new().unwrap();
    let script = built.path().join("version");
    let source = format!("{ROOT}/deploy/release/version.rs");
    done(&run(place.path(), "rustc", &["--edition=2024", &source, "-o", script.to_str().unwrap()]));
    let says = |directory: &Path, profile: &str, more: &[(&str, &str)]| {
        let mut command = Command::new(&script);
        command.current_dir(directory).env_remove("CNBLOGS_PROXY_COMMIT").env("PROFILE", profile);
        let said = done(&command.env("CARGO_PKG_VERSION", "1.2.3").envs(more.to_vec()).output().unwrap());
        let version =
            said.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=CNBLOGS_PROXY_VERSION="));
        (version.unwrap().to_owned(), said.contains("HEAD"))
    };

    let named = format!("1.2.3 ({})", commit.trim());
    let plain = ("1.2.3".to_owned(), false);
    assert_eq!(says(place.path(), "release", &[]), (named.clone(), true));
    assert_eq!(says(&linked, "release", &[]), (named, true), "in a linked working tree");
    assert_eq!(says(place.path(), "debug", &[]), plain, "no debug build is made anew after a commit");
    assert_eq!(says(&inner, "release", &[]), plain, "somebody else's repository");
    assert_eq!(says(built.path(), "release", &[]), plain, "no repository");
    assert_eq!(says(place.path(), "release", &[("PATH", "")]), plain, "no git");
    let given = says(built.path(), "release", &[("CNBLOGS_PROXY_COMMIT", COMMIT)]);
    assert_eq!(given, (format!("1.2.3 ({COMMIT})"), false));
    assert_eq!(says(built.path(), "release", &[("CNBLOGS_PROXY_COMMIT", "")]), plain, "an image without");
}

/// What `deploy/README.md` says for a machine without the package, in the unpacked archive and in an empty `/etc`.
#[track_caller]
fn assert_is_installed_as_told(unpacked: &Path) {
    let readme = fs::read_to_string(unpacked.join("deploy/README.md")).unwrap();
    let commands = readme.split("**The other two without the package,**").nth(1).unwrap();
    let commands = commands.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();
    let commands = commands.replace("systemctl daemon-reload\n", "");
    let script = format!(
        "mount -t tmpfs none /etc && mkdir -p /etc/systemd/system\n{commands}cd /etc && find . -type f"
    );

    let installed = done(&run(unpacked, "unshare", &["--mount", "sh", "-euc", &script]));

    let expected = [
        "cnblogs-proxy/config.toml",
        "systemd/system/cnblogs-proxy.service",
        "systemd/system/cnblogs-proxy.socket",
        "systemd/system/cnblogs-proxy@.service",
    ];
    let installed: BTreeSet<_> = installed.lines().collect();
    assert_eq!(installed, expected.map(|file| format!("./{file}")).iter().map(String::as_str).collect());
    // What its users, and the links of the README, look for.
    for file in [
        "config/README.md",
        "config/complete.toml",
        "deploy/README.md",
        "deploy/notify/mail",
        "deploy/prometheus/alerts.yaml",
        "deploy/systemd/user/cnblogs-proxy.service",
        "tests/README.md",
    ] {
        let (packed, ours) = (unpacked.join(file), Path::new(ROOT).join(file));
        assert_eq!(fs::read(&packed).unwrap(), fs::read(&ours).unwrap(), "{file}");
        let is_program = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o111 != 0;
        assert_eq!(is_program(&packed), is_program(&ours), "{file}");
    }
}

/// A static program of glibc dies of the sources of names of another glibc.
#[track_caller]
fn assert_loads_no_library_for_a_name(program: &Path) {
    let place = TempDir::new().unwrap();
    let of_a_desktop = "hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n";
    fs::write(place.path().join("nsswitch.conf"), of_a_desktop).unwrap();
    fs::write(place.path().join("hosts"), "127.0.0.1 api.example\n").unwrap();
    fs::write(place.path().join("pat"), "a-personal-access-token").unwrap();
    fs::set_permissions(place.path().join("pat"), fs::Permissions::from_mode(0o600)).unwrap();
    let script = "for file in nsswitch.conf hosts; do mount --bind $file /etc/$file; done\n\
                  CNBLOGS_PAT_FILE=$PWD/pat CNBLOGS_PROXY_STATE_DIR=$PWD/state \
                  CNBLOGS_PROXY_UPSTREAM=https://api.example:1 CNBLOGS_PROXY_CONFIG=/dev/null \
                  strace --follow-forks --trace=open,openat --output=opened \"$1\" check --connect || true";

    let arguments = ["--mount", "--net", "sh", "-euc", script, "sh", program.to_str().unwrap()];
    let said = run(place.path(), "unshare", &arguments);

    let opened = fs::read_to_string(place.path().join("opened")).unwrap();
    let said = format!("{}{}", done(&said), String::from_utf8_lossy(&said.stderr));
    assert!(opened.contains("\"/etc/hosts\""), "the name was looked up: {said}");
    let libraries: Vec<_> = opened.lines().filter(|line| line.contains(".so")).collect();
    assert!(libraries.is_empty(), "{libraries:#?}");
}

/// Each direct dependency is there, and no path of this machine.
#[track_caller]
fn assert_names_all_parts(list: &Path) {
    let text = fs::read_to_string(list).unwrap();
    assert!(!text.contains(ROOT), "it names {ROOT}");
    let list: Value = serde_json::from_str(&text).unwrap();
    let own = concat!("cnblogs-proxy@", env!("CARGO_PKG_VERSION"));
    assert_eq!(list["metadata"]["component"]["bom-ref"], own);
    assert_eq!((&list["bomFormat"], &list["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let listed: BTreeSet<_> =
        list["components"].as_array().unwrap().iter().filter_map(|part| part["name"].as_str()).collect();
    let manifest = fs::read_to_string(format!("{ROOT}/Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let direct: Vec<_> = section.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(direct.len() > 30, "{direct:?}");
    for name in direct {
        assert!(listed.contains(name), "{name} is not listed");
    }
    assert!(!listed.contains("tempfile"), "what only tests use is no part of it");
}

/// Runs `deploy/release/build` of some sources, one after another: two would install the same tool at a time.
fn release(sources: &Path, target: &Path, into: &Path) -> Output {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new("nice");
    command.arg(sources.join("deploy/release/build")).args(["--allow-dirty", "--without-profile"]).arg(into);
    without_cargo(&mut command).env("CARGO_TARGET_DIR", target).envs(profile().to_vec());
    command.env("CNBLOGS_PROXY_COMMIT", COMMIT).env("SOURCE_DATE_EPOCH", EPOCH).output().unwrap()
}

/// What the compiler is told of a profile, a line for each word, when a script runs beside a cargo that builds nothing.
fn flags_of_profile(sources: &Path, script: &[&str]) -> String {
    let cargo = r#"#!/bin/sh
        here=$(dirname "$0")
        case $1 in
        metadata) echo "{\"target_directory\":\"$here/target\"}" ;;
        build)
            printf %s "$CARGO_ENCODED_RUSTFLAGS" | tr '\037' '\n' | grep program >"$here/flags"
            install -D /bin/true "$here/target/$5/release/cnblogs-proxy" ;;
        esac"#;
    fs::write(sources.join("cargo"), cargo).unwrap();
    fs::set_permissions(sources.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", sources.display(), std::env::var("PATH").unwrap());

    let mut command = Command::new(sources.join(script[0]));
    command.args(&script[1..]).current_dir(sources).env("PATH", path).env_remove("RUSTFLAGS");
    let said = done(&command.output().unwrap());

    let flags = fs::read_to_string(sources.join("flags")).unwrap();
    assert_eq!(said.contains("building with the profile"), !flags.is_empty(), "{said}");
    flags
}

/// Copies some of the sources.
fn copy(parts: &[&str], to: &Path) {
    for part in parts {
        done(&run(Path::new(ROOT), "cp", &["-a", "--parents", part, to.to_str().unwrap()]));
    }
}

/// What `cargo test` tells its tests is not for another cargo.
fn without_cargo(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let is_told = name.starts_with("CARGO") && name != "CARGO_HOME";
        if is_told || ["OUT_DIR", "RUSTFLAGS", "RUSTDOCFLAGS"].contains(&&*name) {
            command.env_remove(name);
        }
    }
    command
}

/// Where crates are.
pub(crate) fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// A repository with one commit.
fn repository() -> TempDir {
    let place = TempDir::new().unwrap();
    fs::write(place.path().join("Cargo.toml"), "").unwrap();
    for arguments in [
        &["init", "--quiet"][..],
        &["add", "."],
        &["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "One"],
    ] {
        done(&run(place.path(), "git", arguments));
    }
    place
}

/// The standard output of what went well.
#[track_caller]
pub(crate) fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> Output {
    let command = Command::new(program).args(arguments).current_dir(directory).output();
    command.unwrap_or_else(|error| panic!("{program}: {error}: `tests/run --set-up-only` installs it"))
}
