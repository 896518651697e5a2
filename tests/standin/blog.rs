//! The blog backend of Cnblogs (`https://write.cnblogs.com/api`): a person's own posts, as its editors read and write
//! them.

use serde_json::{Map, Value, json};

use super::authorize::Person;
use super::cnblogs::{not_found, number};
use super::reply::Answer;
use super::request::RecordedRequest;

/// The posts of all persons, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Blog {
    posts: Vec<(Person, Map<String, Value>)>,
}

/// Answers an operation; the path is given by its segments behind `/api/`, in small letters.
pub(crate) fn answer(
    blog: &mut Blog,
    head: &RecordedRequest,
    body: &[u8],
    person: Person,
    segments: &[&str],
) -> Answer {
    match (head.method.as_str(), segments) {
        ("GET", ["posts", "list"]) => list(blog, head, person),
        ("GET", ["posts", "-1"]) => Answer::json(200, &json!({ "blogPost": empty_post(), "myConfig": {} })),
        ("GET", ["posts", id]) => match position(blog, person, id) {
            Some(at) => Answer::json(200, &json!({ "blogPost": blog.posts[at].1, "myConfig": {} })),
            None => not_found(),
        },
        ("POST", ["posts"]) => save(blog, head, body, person),
        ("DELETE", ["posts", id]) => match position(blog, person, id) {
            Some(at) => {
                blog.posts.remove(at);
                Answer::status(200)
            }
            None => not_found(),
        },
        ("POST", ["posts", "body", "images"]) => upload(head, body),
        ("GET", ["category", "blog"]) => {
            Answer::json(200, &json!([{ "categoryId": 1, "title": "随笔", "visible": true, "count": 1 }]))
        }
        ("GET", ["tags", "list"]) => Answer::json(200, &json!([{ "id": 1, "name": "Rust", "useCount": 1 }])),
        ("GET", ["settings"]) => {
            Answer::json(200, &json!({ "title": "alice 的博客", "subTitle": "", "codeHighlightEngine": 1 }))
        }
        _ => not_found(),
    }
}

/// A page of a person's posts without their bodies, the newest first.
fn list(blog: &Blog, head: &RecordedRequest, person: Person) -> Answer {
    let own: Vec<_> = blog.posts.iter().rev().filter(|(owner, _)| *owner == person).collect();
    let (index, size) = (number(head, &["pageIndex", "p"], 1), number(head, &["pageSize", "s"], 10));
    let shown = own.iter().skip(index.saturating_sub(1).saturating_mul(size)).take(size).map(|(_, post)| {
        let mut post = post.clone();
        post.remove("postBody");
        post.remove("tags");
        post.insert("feedBackCount".to_owned(), json!(0));
        Value::Object(post)
    });
    let list = shown.collect::<Vec<_>>();
    let counts = json!({ "postList": list, "postsCount": own.len(), "pageIndex": index, "pageSize": size });
    Answer::json(200, &counts)
}

/// A post without an `id` of ours is a new one.
fn save(blog: &mut Blog, head: &RecordedRequest, body: &[u8], person: Person) -> Answer {
    let media_type = head.fields_named("content-type").join("").to_ascii_lowercase();
    if !media_type.starts_with("application/json") {
        return Answer::json(415, &json!({ "Message": "Unsupported Media Type" }));
    }
    let Ok(Value::Object(given)) = serde_json::from_slice(body) else {
        return Answer::json(400, &json!({ "Message": "请求的内容不是有效的 JSON" }));
    };
    if given.get("title").and_then(Value::as_str).is_none_or(|title| title.trim().is_empty()) {
        return Answer::json(400, &json!({ "Message": "标题不能为空" }));
    }
    let id = given.get("id").and_then(Value::as_i64).unwrap_or(-1);
    let at = match position(blog, person, &id.to_string()) {
        Some(at) => at,
        None if id > 0 => return not_found(),
        None => {
            let newest = blog.posts.iter().filter_map(|(_, post)| post["id"].as_i64()).max();
            let mut post = empty_post();
            post.insert("id".to_owned(), json!(newest.unwrap_or(18_000_000) + 1));
            blog.posts.push((person, post));
            blog.posts.len() - 1
        }
    };
    let post = &mut blog.posts[at].1;
    let id = post["id"].clone();
    post.extend(given);
    post.insert("url".to_owned(), json!(format!("//www.cnblogs.com/alice/p/{id}")));
    post.insert("id".to_owned(), id);
    Answer::json(200, &Value::Object(post.clone()))
}

/// The address of a picture that came as the part `image` of a form.
fn upload(head: &RecordedRequest, body: &[u8]) -> Answer {
    let media_type = head.fields_named("content-type").join("");
    let is_form = media_type.starts_with("multipart/form-data; boundary=");
    let named = b"name=\"image\"; filename=";
    if is_form && body.windows(named.len()).any(|bytes| bytes == named) {
        return Answer::json(200, &json!("https://img2024.cnblogs.com/blog/100001/202405/1.png"));
    }
    Answer::json(400, &json!({ "Message": "请选择要上传的图片" }))
}

fn position(blog: &Blog, person: Person, id: &str) -> Option<usize> {
    let id: u64 = id.parse().ok()?;
    blog.posts.iter().position(|(owner, post)| *owner == person && post["id"] == id)
}

fn empty_post() -> Map<String, Value> {
    let Value::Object(post) = json!({
        "id": -1, "postType": 1, "accessPermission": 0, "title": "", "url": "", "postBody": "", "author": "alice",
        "datePublished": "2024-05-01T08:30:00", "dateUpdated": "2024-05-01T08:30:00", "description": "",
        "categoryIds": [], "tags": [], "entryName": null, "password": null, "isMarkdown": false, "isDraft": false,
        "isPinned": false, "isPublished": false, "isAllowComments": true, "inSiteHome": false,
        "inSiteCandidate": false, "displayOnHomePage": true,
    }) else {
        return Map::new();
    };
    post
}
