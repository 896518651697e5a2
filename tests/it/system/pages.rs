//! The login page and the status page as a person sees them, in Chromium (`tests/provider/pages.mjs`): what is said
//! before, while and after something is done, in both languages, on narrow screens, with the keyboard alone, without
//! the script; and on every page that nothing breaks its rules and axe-core finds nothing.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::login::parameter;
use crate::standin::{Answer, Options, Person, Scripted, Spoil};
use crate::support::{Setup, World, eventually};
use crate::system::provider::{Program, browser_script};

/// What a browser says of an answer that it shows all the same.
const OF_A_BAD_PASTE: &str =
    "Failed to load resource: the server responded with a status of 400 (Bad Request)";

/// A person in front of Chromium.
struct Reader {
    program: Program,
    _scratch: TempDir,
}

/// How the pages are looked at.
const LOOKS: [(&str, &str, u16, bool); 3] =
    [("en-wide", "en-GB", 1100, false), ("zh-narrow", "zh-CN", 320, false), ("en-dark", "en-US", 700, true)];

/// Pages that are there without anything being done, and what they say in English and in Chinese.
const PAGES: [(&str, &str, [&str; 2]); 4] = [
    ("/-/", "status", ["What to do when", "出现问题时怎么办"]),
    ("/-/login", "login", ["Step 1", "第一步"]),
    ("/-/login/writer", "unneeded", ["No login needed", "无需登录"]),
    ("/-/callback", "bring", ["please start the login again", "请重新开始登录"]),
];

impl Reader {
    /// With an English, wide and bright browser.
    #[track_caller]
    fn start(world: &World) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let log = scratch.path().join("browser.log");
        let program = Program::start(&mut browser_script("pages.mjs"), &log);
        let mut reader = Self { program, _scratch: scratch };
        reader.open(world, &json!({}));
        reader
    }

    /// Another browser, for this daemon.
    #[track_caller]
    fn open(&mut self, world: &World, with: &Value) {
        let mut with = with.clone();
        with["origin"] = json!(format!("http://{}", world.daemon.authority));
        self.does(&json!(["open", with]));
    }

    #[track_caller]
    fn does(&mut self, step: &Value) -> Value {
        self.program.tell(&step.to_string());
        let mut came: Value = serde_json::from_str(&self.program.line("{")).unwrap();
        assert!(came["error"].is_null(), "{}", came["error"].as_str().unwrap_or_default());
        came["is"].take()
    }

    #[track_caller]
    fn visit(&mut self, path: &str) {
        assert_eq!(self.does(&json!(["visit", path])), 200, "{path}");
    }

    #[track_caller]
    fn text(&mut self, selector: &str) -> String {
        self.does(&json!(["text", selector])).as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn says(&mut self, selector: &str, words: &str) {
        self.does(&json!(["says", selector, words]));
    }

    /// Puts an address into the field, in place of what is there, and waits until the page says this.
    #[track_caller]
    fn paste_is(&mut self, address: &str, words: &str) {
        self.does(&json!(["fill", "#callback", ""]));
        self.does(&json!(["fill", "#callback", address]));
        self.says("#hint", words);
    }

    /// Sends an address; the page that comes has this heading.
    #[track_caller]
    fn send(&mut self, address: &str, status: u16, heading: &str) {
        self.does(&json!(["fill", "#callback", address]));
        assert_eq!(self.does(&json!(["follow", "#paste button"])), status);
        assert_eq!(self.text("h1"), heading);
    }

    /// Nothing is wrong with the page, but that its answer was a refusal.
    #[track_caller]
    fn judge(&mut self, name: &str) {
        let Value::Array(mut found) = self.does(&json!(["judge", name])) else { panic!("no judgement") };
        found.retain(|complaint| complaint != OF_A_BAD_PASTE);
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

/// A login of this person's that the browser has just come back from.
fn callback(world: &World, person: Person) -> String {
    world.standin.authorize(&world.begin_login(), person)
}

/// Starts the daemon again with an account more, that no route uses.
#[track_caller]
fn add_account(world: &mut World, account: &str) {
    let config = std::fs::read_to_string(world.home.config()).unwrap();
    let config = config.replace("[[route]]\n", "[[route]]\naccount = \"main\"\n");
    std::fs::write(world.home.config(), format!("{config}\n{account}\n")).unwrap();
    world.restart();
}

/// An `id_token` that ended in another age.
fn long_over() -> Spoil {
    Spoil { claims: Some(Box::new(|claims| claims["exp"] = json!(1_000_000_000))), ..Spoil::default() }
}

#[test]
fn a_person_logs_in_and_is_told_what_happens_next() {
    let world = World::start();
    let mut reader = Reader::start(&world);
    reader.visit("/-/login");
    reader.says("#progress", "You have ten minutes");

    let address = reader.does(&json!(["allow_in_new_tab", "alice"]));
    reader.does(&json!(["close_tab"]));

    reader.says("#progress", "A login is in progress: 9 min");
    reader.paste_is(address.as_str().unwrap(), "This is the whole address");
    assert_eq!(world.standin.token_requests().len(), 0, "nothing is sent yet");
    reader.judge("login-ready");
    assert_eq!(reader.does(&json!(["follow", "#paste button"])), 200);
    let call = reader.text("pre code");
    assert_eq!(call, format!("curl http://{}/api/users", world.daemon.authority));
    let user = bash(&call);
    assert!(user.contains(Person::Alice.display_name()), "{user}");
    let page = reader.text("main");
    for words in
        [Person::Alice.display_name(), "in 29 days 23 h", "What happens next", &world.daemon.authority]
    {
        assert!(page.contains(words), "{words}: {page}");
    }
    reader.judge("logged-in");
    assert_eq!(reader.does(&json!(["follow", ".outcome .button"])), 200);
    assert_eq!(reader.text("#summary b"), "Everything works");
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn the_ten_minutes_are_counted_and_their_end_is_said() {
    let world = World::start();
    world.begin_login();
    let mut reader = Reader::start(&world);
    reader.open(&world, &json!({ "clock": true }));
    reader.visit("/-/login");
    reader.says("#progress", "A login is in progress: 9 min");

    reader.does(&json!(["pass", "10:00"]));

    reader.says("#progress", "The ten minutes are over. Start again with step 1.");
}

/// Not even what a login in progress is known by, with which anybody who reads the page could end it.
#[test]
fn the_login_page_tells_no_secret_of_a_login_in_progress() {
    let world = World::start();
    let url = world.begin_login();

    let page = world.daemon.get("/-/login").text();

    assert!(page.contains("A login is in progress"), "{page}");
    for secret in ["state", "nonce", "code_challenge"] {
        assert!(!page.contains(&parameter(&url, secret)), "{secret}: {page}");
    }
}

#[test]
fn the_status_document_tells_what_the_page_shows_and_leaves_out_who_looks() {
    let world = World::logged_in();
    for _ in 0..3 {
        world.daemon.get("/api/users");
        world.daemon.get("/-/");
    }
    world.daemon.get("/nowhere");
    world.standin.set_api_down(true);
    world.daemon.get("/api/users");
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 200);

    let status = world.daemon.status();

    let hour = &status["last_hour"];
    let column = |name: &str| hour[name].as_array().unwrap().clone();
    let sum = |name: &str| column(name).iter().filter_map(Value::as_u64).sum::<u64>();
    assert!(
        ["answered", "client_errors", "server_errors", "upstream_ms"]
            .iter()
            .all(|name| column(name).len() == 60)
    );
    assert_eq!((sum("answered"), sum("client_errors"), sum("server_errors")), (5, 1, 1), "{hour}");
    assert!(column("upstream_ms").iter().any(Value::is_u64), "{hour}");
    let main = &status["accounts"]["main"];
    assert_eq!(main["refreshes"], json!([main["last_refresh"]]));
    let times =
        [&main["obtained_at"], &main["next_refresh_at"], &main["expires_at"], &main["login_expires_at"]];
    let times = times.map(|time| humantime::parse_rfc3339(time.as_str().unwrap()).unwrap());
    assert!(times.is_sorted() && status["now"].is_string(), "{main}");
}

/// Every kind of wrong address, each said in words before anything is sent.
#[test]
fn what_is_wrong_with_a_pasted_address_is_said_before_it_is_sent() {
    let mut world = World::start();
    let secret = world.home.secret("other", "secret").display().to_string();
    add_account(
        &mut world,
        &format!("[account.other]\nclient_id = \"x\"\nclient_secret_file = \"{secret}\""),
    );
    let mut reader = Reader::start(&world);
    reader.visit("/-/login");
    assert!(reader.text("main").contains("Which account?"));
    reader.judge("login-choose");
    assert_eq!(reader.does(&json!(["follow", "[href='/-/login/main']"])), 200);
    let (auth, page) = (world.standin.auth_url(), format!("http://{}/-/login", world.daemon.authority));
    let good = callback(&world, Person::Alice);
    let old = world.standin.authorize_with(&world.begin_login(), Person::Alice, long_over());
    let foreign = good.replace("state=", "state=x");
    let others = world.daemon.post_form("/-/login/other/start", &[]);
    let others_state = parameter(others.field("location").unwrap(), "state");
    let own_state = good.split("state=").nth(1).unwrap().split('&').next().unwrap();

    for (address, words) in [
        ("Callback page", "This is no address"),
        ("https://www.cnblogs.com/", "It has to begin with"),
        (page.as_str(), "the page that you are looking at"),
        (&format!("{auth}/connect/authorize?client_id=x"), "Log in and allow the application there first"),
        (&format!("{auth}/auth/callback"), "Everything behind the # is missing"),
        (&format!("{auth}/auth/callback#"), "Everything behind the # is missing"),
        (&good[..good.find("&id_token").unwrap()], "A part is missing (id_token, state)"),
        (&format!("{good}&state=y"), "state is there more than once"),
        (&format!("{auth}/auth/callback#error=access_denied&state={own_state}"), "said no (access_denied)"),
        (&foreign, "belongs to another login"),
        (&good.replace(own_state, &others_state), "another account: other"),
        (&old, "too old"),
        (&good, "This is the whole address"),
        (good.split_once('#').unwrap().1, "This is the whole address"),
        (&format!("地址：{good}。"), "This is the whole address"),
        (&format!("See\n{}\n", wrapped(&good, "\n  ")), "This is the whole address"),
        (&format!("<a href=\"{}\">", good.replace('&', "&amp;")), "This is the whole address"),
        (&format!("https://link.example/?to={}", encoded(&good)), "This is the whole address"),
    ] {
        reader.paste_is(address, words);
        let invalid = reader.does(&json!(["attribute", "#callback", "aria-invalid"]));
        assert_eq!(
            invalid == "true",
            !words.contains("whole address. Press") && !words.ends_with("whole address")
        );
    }
    assert_eq!((world.standin.token_requests().len(), world.daemon.state().as_str()), (0, "login-required"));

    reader.send(&good, 200, "Logged in");
    reader.visit("/-/login/main");
    reader.paste_is(&good, "used already");
    reader.judge("login-wrong");
}

fn wrapped(text: &str, with: &str) -> String {
    text.as_bytes().chunks(72).map(String::from_utf8_lossy).collect::<Vec<_>>().join(with)
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Where the page's script can't tell words from the address, it says nothing wrong.
#[test]
fn of_what_only_the_daemon_finds_nothing_is_said_before_it_is_sent() {
    let world = World::start();
    let mut reader = Reader::start(&world);
    reader.visit("/-/login");
    let good = callback(&world, Person::Alice).split("&session_state").next().unwrap().to_owned();
    reader.paste_is("hello", "This is no address");

    let pasted = format!("{}\nThanks", wrapped(&good, "=\n"));
    reader.paste_is(&pasted, "");

    assert_eq!(reader.does(&json!(["attribute", "#callback", "aria-invalid"])), Value::Null);
    reader.send(&pasted, 200, "Logged in");
}

#[test]
fn in_the_code_flow_the_page_misses_what_that_flow_has() {
    let world = Setup { account: "response_type = \"code\"".to_owned(), ..Setup::default() }.start();
    let mut reader = Reader::start(&world);
    reader.visit("/-/login");
    let good = callback(&world, Person::Alice);

    for (address, words) in [
        (&*format!("{}/auth/callback", world.standin.auth_url()), "Everything behind the ? is missing"),
        (&good[..good.find("&state").unwrap()], "A part is missing (state)"),
        (&good, "This is the whole address"),
    ] {
        reader.paste_is(address, words);
    }
    reader.send(&good, 200, "Logged in");
}

/// The part that many leave out is seen on the narrowest screen, too.
#[test]
fn the_sample_address_shows_the_code_on_a_phone() {
    let world = World::start();
    let mut reader = Reader::start(&world);
    for width in [320, 360, 412, 1100] {
        reader.open(&world, &json!({ "width": width }));
        reader.visit("/-/login");
        for part in [".addressbar span > span", ".addressbar b"] {
            let seen = reader.does(&json!(["seen_width", part, ".addressbar"])).as_f64().unwrap();
            let least = if part.ends_with('b') { 60.0 } else { 40.0 };
            assert!(seen > least, "{seen} pixels of {part} are seen on {width}");
        }
    }
}

#[test]
fn a_login_that_came_to_nothing_says_why_and_how_to_start_again() {
    let world = World::logged_in();
    let mut reader = Reader::start(&world);
    let used = callback(&world, Person::Alice);
    assert_eq!(world.paste(&used).status, 200);
    let late = world.standin.authorize_with(&world.begin_login(), Person::Alice, long_over());
    let denied = world.standin.deny(&world.begin_login());
    let cut = callback(&world, Person::Alice).split("&id_token").next().unwrap().to_owned();

    for (address, words) in [
        ("https://www.cnblogs.com/", "not the address of the page"),
        (cut.as_str(), "A part of the address is missing"),
        (&used, "That address was used already"),
        (&late, "The address came too late"),
        (&denied, "Cnblogs did not allow it"),
    ] {
        reader.visit("/-/login");
        reader.send(address, 400, "Not logged in");
        let (lead, page) = (reader.text(".lead"), reader.text("main"));
        assert!(lead.contains(words) && page.contains("Nothing was changed"), "{words}: {page}");
        reader.judge("not-logged-in");
    }
    let down = callback(&world, Person::Alice);
    world.standin.set_down(true);
    reader.visit("/-/login");
    reader.send(&down, 400, "Not logged in");
    let page = reader.text("main");
    assert!(page.contains("Exactly:") && !page.contains("state="), "{page}");
    reader.judge("not-logged-in-server-down");

    assert_eq!(reader.does(&json!(["follow", "main .button"])), 200);
    assert_eq!(reader.text("h1"), "Log in to Cnblogs");
    assert_eq!(world.daemon.state(), "ready", "the login before is in use");
}

#[test]
fn another_person_is_asked_for_a_yes_and_a_no_keeps_the_login() {
    let world = World::logged_in();
    let mut reader = Reader::start(&world);
    for (answer, heading, person) in
        [("no", "Nothing changed", Person::Alice), ("yes", "Logged in", Person::Bob)]
    {
        reader.visit("/-/login");
        let bobs = callback(&world, Person::Bob);
        reader.send(&bobs, 200, "Another person");
        let asked = reader.text(".persons");
        for name in [Person::Alice.display_name(), Person::Bob.display_name()] {
            assert!(asked.contains(name), "{asked}");
        }
        reader.judge("another-person");

        assert_eq!(reader.does(&json!(["follow", format!("[value={answer}]")])), 200);

        assert_eq!(reader.text("h1"), heading);
        reader.judge(&format!("another-person-{answer}"));
        assert_eq!(world.daemon.status()["accounts"]["main"]["person"], person.display_name());
    }
}

#[test]
fn a_login_works_with_the_keyboard_alone() {
    let world = World::start();
    let mut reader = Reader::start(&world);
    reader.visit("/-/login");
    reader.does(&json!(["press", "Tab"]));
    assert_eq!(reader.does(&json!(["focused"])), "Skip to the content");
    reader.does(&json!(["press", "Enter", "Tab"]));
    assert!(reader.does(&json!(["focused"])).as_str().unwrap().starts_with("Open Cnblogs in a new tab"));
    let address = reader.does(&json!(["allow_in_new_tab", "alice", "Enter"]));
    reader.does(&json!(["close_tab"]));

    reader.does(&json!(["press", "Tab"]));
    assert_eq!(reader.does(&json!(["focused"])), "callback");
    reader.does(&json!(["paste", address]));
    reader.says("#hint", "This is the whole address");
    reader.does(&json!(["press", "Tab"]));
    assert_eq!(reader.does(&json!(["follow_key", "Enter"])), 200);

    assert_eq!(reader.text("h1"), "Logged in");
    assert_eq!(world.daemon.state(), "ready");
}

#[test]
fn without_the_script_a_person_logs_in_reads_the_status_and_logs_out() {
    let world = World::start();
    let mut reader = Reader::start(&world);
    reader.open(&world, &json!({ "scripts": false, "locale": "zh-CN", "width": 320 }));
    reader.visit("/-/login");

    let address = reader.does(&json!(["allow_in_new_tab", "alice"]));
    reader.does(&json!(["close_tab"]));
    reader.visit("/-/login");
    assert!(reader.text("#progress").contains("登录进行中：还剩 9 分钟"), "the login is known");
    reader.judge("login-without-script");
    reader.send(address.as_str().unwrap(), 200, "登录成功");
    reader.judge("logged-in-without-script");

    reader.visit("/-/");
    assert!(reader.text("main").contains("重新加载"), "how to see what is new");
    assert_eq!(reader.does(&json!(["follow", "form[action^='/-/refresh'] button"])), 200);
    assert_eq!(world.standin.refreshes().len(), 1);
    reader.does(&json!(["click", "summary"]));
    assert_eq!(reader.does(&json!(["follow", ".ask button"])), 200);
    assert!(reader.text("#summary").contains("请先登录"));
    assert_eq!((world.daemon.state().as_str(), world.standin.revocations().len()), ("login-required", 1));
}

/// The answer is brought by the new tab itself; the page that opened it hears of it.
#[test]
fn a_browser_that_comes_back_by_itself_says_so_in_both_tabs() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let uri = format!("http://127.0.0.1:{port}/-/callback");
    let options = Options { redirect_uris: vec![uri.clone()], ..Options::default() };
    let (top, account) = (format!("listen = [\"127.0.0.1:{port}\"]"), format!("redirect_uri = \"{uri}\""));
    let world = Setup { options, top, account, ..Setup::default() }.start();
    let mut reader = Reader::start(&world);
    reader.visit("/-/login");
    reader.judge("login-back");

    reader.does(&json!(["allow_in_new_tab", "bob"]));
    let address = reader.does(&json!(["tab_says", "Logged in"]));

    assert_eq!(address, uri, "what it brought is not in the address bar");
    reader.does(&json!(["close_tab"]));
    reader.says("#current", Person::Bob.display_name());
}

/// What a shell prints that runs a command as it was copied.
#[track_caller]
fn bash(command: &str) -> String {
    let command = command.replacen("curl ", "curl --silent --show-error --fail-with-body --noproxy '*' ", 1);
    let output = Command::new("bash").args(["-c", &command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// With routes of its own, and with keys.
#[test]
fn the_page_after_a_login_has_a_command_to_copy_that_works() {
    let world = Setup { route: "prefix = \"/open\"".to_owned(), ..Setup::default() }.start();
    let page = after_login(&world, &[]);
    let path = format!("http://{}/open/api/users", world.daemon.authority);
    assert!(bash(&call_in(&page)).contains(Person::Alice.display_name()), "{page}");
    assert_eq!(call_in(&page), format!("curl {path}"));

    let home = crate::support::Home::new(Vec::new());
    let key = home.secret("key", "a-key-of-32-characters-or-more-0123456789");
    let tables = format!("[[callers.key]]\nname = \"me\"\nfile = \"{}\"\n", key.display());
    let world = Setup { tables, ..Setup::default() }.start();
    let authorization = ("Authorization", "Bearer a-key-of-32-characters-or-more-0123456789");
    let page = after_login(&world, &[authorization]);
    let call = call_in(&page).replace("KEY", "a-key-of-32-characters-or-more-0123456789");
    assert!(call.contains("-H 'Authorization: Bearer "), "{call}");
    assert!(bash(&call).contains(Person::Alice.display_name()));
}

/// The page that a browser gets for the address of a login of Alice's.
#[track_caller]
fn after_login(world: &World, fields: &[(&str, &str)]) -> String {
    let started = world.daemon.request("POST", "/-/login/main/start", fields, b"");
    let address = world.standin.authorize(started.field("location").unwrap(), Person::Alice);
    let page = world.daemon.request("GET", "/-/login/main", fields, b"").text();
    let secret = page.split("name=\"page\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let form = format!("page={}&callback={}", encoded(secret), encoded(&address));
    let mut fields = fields.to_vec();
    fields.extend([("Accept", "text/html"), ("Content-Type", "application/x-www-form-urlencoded")]);
    let answer = world.daemon.request("POST", "/-/login/main", &fields, form.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

fn call_in(page: &str) -> String {
    let (_, rest) = page.split_once("<pre><code>").unwrap_or_else(|| panic!("no command in {page}"));
    rest.split_once("</code>").unwrap().0.replace("&#39;", "'")
}

#[test]
fn before_the_first_login_nothing_is_red_and_after_it_it_works() {
    let mut world = World::start();
    let mut reader = Reader::start(&world);
    for (locale, words) in [("zh-CN", "请先登录"), ("en-GB", "Log in to start")] {
        reader.open(&world, &json!({ "locale": locale }));
        reader.visit("/-/");
        assert_eq!(reader.text("#summary b"), words);
        assert_eq!(reader.does(&json!(["count", ".bad, .state.login-required"])), 0);
        assert_eq!(reader.does(&json!(["count", "details[open]"])), 0, "what to do is folded");
        reader.judge("first");
    }

    world.log_in(Person::Alice);

    reader.says("#summary b", "Everything works");
    let history = reader.text("#history-main");
    assert!(history.contains("It works: there is a fresh token") && !history.contains("again"), "{history}");
    world.restart();
    world.standin.forget_refresh_tokens();
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 503);
    world.log_in(Person::Alice);
    let status = world.daemon.status();
    let last = status["accounts"]["main"]["events"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["message"], "there is a fresh token again", "after one that was lost");
}

#[test]
fn the_chinese_status_page_tells_events_in_chinese() {
    let world = Setup { account: "login_lifetime = \"2d\"".to_owned(), ..Setup::default() }.start();
    let mut reader = Reader::start(&world);
    reader.open(&world, &json!({ "locale": "zh-CN" }));
    reader.visit("/-/");
    assert!(reader.text("#history-main").contains("需要登录: 需要有人登录"));

    world.log_in(Person::Alice);
    reader.says("#history-main", "服务器结束本次登录的时间：");
    world.standin.set_unavailable(true);
    for _ in 0..3 {
        world.daemon.post_form("/-/refresh/main", &[]);
    }
    world.standin.set_unavailable(false);
    world.standin.forget_refresh_tokens();
    world.daemon.post_form("/-/refresh/main", &[]);
    reader.says("#history-main", "需要有人登录（在最后一个令牌到期之前）：服务器拒绝了刷新令牌");

    let history = reader.text("#history-main");
    for english in ["a person has to", "the server ends", "there is a"] {
        assert!(!history.contains(english), "{history}");
    }
    let events = world.daemon.status()["accounts"]["main"]["events"].to_string();
    assert!(events.contains("a person has to log in before the last token expires: the server"), "{events}");
}

#[test]
fn of_a_single_request_mean_and_most_are_the_same_time() {
    let world = World::logged_in();
    assert_eq!(world.daemon.get("/api/users").status, 200);
    let mut reader = Reader::start(&world);
    reader.visit("/-/");

    let mean = reader.text(".figures div:nth-child(4) dd");
    let most = reader.text("figure:last-child .most");

    assert_eq!(most, format!("at most {mean}"));
    assert!(mean.ends_with(" ms") && mean != "0 ms", "{mean}");
}

#[test]
fn the_status_page_follows_what_happens_and_says_what_to_do() {
    let world = World::logged_in();
    let mut reader = Reader::start(&world);
    reader.visit("/-/");
    assert_eq!(reader.text("#summary b"), "Everything works");
    assert_eq!(reader.does(&json!(["count", "#remedies details[open]"])), 0, "what to do is folded");

    for _ in 0..3 {
        assert_eq!(world.daemon.get("/api/users").status, 200);
    }
    world.standin.on_api(|_| Some(Scripted::Answer(Answer::status(500))));
    world.daemon.get("/api/users");
    world.standin.clear_on_api();
    reader.says(".figures div:nth-child(1)", "4");
    reader.says(".figures div:nth-child(3)", "1");
    assert!(reader.does(&json!(["count", ".chart rect.server"])).as_u64() >= Some(1), "an error is drawn");
    assert!(reader.text(".figures").contains(" ms"), "how long the API took");

    world.standin.set_unavailable(true);
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 503);
    reader.says("#summary b", "Something needs attention");
    reader.says("#history-main", "not available: the token endpoint answered 503");
    world.standin.set_unavailable(false);
    world.standin.forget_refresh_tokens();
    assert_eq!(world.daemon.post_form("/-/refresh/main", &[]).status, 503);
    reader.says("#summary b", "You are needed");
    reader.says("#history-main", "A login is required");
    reader.says("#said", "You are needed");

    assert_eq!(reader.does(&json!(["count", "#remedies details[open]"])), 1, "what to do is seen");
    reader.does(&json!(["click", "#history-main .bad a"]));
    reader.says(":target", "Press Log in at the account");
    reader.judge("status-needed");
}

#[test]
fn the_status_page_says_when_the_daemon_is_gone_and_goes_on_when_it_is_back() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut world = Setup { top: format!("listen = [\"127.0.0.1:{port}\"]"), ..Setup::default() }.logged_in();
    let mut reader = Reader::start(&world);
    reader.visit("/-/");

    world.daemon.stop();
    reader.says("#offline", "The proxy does not answer");
    world.daemon = world.home.serve();
    reader.does(&json!(["text", "#offline[hidden] ~ main"]));

    assert_eq!(
        reader.does(&json!(["follow", "form[action^='/-/refresh'] button"])),
        200,
        "with a new secret"
    );
    assert_eq!((reader.text("h1"), world.standin.refreshes().len()), ("Status".to_owned(), 1));
}

#[test]
fn a_log_out_asks_first_and_is_not_forgotten_while_the_page_follows() {
    let world = World::logged_in();
    let mut reader = Reader::start(&world);
    reader.visit("/-/");
    reader.does(&json!(["click", ".ask summary"]));
    reader.judge("log-out");
    reader.does(&json!(["click", "#summary"]));
    assert_eq!(world.standin.revocations().len(), 0);

    world.daemon.post_form("/-/refresh/main", &[]);
    reader.says("#history-main", "a new token");
    assert!(reader.text(".ask").contains("Log out account main?"), "still asked");
    assert_eq!(reader.does(&json!(["follow", ".ask button"])), 200);

    assert_eq!(reader.text("#summary b"), "Log in to start");
    eventually("the login is revoked", || (world.standin.revocations().len() == 1).then_some(()));
}

/// Every page in every look: with nobody, with Alice, with a login that ends soon, and with an account without a
/// person.
#[test]
fn every_page_is_in_order_in_both_languages_on_narrow_and_wide_screens_in_the_dark() {
    let mut world = Setup { account: "login_lifetime = \"2d\"".to_owned(), ..Setup::default() }.start();
    let token = world.home.secret("pat", "pat-0123456789abcdef").display().to_string();
    let config = std::fs::read_to_string(world.home.config()).unwrap();
    let account =
        format!("\n[account.writer]\ngrant = \"personal_access_token\"\ntoken_file = \"{token}\"\n");
    let config = config.replace("[[route]]\n", "[[route]]\naccount = \"main\"\n");
    std::fs::write(world.home.config(), config + &account).unwrap();
    world.restart();
    let mut reader = Reader::start(&world);

    look_at_all(&mut reader, &world, "nobody");
    world.log_in(Person::Alice);
    look_at_all(&mut reader, &world, "alice");

    reader.open(&world, &json!({}));
    reader.visit("/-/");
    assert_eq!(reader.text("#summary b"), "Something needs attention");
    assert!(reader.text("#facts-main").contains("The login ends in 1 day 23 h. Log in again before that"));
    assert!(reader.text("#facts-writer").contains("does not end by itself"));
}

fn look_at_all(reader: &mut Reader, world: &World, who: &str) {
    for (name, locale, width, dark) in LOOKS {
        reader.open(world, &json!({ "locale": locale, "width": width, "dark": dark }));
        let (language, at) = if locale.starts_with("zh") { ("zh-CN", 1) } else { ("en", 0) };
        for (path, page, words) in PAGES {
            reader.visit(path);
            reader.says("main", words[at]);
            assert_eq!(reader.does(&json!(["attribute", "html", "lang"])), language);
            reader.judge(&format!("{page}-{name}-{who}"));
        }
    }
}
