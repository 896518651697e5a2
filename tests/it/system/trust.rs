//! What is wrong with a server's certificate, a `ca_file` or a machine without either is said where it can be mended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::standin::{Options, Standin, TlsDefect};
use crate::support::{Home, Setup, config, eventually};

/// A TLS server with a certificate of its own making.
struct Server {
    child: Child,
    directory: TempDir,
    port: u16,
}

/// How a self-signed certificate is made, and the words for what is wrong with it.
const CERTIFICATES: &[(&[&str], &str)] = &[
    (
        &["-addext", "basicConstraints=critical,CA:TRUE"],
        "is an authority's (CA:TRUE), which no server may present",
    ),
    (&["-sha1", "-addext", "basicConstraints=critical,CA:FALSE"], "is signed in a way that is too weak"),
    (
        &["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=clientAuth"],
        "is not meant for servers",
    ),
    (&[V1], "is of X.509 version 1"),
];
/// Made without extensions.
const V1: &str = "v1";

#[test]
fn a_self_signed_certificate_is_taken_or_said_to_be_what_it_is() {
    let good = Server::start(&["-addext", "basicConstraints=critical,CA:FALSE"]);
    let said = check(&good.home(&good.certificate()));
    assert!(said.contains("trusted in "), "{said}");

    for (arguments, says) in CERTIFICATES {
        let server = Server::start(arguments);
        let home = server.home(&server.certificate());

        let said = check(&home);

        assert!(said.contains("but its certificate ") && said.contains(says), "{says}: {said}");
        assert!(!said.contains("CaUsedAs") && !said.contains("Other("), "{said}");
    }
}

/// Whoever runs the daemon learns it from the log, and for an account from its status; callers don't.
#[test]
fn the_log_and_the_account_say_what_is_wrong_with_a_certificate_and_the_caller_hears_nothing_of_it() {
    let (arguments, says) = CERTIFICATES[0];
    let server = Server::start(arguments);
    let home = server.home(&server.certificate());
    let daemon = home.serve();

    let answer = daemon.get("/x");

    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-untrusted"), "{answer:?}");
    assert!(!answer.text().contains("CA:TRUE"), "{answer:?}");
    eventually("the log says it", || daemon.output().contains(says).then_some(()));

    let account = format!(
        "client_id = \"id\"\nclient_secret_file = \"{}\"\ngrant = \"client_credentials\"\n\
         token_url = \"https://localhost:{}/token\"\nca_file = \"{}\"\n",
        home.path().join("pat").display(),
        server.port,
        server.certificate().display()
    );
    let text = fs::read_to_string(home.config()).unwrap();
    let pat = text.lines().find(|line| line.starts_with("token_file")).unwrap().to_owned() + "\n";
    fs::write(home.config(), text.replacen(&pat, &account, 1)).unwrap();
    drop(daemon);
    let daemon = home.serve();
    eventually("the account says it", || {
        let status = daemon.status();
        let error = status["accounts"]["main"]["last_refresh"]["error"].as_str()?.to_owned();
        error.contains(says).then_some(())
    });
}

#[test]
fn dates_names_and_authorities_are_named() {
    for (defect, says) in [
        (TlsDefect::Expired, "its certificate has expired (2021-01-01T00:00:00Z), or the clock"),
        (TlsDefect::NotYet, "its certificate is not valid before 2100-01-01T00:00:00Z, or the clock"),
        (
            TlsDefect::WrongName,
            "its certificate is for another name: for elsewhere.example, not for 127.0.0.1",
        ),
        (TlsDefect::UnknownAuthority, "comes from an authority that is not trusted here (see ca_file)"),
    ] {
        let standin =
            Standin::start(Options { tls: true, api_tls_defect: Some(defect), ..Options::default() });
        let home = Home::new(Vec::new());
        fs::write(home.config(), config(&standin, &home, "", "", "", "")).unwrap();

        let said = check(&home);

        assert!(said.contains(says), "{says}: {said}");
    }
}

#[test]
fn a_ca_file_that_holds_no_authority_in_pem_is_named_by_what_it_holds() {
    let server = Server::start(&["-addext", "basicConstraints=critical,CA:FALSE"]);
    let directory = server.directory.path();
    let der = directory.join("der");
    openssl(&["x509", "-outform", "der", "-in", "certificate", "-out", "der"], directory);
    fs::write(directory.join("empty"), "\n").unwrap();
    fs::write(directory.join("text"), "no certificate").unwrap();
    for (file, says) in [
        (&der, "is in DER: `openssl x509 -inform der`"),
        (&directory.join("empty"), "is empty"),
        (&directory.join("text"), "holds no certificate in PEM"),
        (&directory.join("key"), "holds a private key and no certificate"),
    ] {
        let output = server.home(file).run(&["check"], "");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("route[0].ca_file: ") && said.contains(says), "{says}: {said}");
    }

    let both = directory.join("both");
    fs::write(
        &both,
        [fs::read(directory.join("key")).unwrap(), fs::read(server.certificate()).unwrap()].concat(),
    )
    .unwrap();
    let said = check(&server.home(&both));
    assert!(
        said.contains("warning: ") && said.contains("both holds a private key, which nobody needs here"),
        "{said}"
    );
}

#[test]
fn a_machine_without_ca_certificates_is_told_by_check_and_at_the_start() {
    let bare = || vec![("SSL_CERT_FILE".to_owned(), "/nonexistent".to_owned())];
    let warning = "this machine has no CA certificates, so no server is trusted";
    let home = Home::new(bare());
    let pat = home.secret("pat", "p4t-0123");
    let text = |route: &str| {
        let (state, pat) = (home.state().display().to_string(), pat.display());
        let route = format!("[[route]]\n{route}\n");
        format!(
            "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{state}\"\n[account.main]\ntoken_file = \"{pat}\"\n{route}"
        )
    };
    fs::write(home.config(), text("")).unwrap();

    let said = String::from_utf8(home.run(&["check"], "").stdout).unwrap();
    assert!(said.contains(&format!("warning: {warning} (route /): ")), "{said}");
    let daemon = home.serve();
    assert!(daemon.output().contains(warning), "{}", daemon.output());
    drop(daemon);

    // Nobody needs them who has a ca_file for all, or no TLS.
    fs::write(home.config(), text("upstream = \"http://127.0.0.1:9\"")).unwrap();
    let said = String::from_utf8(home.run(&["check"], "").stdout).unwrap();
    assert!(said.ends_with("ok\n") && !said.contains(warning), "{said}");
    let options = Options { tls: true, ..Options::default() };
    let world = Setup { options, environment: bare(), ..Setup::default() }.start();
    assert!(!world.daemon.output().contains(warning), "{}", world.daemon.output());
    assert!(!String::from_utf8(world.home.run(&["check"], "").stdout).unwrap().contains(warning));
}

impl Server {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key"];
        let name = ["-subj", "/CN=localhost", "-days", "30"];
        if arguments == [V1] {
            openssl(&[&["req", "-out", "request"], &new[..], &name[..2]].concat(), directory.path());
            let sign =
                ["x509", "-req", "-in", "request", "-signkey", "key", "-days", "30", "-out", "certificate"];
            openssl(&sign, directory.path());
        } else {
            let names = ["-addext", "subjectAltName=DNS:localhost", "-out", "certificate"];
            openssl(&[&["req", "-x509"], &new[..], &name, &names, arguments].concat(), directory.path());
        }
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-cert", "certificate", "-key", "key", "-www"]);
        command.args(["-cipher", "DEFAULT@SECLEVEL=0"]).current_dir(directory.path());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address =
            lines.find_map(|line| Some(line.strip_prefix("ACCEPT ")?.to_owned())).expect("it accepts");
        // What it says of connections has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, directory, port: address.rsplit(':').next().unwrap().trim().parse().unwrap() }
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate")
    }

    /// A home whose route leads to it and trusts what is in a file.
    fn home(&self, ca_file: &Path) -> Home {
        let home = Home::new(Vec::new());
        let pat = home.secret("pat", "p4t-0123");
        let text = format!(
            "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{}\"\n[account.main]\ntoken_file = \"{}\"\n\
             [[route]]\nupstream = \"https://localhost:{}\"\nca_file = \"{}\"\n",
            home.state().display(),
            pat.display(),
            self.port,
            ca_file.display()
        );
        fs::write(home.config(), text).unwrap();
        home
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

#[track_caller]
fn openssl(arguments: &[&str], directory: &Path) {
    let made = Command::new("openssl").args(arguments).current_dir(directory).output();
    let made = made.expect("openssl is installed");
    assert!(made.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
}

/// What `check --connect` says.
fn check(home: &Home) -> String {
    String::from_utf8(home.run(&["check", "--connect"], "").stdout).unwrap()
}
