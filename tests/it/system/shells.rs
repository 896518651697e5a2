//! The manual pages and completion scripts as the programs judge them that they are made for.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::Home;

const COMPLETE: &str = include_str!("../../../config/complete.toml");

#[test]
fn the_manual_pages_have_no_fault_that_mandoc_knows() {
    for page in ["command", "config"] {
        let text = printed(&["man", page]);

        let told = fed("mandoc", &["-T", "lint", "-W", "warning"], &text);

        // The version stands for the date.
        let faults = told.lines().filter(|line| !line.contains("missing date"));
        assert_eq!(faults.collect::<Vec<_>>(), Vec::<&str>::new(), "{page}");
    }
    assert_eq!(printed(&["man"]), printed(&["man", "command"]));
}

#[test]
fn the_manual_page_of_the_configuration_file_explains_every_key() {
    let page = fed("mandoc", &["-T", "ascii", "-O", "width=200"], &printed(&["man", "config"]));

    // Bold is written as a letter, a backspace and the letter again.
    let page: String =
        page.split("\u{8}").map(|part| part.strip_suffix(|_: char| true).unwrap_or(part)).collect();
    let mut keys = 0;
    for line in COMPLETE.lines().map(|line| line.strip_prefix('#').unwrap_or(line)) {
        if line.starts_with('[') {
            assert!(page.contains(&format!("\n   {line}\n")), "{line} is not on {page}");
        } else if let Some((key, value)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            assert!(page.contains(&format!("\n       {key} = {value}")), "{key} is not on {page}");
            keys += 1;
        }
    }
    assert!(keys > 40, "only {keys} keys were looked for");
}

#[test]
fn bash_completes_commands_options_and_values() {
    let script = script_file("bash");
    let complete = |words: &[&str]| {
        let line = format!(
            "set -u; source {}; COMP_WORDS=({}); COMP_CWORD={}; \
             _cnblogs__proxy cnblogs-proxy \"${{COMP_WORDS[-1]}}\" x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.path().join("script").display(),
            words.join(" "),
            words.len() - 1
        );
        output(Command::new("bash").args(["--norc", "-c", &line]))
    };

    assert_eq!(complete(&["cnblogs-proxy", "sta"]), "status\n");
    assert_eq!(complete(&["cnblogs-proxy", "status", "--j"]), "--json\n");
    assert_eq!(complete(&["cnblogs-proxy", "completions", "fi"]), "fish\n");
    assert_eq!(complete(&["cnblogs-proxy", "man", "con"]), "config\n");
    assert_eq!(complete(&["cnblogs-proxy", "store", "re"]), "rekey\n");
    assert_eq!(complete(&["cnblogs-proxy", "sea"]), "seal-key\n");
}

#[test]
fn fish_completes_commands_and_options() {
    let script = script_file("fish");
    let complete = |line: &str| {
        let program = format!("source {}; complete -C '{line}'", script.path().join("script").display());
        output(Command::new("fish").args(["--no-config", "-c", &program]).env("HOME", script.path()))
    };

    assert!(complete("cnblogs-proxy sta").starts_with("status\tShow how the running daemon is"));
    assert!(complete("cnblogs-proxy status --j").starts_with("--json\t"));
    assert!(complete("cnblogs-proxy store re").starts_with("rekey\tSeal every stored login"));
}

#[test]
fn zsh_completes_commands_options_and_values() {
    let script = script_file("zsh");
    // A zsh in a terminal of its own, whose line shows what the tabulator made of it.
    let driver = "zmodload zsh/zpty; zpty shell 'TERM=dumb zsh -f -i'\n\
        zpty -w shell \"PROMPT=; autoload -Uz compinit; compinit -u -D; source $SCRIPT; print rea''dy\"\n\
        zpty -r shell said '*ready*'\n\
        shown() { zpty -w -n shell \"cnblogs-proxy $1\"$'\\t'; zpty -r shell said \"*cnblogs-proxy $2*\"; \
            print -r -- $2; zpty -w -n shell $'\\C-u' }\n\
        shown sta status; shown 'status --j' 'status --json'; shown 'completions fi' 'completions fish'; \
        shown 'man con' 'man config'; shown 'store rek' 'store rekey'\nzpty -d shell\n";

    let mut command = Command::new("timeout");
    command.args(["60", "zsh", "-f", "-c", driver]).env("SCRIPT", script.path().join("script"));
    let shown = output(command.env("HOME", script.path()));

    assert_eq!(shown, "status\nstatus --json\ncompletions fish\nman config\nstore rekey\n");
}

/// A directory with the completion script for a shell in the file `script`.
fn script_file(shell: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("script"), printed(&["completions", shell])).unwrap();
    directory
}

/// What a command of ours prints.
fn printed(arguments: &[&str]) -> String {
    output(&mut Home::new(Vec::new()).command(arguments))
}

/// What a program prints, on either stream, when it is given a text.
fn fed(program: &str, arguments: &[&str], text: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let Output { stdout, stderr, .. } = child.wait_with_output().unwrap();
    String::from_utf8([stdout, stderr].concat()).unwrap()
}

/// What a program prints that succeeds and complains of nothing.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
