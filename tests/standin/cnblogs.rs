//! A few real operations of Cnblogs, with the field names and types that its clients read, and plausible content. The
//! blog backend, which is another host in reality, is in `blog.rs`.

use serde_json::{Value, json};
use url::form_urlencoded;

use super::authorize::Person;
use super::blog::{self, Blog};
use super::grants::Bearer;
use super::reply::Answer;
use super::request::RecordedRequest;

/// What people have written.
#[derive(Debug, Default)]
pub(crate) struct Content {
    statuses: Vec<Status>,
    bookmarks: Vec<Bookmark>,
    blog: Blog,
    made: u64,
}

#[derive(Debug)]
struct Status {
    id: u64,
    person: Person,
    content: String,
    is_private: bool,
}

#[derive(Debug)]
struct Bookmark {
    id: u64,
    person: Person,
    title: String,
    url: String,
    tags: Vec<String>,
}

/// Answers an operation under `/api/`; names are taken in any case, as the real one does.
pub(crate) fn answer(content: &mut Content, head: &RecordedRequest, body: &[u8], bearer: Bearer) -> Answer {
    let path = head.path().to_ascii_lowercase();
    let segments: Vec<&str> = path.split('/').skip(2).collect();
    match (head.method.as_str(), segments.as_slice()) {
        ("GET", ["users"]) => with_user(bearer, |person| Answer::json(200, &user(person))),
        ("GET", ["blogs", app]) => Answer::json(200, &blog(app)),
        ("GET", ["blogs", app, "posts"]) => page(head, [post(1, app), post(2, app)]),
        ("GET", ["blog", "v2", "blogposts"]) => {
            with_user(bearer, |person| page(head, [post(1, alias_of(person))]))
        }
        ("GET", ["blogs", _, "posts", _, "comments"]) => page(head, [comment()]),
        ("POST", ["blogs", _, "posts", _, "comments"]) => with_user(bearer, |_| Answer::status(200)),
        ("GET", ["blogposts", "@sitehome" | "@picked"]) => {
            page(head, [post(101, "alice"), post(102, "bob"), post(103, "alice")])
        }
        ("GET", ["blogposts" | "newsitems" | "kbarticles", id, "body"]) => {
            Answer::json(200, &json!(format!("<p>正文 {id}: Hello, 世界 &amp; Rust.</p>")))
        }
        ("GET", ["newsitems"] | ["newsitems", "@hot" | "@hot-week" | "@recommended"]) => {
            page(head, [news(7001), news(7002)])
        }
        ("GET", ["questions", "@sitehome" | "@unsolved" | "@highscore"]) => {
            page(head, [question(501), question(502)])
        }
        ("GET", ["questions", id]) => Answer::json(200, &question(id.parse().unwrap_or(501))),
        ("POST", ["questions"]) => with_user(bearer, |_| Answer::json(201, &question(503))),
        ("PATCH" | "DELETE", ["questions", _]) => with_user(bearer, |_| Answer::status(200)),
        ("GET", ["zzkdocuments", _]) => Answer::status(200),
        (_, ["statuses", rest @ ..]) => statuses(content, head, body, bearer, rest),
        (_, ["bookmarks", rest @ ..]) => {
            with_user(bearer, |person| bookmarks(content, head, body, person, rest))
        }
        (_, ["posts" | "category" | "tags" | "settings", ..]) => {
            with_user(bearer, |person| blog::answer(&mut content.blog, head, body, person, &segments))
        }
        _ => not_found(),
    }
}

fn statuses(
    content: &mut Content,
    head: &RecordedRequest,
    body: &[u8],
    bearer: Bearer,
    rest: &[&str],
) -> Answer {
    match (head.method.as_str(), rest) {
        ("GET", ["@all" | "recent"]) => {
            page(head, content.statuses.iter().filter(|status| !status.is_private).map(status))
        }
        ("GET", [kind]) if kind.starts_with('@') => with_user(bearer, |person| {
            page(head, content.statuses.iter().filter(|status| status.person == person).map(status))
        }),
        ("GET", [id]) => {
            let mut all = content.statuses.iter();
            let found = all.find(|status| status.id.to_string() == *id && !status.is_private);
            found.map_or_else(not_found, |found| Answer::json(200, &status(found)))
        }
        ("POST", [] | [""]) => with_user(bearer, |person| {
            content.made += 1;
            let (text, is_private) = (value(head, body, "Content"), value(head, body, "IsPrivate") == "true");
            content.statuses.push(Status { id: content.made, person, content: text, is_private });
            Answer::json(200, &content.statuses.last().map(status).unwrap_or_default())
        }),
        ("DELETE", [id]) => with_user(bearer, |person| {
            let before = content.statuses.len();
            content.statuses.retain(|status| status.person != person || status.id.to_string() != *id);
            if content.statuses.len() < before { Answer::status(200) } else { not_found() }
        }),
        ("GET", [.., id, "comments"]) => page(head, [status_comment(id.parse().unwrap_or(1))]),
        ("POST", [.., "comments"]) => with_user(bearer, |_| Answer::status(200)),
        _ => not_found(),
    }
}

fn bookmarks(
    content: &mut Content,
    head: &RecordedRequest,
    body: &[u8],
    person: Person,
    rest: &[&str],
) -> Answer {
    let asked_url = query(head, "url");
    let mut own = content.bookmarks.iter().filter(|bookmark| bookmark.person == person);
    match (head.method.as_str(), rest) {
        ("HEAD", []) => match asked_url {
            Some(url) if !own.any(|bookmark| bookmark.url == url) => Answer::status(404),
            Some(_) => Answer::status(200),
            None => Answer::status(200).with("X-Count", &own.count().to_string()),
        },
        ("GET", []) => {
            let all: Vec<Value> = own.map(bookmark).collect();
            let count = all.len().to_string();
            page(head, all).with("X-Count", &count)
        }
        ("POST", []) => {
            let url = value(head, body, "LinkUrl");
            if own.any(|bookmark| bookmark.url == url) {
                return Answer::json(409, &json!({ "Message": "已经收藏过了" }));
            }
            content.made += 1;
            let (id, title) = (content.made, value(head, body, "Title"));
            let tags = value(head, body, "Tags")
                .split(',')
                .map(str::trim)
                .filter(|tag| !tag.is_empty())
                .map(str::to_owned)
                .collect();
            content.bookmarks.push(Bookmark { id, person, title, url, tags });
            Answer::status(201).with("Location", &format!("/api/bookmarks/{id}"))
        }
        ("PATCH", [id]) => {
            let mut all = content.bookmarks.iter_mut();
            let found = all.find(|bookmark| bookmark.person == person && bookmark.id.to_string() == *id);
            let Some(found) = found else { return not_found() };
            found.title = value(head, body, "Title");
            Answer::status(200)
        }
        ("DELETE", _) => {
            let before = content.bookmarks.len();
            let id = rest.first().copied();
            content.bookmarks.retain(|bookmark| {
                let meant =
                    id == Some(bookmark.id.to_string().as_str()) || asked_url.as_ref() == Some(&bookmark.url);
                bookmark.person != person || !meant
            });
            if content.bookmarks.len() < before { Answer::status(200) } else { not_found() }
        }
        _ => not_found(),
    }
}

fn with_user(bearer: Bearer, answer: impl FnOnce(Person) -> Answer) -> Answer {
    match bearer {
        Bearer::User(person) => answer(person),
        Bearer::Application => Answer::json(403, &json!({ "Message": "需要用户登录授权" })),
    }
}

pub(super) fn not_found() -> Answer {
    Answer::json(404, &json!({ "Message": "No HTTP resource was found that matches the request URI." }))
}

/// The part of a list that `pageIndex`, from 1, and `pageSize` ask for.
fn page(head: &RecordedRequest, all: impl IntoIterator<Item = Value>) -> Answer {
    let (index, size) = (number(head, &["pageIndex"], 1), number(head, &["pageSize"], 10));
    let part = all.into_iter().skip(index.saturating_sub(1).saturating_mul(size)).take(size);
    Answer::json(200, &part.collect::<Vec<_>>().into())
}

/// The number that a query gives under one of these names.
pub(super) fn number(head: &RecordedRequest, names: &[&str], default: usize) -> usize {
    let given = names.iter().find_map(|name| query(head, name)?.parse().ok());
    given.unwrap_or(default)
}

const fn alias_of(person: Person) -> &'static str {
    match person {
        Person::Alice => "alice",
        Person::Bob => "bob",
    }
}

/// The number of a person's space.
const fn space_of(person: Person) -> u64 {
    match person {
        Person::Alice => 1_000_001,
        Person::Bob => 1_000_002,
    }
}

/// Bob has no blog.
fn user(person: Person) -> Value {
    let (space, has_blog) = (space_of(person), person == Person::Alice);
    json!({
        "UserId": person.user_id(), "SpaceUserID": space, "AccountId": space + 1_000_000,
        "BlogId": if has_blog { 100_001 } else { 0 }, "DisplayName": person.display_name(),
        "Face": "https://pic.cnblogs.com/face/1.png", "Avatar": "https://pic.cnblogs.com/avatar/1.png",
        "Seniority": "12年5个月", "BlogApp": has_blog.then(|| alias_of(person)), "FollowingCount": 7,
        "FollowerCount": 42, "IsVip": false, "Joined": "2012-01-05T08:30:00",
    })
}

fn blog(app: &str) -> Value {
    json!({
        "blogId": 100_001, "title": format!("{app} 的博客"), "subtitle": "学而时习之 / learn and practise",
        "postCount": 42, "pageSize": 10, "enableScript": true,
    })
}

fn post(id: u64, app: &str) -> Value {
    json!({
        "Id": id, "Title": format!("用 Rust 写一个反向代理 ({id})"),
        "Url": format!("https://www.cnblogs.com/{app}/p/{id}.html"),
        "Description": "令牌、连接与流 - tokens, connections and streams", "Author": app, "BlogApp": app,
        "Avatar": "https://pic.cnblogs.com/avatar/1.png", "PostDate": "2024-05-01T08:30:00",
        "ViewCount": 1024, "CommentCount": 3, "DiggCount": 16,
    })
}

fn comment() -> Value {
    json!({
        "Id": 9001, "Body": "写得好! Well said.", "Author": "bob", "AuthorUrl": "https://www.cnblogs.com/bob/",
        "FaceUrl": "https://pic.cnblogs.com/face/2.png", "Floor": 1, "DateAdded": "2024-05-01T09:00:00",
    })
}

fn news(id: u64) -> Value {
    json!({
        "Id": id, "Title": "Rust 新版本发布", "Summary": "更快、更稳 - faster and steadier", "TopicId": 5,
        "TopicIcon": "https://images0.cnblogs.com/news_topic/rust.png", "ViewCount": 300, "CommentCount": 2,
        "DiggCount": 8, "DateAdded": "2024-05-02T10:00:00",
    })
}

fn question(id: u64) -> Value {
    json!({
        "Qid": id, "Title": "如何刷新令牌? How is a token refreshed?", "Content": "<p>求助</p>", "ViewCount": 12,
        "AnswerCount": 1, "Award": 20, "DateAdded": "2024-05-03T11:00:00",
    })
}

fn status(status: &Status) -> Value {
    json!({
        "Id": status.id, "Content": status.content, "IsPrivate": status.is_private, "IsLucky": false,
        "CommentCount": 0, "DateAdded": "2024-05-04T12:00:00", "UserAlias": alias_of(status.person),
        "UserDisplayName": status.person.display_name(), "UserIconUrl": "https://pic.cnblogs.com/face/1.png",
        "UserId": space_of(status.person), "UserGuid": status.person.user_id(), "SendFrom": 5, "Icons": "",
    })
}

fn status_comment(status_id: u64) -> Value {
    let person = Person::Bob;
    json!({
        "Id": 9002, "Content": "写得好! Well said.", "DateAdded": "2024-05-04T12:30:00", "StatusId": status_id,
        "UserAlias": alias_of(person), "UserDisplayName": person.display_name(),
        "UserIconUrl": "https://pic.cnblogs.com/face/2.png", "UserId": space_of(person),
        "UserGuid": person.user_id(),
    })
}

fn bookmark(bookmark: &Bookmark) -> Value {
    json!({
        "WzLinkId": bookmark.id, "Title": bookmark.title, "LinkUrl": bookmark.url, "Summary": "",
        "Tags": bookmark.tags, "DateAdded": "2024-05-05T13:00:00",
        "FromCNBlogs": bookmark.url.contains("cnblogs.com"),
    })
}

/// A member of the content, JSON or form, as text; those of a list apart by commas.
fn value(head: &RecordedRequest, body: &[u8], name: &str) -> String {
    let media_type = head.fields_named("content-type").join("").to_ascii_lowercase();
    if media_type.contains("json") {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        return text(&value[name]);
    }
    let mut pairs = form_urlencoded::parse(body);
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn query(head: &RecordedRequest, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(head.query().as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
