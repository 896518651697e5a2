//! The sandbox of the README: `cargo run --example sandbox`, by itself and as a person would use it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{PROGRAM, eventually};

#[test]
fn the_sandbox_shows_a_login_that_outlives_its_access_token() {
    let program_before = std::fs::metadata(PROGRAM).unwrap().ino();

    let output = sandbox().args(["--login", "--once", "--expires-in", "6"]).output().unwrap();

    let printed = String::from_utf8_lossy(&output.stdout);
    let said = format!("{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    let address = between(&printed, "daemon: listening on ", "\n");
    assert!(printed.contains(&format!("the daemon            {address}\n")), "{said}");
    let in_order = [
        "This is a sandbox",
        "logged in as alice",
        "token endpoint, authorization_code: answered 200",
        "GET /api/users\n  -> 200 {",
        "爱丽丝 Alice",
        "GET /api/blogposts/@sitehome?pageIndex=1&pageSize=2\n  -> 200 [{",
        "POST /api/statuses\n  -> 200 {",
        "你好, sandbox",
        "waiting 7 s",
        "token endpoint, refresh_token: answered 200",
        "GET /api/users\n  -> 200 {",
        "the login outlived its first access token; refreshes: ",
        "stopping ...",
    ];
    let mut rest = &*printed;
    for wanted in in_order {
        let found = rest.split_once(wanted);
        rest = found.unwrap_or_else(|| panic!("{wanted:?} is missing: {said}")).1;
    }
    assert!(!said.contains("error:") && !said.contains("ERROR"), "{said}");
    assert!(!config_of(&printed).exists(), "the sandbox removes what it made: {said}");
    assert_eq!(std::fs::metadata(PROGRAM).unwrap().ino(), program_before, "the program was built again");
}

#[test]
fn every_command_that_the_sandbox_proposes_works_until_ctrl_c_ends_it() {
    let mut sandbox = Ended(sandbox().arg("--login").stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(sandbox.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let printed: Vec<_> = lines.by_ref().take_while(|line| line != "POST /api/statuses").collect();

    let commands: Vec<_> = printed.iter().filter_map(|line| proposed(line)).collect();
    assert_eq!(commands.len(), 7, "{printed:#?}");
    for command in commands {
        let command = command.replace("curl ", "curl --silent --show-error --fail ");
        let output = Command::new("bash").args(["-c", &command]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{command}: {output:?}");
    }

    let pid = Pid::from_child(&sandbox.0);
    kill_process(pid, Signal::INT).unwrap();
    let status = eventually("the sandbox ends", || sandbox.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(!config_of(&printed.join("\n")).exists(), "the sandbox removes what it made");
}

/// What the official command line reads, with its types: it fails over a member that is missing or of another type.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "it is there to be read")]
struct User {
    user_id: String,
    #[serde(rename = "SpaceUserID")]
    space_user_id: u64,
    account_id: u64,
    blog_id: u64,
    display_name: String,
    face: String,
    avatar: String,
    seniority: String,
    blog_app: String,
    following_count: u64,
    follower_count: u64,
    is_vip: bool,
    joined: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "it is there to be read")]
struct Status {
    id: u64,
    content: String,
    is_private: bool,
    is_lucky: bool,
    comment_count: u64,
    date_added: String,
    user_alias: String,
    user_display_name: String,
    user_icon_url: String,
    user_id: u64,
    user_guid: String,
    send_from: u64,
    icons: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "it is there to be read")]
struct StatusComment {
    id: u64,
    content: String,
    date_added: String,
    status_id: u64,
    user_alias: String,
    user_display_name: String,
    user_icon_url: String,
    user_id: u64,
    user_guid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "it is there to be read")]
struct Bookmark {
    title: String,
    link_url: String,
    summary: String,
    tags: Vec<String>,
    date_added: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "it is there to be read")]
struct Post {
    id: u64,
    title: String,
    url: String,
    date_published: String,
    date_updated: String,
    is_draft: bool,
    is_pinned: bool,
    is_published: bool,
    feed_back_count: Option<u64>,
    post_body: Option<String>,
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostList {
    post_list: Vec<Post>,
    posts_count: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OnePost {
    blog_post: Post,
}

#[derive(Deserialize)]
struct Created {
    id: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failed {
    message: String,
}

/// Calls as the official command line does.
struct Client {
    base: String,
}

impl Client {
    #[track_caller]
    fn asks<T: DeserializeOwned>(&self, method: &str, target: &str, body: Option<&Value>) -> T {
        let (status, text) = self.sends(method, target, &body_arguments(body));
        assert!(status.starts_with('2'), "{method} {target}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {target}: {error}: {text}"))
    }

    #[track_caller]
    fn fails(&self, method: &str, target: &str, body: Option<&Value>) -> Failed {
        let (status, text) = self.sends(method, target, &body_arguments(body));
        assert!(status.starts_with('4') || status.starts_with('5'), "{method} {target}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {target}: {error}: {text}"))
    }

    /// The status and the body.
    #[track_caller]
    fn sends(&self, method: &str, target: &str, arguments: &[String]) -> (String, String) {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code}"]);
        command.args(["--request", method]).args(arguments).arg(format!("{}{target}", self.base));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{method} {target}: {output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        let (text, status) = printed.rsplit_once('\n').unwrap();
        (status.to_owned(), text.to_owned())
    }
}

fn body_arguments(body: Option<&Value>) -> Vec<String> {
    let Some(body) = body else { return Vec::new() };
    ["--header", "Content-Type: application/json", "--data", &body.to_string()].map(str::to_owned).into()
}

#[test]
fn the_official_command_line_can_read_what_the_sandbox_answers() {
    let mut sandbox = Ended(sandbox().arg("--login").stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(sandbox.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let printed: Vec<_> = lines.by_ref().take_while(|line| line != "POST /api/statuses").collect();
    // A pipe that nobody reads any more would hold it up.
    std::thread::spawn(move || lines.count());
    let printed = printed.join("\n");
    let base = between(&printed, "daemon: listening on ", "\n").to_owned();
    let client = Client { base };
    let server = Client { base: between(&printed, "authorization server  ", "\n").to_owned() };
    let (_, page) = server.sends("GET", "/auth/callback", &[]);
    assert!(page.ends_with("</title>\n</html>\n") && !page.contains("script"), "an empty page: {page}");

    let user: User = client.asks("GET", "/api/users", None);
    assert_eq!(user.blog_app, "alice");
    statuses_are_read(&client);
    bookmarks_are_read(&client);
    posts_are_read(&client);

    for page in ["/api/blogposts/@sitehome", "/api/newsitems", "/api/questions/@sitehome"] {
        let first: Vec<Value> = client.asks("GET", &format!("{page}?pageIndex=1&pageSize=1"), None);
        let second: Vec<Value> = client.asks("GET", &format!("{page}?pageIndex=2&pageSize=1"), None);
        assert!(first.len() == 1 && second.len() == 1 && first != second, "{page}");
        let beyond: Vec<Value> = client.asks("GET", &format!("{page}?pageIndex=99&pageSize=1"), None);
        assert!(beyond.is_empty(), "{page}");
    }
    // The API's own error, and one of the proxy's.
    for (method, target) in [("GET", "/api/nowhere"), ("TRACK", "/api/users")] {
        assert!(!client.fails(method, target, None).message.is_empty());
    }
}

#[track_caller]
fn statuses_are_read(client: &Client) {
    for is_private in [true, false] {
        let body = json!({ "Content": format!("你好, {is_private}"), "IsPrivate": is_private });
        let made: Status = client.asks("POST", "/api/statuses", Some(&body));
        assert_eq!(made.is_private, is_private, "answered as it was sent");
    }
    let page = |kind: &str, index: u32| -> Vec<Status> {
        client.asks("GET", &format!("/api/statuses/@{kind}?pageIndex={index}&pageSize=1"), None)
    };
    for index in 1..=2 {
        assert_eq!(page("my", index).len(), 1);
    }
    assert!(page("all", 1).iter().all(|status| !status.is_private));
    let id = page("my", 1)[0].id;
    let comments: Vec<StatusComment> = client.asks("GET", &format!("/api/statuses/{id}/comments"), None);
    assert_eq!(comments[0].status_id, id);
}

#[track_caller]
fn bookmarks_are_read(client: &Client) {
    let body = json!({ "Title": "Rust", "LinkUrl": "https://www.rust-lang.org/", "Tags": ["a", "b"] });
    let (status, _) = client.sends("POST", "/api/bookmarks", &body_arguments(Some(&body)));
    assert_eq!(status, "201");
    let all: Vec<Bookmark> = client.asks("GET", "/api/bookmarks?pageIndex=1&pageSize=1", None);
    assert_eq!(all[0].tags, ["a", "b"]);
    assert!(!client.fails("POST", "/api/bookmarks", Some(&body)).message.is_empty());
}

#[track_caller]
fn posts_are_read(client: &Client) {
    let body = json!({ "postType": 1, "title": "第一篇", "postBody": "# 你好", "isPublished": true });
    let first: Created = client.asks("POST", "/api/posts", Some(&body));
    let second: Created = client.asks("POST", "/api/posts", Some(&body));
    let list: PostList = client.asks("GET", "/api/posts/list?t=1&p=2&s=1", None);
    assert_eq!((list.posts_count, list.post_list.len(), list.post_list[0].id), (2, 1, first.id));
    let one: OnePost = client.asks("GET", &format!("/api/posts/{}", second.id), None);
    assert_eq!((one.blog_post.post_body.as_deref(), one.blog_post.is_published), (Some("# 你好"), true));
    let template: Value = client.asks("GET", "/api/posts/-1", None);
    assert_eq!(template["blogPost"]["id"], -1);

    let (status, _) = client.sends("DELETE", &format!("/api/posts/{}", first.id), &[]);
    assert_eq!(status, "200");
    for (method, target, body) in [
        ("GET", format!("/api/posts/{}", first.id), None),
        ("POST", "/api/posts".to_owned(), Some(&json!({ "postBody": "without a title" }))),
    ] {
        assert!(!client.fails(method, &target, body).message.is_empty());
    }
    for list in ["/api/category/blog", "/api/tags/list"] {
        assert_eq!(client.asks::<Vec<Value>>("GET", list, None).len(), 1, "{list}");
    }
    let image = ["--form", "image=@Cargo.toml;type=image/png;filename=a.png"].map(str::to_owned);
    let (status, address) = client.sends("POST", "/api/posts/body/images", &image);
    assert!(status == "200" && address.contains("https://img"), "{status} {address}");
}

/// The command that a line proposes, without the remark behind it.
fn proposed(line: &str) -> Option<&str> {
    let command = line.strip_prefix("     ")?;
    let is_command = command.starts_with("curl ") || command.ends_with(" status");
    is_command.then(|| command.split("  ").next().unwrap_or_default())
}

/// The configuration file that the sandbox made.
#[track_caller]
fn config_of(printed: &str) -> PathBuf {
    PathBuf::from(between(printed, " --config ", " "))
}

#[track_caller]
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let found = text.split_once(start).and_then(|(_, rest)| rest.split_once(end));
    found.unwrap_or_else(|| panic!("no {start:?} in {text}")).0
}

/// The built example, as `cargo run --example sandbox` starts it.
#[track_caller]
fn sandbox() -> Command {
    let example = Path::new(PROGRAM).with_file_name("examples").join("sandbox");
    assert!(
        example.exists(),
        "{} is missing: `cargo test` and `cargo build --examples` build it",
        example.display()
    );
    let mut command = Command::new(example);
    // The port of the README is one for the whole machine.
    command.args(["--port", "0"]).stdin(Stdio::null());
    command
}

/// Ends a sandbox that a failed test leaves, as a terminal would, so that its daemon ends as well.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _gone = kill_process(Pid::from_child(&self.0), Signal::INT);
            let _ended = self.0.wait();
        }
    }
}
