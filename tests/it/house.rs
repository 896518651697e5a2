//! The rules of the house that a compiler does not check: imports point one way, and what only few may do stays
//! with those few.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{ItemMod, UseTree};

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
            "config/database.rs",
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

/// A task, thread or process outlives what started it: whoever starts one owns it and waits for its end.
#[test]
fn only_a_few_files_start_tasks_threads_and_processes() {
    let starts = |file: &PathBuf| {
        let mut calls = Calls::default();
        calls.visit_file(&parsed(file));
        calls.0.iter().any(|name| name == "spawn" || name.starts_with("spawn_"))
    };
    let starting: BTreeSet<_> =
        sources().iter().filter(|file| starts(file)).map(|file| name_of(file)).collect();
    assert_eq!(
        starting,
        names(&[
            "cli.rs",
            "cli/log/repeats.rs",
            "cli/login/terminal.rs",
            "cli/run/child.rs",
            "cli/run/proxy.rs",
            "cli/run/site.rs",
            "config/users.rs",
            "notify/command.rs",
            "oauth/discovery.rs",
            "proxy/upstream.rs",
            "server.rs",
            "server/accept.rs",
            "server/reload.rs",
            "server/service.rs",
            "session.rs",
            "store/files.rs",
        ])
    );
}

/// A file may know those in its own folder's face (`a.rs` for `a/b.rs`), and that its folder's files. Beside that, no
/// two files know each other, in however many steps.
#[test]
fn no_files_import_each_other() {
    let modules: BTreeSet<_> = sources().iter().map(|file| module_path(file)).collect();
    let mut imports = BTreeMap::new();
    for file in sources() {
        let module = module_path(&file);
        let mut paths = Paths::default();
        paths.visit_file(&parsed(&file));
        let known = paths.0.iter().filter_map(|path| resolved(&modules, &module, path));
        let beside: BTreeSet<_> = known.filter(|known| !module.starts_with(known)).collect();
        imports.insert(module, beside);
    }
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 200, "{imports:?}");

    for module in imports.keys() {
        let (mut known, mut next) = (BTreeSet::new(), Vec::from_iter(&imports[module]));
        while let Some(module) = next.pop() {
            if known.insert(module) {
                next.extend(&imports[module]);
            }
        }
        assert!(!known.contains(module), "{module:?} imports itself by way of {known:?}");
    }
}

/// The methods and functions that code calls.
#[derive(Default)]
struct Calls(Vec<String>);

impl<'ast> Visit<'ast> for Calls {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        visit_unless_test(self, item);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.0.push(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.extend(path.segments.last().map(|last| last.ident.to_string()));
        visit::visit_path(self, path);
    }
}

/// The paths that code names, in `use` and elsewhere.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn add_tree(&mut self, before: &[String], tree: &UseTree) {
        let joined = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&joined(&path.ident), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
            UseTree::Name(name) => self.0.push(joined(&name.ident)),
            UseTree::Rename(rename) => self.0.push(joined(&rename.ident)),
            UseTree::Glob(_) => self.0.push(before.to_vec()),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        visit_unless_test(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

fn visit_unless_test<'ast>(visitor: &mut impl Visit<'ast>, item: &'ast ItemMod) {
    if item.ident != "tests" {
        visit::visit_item_mod(visitor, item);
    }
}

fn parsed(file: &Path) -> syn::File {
    syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap()
}

/// The segments of a file's module below the crate.
fn module_path(file: &Path) -> Vec<String> {
    let name = name_of(file);
    let segments = name.trim_end_matches(".rs").split('/').map(str::to_owned);
    segments.filter(|segment| !["lib", "main"].contains(&segment.as_str())).collect()
}

/// The module whose file a path in `module` leads to; none when it leads out of the crate.
fn resolved(modules: &BTreeSet<Vec<String>>, module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut from = module.to_vec();
    let mut rest = path;
    while let [first, more @ ..] = rest {
        match first.as_str() {
            "crate" => from.clear(),
            "super" => drop(from.pop()),
            "self" => {}
            _ => break,
        }
        rest = more;
    }
    let is_child = |name: &String| modules.contains(&[&from[..], std::slice::from_ref(name)].concat());
    if rest.len() == path.len() && !path.first().is_some_and(is_child) {
        return None;
    }
    let whole = [&from[..], rest].concat();
    (0..=whole.len()).rev().map(|length| whole[..length].to_vec()).find(|path| modules.contains(path))
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

/// The library stands without its tests: what its own tests read lies beside it.
#[test]
fn no_file_of_the_library_names_the_tests_around_it() {
    for file in files_below("src") {
        let text = fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&text);
        let is_word = |before: &str| before.ends_with(|letter: char| letter.is_ascii_alphanumeric());
        let names = text.match_indices("tests/").any(|(at, _)| !is_word(&text[..at]));
        assert!(!names, "{}", file.display());
    }
}

#[test]
fn every_seed_and_every_fuzz_target_is_played() {
    let stems = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(Path::new(ROOT).join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let is_properties = |file: &PathBuf| file.ends_with("properties.rs");
    let properties = files_below("src").into_iter().filter(is_properties);
    let properties: String = properties.map(|file| fs::read_to_string(file).unwrap()).collect();
    let manifest = fs::read_to_string(Path::new(ROOT).join("tests/fuzz/Cargo.toml")).unwrap();
    let targets = stems("tests/fuzz/targets");

    assert!(targets.len() > 10, "{targets:?}");
    assert!(stems("src/testing/seeds").is_subset(&targets));
    for target in targets {
        assert!(manifest.contains(&format!("\nname = \"{target}\"\n")), "{target} is in no manifest");
        assert!(properties.contains(&format!("holds(\"{target}\", ")), "{target} is in no test");
    }
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
    let is_code = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "rs");
    let found: Vec<_> =
        files_below("src").into_iter().filter(|file| is_code(file) && !is_test(file)).collect();
    assert!(found.len() > 30, "only {} files were found", found.len());
    found
}

fn files_below(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![Path::new(ROOT).join(folder)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { found.push(path) }
        }
    }
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
