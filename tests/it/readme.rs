//! What the README tells whoever has a personal access token, in English and in Chinese, done to the letter: with the
//! stand-in in the place of both hosts, a free port in the place of 8262, and a home of its own.

use std::collections::BTreeMap;
use std::path::Path;

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

/// A row of a table is one line, which only the first document keeps short.
#[test]
fn the_documents_fit_a_page_and_a_line() {
    let changes = ("deploy/CHANGELOG.md", include_str!("../../deploy/CHANGELOG.md"));
    for (path, text) in DOCUMENTS.into_iter().chain([changes]) {
        let is_long = |line: &&str| line.chars().count() > 120;
        let may_be_long = |line: &str| path != "README.md" && line.starts_with('|');
        assert_eq!(text.lines().find(|line| is_long(line) && !may_be_long(line)), None, "{path}");
    }
    assert!(README.lines().count() <= 250, "README.md has {} lines", README.lines().count());
}
