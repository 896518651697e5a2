//! `login`: the browser's part in any browser, the rest in this terminal.

mod terminal;

use serde_json::Value;
use tokio::runtime::Runtime;
use url::Url;

use super::daemon::{Daemon, printable, runtime};
use super::{Common, Doer, Exit, Failure, log, say, say_error};
use crate::config::{Config, Environment, ResponseMode};
use crate::control::login::{as_json, is_local};
use crate::notify;
use crate::oauth::callback::{mark, parse_pasted};
use crate::server::Accounts;
use terminal::Terminal;

/// Where the login takes place: in the running daemon, or here.
enum LoginAt {
    Daemon(Daemon),
    Here(Runtime, Box<Accounts>),
}

/// A login that has begun.
struct Begun {
    /// The authorization URL.
    url: String,
    /// Where it makes the browser come back to.
    redirect_uri: Url,
    /// How.
    response_mode: ResponseMode,
}

/// What the terminal speaks.
#[derive(Clone, Copy)]
enum Language {
    English,
    Chinese,
}

pub(super) fn login(
    doer: Doer,
    account: &str,
    common: &Common,
    environment: &Environment,
) -> Result<Exit, Failure> {
    let language = Language::of_locale(environment);
    let place = match doer {
        Doer::Daemon(daemon) => LoginAt::Daemon(daemon),
        Doer::Here(config) => {
            log::start_quiet(&config, common, environment)?;
            let (runtime, accounts) = open(&config)?;
            LoginAt::Here(runtime, Box::new(accounts))
        }
    };
    let outcome = place.begin(account).and_then(|begun| match &place {
        LoginAt::Daemon(_) if is_local(&begun.redirect_uri) => Ok(come_back(&begun.url, language)),
        _ if begun.response_mode == ResponseMode::FormPost => Err(nothing_to_paste(account, &begun)),
        _ => converse(&place, account, &begun, language, environment),
    });
    if let LoginAt::Here(runtime, accounts) = place {
        runtime.block_on(accounts.close());
    }
    outcome
}

/// The sessions, without a daemon.
pub(super) fn open(config: &Config) -> Result<(Runtime, Accounts), Failure> {
    if let Some(account) = config.accounts.values().find(|account| account.secret.is_missing()) {
        return Err(missing_secret(&account.name));
    }
    let runtime = runtime()?;
    // Nobody is told of events while a person sits in front of it.
    let (notifier, _) = notify::channel();
    let accounts = runtime.block_on(Accounts::open(config, &notifier))?;
    Ok((runtime, accounts))
}

/// The browser comes back to the daemon by itself, which ends the login.
fn come_back(url: &str, language: Language) -> Exit {
    say(language.of([
        "Open this address in a browser on this machine and log in there:\n",
        "请在本机的浏览器中打开这个地址并登录：\n",
    ]));
    say(url);
    say(language.of([
        "\nThe browser comes back to the daemon by itself. `cnblogs-proxy status` says when it is done.",
        "\n浏览器会自己回到代理。运行 `cnblogs-proxy status` 可以看到是否完成。",
    ]));
    Exit::Done
}

/// The browser posts the code to the `redirect_uri`: no address has it.
fn nothing_to_paste(account: &str, begun: &Begun) -> Failure {
    let hint = if is_local(&begun.redirect_uri) {
        "start the daemon, which the browser then posts to"
    } else {
        "set another response_mode, or a redirect_uri that is the daemon's own /-/callback"
    };
    let why = "with response_mode = \"form_post\" a login can't be finished in a terminal";
    Failure::new(Exit::Failed, format!("account.{account}: {why}")).with_hint(hint)
}

/// No daemon is running, and the secret is not known here.
fn missing_secret(account: &str) -> Failure {
    Failure::new(
        Exit::Configuration,
        format!("account.{account}: has no secret here, and no daemon is running"),
    )
    .with_hint("start the daemon, or name the secret's file in the configuration")
}

fn converse(
    place: &LoginAt,
    account: &str,
    begun: &Begun,
    language: Language,
    environment: &Environment,
) -> Result<Exit, Failure> {
    let Begun { url, redirect_uri, response_mode } = begun;
    ask(url, mark(*response_mode), language);
    let is_whole = |text: &str| parse_pasted(text, redirect_uri, *response_mode, &|_| true).is_ok();
    let mut terminal = Terminal::new(environment, language);
    let mut last = None;
    loop {
        let Some(pasted) = terminal.next(&is_whole)? else {
            let nothing = language.of(["nothing was pasted", "没有粘贴任何内容"]);
            return Err(last.unwrap_or_else(|| Failure::new(Exit::Failed, nothing)));
        };
        if pasted.trim().is_empty() {
            continue;
        }
        terminal.tell(language.of([
            "Checking the address, and exchanging its code for a token ...",
            "正在检查地址，并用其中的授权码换取令牌……",
        ]));
        match place.finish(account, &pasted) {
            Ok(outcome) => return settle(place, account, &outcome, &mut terminal, language),
            Err(failure) if terminal.is_a_persons() && failure.exit == Exit::Failed => {
                say_error(&format!("{}{}", language.of(["error: ", "错误："]), failure.message));
                say(language.of([
                    "Paste the address again, or press Ctrl-C and start over:",
                    "请重新粘贴地址，或按 Ctrl-C 后重新开始：",
                ]));
                last = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn ask(url: &str, mark: char, language: Language) {
    let (english, chinese) = (
        format!("with everything behind the {mark}, and paste it here:"),
        format!("包括 {mark} 后面的全部内容，粘贴到这里："),
    );
    say(language
        .of(["Open this address in a browser and log in there:\n", "请在浏览器中打开这个地址并登录：\n"]));
    say(url);
    say(language.of([
        "\nThe browser ends at an almost empty page. Copy the whole address of that page from the address bar,",
        "\n浏览器最后停在一个几乎空白的页面。请从地址栏复制该页面的完整地址，",
    ]));
    say(language.of([&english, &chinese]));
}

fn settle(
    place: &LoginAt,
    account: &str,
    outcome: &Value,
    terminal: &mut Terminal,
    language: Language,
) -> Result<Exit, Failure> {
    let text = |name: &str| outcome.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("outcome") {
        "needs-confirmation" => {
            say(&question(account, outcome, language));
            let is_yes = wants_it(terminal);
            let outcome = place.confirm(account, text("confirm"), is_yes)?;
            settle(place, account, &outcome, terminal, language)
        }
        "declined" => {
            say(language.of(["Nothing changed: the new login was revoked.", "没有变化：新的登录已撤销。"]));
            Ok(Exit::Failed)
        }
        _ => {
            tell_of_login(account, outcome, language);
            Ok(Exit::Done)
        }
    }
}

/// Asks whether to replace somebody's login by somebody else's.
fn question(account: &str, outcome: &Value, language: Language) -> String {
    let unknown = language.of(["somebody whose name is not known", "一位不知道名字的人"]);
    let [stored, new] =
        ["stored", "new"].map(|name| outcome.get(name).and_then(Value::as_str).unwrap_or(unknown));
    match language {
        Language::English => format!(
            "{account} is logged in as {stored}, and you logged in as {new}. Write yes to replace the login:"
        ),
        Language::Chinese => {
            format!("{account} 目前登录的是 {stored}，您刚才登录为 {new}。输入 yes 并回车，替换原来的登录：")
        }
    }
}

/// An Enter that was pressed behind the paste is no answer.
fn wants_it(terminal: &mut Terminal) -> bool {
    terminal.start_again();
    loop {
        match terminal.next(&|_| false) {
            Ok(Some(line)) if line.trim().is_empty() => {}
            Ok(Some(line)) => return line.trim().eq_ignore_ascii_case("yes"),
            _ => return false,
        }
    }
}

fn tell_of_login(account: &str, outcome: &Value, language: Language) {
    let text = |name: &str| outcome.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let english = text("person").map_or_else(String::new, |person| format!(" as {person}"));
    let chinese = text("person").map_or_else(String::new, |person| format!("为 {person}"));
    say(language.of([&format!("{account} is logged in{english}."), &format!("{account} 已登录{chinese}。")]));
    if let Some(until) = text("login_expires_at") {
        say(language.of([&format!("This login lasts until {until}."), &format!("本次登录有效至 {until}。")]));
    }
    for remark in outcome.get("remarks").and_then(Value::as_array).into_iter().flatten() {
        let warning = language.of(["warning: ", "注意："]);
        say_error(&format!("{warning}{}", remark.as_str().unwrap_or_default()));
    }
}

impl Language {
    /// As the locale says (`locale(7)`), unless its characters are others than ours.
    fn of_locale(environment: &Environment) -> Self {
        let names = ["LC_ALL", "LC_MESSAGES", "LANG"];
        let locale =
            names.iter().find_map(|name| environment.var(name)).unwrap_or_default().to_ascii_lowercase();
        let (place, characters) = locale.split_once('.').unwrap_or((&locale, "utf-8"));
        let is_chinese = place.split(['_', '@', '-']).next() == Some("zh");
        let is_ours = ["utf-8", "utf8"].iter().any(|utf8| characters.starts_with(utf8));
        if is_chinese && is_ours { Self::Chinese } else { Self::English }
    }

    const fn of(self, [english, chinese]: [&str; 2]) -> &str {
        match self {
            Self::English => english,
            Self::Chinese => chinese,
        }
    }
}

impl Begun {
    /// All of it stands in the authorization URL: the configuration may be known to the daemon alone.
    fn by(url: String) -> Option<Self> {
        let parsed = Url::parse(&url).ok()?;
        let parameter =
            |wanted: &str| parsed.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value);
        let redirect_uri = Url::parse(&parameter("redirect_uri")?).ok()?;
        let response_mode = match parameter("response_mode").as_deref() {
            Some("fragment") => ResponseMode::Fragment,
            Some("form_post") => ResponseMode::FormPost,
            _ => ResponseMode::Query,
        };
        Some(Self { url, redirect_uri, response_mode })
    }
}

impl LoginAt {
    fn begin(&self, account: &str) -> Result<Begun, Failure> {
        let url = match self {
            Self::Daemon(daemon) => {
                daemon.post(&format!("/-/login/{account}/start"), &[])?.success()?.location
            }
            Self::Here(runtime, accounts) => {
                Some(runtime.block_on(accounts.logins.start(account)).map_err(failed)?.into())
            }
        };
        url.and_then(Begun::by).ok_or_else(|| Failure::new(Exit::Failed, "the daemon gave no address"))
    }

    fn finish(&self, account: &str, pasted: &str) -> Result<Value, Failure> {
        match self {
            Self::Daemon(daemon) => {
                let form = [("callback", pasted)];
                Ok(printable(daemon.post(&format!("/-/login/{account}"), &form)?.success()?.json()))
            }
            Self::Here(runtime, accounts) => {
                let outcome = runtime.block_on(accounts.logins.finish_pasted(account, pasted));
                outcome.map(|outcome| printable(as_json(&outcome))).map_err(failed)
            }
        }
    }

    fn confirm(&self, account: &str, id: &str, yes: bool) -> Result<Value, Failure> {
        let answer = if yes { "yes" } else { "no" };
        match self {
            Self::Daemon(daemon) => {
                let form = [("confirm", id), ("answer", answer)];
                Ok(printable(daemon.post(&format!("/-/login/{account}"), &form)?.success()?.json()))
            }
            Self::Here(runtime, accounts) => {
                let outcome = runtime.block_on(accounts.sessions[account].confirm(id.to_owned(), yes));
                outcome.map(|outcome| printable(as_json(&outcome))).map_err(failed)
            }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_language_is_that_of_the_locale() {
        let language = |variables: &[(&str, &str)]| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            Language::of_locale(&Environment::new(variables.iter().map(owned))).of(["en", "zh"]).to_owned()
        };
        for locale in ["zh_CN.UTF-8", "zh_TW.utf8", "zh", "zh_CN", "ZH_cn.UTF-8@pinyin", "zh-Hans"] {
            assert_eq!(language(&[("LANG", locale)]), "zh", "{locale}");
        }
        // What is written in GBK can't be read as UTF-8, and the reverse.
        for locale in ["", "C", "C.UTF-8", "en_US.UTF-8", "zhu", "zh_CN.GBK", "zh_TW.Big5"] {
            assert_eq!(language(&[("LANG", locale)]), "en", "{locale}");
        }
        assert_eq!(language(&[("LC_MESSAGES", "zh_CN.UTF-8"), ("LANG", "en_US.UTF-8")]), "zh");
        assert_eq!(
            language(&[("LC_ALL", "C"), ("LC_MESSAGES", "zh_CN.UTF-8"), ("LANG", "zh_CN.UTF-8")]),
            "en"
        );
        assert_eq!(language(&[("LC_ALL", ""), ("LANG", "zh_CN.UTF-8")]), "zh");
    }

    #[test]
    fn a_person_without_a_name_is_somebody() {
        let asked = |language| question("main", &json!({ "stored": null, "new": "Bob" }), language);

        let english = asked(Language::English);
        assert!(
            english.starts_with("main is logged in as somebody whose name is not known, and"),
            "{english}"
        );
        assert!(english.contains("you logged in as Bob. Write yes"), "{english}");
        assert!(asked(Language::Chinese).contains("一位不知道名字的人，您刚才登录为 Bob。"));
    }
}
