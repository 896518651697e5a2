//! Real programs, with nothing changed: each reads `https://api.cnblogs.com/api/users`. `tests/run` installs them.

use std::path::Path;
use std::process::Command;

use super::{Named, elsewhere, fixed, outer_proxy};

/// Where `tests/run` puts Python with the packages.
const PYTHON: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/venv/bin/python");

#[track_caller]
fn assert_reads_its_user(command: &[&str]) {
    let named = Named::start();
    let url = named.url("/api/users");

    let printed = named.printed(&[&["--"], command, &[url.as_str()]].concat());

    assert!(printed.contains("DisplayName"), "{command:?}: {printed}");
    named.assert_answered_with_the_token();
    assert_eq!(named.left_over(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn curl_reads_a_fixed_address() {
    assert_reads_its_user(&["curl", "-sSf"]);
}

#[test]
fn wget_reads_a_fixed_address() {
    assert_reads_its_user(&["wget", "-qO-"]);
}

#[test]
fn urllib_of_python_reads_a_fixed_address() {
    let script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())";
    assert_reads_its_user(&["python3", "-c", script]);
}

#[test]
fn requests_for_python_reads_a_fixed_address() {
    let script = "import sys, requests as r; a = r.get(sys.argv[1]); a.raise_for_status(); print(a.text)";
    assert_reads_its_user(&[PYTHON, "-c", script]);
}

#[test]
fn httpx_for_python_reads_a_fixed_address() {
    let script = "import sys, httpx as r; a = r.get(sys.argv[1]); a.raise_for_status(); print(a.text)";
    assert_reads_its_user(&[PYTHON, "-c", script]);
}

#[test]
fn aiohttp_for_python_reads_a_fixed_address_when_it_trusts_the_environment() {
    let script = "
import aiohttp, asyncio, sys
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(sys.argv[1]) as answer:
        answer.raise_for_status()
        print(await answer.text())
asyncio.run(main())";
    assert_reads_its_user(&[PYTHON, "-c", script]);
}

#[test]
fn fetch_of_node_reads_a_fixed_address() {
    let script = "fetch(process.argv[1]).then(a => a.ok ? a.text() : process.exit(1)).then(console.log)";
    assert_reads_its_user(&["node-24", "-e", script]);
}

#[test]
fn the_http_package_of_go_reads_a_fixed_address() {
    let program = built_with_go("get.go");
    assert_reads_its_user(&[&program.1]);
}

#[test]
fn the_http_client_of_java_reads_a_fixed_address_by_being_the_child() {
    assert_reads_its_user(&["java", &fixed("Get.java")]);
}

/// Ruby's own client, which takes `http_proxy` for both.
#[test]
fn net_http_of_ruby_reads_a_fixed_address() {
    let script = "require 'net/http'; print Net::HTTP.get(URI(ARGV[0]))";
    let through = "http_proxy=$https_proxy exec ruby -e \"$0\" \"$1\"";
    assert_reads_its_user(&["sh", "-c", through, script]);
}

#[test]
fn curl_of_php_reads_a_fixed_address() {
    let script =
        "$c = curl_init($argv[1]); curl_setopt($c, CURLOPT_FAILONERROR, true); exit(curl_exec($c) ? 0 : 1);";
    assert_reads_its_user(&["php", "-r", script]);
}

#[test]
fn a_rust_program_that_takes_https_only_reads_a_fixed_address_with_rustls() {
    assert_reads_its_user(&["reqwest-client", "rustls"]);
}

#[test]
fn a_rust_program_that_takes_https_only_reads_a_fixed_address_with_openssl() {
    assert_reads_its_user(&["reqwest-client", "openssl"]);
}

/// Programs that bring their own roots or proxies can't: the README says so.
#[test]
fn what_the_readme_says_can_not_is_refused_by_the_program_itself() {
    let named = Named::start();
    let url = named.url("/api/users");
    let roots = "
import sys, ssl, certifi, urllib.request as r
r.urlopen(sys.argv[1], context=ssl.create_default_context(cafile=certifi.where()))";
    let output = named.output(&["--", PYTHON, "-c", roots, &url]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("CERTIFICATE_VERIFY_FAILED"), "{output:?}");

    let streams = "exit(@file_get_contents($argv[1]) === false ? 5 : 0);";
    assert_eq!(named.output(&["--", "php", "-r", streams, &url]).status.code(), Some(5));
    assert_eq!(named.world.standin.api_requests().len(), 0);
}

#[test]
fn any_other_host_is_seen_with_its_real_certificate() {
    let named = Named::start();
    let url = format!("{}/.well-known/openid-configuration/jwks", elsewhere(&named.world.standin));
    let curl = |arguments: &[&str]| {
        let through = ["--", "env", "-u", "NO_PROXY", "-u", "no_proxy", "curl", "-sSf", &url];
        named.output(&[&through, arguments].concat())
    };

    let untrusted = curl(&[]);
    assert_eq!(untrusted.status.code(), Some(60), "not ours, and nothing that we trust: {untrusted:?}");
    let ca = named.world.standin.ca_pem_path();
    let trusted = curl(&["--cacert", ca.to_str().unwrap(), "--write-out", "%{http_connect} %{proxy_used}"]);
    assert!(trusted.status.success(), "{trusted:?}");
    assert!(String::from_utf8_lossy(&trusted.stdout).contains("200"), "a tunnel: {trusted:?}");
}

#[test]
fn tunnels_go_through_the_proxy_that_was_there_before_and_the_upstream_does_not() {
    let named = Named::start();
    let (outer, heads) = outer_proxy();
    let url = format!("{}/.well-known/openid-configuration/jwks", elsewhere(&named.world.standin));
    let script =
        "curl -sSf \"$0\" -o /dev/null && env -u NO_PROXY -u no_proxy curl -sSf --cacert \"$2\" \"$1\"";
    let ca = named.world.standin.ca_pem_path();
    let mut command =
        named.run(&["--", "sh", "-c", script, &named.url("/api/users"), &url, ca.to_str().unwrap()]);
    let output = command.env("HTTPS_PROXY", format!("http://me:pass@{outer}")).output().unwrap();

    assert!(output.status.success(), "{output:?}");
    let head = heads.try_recv().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("connect localhost:"), "{head}");
    assert!(head.contains("proxy-authorization: basic bwu6cgfzcw=="), "{head}");
    assert!(heads.try_recv().is_err(), "the upstream is reached by the daemon alone");
    named.assert_answered_with_the_token();
}

#[test]
fn certificates_that_were_trusted_before_still_are() {
    let named = Named::start();
    let home = named.world.home.path();
    let pem = std::fs::read(named.world.standin.ca_pem_path()).unwrap();
    let (file, directory, other) = (home.join("ca.pem"), home.join("directory"), home.join("other"));
    // What stands between certificates is in any encoding.
    std::fs::write(&file, [b"# caf\xe9\n", &pem[..]].concat()).unwrap();
    for directory in [&directory, &other] {
        std::fs::create_dir(directory).unwrap();
    }
    std::fs::write(directory.join("ca.pem"), &pem).unwrap();
    let (file, directory, other) = (file.display(), directory.display(), other.display());
    let requests = format!("{PYTHON} -c 'import sys, requests as r; r.get(sys.argv[1]).raise_for_status()'");
    let node = "node-24 -e 'fetch(process.argv[1]).then(a => process.exit(a.ok ? 0 : 1))'";
    let url = format!("{}/.well-known/openid-configuration/jwks", elsewhere(&named.world.standin));
    for (variable, value, program) in [
        ("CURL_CA_BUNDLE", file.to_string(), "curl -sSf"),
        ("SSL_CERT_FILE", file.to_string(), "curl -sSf"),
        ("SSL_CERT_DIR", format!("{other}:{directory}"), "curl -sSf"),
        ("REQUESTS_CA_BUNDLE", file.to_string(), &requests),
        ("REQUESTS_CA_BUNDLE", directory.to_string(), &requests),
        ("NODE_EXTRA_CA_CERTS", file.to_string(), node),
    ] {
        let script = format!("{program} \"$0\" && {program} \"$1\"");
        let mut command = named.run(&["--", "sh", "-c", &script, &named.url("/api/users"), &url]);
        let output = command.env(variable, &value).output().unwrap();
        assert!(output.status.success(), "{variable}={value}: {output:?}");
    }
}

/// They are trusted beside the program's own roots, so that the system's would be more than before.
#[test]
fn variables_for_extra_certificates_name_ours_alone() {
    let named = Named::start();
    for (variable, is_alone) in [("NODE_EXTRA_CA_CERTS", true), ("DENO_CERT", true), ("SSL_CERT_FILE", false)]
    {
        let script = format!("grep -c BEGIN \"${variable}\"");
        let counted: usize = named.printed(&["--", "sh", "-c", &script]).trim().parse().unwrap();
        assert_eq!(counted == 1, is_alone, "{variable}: {counted}");
    }
}

/// A program in Go, and the directory in which it is.
pub(super) fn built_with_go(source: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program").display().to_string();
    let mut build = Command::new("go");
    build.args(["build", "-o", &program, &fixed(source)]);
    build.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"));
    assert!(build.status().expect("go is installed").success());
    (directory, program)
}
