//! The pages for people: plain HTML that works without its script.

use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse};

use crate::metrics::Counts;
use crate::session::{Confirmation, LoginDone, State, Status};

const STYLE: &str = include_str!("pages/page.css");
const ICON: &str = include_str!("pages/icon.svg");
const SCRIPT: &str = include_str!("pages/page.js");

pub(super) async fn stylesheet() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

pub(super) async fn script() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)
}

pub(super) async fn icon() -> impl IntoResponse {
    ([(CONTENT_TYPE, "image/svg+xml")], ICON)
}

/// All accounts with their states.
pub(super) fn status(accounts: &[(String, Arc<Status>)], requests: Counts, secret: &str) -> Html<String> {
    let mut body = String::from("<h1>cnblogs-proxy</h1>");
    for (name, status) in accounts {
        body.push_str(&account(name, status, secret));
    }
    body.push_str(&format!(
        "<h2>Requests</h2><p id=\"requests\">{} answered, {} client errors, {} server errors, {} refused</p>",
        requests.total, requests.client_errors, requests.server_errors, requests.refused
    ));
    page("Status", "data-live=\"/-/status\"", &body)
}

/// One account's login: a button that opens the authorization server, and a field for where the browser ended.
/// When it comes back to us by itself, the field is only a way out.
pub(super) fn login(account: &str, redirect_uri: &str, comes_back: bool, secret: &str) -> Html<String> {
    let (name, ends_at, secret) = (escape(account), escape(redirect_uri), escape(secret));
    let start = format!(
        "<form method=\"post\" action=\"/-/login/{name}/start\" target=\"_blank\">\
         <input type=\"hidden\" name=\"page\" value=\"{secret}\">\
         <button type=\"submit\">Open Cnblogs in a new tab</button></form>"
    );
    let paste = format!(
        "<form method=\"post\" action=\"/-/login/{name}\" id=\"paste\" data-redirect=\"{ends_at}\">\
         <input type=\"hidden\" name=\"page\" value=\"{secret}\">\
         <label for=\"callback\">Copy the whole address from that tab's address bar and paste it here:</label>\
         <textarea id=\"callback\" name=\"callback\" rows=\"4\" required autocomplete=\"off\" spellcheck=\"false\" \
         aria-describedby=\"hint\"></textarea>\
         <p id=\"hint\" role=\"status\"></p>\
         <button type=\"submit\">Log in</button></form>"
    );
    let steps = if comes_back {
        format!(
            "<p>Account <b>{name}</b>. Log in there and allow the application; the new tab comes back here by \
             itself and says what became of it.</p>{start}\
             <details><summary>It did not come back</summary>{paste}</details>"
        )
    } else {
        format!(
            "<p>Account <b>{name}</b>. This takes two steps and at most ten minutes.</p>\
             <h2>Step 1: allow it</h2>{start}\
             <p>Log in there and allow the application. The tab ends at an almost empty page, whose address \
             begins with <code>{ends_at}</code>. That is right: all that matters is its address.</p>\
             <h2>Step 2: bring the address back</h2>{paste}"
        )
    };
    page("Log in", "", &format!("<h1>Log in to Cnblogs</h1>{steps}"))
}

/// An account that no person logs in to.
pub(super) fn no_login_needed(account: &str) -> Html<String> {
    let body = format!(
        "<h1>No login needed</h1><p>Account <b>{}</b> needs no login: its tokens need no person.</p>\
         <p><a href=\"/-/\">Status</a></p>",
        escape(account)
    );
    page("No login needed", "", &body)
}

/// The accounts that a person logs in to, when there are several.
pub(super) fn choose(accounts: &[&str]) -> Html<String> {
    let mut body = String::from("<h1>Log in to Cnblogs</h1>");
    if accounts.is_empty() {
        body.push_str("<p>No account of this proxy needs a login.</p>");
    } else {
        body.push_str("<p>Which account?</p><ul>");
        for name in accounts {
            let name = escape(name);
            body.push_str(&format!("<li><a href=\"/-/login/{name}\">{name}</a></li>"));
        }
        body.push_str("</ul>");
    }
    page("Log in", "", &body)
}

/// Takes the fragment, which no server ever sees, and posts it here.
pub(super) fn fragment() -> Html<String> {
    let body = "<h1>Logging in</h1><p id=\"fragment\" role=\"status\">One moment.</p>\
        <noscript><p>This page needs JavaScript to read its own address. Without it, log in with \
        <code>cnblogs-proxy login</code> in a terminal.</p></noscript>\
        <form method=\"post\" action=\"/-/callback\" id=\"bring\"></form>";
    page("Logging in", "", body)
}

/// A login that is in use.
pub(super) fn logged_in(account: &str, done: &LoginDone) -> Html<String> {
    let who = done.person.as_deref().map(|name| format!(" as <b>{}</b>", escape(name))).unwrap_or_default();
    let until = done.login_expires_at.as_deref().map_or_else(
        || "The server does not end this login by itself.".to_owned(),
        |at| format!("This login lasts until <time>{}</time>; you will be told before.", escape(at)),
    );
    let remarks: String =
        done.remarks.iter().map(|text| format!("<p class=\"warning\">{}</p>", escape(text))).collect();
    let body = format!(
        "<h1>Logged in</h1><p>Account <b>{}</b> is logged in{who}. {until}</p>{remarks}\
         <p>Requests to this proxy carry a fresh token from now on. You can close this page and the other tab.</p>\
         <p><a href=\"/-/\">Status</a></p>",
        escape(account)
    );
    page("Logged in", "", &body)
}

/// Somebody else is logged in: asks whether to replace that login.
pub(super) fn confirm(account: &str, asked: &Confirmation, secret: &str) -> Html<String> {
    let name = escape(account);
    let body = format!(
        "<h1>Another person</h1><p>Account <b>{name}</b> is logged in as <b>{}</b>, and you logged in as \
         <b>{}</b>. Programs that use this proxy would act as <b>{}</b> from now on.</p>\
         <form method=\"post\" action=\"/-/login/{name}\">\
         <input type=\"hidden\" name=\"page\" value=\"{}\"><input type=\"hidden\" name=\"confirm\" value=\"{}\">\
         <button type=\"submit\" name=\"answer\" value=\"yes\">Replace the login</button> \
         <button type=\"submit\" name=\"answer\" value=\"no\" class=\"plain\">Keep the old one</button></form>",
        escape(&asked.stored),
        escape(&asked.new),
        escape(&asked.new),
        escape(secret),
        escape(&asked.id)
    );
    page("Another person", "", &body)
}

/// A no to [`confirm`].
pub(super) fn declined(account: &str) -> Html<String> {
    let body = format!(
        "<h1>Nothing changed</h1><p>The new login was revoked; account <b>{}</b> is as it was.</p>\
         <p><a href=\"/-/\">Status</a></p>",
        escape(account)
    );
    page("Nothing changed", "", &body)
}

/// A login that came to nothing.
pub(super) fn failed(account: &str, reason: &str) -> Html<String> {
    let again =
        if account.is_empty() { "/-/login".to_owned() } else { format!("/-/login/{}", escape(account)) };
    let body = format!(
        "<h1>Not logged in</h1><p class=\"warning\">{}</p>\
         <p>Nothing was changed. <a href=\"{again}\">Start again</a></p>",
        escape(reason)
    );
    page("Not logged in", "", &body)
}

fn account(name: &str, status: &Status, secret: &str) -> String {
    let (name, secret) = (escape(name), escape(secret));
    let row = |label: &str, value: Option<&String>| {
        value.map(|value| format!("<dt>{label}</dt><dd>{}</dd>", escape(value))).unwrap_or_default()
    };
    let failure = status.last_refresh.as_ref().and_then(|last| last.error.as_ref());
    let events: String = status
        .events
        .iter()
        .rev()
        .map(|notice| {
            format!(
                "<li><time>{}</time> <b>{}</b>: {}</li>",
                escape(&notice.at),
                notice.event.as_str(),
                escape(&notice.message)
            )
        })
        .collect();
    let button = |action: &str, label: &str| {
        format!(
            "<form method=\"post\" action=\"/-/{action}/{name}\"><input type=\"hidden\" name=\"page\" \
             value=\"{secret}\"><button type=\"submit\" class=\"plain\">{label}</button></form>"
        )
    };
    let mut buttons = String::new();
    if status.grant != "personal_access_token" {
        buttons.push_str(&button("refresh", "Refresh now"));
    }
    if status.grant == "authorization_code" {
        buttons.push_str(&format!("<a class=\"button\" href=\"/-/login/{name}\">Log in</a>"));
        if status.state != State::LoginRequired {
            buttons.push_str(&button("logout", "Log out"));
        }
    }
    format!(
        "<section data-account=\"{name}\"><h2>{name} <span class=\"state {state}\">{state}</span></h2><dl>{}{}{}{}{}</dl>\
         <div class=\"buttons\">{buttons}</div><ul class=\"events\">{events}</ul></section>",
        row("Person", status.person.as_ref()),
        row("Token expires", status.expires_at.as_ref()),
        row("Next refresh", status.next_refresh_at.as_ref()),
        row("Login ends", status.login_expires_at.as_ref()),
        row("Last failure", failure),
        state = status.state.as_str(),
    )
}

/// The referrer policy in the page, unlike the one in its head, lets a browser name our own origin to ourselves:
/// under `no-referrer` its forms would come from `Origin: null`.
fn page(title: &str, attributes: &str, body: &str) -> Html<String> {
    Html(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"referrer\" content=\"same-origin\">\
         <title>{title} - cnblogs-proxy</title><link rel=\"icon\" href=\"/-/icon.svg\">\
         <link rel=\"stylesheet\" href=\"/-/page.css\"><script src=\"/-/page.js\" defer></script></head>\
         <body {attributes}><main>{body}</main></body></html>"
    ))
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_elses_words_are_text() {
        let Html(page) = failed("main", "<script>alert(\"1\")</script>");

        assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;"));
    }
}
