//! The documents: their links, contents and lines, and that they name what the program has.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use cnblogs_proxy::notify::Event;

pub(crate) const README: &str = include_str!("../../README.md");

/// The four documents, with their paths from the root of the repository.
const DOCUMENTS: [(&str, &str); 4] = [
    ("README.md", README),
    ("config/README.md", include_str!("../../config/README.md")),
    ("deploy/README.md", include_str!("../../deploy/README.md")),
    ("tests/README.md", include_str!("../../tests/README.md")),
];

/// A document without its fenced blocks.
fn prose(document: &str) -> String {
    format!("\n{document}").split("\n```").step_by(2).collect()
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let keep = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(keep).collect::<String>().replace(' ', "-")
}

/// The headings of a document, from a level on downwards.
fn headings(document: &str) -> Vec<String> {
    let prose = prose(document);
    let marked = prose.lines().filter(|line| line.starts_with("##"));
    marked.map(|line| line.trim_start_matches('#').trim().to_owned()).collect()
}

#[test]
fn every_link_and_anchor_of_the_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let anchors: BTreeMap<_, Vec<_>> = DOCUMENTS
        .iter()
        .map(|(path, text)| {
            (root.join(path).canonicalize().unwrap(), headings(text).iter().map(|h| anchor(h)).collect())
        })
        .collect();
    let mut count = 0;
    for (path, text) in DOCUMENTS {
        let prose = prose(text);
        let links = prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let from = root.join(path);
            let to = if file.is_empty() { from } else { from.parent().unwrap().join(file) };
            let to = to.canonicalize().unwrap_or_else(|error| panic!("{path}: {link}: {error}"));
            let is_there = fragment.is_empty() || anchors[&to].iter().any(|anchor| anchor == fragment);
            assert!(is_there, "{path}: {link} names no heading");
            count += 1;
        }
    }
    assert!(count > 60, "only {count} links were followed");
}

#[test]
fn the_documents_beside_the_first_one_begin_with_their_contents() {
    for (path, text) in &DOCUMENTS[1..] {
        let prose = prose(text);
        let chapters: Vec<_> = prose.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert!(chapters.len() > 4, "{path}: {chapters:?}");
        for chapter in chapters {
            let entry = format!("- [{chapter}](#{})\n", anchor(chapter));
            assert!(text.contains(&entry), "{path}: {chapter} is not in the contents");
        }
    }
}

#[test]
fn the_documents_fit_a_page_and_a_line() {
    let changes = ("deploy/CHANGELOG.md", include_str!("../../deploy/CHANGELOG.md"));
    for (path, text) in DOCUMENTS.into_iter().chain([changes]) {
        assert_eq!(text.lines().find(|line| line.chars().count() > 120), None, "{path}");
    }
    assert!(README.lines().count() <= 250, "README.md has {} lines", README.lines().count());
}

/// Where the Debian package has files of ours, by their paths here: `assets` in `Cargo.toml`.
fn packaged() -> BTreeMap<String, PathBuf> {
    let manifest = include_str!("../../Cargo.toml");
    let (_, assets) = manifest.split_once("\nassets = [\n").unwrap();
    let rows = assets.lines().take_while(|line| *line != "]");
    let mut found = BTreeMap::new();
    for row in rows {
        let [_, source, _, to, ..] = row.split('"').collect::<Vec<_>>()[..] else { panic!("what is {row}?") };
        match source.strip_suffix("/*") {
            Some(directory) => found.insert(directory.to_owned(), Path::new("/").join(to)),
            None => found.insert(source.to_owned(), Path::new("/").join(to).join(name_of(source))),
        };
    }
    found
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// A path without what leads up and down again.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        if part == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(part);
        }
        plain
    })
}

/// Their links lead from one to the other there as they do here.
#[test]
fn what_the_package_has_of_the_documents_and_their_examples_lies_as_it_does_here() {
    let packaged = packaged();
    let mut count = 0;
    for (path, text) in DOCUMENTS {
        let prose = prose(text);
        let links = prose.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap());
        for link in links.filter(|link| !link.is_empty() && !link.starts_with("http")) {
            let target = plain(&Path::new(path).parent().unwrap().join(link));
            let Some(there) = packaged.get(&*target.to_string_lossy()) else { continue };
            // Programs are where programs are.
            if there.starts_with("/usr/lib") {
                continue;
            }
            let followed = plain(&packaged[path].parent().unwrap().join(link));
            assert_eq!(followed, plain(there), "{path}: {link}");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} links were followed");
}

/// A section, up to the next heading of its level or above.
#[track_caller]
fn section(document: &'static str, heading: &str) -> &'static str {
    let (_, rest) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    rest.split("\n## ")
        .next()
        .unwrap()
        .split(&format!("\n{} ", heading.split(' ').next().unwrap()))
        .next()
        .unwrap()
}

/// What stands between two texts, wherever it does.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| Some(rest.split_once(after)?.0)).collect()
}

#[test]
fn every_problem_code_is_explained() {
    let answers = section(DOCUMENTS[1].1, "### The proxy's own answers");
    let facts = include_str!("../../src/problem.rs").split_once("match self {").unwrap().1;
    let facts = facts.split_once("\n    }\n").unwrap().0.replace(char::is_whitespace, "");
    // A code is the text before its status.
    let codes: Vec<_> = facts.split("\",S::").filter_map(|before| Some(before.rsplit_once('"')?.1)).collect();
    let codes = &codes[..codes.len() - 1];

    assert!(codes.len() > 15, "{codes:?}");
    for code in codes {
        assert!(answers.contains(&format!("`{code}`")), "{code} is not explained");
    }
}

/// Those of the pages' own parts nobody asks for by hand, and the private ones are behind commands.
#[test]
fn every_local_route_is_listed() {
    let listed = section(DOCUMENTS[1].1, "### Local routes");
    let router = include_str!("../../src/control.rs").split_once("pub fn router(").unwrap().1;
    let router = router.split_once("\n}\n").unwrap().0;
    let routes = between(router, ".route(\"", "\"");
    let routes: Vec<_> = routes.into_iter().filter(|route| !route.contains('.')).collect();

    assert!(routes.len() > 10, "{routes:?}");
    for route in routes {
        let route = route.replace("{account}", "ACCOUNT");
        assert!(listed.contains(&format!("{route}`")), "{route} is not listed");
    }
}

#[test]
fn every_event_is_explained() {
    let explained = section(DOCUMENTS[2].1, "## When things fail");
    let (_, names) = include_str!("../../src/notify.rs").split_once("pub const fn as_str").unwrap();
    let names = between(names.split_once("\n    }\n").unwrap().0, "=> \"", "\"");

    let words = include_str!("../../src/control/pages/words.toml");

    assert_eq!(Event::ALL.map(Event::as_str).to_vec(), names, "all of them");
    for event in names {
        assert!(explained.contains(&format!("\n- `{event}`: ")), "{event} is not explained");
        let has_words = |key: &str| words.contains(&format!("\n[{key}.{event}]\n"));
        assert!(has_words("event"), "the pages have no words for {event}");
        assert!(has_words("remedy") || event == "recovered", "the pages do not say what to do about {event}");
    }
}
