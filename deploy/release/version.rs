//! The build script: what `cnblogs-proxy --version` says, and how a static program looks up names.
//!
//! A release build names the commit and its day, by `CNBLOGS_PROXY_COMMIT` (`e66a56b 2026-11-23`, where there is no
//! repository, as in an image) or by git. Without either, and in a debug build, which would else be made anew after
//! every commit, it is the version alone.

#![expect(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMMIT: &str = "CNBLOGS_PROXY_COMMIT";
const NAMES: &str = "deploy/release/names.c";

fn main() {
    println!("cargo::rerun-if-changed=deploy/release/version.rs");
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = env::var(COMMIT).ok().or_else(|| if is_release { of_repository() } else { None });
    match commit.filter(|commit| !commit.trim().is_empty()) {
        Some(commit) => println!("cargo::rustc-env=CNBLOGS_PROXY_VERSION={version} ({})", commit.trim()),
        None => println!("cargo::rustc-env=CNBLOGS_PROXY_VERSION={version}"),
    }
    if is_static_glibc() {
        link_names();
    }
}

fn is_static_glibc() -> bool {
    let is = |name: &str, value: &str| {
        env::var(format!("CARGO_CFG_TARGET_{name}"))
            .is_ok_and(|values| values.split(',').any(|one| one == value))
    };
    is("OS", "linux") && is("ENV", "gnu") && is("FEATURE", "crt-static")
}

/// Puts `names.c` into the program.
fn link_names() {
    println!("cargo::rerun-if-changed={NAMES}");
    println!("cargo::rerun-if-env-changed=CC");
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("names.o");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled = Command::new(&compiler).args(["-O2", "-fPIE", "-c", NAMES, "-o"]).arg(&object).status();
    assert!(compiled.is_ok_and(|status| status.success()), "{} can't compile {NAMES}", compiler.display());
    println!("cargo::rustc-link-arg-bins={}", object.display());
}

/// The commit, when this is a working tree of its own and not a directory in somebody else's.
fn of_repository() -> Option<String> {
    let here = env::current_dir().ok()?.canonicalize().ok()?;
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != here {
        return None;
    }
    // What changes with every commit and every checkout, in a linked working tree as well.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["log", "-1", "--format=%h %cs", "--abbrev=7"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}
