//! The rules of the house that a compiler does not check: imports point one way, and what only few may do stays
//! with those few.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Modules that stand on one layer and do not know each other, outermost first.
const LAYERS: [&[&str]; 9] = [
    &["cli"],
    &["server"],
    &["control", "proxy"],
    &["problem"],
    &["session"],
    &["store", "oauth"],
    &["notify", "metrics"],
    &["config"],
    &["heartbeat", "processes", "tls", "token"],
];

#[test]
fn modules_are_declared_from_the_outermost_layer_to_the_innermost() {
    let text = fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap();
    let declared: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();

    assert_eq!(declared, LAYERS.concat());
}

#[test]
fn imports_point_inwards_and_siblings_do_not_know_each_other() {
    let mut imports = 0;
    for file in sources() {
        let own = module_of(&file);
        let Some(own_layer) = layer_of(&own) else { continue };
        for imported in imported_modules(&fs::read_to_string(&file).unwrap()) {
            let layer = layer_of(&imported).unwrap_or_else(|| panic!("{imported} is on no layer"));
            let is_inwards = layer > own_layer || imported == own;
            assert!(is_inwards, "{} (layer {own_layer}) imports {imported} (layer {layer})", file.display());
            imports += 1;
        }
    }
    assert!(imports > 50, "only {imports} imports were seen");
}

#[test]
fn secrets_are_exposed_in_few_files() {
    assert_eq!(
        files_with("expose_secret()"),
        names(&[
            "cli/run.rs",
            "cli/show.rs",
            "config.rs",
            "config/accounts.rs",
            "config/callers.rs",
            "config/http_proxy.rs",
            "config/store.rs",
            "oauth.rs",
            "oauth/callback.rs",
            "oauth/id_token.rs",
            "oauth/keys.rs",
            "proxy/guard.rs",
            "session/keeper.rs",
            "store/record.rs",
            "store/seal.rs",
            "token.rs",
        ])
    );
}

#[test]
fn only_a_few_files_start_tasks() {
    assert_eq!(
        files_with("tokio::spawn("),
        names(&[
            "cli/run/child.rs",
            "cli/run/proxy.rs",
            "cli/run/site.rs",
            "proxy/upstream.rs",
            "server.rs",
            "session.rs"
        ]),
        "a task outlives what started it: the keeper, the server and the drivers of connections own theirs"
    );
}

#[test]
fn only_the_command_line_prints_and_reads_the_environment() {
    for forbidden in ["std::env::var", "env::vars", "io::stdout", "io::stderr", "stdin()"] {
        let outside: Vec<_> =
            files_with(forbidden).into_iter().filter(|file| !file.starts_with("cli")).collect();
        assert!(outside.is_empty(), "{forbidden} stands in {outside:?}");
    }
}

#[test]
fn only_the_token_module_reads_the_wall_clock() {
    assert!(files_with("ClockId::Realtime").is_empty());
    assert_eq!(files_with("SystemTime::now"), names(&["token.rs"]));
}

/// What events are told with stands twice: in English where it is told, and in every language where it is shown.
#[test]
fn the_pages_know_all_words_that_events_are_told_with() {
    let words = fs::read_to_string(Path::new(ROOT).join("src/control/pages/words.toml")).unwrap();
    let known = words.split("\n[said").skip(1).map(|word| {
        let english = word.lines().find_map(|line| line.strip_prefix("en = \"")?.strip_suffix('"'));
        english.unwrap_or_else(|| panic!("no English in {word}")).to_owned()
    });
    let known: BTreeSet<_> = known.collect();

    let mut told = BTreeSet::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        for call in ["Text::from(", ".words("] {
            told.extend(text.split(call).skip(1).filter_map(literal));
        }
    }

    assert_eq!(told, known);
    assert!(told.len() > 20, "only {} were seen", told.len());
}

/// The string literal that code begins with, its lines joined as the compiler does.
fn literal(code: &str) -> Option<String> {
    let text = code.trim_start().strip_prefix('"')?;
    let text = text.split_once('"')?.0;
    let mut lines = text.split("\\\n");
    let first = lines.next()?.to_owned();
    Some(lines.fold(first, |joined, line| joined + line.trim_start()))
}

/// The program's own files, without those that are tests.
fn sources() -> Vec<PathBuf> {
    let is_test = |file: &Path| {
        let name = name_of(file);
        ["testing", "session/histories"].iter().any(|tests| name.starts_with(tests))
            || name.ends_with("properties.rs")
    };
    let mut found = Vec::new();
    let mut directories = vec![Path::new(ROOT).join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(&path) {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 30, "only {} files were found", found.len());
    found
}

/// The path below `src`.
fn name_of(file: &Path) -> String {
    file.strip_prefix(Path::new(ROOT).join("src")).unwrap().display().to_string()
}

/// The top module that a file belongs to.
fn module_of(file: &Path) -> String {
    name_of(file).split(['/', '.']).next().unwrap().to_owned()
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The top modules that follow `crate::` in code, in tests at a file's foot as well.
fn imported_modules(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        if layer_of(&rest[..end]).is_some() {
            found.insert(rest[..end].to_owned());
        }
    }
    found
}

fn files_with(text: &str) -> BTreeSet<String> {
    let has = |file: &PathBuf| fs::read_to_string(file).unwrap().contains(text);
    sources().iter().filter(|file| has(file)).map(|file| name_of(file)).collect()
}

fn names(files: &[&str]) -> BTreeSet<String> {
    files.iter().map(|file| (*file).to_owned()).collect()
}
