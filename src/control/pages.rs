//! The pages for people: plain HTML that works without its script. Templates are the files in `pages`, their words
//! are in `pages/words.toml`.

mod status;
mod words;

use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse};
use serde_json::json;

use super::login::{Look, Reason, Rejected};
use crate::session::{Confirmation, LoginDone, State, Status};
use crate::token::At;
pub(super) use status::{Overview, status};
use words::{Fill, escape};
pub(super) use words::{Language, Viewer};

const STYLE: &str = include_str!("pages/page.css");
const ICON: &str = include_str!("pages/icon.svg");
const SCRIPT: &str = include_str!("pages/page.js");
const LAYOUT: &str = include_str!("pages/layout.html");
const LOGIN: &str = include_str!("pages/login.html");
const LOGIN_BACK: &str = include_str!("pages/login-back.html");
const LOGIN_START: &str = include_str!("pages/login-start.html");
const LOGIN_PICTURE: &str = include_str!("pages/login-picture.html");
const LOGIN_PASTE: &str = include_str!("pages/login-paste.html");
const DONE: &str = include_str!("pages/done.html");
const CONFIRM: &str = include_str!("pages/confirm.html");
const OUTCOME: &str = include_str!("pages/outcome.html");
const BRING: &str = include_str!("pages/bring.html");
/// The script asks for a page like this again and again, and shows what is new.
const FOLLOWED: &str = " data-follow";

/// What the login page of an account tells.
pub(super) struct LoginPage<'a> {
    pub(super) account: &'a str,
    /// The accounts that a person logs in to, this one among them.
    pub(super) accounts: &'a [&'a str],
    pub(super) status: &'a Status,
    pub(super) redirect_uri: &'a str,
    /// Without its query.
    pub(super) authorization_url: &'a str,
    /// The browser comes back to us by itself: the field is only a way out.
    pub(super) comes_back: bool,
    /// What the address must have behind its mark.
    pub(super) parts: &'a str,
    pub(super) mark: char,
    /// Until when the newest login of the account that is not over can be finished.
    pub(super) newest: Option<At>,
    /// The `state` that the script asks about, and what is known of it.
    pub(super) asked: Option<(&'a str, Look)>,
    pub(super) secret: &'a str,
}

/// Which link of the navigation a page is behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NavLink {
    Status,
    Login,
}

/// How good the news is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mood {
    Good,
    Mild,
    /// Nobody has logged in so far: nothing is wrong, and nothing is served.
    Start,
    Bad,
}

pub(super) async fn stylesheet() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

pub(super) async fn script() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)
}

pub(super) async fn icon() -> impl IntoResponse {
    ([(CONTENT_TYPE, "image/svg+xml")], ICON)
}

/// One account's login: a button that opens the authorization server, and a field for where the browser ended.
pub(super) fn login(viewer: Viewer, page: &LoginPage<'_>) -> Html<String> {
    let fill = Fill::new(viewer)
        .text("account", page.account)
        .text("secret", page.secret)
        .text("redirect_uri", page.redirect_uri)
        .text("authorization_url", page.authorization_url)
        .text("parts", page.parts)
        .text("mark", &page.mark.to_string())
        .text("sample", &page.parts.split(' ').map(|part| format!("{part}=…")).collect::<Vec<_>>().join("&"))
        .text("asked", &asked(page))
        .markup("others", others(viewer, page))
        .markup("current", current(viewer, page.status))
        .markup("progress", progress(viewer, page));
    let start = fill.fill(LOGIN_START);
    let picture = fill.fill(LOGIN_PICTURE);
    let paste = fill.fill(LOGIN_PASTE);
    let fill = fill.markup("start", start).markup("picture", picture).markup("paste", paste);
    let body = fill.fill(if page.comes_back { LOGIN_BACK } else { LOGIN });
    layout(viewer, "login.title", Some(NavLink::Login), FOLLOWED, body)
}

/// An account that no person logs in to.
pub(super) fn no_login_needed(viewer: Viewer, account: &str) -> Html<String> {
    let text = Fill::new(viewer).text("account", account).word("unneeded.text");
    let text = format!("<p class=\"lead\">{text}</p>{}", back(viewer));
    outcome(viewer, "unneeded.heading", Mood::Good, text)
}

/// The accounts that a person logs in to, when there are several.
pub(super) fn choose(viewer: Viewer, accounts: &[(&str, State)]) -> Html<String> {
    let mut body = format!("<h1>{}</h1>", viewer.word("login.heading"));
    if accounts.is_empty() {
        body.push_str(&format!("<p class=\"lead\">{}</p>{}", viewer.word("login.none"), back(viewer)));
    } else {
        let links = accounts.iter().map(|(name, state)| {
            let (name, state) = (escape(name), state.as_str());
            let word = viewer.word(&format!("state.{state}"));
            format!(
                "<li><a class=\"card\" href=\"/-/login/{name}\"><b>{name}</b> <span class=\"state {state}\">{word}\
                 </span></a></li>"
            )
        });
        let (question, links) = (viewer.word("login.choose"), links.collect::<String>());
        body.push_str(&format!("<p class=\"lead\">{question}</p><ul class=\"choices\">{links}</ul>"));
    }
    layout(viewer, "login.title", Some(NavLink::Login), "", body)
}

/// Takes the fragment, which no server ever sees, and posts it here.
pub(super) fn fragment(viewer: Viewer) -> Html<String> {
    layout(viewer, "bring.heading", None, "", Fill::new(viewer).fill(BRING))
}

/// A login that is in use. `here` is where programs call, `call` a command that does.
pub(super) fn logged_in(
    viewer: Viewer,
    account: &str,
    done: &LoginDone,
    here: &str,
    call: &str,
) -> Html<String> {
    let fill = Fill::new(viewer).text("account", account).text("here", here).text("call", call);
    let who = match &done.person {
        Some(person) => fill.clone().text("person", person).word("done.who"),
        None => fill.word("done.nameless"),
    };
    let until = match done.login_expires_at {
        Some(at) => {
            let fill = Fill::new(viewer).markup("until", viewer.time(at)).markup("in", viewer.distance(at));
            fill.word("done.until")
        }
        None => viewer.word("done.endless"),
    };
    // A login that can't be renewed says so in a remark, and promises nothing else.
    let promises: &[&str] =
        if done.remarks.is_empty() { &["done.next.refresh", "done.next.warning"] } else { &[] };
    let next = promises.iter().map(|key| format!("<li>{}</li>", viewer.word(key))).collect::<String>();
    let remarks = done.remarks.iter().map(|text| in_its_own_words("warning", text)).collect::<String>();
    let body = fill.markup("who", who).markup("until", until).markup("remarks", remarks).markup("next", next);
    layout(viewer, "done.heading", None, "", body.fill(DONE))
}

/// Somebody else is logged in: asks whether to replace that login.
pub(super) fn confirm(viewer: Viewer, account: &str, asked: &Confirmation, secret: &str) -> Html<String> {
    let fill = Fill::new(viewer).text("account", account).text("secret", secret);
    let unknown = viewer.word("confirm.unknown");
    let name = |name: &Option<String>| name.as_deref().map_or_else(|| unknown.clone(), escape);
    let fill =
        fill.markup("stored", name(&asked.stored)).markup("new", name(&asked.new)).text("id", &asked.id);
    layout(viewer, "confirm.heading", None, "", fill.fill(CONFIRM))
}

/// A no to [`confirm`].
pub(super) fn declined(viewer: Viewer, account: &str) -> Html<String> {
    let text = Fill::new(viewer).text("account", account).word("declined.text");
    outcome(viewer, "declined.heading", Mood::Good, format!("<p class=\"lead\">{text}</p>{}", back(viewer)))
}

/// A login that came to nothing.
pub(super) fn failed(viewer: Viewer, account: &str, why: &Rejected) -> Html<String> {
    let again =
        if account.is_empty() { "/-/login".to_owned() } else { format!("/-/login/{}", escape(account)) };
    let text = format!(
        "<p class=\"lead\">{}</p><p class=\"exactly\">{} {}</p><p>{}</p><p><a class=\"button\" href=\"{again}\">{}</a></p>",
        viewer.word(advice_on(why.reason)),
        viewer.word("failed.exactly"),
        exactly(&why.words),
        viewer.word("failed.unchanged"),
        viewer.word("failed.again"),
    );
    outcome(viewer, "failed.heading", Mood::Bad, text)
}

/// What a button of the status page asked for, and did not happen.
pub(super) fn not_changed(viewer: Viewer, heading: &str, words: &str) -> Html<String> {
    outcome(viewer, heading, Mood::Bad, format!("<p class=\"lead\">{}</p>{}", exactly(words), back(viewer)))
}

const fn advice_on(reason: Reason) -> &'static str {
    match reason {
        Reason::Address => "failed.address",
        Reason::Incomplete => "failed.incomplete",
        Reason::Malformed => "failed.malformed",
        Reason::OtherAccount => "failed.account",
        Reason::Unknown => "failed.unknown",
        Reason::Used => "failed.used",
        Reason::Late => "failed.expired",
        Reason::Denied => "failed.denied",
        Reason::Untrusted => "failed.untrusted",
        Reason::Clock => "failed.clock",
        Reason::Server => "failed.server",
        Reason::Unspent => "failed.unspent",
        Reason::Exchange => "failed.exchange",
        Reason::Unasked => "failed.answer",
        Reason::StillAsked => "failed.answer.again",
        Reason::Configuration => "failed.configuration",
    }
}

/// What is known of the login that the script asks about, for the script.
fn asked(page: &LoginPage<'_>) -> String {
    let Some((state, found)) = &page.asked else { return "{}".to_owned() };
    let is = |standing: &str| json!({ "state": state, "is": standing });
    let known = match found {
        Ok((account, until)) if account == page.account => {
            json!({ "state": state, "is": "good", "until": until.0 })
        }
        Ok((account, _)) => json!({ "state": state, "is": "account", "part": account }),
        Err(why) if why.reason == Reason::Used => is("used"),
        Err(why) if why.reason == Reason::Late => is("old"),
        Err(_) => is("foreign"),
    };
    known.to_string()
}

fn others(viewer: Viewer, page: &LoginPage<'_>) -> String {
    let others = page.accounts.iter().filter(|name| **name != page.account);
    let links = others.map(|name| format!(" <a href=\"/-/login/{0}\">{0}</a>", escape(name)));
    let links = links.collect::<String>();
    if links.is_empty() { links } else { format!("<p>{}{links}</p>", viewer.word("login.others")) }
}

/// Who is logged in, if that is any use.
fn current(viewer: Viewer, status: &Status) -> String {
    if status.state == State::LoginRequired || status.obtained_at.is_none() {
        return String::new();
    }
    let text = match &status.person {
        Some(person) => Fill::new(viewer).text("person", person).word("login.now"),
        None => viewer.word("login.now.nameless"),
    };
    format!("<p class=\"notice good\">{text}</p>")
}

/// How long the newest login of the account may still take.
fn progress(viewer: Viewer, page: &LoginPage<'_>) -> String {
    match page.newest {
        Some(until) if until.0 > viewer.now.0 => {
            let fill = Fill::new(viewer).markup("left", viewer.left(until));
            fill.markup("until", viewer.time(until)).word("login.progress")
        }
        Some(_) => viewer.word("js.timeout"),
        None => viewer.word("login.progress.none"),
    }
}

/// The program's own words, which are English.
fn exactly(words: &str) -> String {
    format!("<span lang=\"en\">{}</span>", escape(words))
}

fn in_its_own_words(class: &str, words: &str) -> String {
    format!("<p class=\"notice {class}\">{}</p>", exactly(words))
}

fn back(viewer: Viewer) -> String {
    format!("<p><a class=\"button\" href=\"/-/\">{}</a></p>", viewer.word("back"))
}

fn outcome(viewer: Viewer, heading: &str, mood: Mood, text: String) -> Html<String> {
    let fill = Fill::new(viewer).markup("heading", viewer.word(heading));
    let body = fill.markup("mood", mood.as_str()).markup("text", text).fill(OUTCOME);
    layout(viewer, heading, None, "", body)
}

/// The referrer policy in the page, unlike the one in its head, lets a browser name our own origin to ourselves:
/// under `no-referrer` its forms would come from `Origin: null`.
fn layout(
    viewer: Viewer,
    title: &str,
    place: Option<NavLink>,
    attributes: &str,
    body: String,
) -> Html<String> {
    let current = |link| if place == Some(link) { " aria-current=\"page\"" } else { "" };
    let fill = Fill::new(viewer)
        .markup("title", viewer.word(title))
        .text("words", &viewer.words_for_scripts())
        .markup("now", now_of(viewer.now))
        .markup("attributes", attributes)
        .markup("at_status", current(NavLink::Status))
        .markup("at_login", current(NavLink::Login))
        .markup("body", body);
    Html(fill.fill(LAYOUT))
}

/// What the script sets its clock by: the reader's may go wrong.
fn now_of(now: At) -> String {
    now.0.to_string()
}

impl Mood {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Mild => "mild",
            Self::Start => "start",
            Self::Bad => "bad",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_elses_words_are_text() {
        let viewer = Viewer { language: Language::English, now: At(0) };
        let why = Rejected { reason: Reason::Denied, words: "<script>alert(\"1\")</script>".to_owned() };

        let Html(page) = failed(viewer, "main", &why);

        assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;"));
    }

    #[test]
    fn a_person_without_a_name_is_somebody() {
        for (language, words) in [
            (Language::English, "somebody whose name is not known"),
            (Language::Chinese, "一位不知道名字的人"),
        ] {
            // The new one is named a second time, as whom programs would act.
            for (stored, new, times) in [(None, Some("<Bob>"), 1), (Some("<Bob>"), None, 2), (None, None, 3)]
            {
                let [stored, new] = [stored, new].map(|name: Option<&str>| name.map(str::to_owned));
                let asked = Confirmation { id: "id".to_owned(), stored, new };

                let Html(page) = confirm(Viewer { language, now: At(0) }, "main", &asked, "secret");

                assert_eq!(page.matches(words).count(), times, "{page}");
                assert_eq!(page.contains("&lt;Bob&gt;"), times < 3, "{page}");
            }
        }
    }

    #[test]
    fn every_reason_is_explained_in_both_languages() {
        for language in [Language::English, Language::Chinese] {
            for reason in Reason::ALL {
                let why = Rejected { reason, words: String::new() };
                let Html(page) = failed(Viewer { language, now: At(0) }, "", &why);
                assert!(!page.contains("<p class=\"lead\"></p>"), "{reason:?}");
            }
        }
    }
}
