//! What the README tells whoever has a personal access token, in English and in Chinese, done to the letter: with the
//! stand-in in the place of both hosts, a free port in the place of 8262, and a home of its own.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::readme::README;
use crate::standin::{Options, Person, RecordedRequest, Standin};
use crate::support::{Daemon, Home, PROGRAM};

const PERSONAL: &str = include_str!("../../../config/personal.toml");

const PAT: &str = "pat-of-alice-0123456789abcdef0123456789abcdef0123456789abcdef0123";

const SECTIONS: [&str; 2] =
    ["\n## Read and publish with a personal access token\n", "\n### 用个人访问令牌（PAT）读取和发布\n"];

/// A person with a shell, the program and a token.
struct Reader {
    standin: Standin,
    home: Home,
    daemon: Option<Daemon>,
}

impl Reader {
    fn new() -> Self {
        let personal_access_tokens = vec![(PAT.to_owned(), Person::Alice)];
        let standin = Standin::start(Options { personal_access_tokens, ..Options::default() });
        let home = Home::new(Vec::new());
        std::fs::write(home.path().join("picture.png"), "\u{89}PNG").unwrap();
        Self { standin, home, daemon: None }
    }

    /// What is written, for this home, the stand-in and the daemon's port.
    fn here(&self, text: &str) -> String {
        let mut text = text.replace("/home/me", &self.home.path().display().to_string());
        for host in ["https://write.cnblogs.com", "https://api.cnblogs.com"] {
            text = text.replace(host, &self.standin.api_url());
        }
        match &self.daemon {
            Some(daemon) => text.replace("127.0.0.1:8262", &daemon.authority),
            None => text,
        }
    }

    fn shell(&self, command: &str) -> Command {
        let programs = Path::new(PROGRAM).parent().unwrap().display();
        let mut shell = Command::new("bash");
        shell.args(["-c", &self.here(command)]).current_dir(self.home.path()).env_clear();
        shell.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()));
        shell.env("HOME", self.home.path()).env("CNBLOGS_PROXY_LISTEN", "127.0.0.1:0");
        shell
    }

    /// Ends the daemon before, and starts it as a command says.
    #[track_caller]
    fn starts(&mut self, command: &str) {
        if let Some(mut before) = self.daemon.take() {
            assert_eq!(before.stop().code(), Some(0));
        }
        self.daemon = Some(Daemon::spawn(self.shell(command)));
    }

    /// What a line of a shell says; returns what it prints.
    #[track_caller]
    fn does(&mut self, line: &str) -> String {
        if line.ends_with(" cnblogs-proxy") {
            self.starts(line);
            return String::new();
        }
        self.runs(line)
    }

    /// Writes the configuration file, and starts the daemon with it.
    #[track_caller]
    fn configures(&mut self, text: &str) {
        let directory = self.home.path().join(".config/cnblogs-proxy");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.toml"), self.here(text)).unwrap();
        let checked = self.shell("cnblogs-proxy check").output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        self.starts("cnblogs-proxy");
    }

    /// Runs a command, with the token on its standard input, and returns what it prints.
    #[track_caller]
    fn runs(&self, command: &str) -> String {
        let mut shell = self.shell(command);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let token = format!("{PAT}\n");
        let _read = std::io::Write::write_all(&mut child.stdin.take().unwrap(), token.as_bytes());
        let output: Output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The fenced blocks of a section, with their languages.
#[track_caller]
fn blocks(section: &str) -> Vec<(&'static str, &'static str)> {
    let (_, rest) = README.split_once(section).unwrap_or_else(|| panic!("no section {section}"));
    let level = section.trim_start().split(' ').next().unwrap();
    let section = rest.split(&format!("\n{level} ")).next().unwrap();
    let fenced = section.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

#[test]
fn whoever_has_a_personal_access_token_does_what_the_readme_tells_and_has_published() {
    for section in SECTIONS {
        let mut reader = Reader::new();
        let mut answers = String::new();
        for (language, block) in blocks(section) {
            match language {
                "toml" => reader.configures(block),
                "sh" => answers.extend(block.replace("\\\n", "").lines().map(|line| reader.does(line))),
                other => panic!("what to do with {other}?"),
            }
        }

        assert!(answers.contains("\"isPublished\":false"), "{section}: {answers}");
        assert!(
            answers.contains("爱丽丝 Alice") && answers.contains("\"postsCount\":1"),
            "{section}: {answers}"
        );
        let requests = reader.standin.api_requests();
        assert!(requests.len() >= 3, "{requests:?}");
        for request in &requests {
            assert_eq!(request.fields_named("authorization-type"), ["pat"], "{request:?}");
        }
        let asked: Vec<_> = requests.iter().map(RecordedRequest::path).collect();
        assert_eq!((asked[0], asked.last()), ("/api/posts", Some(&"/api/posts/list")), "{asked:?}");
        let mode = std::fs::metadata(reader.home.path().join("cnblogs-pat")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    }
}

/// The file in `config` says the same, and a program that brings some token of its own is served all the same.
#[test]
fn the_personal_example_serves_both_hosts_to_a_program_that_was_pointed_at_them() {
    let mut reader = Reader::new();
    let token = reader.home.secret("pat", PAT).display().to_string();
    reader.configures(&PERSONAL.replace("/etc/cnblogs-proxy/personal_access_token", &token));
    let own_token = "-H 'Authorization: Bearer any text' -H 'Authorization-Type: pat'";

    for target in ["/api/users", "/write/api/posts/-1"] {
        let answer = reader.runs(&format!("curl --fail-with-body {own_token} http://127.0.0.1:8262{target}"));
        assert!(answer.contains("alice"), "{answer}");
    }

    for request in reader.standin.api_requests() {
        let authorization = request.fields_named("authorization");
        assert_eq!(authorization, [format!("Bearer {PAT}")], "{request:?}");
    }
    for section in SECTIONS {
        let (_, shown) = blocks(section).into_iter().find(|(language, _)| *language == "toml").unwrap();
        assert_eq!(meaning(shown), meaning(PERSONAL), "{section}");
    }
}

/// What a file says, without its remarks and the place of the token.
fn meaning(text: &str) -> Vec<String> {
    let lines =
        text.lines().map(|line| line.split('#').next().unwrap().split_whitespace().collect::<String>());
    lines.filter(|line| !line.is_empty() && !line.starts_with("token_file=")).collect()
}
